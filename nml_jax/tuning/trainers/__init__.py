"""Trainers of heads of one method on one set of features: by gradient (gradient.py) or by solving (probe.py)."""

from nml_jax.tuning import methods
from nml_jax.tuning.trainers.gradient import ByGradient
from nml_jax.tuning.trainers.probe import ByProbe
from nml_jax.tuning.trainers.trainer import Problem, Trainer


def make_trainer(problem: Problem) -> Trainer:
    """Make the trainer of the problem's method."""
    return ByProbe(problem) if methods.find(problem.method).probe else ByGradient(problem)
