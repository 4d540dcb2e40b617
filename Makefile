# `make demo` and `make test` work from any fresh clone with python3, make and pip (uv, if it is there, is faster).
# Everything is installed into .venv; nothing is done outside the checkout.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
BUILD := $(CURDIR)/build/docs
INSTALL := $(shell command -v uv >/dev/null 2>&1 && echo "uv pip install -q --python $(BIN)/python" \
	|| echo "$(BIN)/python -m pip install -q --disable-pip-version-check")

# matplotlib would keep its font list in the home directory
export MPLCONFIGDIR := $(CURDIR)/$(VENV)/matplotlib

.PHONY: demo studies test docs lint clean
.DEFAULT_GOAL := demo

demo: $(VENV)/.installed
	$(BIN)/python -m nml_jax.main --config=configs/digits.py

# Every study that the embedded digits can answer, in one folder: what several share is computed once.
STUDIES := spectra nmtune data_shares regularisers noisy_downstream asymmetric noise_rates tuning_methods

studies: $(VENV)/.installed
	for study in $(STUDIES); do $(BIN)/python -m nml_jax.main --config=configs/studies/$$study.py:digits || exit; done

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder

# The notebooks open two runs of the demo, which are made first. The folder keeps them, and what the notebooks printed.
docs: $(VENV)/.installed-docs
	$(BIN)/python -m nml_jax.main --config=configs/digits.py --workdir=$(BUILD)/digits \
	  --config.sweep.noise='(0.0,0.3)' --config.seed=0 --config.stages="('pretrain','extract')"
	NML_RUN='$(BUILD)/digits/noise=0.3,seed=0' $(BIN)/python -m sphinx -W --keep-going -qE -b html \
	  -D nb_execution_cache_path=$(BUILD)/notebooks docs $(BUILD)/html
	@echo 'documentation: $(BUILD)/html/index.html'

lint: $(VENV)/.installed-test
	$(INSTALL) -c constraints.txt -e '.[lint]'
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

clean:
	rm -rf $(VENV) runs build

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(None if (3, 11) <= sys.version_info < (3, 14) else \
	  "error: $(PYTHON) is %d.%d\n  cure: install Python 3.11 to 3.13, or name one: make PYTHON=python3.12" \
	  % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

$(VENV)/.installed: $(BIN)/python setup.py constraints.txt
	$(INSTALL) -c constraints.txt -e .
	touch $@

$(VENV)/.installed-test: $(BIN)/python setup.py constraints.txt
	$(INSTALL) -c constraints.txt -e '.[test]'
	touch $(VENV)/.installed $@

$(VENV)/.installed-docs: $(BIN)/python setup.py constraints.txt
	$(INSTALL) -c constraints.txt -e '.[docs]'
	touch $(VENV)/.installed $@
