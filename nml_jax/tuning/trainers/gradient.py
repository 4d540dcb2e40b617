"""Train heads by gradient (`tuning.descent`), for a fixed time or for as long as validation chose."""

import math
import statistics
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from nml_jax.models.heads.mlp import Tree, standardize
from nml_jax.objectives import terms
from nml_jax.processes import forecast
from nml_jax.processes.limits import limit_blas
from nml_jax.tuning import descent, methods, patient, probes, regression, spread
from nml_jax.tuning.descent import Setting, Spec, TrainingSet
from nml_jax.tuning.head_file import TunedHead
from nml_jax.tuning.trainers.trainer import HeadFit, Problem, Scores, make_grid, pick_lowest, wrap


class ByGradient:
    """A trainer by gradient, see descent.py."""

    def __init__(self, problem: Problem):
        features, labels, method, preset, self.num_classes, config, self.demands = problem
        self.config = config
        weights, self.preset = methods.choose_weights(method, preset, config, features.shape[1])
        self.method = methods.find(method)
        self.q = config.gce_q if self.method.gce else 0.0
        self.demands = self.demands._replace(q=self.q)
        self.form = methods.build_form(self.method, config, features.shape[2], len(labels))
        self.from_probe = methods.starts_from_probe(self.method, config)
        self.penalty = regression.ALPHA if regression.is_regression(self.num_classes) else "C"  # the probe's setting
        self.terms, self.numbers = terms.split(self.method.terms, weights) if weights else (None, {})
        self.grid = make_grid(config, {"lr": "lrs", "weight_decay": "weight_decays"})
        self.features, self.labels = features, labels
        weights = self.demands.weigh(labels)
        weights = np.ones(len(labels), np.float32) if weights is None else np.float32(weights)
        bank = TrainingSet(features, labels, weights)
        self.bank = bank if spread.is_spread() else jax.device_put(bank)  # a program on all devices places it itself

    def train(self, fits: Sequence[HeadFit], n: int) -> list[TunedHead]:
        if methods.is_patient(self.config):
            return self._train_patiently(fits, n)
        settings = [self.make_setting(fit) for fit in fits]
        epochs = self.count_epochs(len(self.bank.labels))
        trees = spread.train(self.make_spec(n), self.bank, settings, n, epochs=epochs)
        return [TunedHead(self.form, params, state) for params, state in trees]

    def _train_patiently(self, fits: Sequence[HeadFit], n: int) -> list[TunedHead]:
        """Train heads for the epochs that validation chose; all of them if it did not."""
        if not spread.is_spread() and len(fits) > 1:  # one at a time needs the least memory
            return [head for fit in fits for head in self._train_patiently([fit], n)]
        heads, runs, lasts = [], [], []
        for fit in fits:
            probe, standard = None, self.standardise(fit.rows, n)
            if self.from_probe:
                probe, _ = self.choose_probe(fit.rows[:n], n, standard, fit.hyper.get(self.penalty))
            if self.is_solved:
                heads.append(patient.make_linear(probe, wrap(standard)))  # type: ignore[arg-type]
                continue
            epochs = self.count_epochs(n)
            lasts.append(int(fit.hyper.get("epochs", epochs)))
            words = f"seed {fit.seed}"
            runs.append(self.begin(fit, n, standard, probe, epochs=epochs, words=words, last=lasts[-1]))
        with patient.Cohort(runs, [math.inf] * len(runs)) as cohort:
            cohort.run(lasts)
        return heads or [run.run(run.done) for run in runs]

    def begin(
        self,
        fit: HeadFit,
        n: int,
        standard: Tree | None,
        probe: probes.Linear | None,
        *,
        epochs: int,
        words: str,
        last: int = 0,
        score: Any = None,
    ) -> patient.Training:
        spec, setting = self.make_program(fit, n, n, probe)

        def tell(i: int, loss: float) -> None:
            forecast.step(f"{words}, epoch {i} of {'at most ' * bool(score)}{last or epochs}")

        with limit_blas():
            carry = descent.begin(spec, setting, self.bank.features.shape[-1], standard)
            carry = patient.start_at(carry, probe) if probe is not None else carry
            how: dict[str, Any] = {"horizon": epochs, "score": score, "tell": tell, "started": probe is not None}
            return patient.Training(spec, carry, self.bank, setting, n, **how)

    def make_program(self, fit: HeadFit, n: int, rows: int, probe: probes.Linear | None) -> tuple[Spec, Setting]:
        """Make the arguments of a training on n rows in memory, of `rows` in all, that starts from a probe, or not."""
        spec, setting = self.make_spec(n), self.make_setting(fit)
        if probe is not None:
            penalty = self.compute_penalty(fit.hyper[self.penalty], rows)
            spec, setting = spec._replace(penalised=True), setting._replace(penalty=penalty)
        return spec, descent.to_arrays(setting)

    def solve_probe(self, fit: HeadFit, standard: Tree | None) -> probes.Linear | None:
        """Solve the probe that a head starts from on all rows in memory; None if it starts from random weights."""
        if not self.from_probe:
            return None
        n = len(self.labels)
        return self.choose_probe(np.arange(n), n, standard, fit.hyper[self.penalty])[0]

    def compute_penalty(self, value: float, n: int) -> float:
        """Return the penalty of the kernel in a mean loss that is the probe's on n rows."""
        if regression.is_regression(self.num_classes):
            return value / n
        return patient.compute_penalty(value, n, self.num_classes)

    def measure_step(self, n: int, repeats: int = 3) -> float:
        """Measure the seconds of a training step; the program is compiled, and training uses it again."""
        hyper = {**self.grid[0], self.penalty: 1.0}
        probe = probes.Linear(
            np.zeros((self.features.shape[2], self.num_classes), np.float32), np.zeros(self.num_classes, np.float32)
        )
        fit = HeadFit(np.arange(len(self.labels)), hyper, 0)
        standard = self.standardise(fit.rows, n)
        run = self.begin(fit, n, standard, probe if self.from_probe else None, epochs=100, words="measuring")
        run.n = np.int32(run.spec.batch)  # an epoch of one step
        run.run(1)
        times = []
        for _ in range(repeats):  # the median, as others may be at work on this machine
            begun = time.perf_counter()
            run.run(run.done + 1)
            times.append(time.perf_counter() - begun)
        return statistics.median(times)

    @property
    def is_solved(self) -> bool:
        """Return whether heads are not trained by gradient."""
        return self.from_probe and methods.is_solved(self.method, self.config)

    def standardise(self, rows: np.ndarray, n: int) -> Tree | None:
        return descent.get_standard(self.features[rows[:n]]) if self.config.standardize else None

    def choose_probe(
        self, rows: np.ndarray, n: int, standard: Tree | None, c: float | None = None
    ) -> tuple[probes.Linear, float]:
        """Solve the probe on all views of the first n rows; its C (or α) is `c`, or chosen by the other rows."""
        views, dim = self.features.shape[1:]
        F = self.features[rows].reshape(-1, dim)
        F = standardize(F, standard) if standard else F
        everything = np.arange(len(F))
        parts = everything[: n * views], everything[n * views :]
        widen = self.config.widen and c is None
        if regression.is_regression(self.num_classes):
            alphas = self.config.alphas if c is None else (c,)
            own: dict[str, Any] = {"alphas": alphas, "demands": self.demands, "widen": widen}
            return regression.choose_probe(F, np.repeat(self.labels[rows], views), parts, **own)
        cs = self.config.cs if c is None else (c,)
        labels = np.repeat(self.labels[rows], views)
        how: dict[str, Any] = {"num_classes": self.num_classes, "cs": cs, "demands": self.demands}
        return patient.choose_probe(F, labels, parts, **how, once=True, widen=widen)

    def pick(
        self, scored: Sequence[Scores], logits: Sequence[np.ndarray] = (), labels: np.ndarray | None = None
    ) -> int:
        return pick_lowest(self.demands, scored, [each["loss"] for each in scored])

    def count_epochs(self, n: int) -> int:
        """Return the number of passes over n rows."""
        config = self.config
        return methods.count_epochs(n, batch=config.batch, epochs=config.epochs, steps=config.steps)[0]

    def make_spec(self, n: int) -> Spec:
        """Make the static arguments for n training rows."""
        config, batch = self.config, min(self.config.batch, n)
        perturbed = bool(config.noisytune), bool(config.neftune)
        return Spec(self.form, self.terms, self.num_classes, batch, config.standardize, *perturbed, gce=self.method.gce)

    def make_setting(self, fit: HeadFit) -> Setting:
        config, (rows, hyper, seed) = self.config, fit
        numbers = self.numbers, config.noisytune, config.neftune
        return Setting(rows, hyper["lr"], hyper["weight_decay"], seed, *numbers, q=self.q)
