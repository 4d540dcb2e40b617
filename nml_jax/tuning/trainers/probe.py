"""Train heads by solving, see `tuning.probes`."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from nml_jax.models.heads.mlp import Form, Tree, standardize
from nml_jax.tuning import descent, methods, patient, probes
from nml_jax.tuning.head_file import TunedHead
from nml_jax.tuning.holdout import Predictor
from nml_jax.tuning.trainers.trainer import HeadFit, Problem, Scores, make_grid, pick_lowest, wrap


class ByProbe:
    """A trainer by solving, see probes.py; it uses all views of the rows."""

    def __init__(self, problem: Problem):
        self.features, self.labels, method, preset, self.num_classes, self.config, self.demands = problem
        _, self.preset = methods.choose_weights(method, preset, self.config, self.features.shape[1])
        self.method = methods.find(method)
        self.grid = make_grid(self.config, {self.method.value: self.method.grid})

    def train(self, fits: Sequence[HeadFit], n: int) -> list[Predictor]:
        out: list[Predictor] = []
        views, dim = self.features.shape[1:]
        for _, group in itertools.groupby(fits, key=lambda fit: fit.seed):  # fits of one seed share their rows
            several = list(group)
            rows = several[0].rows[:n]
            F, labels = self.features[rows].reshape(-1, dim), np.repeat(self.labels[rows], views)
            standard = descent.get_standard(F[:, None]) if self.config.standardize else None
            if standard:
                F = standardize(F, standard)
            values = [fit.hyper[self.method.value] for fit in several]
            weights = self.demands.weigh(labels) if self.method.weighted else None
            how: dict[str, Any] = {} if weights is None else {"weights": weights}
            for probe in self.method.probe(F, labels, values, num_classes=self.num_classes, **how):
                if isinstance(probe, probes.Linear):
                    params = {"classifier": {"kernel": probe.kernel, "bias": probe.bias}}
                    out.append(TunedHead(Form(mlp=False), params, wrap(standard)))
                else:
                    out.append(ProbePredictor(probe, standard))
        return out

    def pick(self, scored: Sequence[Scores], logits: Sequence[np.ndarray], labels: np.ndarray) -> int:
        if self.method.grid == "cs" and self.config.start == "probe":  # as heads that start from this probe choose
            order = np.argsort([each[self.method.value] for each in scored], kind="stable")
            scores = [-self.demands.rank_setting(scored[i], 0)[0] for i in order]
            weights = self.demands.weigh(labels)
            return int(order[patient.pick_penalty(scores, [logits[i] for i in order], labels, weights)])
        ties = [each["loss"] if self.method.logits else -each[self.method.value] for each in scored]
        return pick_lowest(self.demands, scored, ties)


@dataclasses.dataclass(frozen=True)
class ProbePredictor:
    """A predictor from a probe without weights."""

    probe: probes.Probe
    standard: Tree | None  # {"mean", "scale"} of its input

    def outputs(self, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return Z, which is the (standardised) features, and the scores."""
        Z = np.asarray(features, np.float32)
        Z = standardize(Z, self.standard) if self.standard else Z
        return Z, self.probe(Z)
