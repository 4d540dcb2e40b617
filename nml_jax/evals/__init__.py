"""Evaluators of a model: their `run(params, model_state)` yields (name, value). EVALUATORS lists them."""

from nml_jax.evals.classification import Classification
from nml_jax.evals.detection import Detection
from nml_jax.evals.probe import ProbeSpectrum
from nml_jax.evals.retrieval import CaptionFit, Retrieval
from nml_jax.evals.zeroshot import ZeroShot

EVALUATORS = {
    "caption_fit": CaptionFit,
    "classification": Classification,
    "detection": Detection,
    "retrieval": Retrieval,
    "spectrum": ProbeSpectrum,
    "zeroshot": ZeroShot,
}
