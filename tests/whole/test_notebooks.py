"""The notebooks run from top to bottom."""

from pathlib import Path

import nbclient
import nbformat
import pytest

from tests.scenes.digits_experiment import launch

ROOT = Path(__file__).parents[2]
NOTEBOOKS = ROOT / "docs" / "notebooks"


def execute(name: str) -> str:
    """Everything a notebook prints."""
    notebook = nbformat.read(NOTEBOOKS / name, as_version=4)
    resources = {"metadata": {"path": str(NOTEBOOKS)}}
    nbclient.NotebookClient(notebook, timeout=200, kernel_name="python3", resources=resources).execute()
    return "".join(out.get("text", "") for cell in notebook.cells for out in cell.get("outputs", []))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the Jupyter client, in its own process
def test_noise(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    execute("noise.ipynb")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_reload_checkpoint(tmp_path: Path, monkeypatch):
    launch(tmp_path / "digits", stages=("pretrain", "extract"))
    monkeypatch.setenv("NML_RUN", str(tmp_path / "digits" / "noise=0.3,seed=0"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    printed = execute("reload_checkpoint.ipynb")
    assert "SVE" in printed
    assert "features of digits/test" in printed


def test_no_outputs_are_stored():
    for path in NOTEBOOKS.glob("*.ipynb"):
        assert not any(cell.get("outputs") for cell in nbformat.read(path, as_version=4).cells), path.name
