"""How does transfer change with the rate of wrong supervision in pre-training? The papers' figure 2.

    python -m nml_jax.main --config=configs/studies/noise_rates.py:digits

Published (arXiv 2309.17002 and 2403.06869): 5 to 10 % of noise does not hurt in-domain transfer, more does; any noise
hurts out of domain; the differences are smaller with LoRA and with NMTune. ResNet-50's top-1 on ImageNet: 79.96,
79.18, 78.61, 76.27 and 73.11 % at 0, 5, 10, 20 and 30 %.

The digits took 234 s of CPU time after spectra, whose runs it shares; on a GPU it was not run.
"""

from ml_collections import ConfigDict

from configs.studies import twins


def get_config(twin: str = "digits") -> ConfigDict:
    config = twins.make_twin(twin, "noise_rates")
    twins.tune_encoders(config)
    config.finetune.methods = ("lora",)
    return config.lock()
