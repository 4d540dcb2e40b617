"""Train heads of one method on one set of features: by gradient (descent.py) or by solving (probes.py)."""

import dataclasses
import itertools
import math
import statistics
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from nml_jax.errors import UserError
from nml_jax.models.heads.mlp import Form, Tree, standardize
from nml_jax.objectives import terms
from nml_jax.processes import forecast
from nml_jax.processes.limits import limit_blas
from nml_jax.tuning import descent, methods, patient, probes, spread
from nml_jax.tuning.descent import Setting, Spec, TrainingSet
from nml_jax.tuning.head_file import TunedHead
from nml_jax.tuning.holdout import PLAIN, Demands, Predictor, list_further, score_held_out

Scores = Mapping[str, float]


class HeadFit(NamedTuple):
    """One head to train."""

    rows: np.ndarray  # int [N], a permutation of all rows, those to train on first
    hyper: dict[str, float]
    seed: int


class _Start(NamedTuple):
    """What the settings of one seed start from."""

    rows: np.ndarray  # int [N], those to train on first
    n: int  # of them
    seed: int
    standard: Tree | None
    probe: probes.Linear | None
    hyper: dict[str, float]  # the probe's

    @property
    def held_out(self) -> np.ndarray:
        return self.rows[self.n :]


class Trainer(Protocol):
    """A trainer for heads of one method on one set of features.

    grid: the settings to choose from.
    preset: see `HeadResult`.
    demands: what heads are to be good at.
    method: what they are.
    """

    grid: list[dict[str, float]]
    preset: str | None
    demands: Demands
    method: methods.Method

    def train(self, fits: Sequence[HeadFit], n: int) -> Sequence[Predictor]:
        """Train one head per fit, on the first n of its rows."""
        ...

    def pick(self, scored: Sequence[Scores], logits: Sequence[np.ndarray], labels: np.ndarray) -> int:
        """Return the number of the best setting, by the scores of each and its logits of held-out rows, [M, K]."""
        ...


def pick_lowest(demands: Demands, scored: Sequence[Scores], ties: Sequence[float]) -> int:
    """Return the number of the best setting by the deciding metric; of equal ones, that of the lowest tie."""
    return min(range(len(scored)), key=lambda i: demands.rank_setting(scored[i], ties[i]))


def make_trainer(
    features: np.ndarray,
    labels: np.ndarray,
    *,
    method: str,
    preset: str | None,
    num_classes: int,
    config: Any,
    demands: Demands = PLAIN,
) -> Trainer:
    """Make the trainer of a method for features [N, V, D] from `select.check_features`."""
    kind = ByProbe if methods.find(method).probe else ByGradient
    how: dict[str, Any] = {"method": method, "preset": preset, "num_classes": num_classes, "config": config}
    return kind(features, labels, **how, demands=demands)


class ByGradient:
    """A trainer by gradient, see descent.py."""

    def __init__(
        self,
        features: np.ndarray,
        labels: np.ndarray,
        *,
        method: str,
        preset: str | None,
        num_classes: int,
        config: Any,
        demands: Demands = PLAIN,
    ):
        self.demands = demands
        weights, self.preset = methods.choose_weights(method, preset, config, features.shape[1])
        self.num_classes, self.config = num_classes, config
        self.method = methods.find(method)
        self.form = methods.build_form(self.method, config, features.shape[2], len(labels))
        self.from_probe = methods.starts_from_probe(self.method, config)
        self.terms, self.numbers = terms.split(methods.find(method).terms, weights) if weights else (None, {})
        self.grid = _make_grid(config, {"lr": "lrs", "weight_decay": "weight_decays"})
        self.features, self.labels = features, labels
        weights = demands.weigh(labels)
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

    def search(self, divided: Sequence[tuple[np.ndarray, int]], seeds: Sequence[int]) -> list[list[dict[str, float]]]:
        """Train every setting on a part of the rows until validation on the others no longer improves.

        With `tune.halving`, all settings get a quarter of the epochs, and only the better half of them the rest.

        Args:
            divided: for each seed the rows, int [N], and how many of them, from the first, to train on.
            seeds: of the heads.

        Returns:
            Of each seed, of each setting: its values, "accuracy" and "loss" of its best epoch, and the number of that,
            "epochs".
        """
        if spread.is_spread():  # settings × seeds are one program
            return self._search_together(divided, seeds)
        return [self._search_together([each], [seed])[0] for each, seed in zip(divided, seeds, strict=True)]

    def _search_together(
        self, divided: Sequence[tuple[np.ndarray, int]], seeds: Sequence[int]
    ) -> list[list[dict[str, float]]]:
        starts = [self._start_search(*each, seed) for each, seed in zip(divided, seeds, strict=True)]
        if self.is_solved:
            heads = [patient.make_linear(start.probe, _wrap(start.standard)) for start in starts]  # type: ignore[arg-type]
            return [[start.hyper | self._judge(h, start.held_out)] for start, h in zip(starts, heads, strict=True)]
        found = self._try_settings(starts, [self.grid] * len(starts), halved=self.config.halving and len(self.grid) > 1)
        if not self.config.widen:
            return found
        further = [list_further(self.grid, own[self.pick(own)]) for own in found]
        return [a + b for a, b in zip(found, self._try_settings(starts, further, halved=False), strict=True)]

    def _start_search(self, rows: np.ndarray, n: int, seed: int) -> _Start:
        hyper: dict[str, float] = {}
        probe, standard = None, self._standardise(rows, n)
        if self.from_probe:
            probe, hyper["C"] = self._choose_probe(rows, n, standard)
        return _Start(rows, n, seed, standard, probe, hyper)

    def _try_settings(
        self, starts: Sequence[_Start], grids: Sequence[Sequence[dict[str, float]]], *, halved: bool
    ) -> list[list[dict[str, float]]]:
        """Train the settings of each start, and return their scores."""
        several = [
            [self._begin_search(start, hyper) for hyper in grid] for start, grid in zip(starts, grids, strict=True)
        ]
        of = [start for start, own in zip(starts, several, strict=True) for _ in own]
        runs, epochs = [run for own in several for run in own], [self.count_epochs(start.n) for start in of]
        steps = [-(-start.n // min(self.config.batch, start.n)) for start in of]
        with patient.Cohort(runs, [methods.count_patience(self.config, each) for each in steps]) as cohort:
            cohort.run([-(-each // 4) for each in epochs] if halved else epochs)
            if halved:
                better = {id(run) for own in several for run in _choose_better(own)}
                cohort.run([end if id(run) in better else 0 for run, end in zip(runs, epochs, strict=True)])
        return [
            [
                self._judge_run({**hyper, **start.hyper}, run, start.held_out)
                for hyper, run in zip(grid, own, strict=True)
            ]
            for start, grid, own in zip(starts, grids, several, strict=True)
        ]

    def _begin_search(self, start: _Start, hyper: Mapping[str, float]) -> patient.Training:
        fit = HeadFit(start.rows, {**hyper, **start.hyper}, start.seed)
        words = ", ".join(f"{name} {value:g}" for name, value in hyper.items())
        how: dict[str, Any] = {"score": partial(self._rank, rows=start.held_out), "words": words}
        return self._begin(fit, start.n, start.standard, start.probe, **how, epochs=self.count_epochs(start.n))

    def _judge_run(self, hyper: dict[str, float], run: patient.Training, rows: np.ndarray) -> dict[str, float]:
        diverged = bool(run.losses) and not np.isfinite(run.losses).any()  # then the best is the start, untrained
        scores = self._judge(run.run(run.done), rows)
        if diverged:
            scores = self.demands.score(np.full((1, self.num_classes), np.nan), np.zeros(1, np.int64))
        return {**hyper, **scores, "epochs": float(run.best)}

    def _train_patiently(self, fits: Sequence[HeadFit], n: int) -> list[TunedHead]:
        """Train heads for the epochs that validation chose; all of them if it did not."""
        if not spread.is_spread() and len(fits) > 1:  # one at a time needs the least memory
            return [head for fit in fits for head in self._train_patiently([fit], n)]
        heads, runs, lasts = [], [], []
        for fit in fits:
            probe, standard = None, self._standardise(fit.rows, n)
            if self.from_probe:
                probe, _ = self._choose_probe(fit.rows[:n], n, standard, fit.hyper.get("C"))
            if self.is_solved:
                heads.append(patient.make_linear(probe, _wrap(standard)))  # type: ignore[arg-type]
                continue
            epochs = self.count_epochs(n)
            lasts.append(int(fit.hyper.get("epochs", epochs)))
            words = f"seed {fit.seed}"
            runs.append(self._begin(fit, n, standard, probe, epochs=epochs, words=words, last=lasts[-1]))
        with patient.Cohort(runs, [math.inf] * len(runs)) as cohort:
            cohort.run(lasts)
        return heads or [run.run(run.done) for run in runs]

    def _begin(
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
            forecast.note(f"{words}, epoch {i} of {'at most ' * bool(score)}{last or epochs}")

        with limit_blas():
            carry = descent.begin(spec, setting, self.bank.features.shape[-1], standard)
            carry = patient.start_at(carry, probe) if probe is not None else carry
            how: dict[str, Any] = {"horizon": epochs, "score": score, "tell": tell, "started": probe is not None}
            return patient.Training(spec, carry, self.bank, setting, n, **how)

    def make_program(self, fit: HeadFit, n: int, rows: int, probe: probes.Linear | None) -> tuple[Spec, Setting]:
        """Make the arguments of a training on n rows in memory, of `rows` in all, that starts from a probe, or not."""
        spec, setting = self.make_spec(n), self.make_setting(fit)
        if probe is not None:
            penalty = patient.compute_penalty(fit.hyper["C"], rows, self.num_classes)
            spec, setting = spec._replace(penalised=True), setting._replace(penalty=penalty)
        return spec, descent.to_arrays(setting)

    def solve_probe(self, fit: HeadFit, standard: Tree | None) -> probes.Linear | None:
        """Solve the probe that a head starts from on all rows in memory; None if it starts from random weights."""
        if not self.from_probe:
            return None
        n = len(self.labels)
        return self._choose_probe(np.arange(n), n, standard, fit.hyper["C"])[0]

    def measure_step(self, n: int, repeats: int = 3) -> float:
        """Measure the seconds of a training step; the program is compiled, and training uses it again."""
        hyper = {**self.grid[0], "C": 1.0}
        probe = probes.Linear(
            np.zeros((self.features.shape[2], self.num_classes), np.float32), np.zeros(self.num_classes, np.float32)
        )
        fit = HeadFit(np.arange(len(self.labels)), hyper, 0)
        standard = self._standardise(fit.rows, n)
        run = self._begin(fit, n, standard, probe if self.from_probe else None, epochs=100, words="measuring")
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
        """Return whether heads are not trained by gradient: a linear head that starts from the probe is the probe."""
        return self.from_probe and not self.method.mlp

    def _standardise(self, rows: np.ndarray, n: int) -> Tree | None:
        return descent.get_standard(self.features[rows[:n]]) if self.config.standardize else None

    def _choose_probe(
        self, rows: np.ndarray, n: int, standard: Tree | None, c: float | None = None
    ) -> tuple[probes.Linear, float]:
        """Solve the probe on all views of the first n rows; its C is `c`, or chosen by the other rows."""
        views, dim = self.features.shape[1:]
        F = self.features[rows].reshape(-1, dim)
        F = standardize(F, standard) if standard else F
        everything = np.arange(len(F))
        parts = everything[: n * views], everything[n * views :]
        cs = self.config.cs if c is None else (c,)
        labels = np.repeat(self.labels[rows], views)
        how: dict[str, Any] = {"num_classes": self.num_classes, "cs": cs, "demands": self.demands}
        return patient.choose_probe(F, labels, parts, **how, once=True, widen=self.config.widen and c is None)

    def _rank(self, head: TunedHead, rows: np.ndarray) -> tuple[float, ...]:
        return self.demands.rank(self._judge(head, rows))

    def _judge(self, head: TunedHead, rows: np.ndarray) -> dict[str, float]:
        return score_held_out(head, self.features[rows], self.labels[rows], self.demands)

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
        return Spec(self.form, self.terms, self.num_classes, batch, config.standardize, *perturbed)

    def make_setting(self, fit: HeadFit) -> Setting:
        config, (rows, hyper, seed) = self.config, fit
        numbers = self.numbers, config.noisytune, config.neftune
        return Setting(rows, hyper["lr"], hyper["weight_decay"], seed, *numbers)


class ByProbe:
    """A trainer by solving, see probes.py; it uses all views of the rows."""

    def __init__(
        self,
        features: np.ndarray,
        labels: np.ndarray,
        *,
        method: str,
        preset: str | None,
        num_classes: int,
        config: Any,
        demands: Demands = PLAIN,
    ):
        self.demands = demands
        _, self.preset = methods.choose_weights(method, preset, config, features.shape[1])
        self.method, self.num_classes, self.config = methods.find(method), num_classes, config
        self.features, self.labels = features, labels
        self.grid = _make_grid(config, {self.method.value: self.method.grid})

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
                    out.append(TunedHead(Form(mlp=False), params, {"input": standard} if standard else {}))
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


def _choose_better(runs: Sequence[patient.Training]) -> list[patient.Training]:
    """Return the half with the lower losses."""
    return sorted(runs, key=lambda run: run.lowest)[: -(-len(runs) // 2)]


def _wrap(standard: Tree | None) -> Tree:
    return {"input": standard} if standard else {}


def _make_grid(config: Any, names: Mapping[str, str]) -> list[dict[str, float]]:
    """Return all combinations of the values of config keys, where `names` maps the name of a value to its key."""
    for key in names.values():
        if not getattr(config, key):
            raise UserError(f"tune.{key} is empty", "give it at least one value")
    values = itertools.product(*(getattr(config, key) for key in names.values()))
    return [dict(zip(names, each, strict=True)) for each in values]
