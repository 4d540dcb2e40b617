"""Choose the setting of heads that are trained by gradient: early stopping, halving, and grids that are widened."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from nml_jax.models.heads.mlp import Tree
from nml_jax.tuning import methods, patient, probes, spread
from nml_jax.tuning.head_file import TunedHead
from nml_jax.tuning.holdout import list_further, score_held_out
from nml_jax.tuning.trainers.gradient import ByGradient
from nml_jax.tuning.trainers.trainer import HeadFit, wrap


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


def _choose_better(runs: Sequence[patient.Training]) -> list[patient.Training]:
    """Return the half with the lower losses."""
    return sorted(runs, key=lambda run: run.lowest)[: -(-len(runs) // 2)]


class Search:
    """The search for the settings of a trainer's heads."""

    def __init__(self, trainer: ByGradient):
        self.trainer = trainer

    def run(self, divided: Sequence[tuple[np.ndarray, int]], seeds: Sequence[int]) -> list[list[dict[str, float]]]:
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
        grid, config = self.trainer.grid, self.trainer.config
        if self.trainer.is_solved:
            heads = [patient.make_linear(start.probe, wrap(start.standard)) for start in starts]  # type: ignore[arg-type]
            return [[start.hyper | self._judge(h, start.held_out)] for start, h in zip(starts, heads, strict=True)]
        found = self._try_settings(starts, [grid] * len(starts), halved=config.halving and len(grid) > 1)
        if not config.widen:
            return found
        further = [list_further(grid, own[self.trainer.pick(own)]) for own in found]
        return [a + b for a, b in zip(found, self._try_settings(starts, further, halved=False), strict=True)]

    def _start_search(self, rows: np.ndarray, n: int, seed: int) -> _Start:
        hyper: dict[str, float] = {}
        probe, standard = None, self.trainer.standardise(rows, n)
        if self.trainer.from_probe:
            probe, hyper[self.trainer.penalty] = self.trainer.choose_probe(rows, n, standard)
        return _Start(rows, n, seed, standard, probe, hyper)

    def _try_settings(
        self, starts: Sequence[_Start], grids: Sequence[Sequence[dict[str, float]]], *, halved: bool
    ) -> list[list[dict[str, float]]]:
        """Train the settings of each start, and return their scores."""
        several = [
            [self._begin_search(start, hyper) for hyper in grid] for start, grid in zip(starts, grids, strict=True)
        ]
        of = [start for start, own in zip(starts, several, strict=True) for _ in own]
        runs, epochs = [run for own in several for run in own], [self.trainer.count_epochs(start.n) for start in of]
        steps = [-(-start.n // min(self.trainer.config.batch, start.n)) for start in of]
        with patient.Cohort(runs, [methods.count_patience(self.trainer.config, each) for each in steps]) as cohort:
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
        score, epochs = partial(self._rank, rows=start.held_out), self.trainer.count_epochs(start.n)
        return self.trainer.begin(fit, start.n, start.standard, start.probe, score=score, words=words, epochs=epochs)

    def _judge_run(self, hyper: dict[str, float], run: patient.Training, rows: np.ndarray) -> dict[str, float]:
        diverged = bool(run.losses) and not np.isfinite(run.losses).any()  # then the best is the start, untrained
        scores = self._judge(run.run(run.done), rows)
        if diverged:
            scores = self.trainer.demands.score(np.full((1, self.trainer.num_classes), np.nan), np.zeros(1, np.int64))
        return {**hyper, **scores, "epochs": float(run.best)}

    def _rank(self, head: TunedHead, rows: np.ndarray) -> tuple[float, ...]:
        return self.trainer.demands.rank(self._judge(head, rows))

    def _judge(self, head: TunedHead, rows: np.ndarray) -> dict[str, float]:
        return score_held_out(head, self.trainer.features[rows], self.trainer.labels[rows], self.trainer.demands)
