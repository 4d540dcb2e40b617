"""Noisy model learning: what wrong supervision in pre-training does to a model, and how to repair it downstream.

Public names are loaded on first use, so that importing the package does not import JAX.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from nml_jax.errors import UserError as UserError
    from nml_jax.noise import Ledger as Ledger
    from nml_jax.noise import corrupt_labels as corrupt_labels
    from nml_jax.noise import swap_captions as swap_captions
    from nml_jax.spectrum import SpectrumMeter as SpectrumMeter
    from nml_jax.spectrum import lsvr as lsvr
    from nml_jax.spectrum import singular_values as singular_values
    from nml_jax.spectrum import sve as sve
    from nml_jax.spectrum import top_share as top_share
    from nml_jax.training.pretrained import load_model as load_model
    from nml_jax.tuning.classifier import NMTuneClassifier as NMTuneClassifier
    from nml_jax.tuning.diagnosis import diagnose as diagnose
    from nml_jax.tuning.label_errors import find_label_errors as find_label_errors
    from nml_jax.tuning.regressor import NMTuneRegressor as NMTuneRegressor

_HOME = {
    "NMTuneClassifier": "tuning.classifier",
    "NMTuneRegressor": "tuning.regressor",
    "diagnose": "tuning.diagnosis",
    "find_label_errors": "tuning.label_errors",
    "UserError": "errors",
    "corrupt_labels": "noise",
    "swap_captions": "noise",
    "Ledger": "noise",
    "singular_values": "spectrum",
    "sve": "spectrum",
    "lsvr": "spectrum",
    "top_share": "spectrum",
    "SpectrumMeter": "spectrum",
    "load_model": "training.pretrained",
}
__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"nml_jax.{_HOME[name]}"), name)
    raise AttributeError(f"module 'nml_jax' has no attribute {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return __all__
