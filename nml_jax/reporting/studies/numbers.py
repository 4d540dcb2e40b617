"""Find the numbers that a study's panels and claims are about, as keys and as a table of points."""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from nml_jax.console import list_words
from nml_jax.reporting import claims
from nml_jax.reporting.statistics.choose_method import DOMAINS, find_metric, name_parts
from nml_jax.reporting.statistics.compare import find_leaves
from nml_jax.reporting.statistics.grouping import count_digits
from nml_jax.reporting.statistics.studies import (
    MEAN,
    MEASURES,
    METHODS,
    RELATED,
    UNRELATED,
    ZERO_SHOT,
    Key,
    Method,
    Study,
)
from nml_jax.reporting.studies.recipes import PROBE, View
from nml_jax.runs.detections import METRICS as DETECTORS
from nml_jax.runs.rows import Row

COLUMNS = ["x", "x_label", "series", "seed", "y"]  # of a panel's points
SPECTRUM = tuple(claims.SPECTRUM)
NAMES = {"": "", "related": "noise-related ", "unrelated": "unrelated "}  # of View.tasks, before a domain
SCORE = "score"  # as View.y, and in titles: the metric that decides
ZEROSHOT = "zeroshot"  # as View.y: accuracy of zero-shot answers
VALIDATION = "validation"  # as View.y: accuracy in pre-training, on clean validation


class Score(NamedTuple):
    """What is scored: one of the tasks, or of MEANS, by a metric."""

    task: str
    metric: str


class Numbers:
    """The numbers of a study.

    metric: the one that decides on the mean over all tasks, or on the only one. probe: the reference method.
    """

    def __init__(self, study: Study):
        self.study = study
        self._scores = {tasks: self._find_score(tasks) for tasks in NAMES}
        self.metric = self._scores[""].metric
        self.probe = claims.find_reference(study)

    def _find_score(self, tasks: str) -> Score:
        """Return what is scored of some tasks (a key of NAMES). Where none is related to the noise, the others are all.

        The task is the only one of them, or the mean over them; "" if there is none.
        """
        mean = {"": MEAN, "related": RELATED, "unrelated": UNRELATED if self.study.related else MEAN}[tasks]
        members = self.study.list_members(mean)
        task = mean if len(members) > 1 else next(iter(members), "")
        return Score(task, find_metric(self.study, task))

    def find_metric(self, tasks: str) -> str:
        """Return the metric that decides on some tasks."""
        return self._scores[tasks].metric

    def list_metrics(self, y: str, tasks: str) -> list[str]:
        """Return what y is measured by: of a mean of each task's own metric, all of these."""
        if y != SCORE:
            return ["accuracy" if y in (VALIDATION, ZEROSHOT) else y]
        score = self._scores[tasks]
        return [self.study.find_metric_of(task, score.metric) for task in self.study.list_members(score.task)]

    def find_keys(self, y: str, domain: str, methods: Sequence[str] = (), tasks: str = "") -> list[Key]:
        """Return the keys of a score, over all tests of a domain, or of a measure of a spectrum in raw mode.

        Args:
            y, domain, methods, tasks: as in View. Scores of all methods, in the order of the rows, without `methods`.
                Detectors are those that start from the encoder.
        """
        if y in SPECTRUM:
            return self._find_spectra(y, domain, methods)
        if y in DETECTORS:
            found = [key for key in self.study.keys(metric=y, domain=domain) if MEAN not in (key.split, key.task)]
            return [key for name in methods for key in found if key.method == Method(name, "encoder")]
        if y == VALIDATION:
            return self.study.keys(metric="accuracy", task="pretrain", split="validation", domain=domain, weights="")
        if y == ZEROSHOT:
            of = {"metric": "accuracy", "task": self._scores[tasks].task, "split": MEAN}
            return self.study.keys(**of, domain=domain, method=Method(ZERO_SHOT))
        found = self.study.keys(**self._scores[tasks]._asdict(), split=MEAN, domain=domain)
        if not methods:
            return [key for key in found if key.method]
        wanted = self._resolve(methods)
        return [key for name in wanted for key in found if key.method and key.method.name == name]

    def _resolve(self, methods: Iterable[str]) -> list[str]:
        """Return keys of methods, with the reference in place of PROBE."""
        return list(dict.fromkeys(self.probe.name if name == PROBE else name for name in methods))

    def _find_spectra(self, y: str, domain: str, methods: Sequence[str]) -> list[Key]:
        """Return the keys of a measure of spectra: of the encoder's features, or of what heads make of them."""
        out = []
        for task in self.study.tasks:
            of_task = {"metric": y, "task": task, "domain": domain, "mode": "paper"}
            if methods:
                keys = self.study.keys(**of_task, output="Z")
                out += [key for name in methods for key in keys if key.method and key.method.name == name]
            else:
                splits = {self.study.id_split(task)} if domain == "id" else {*self.study.names("split", domain=domain)}
                out += [key for key in self.study.keys(**of_task, method=None) if key.split in splits]
        return out

    def list_parts(self, scores: Iterable[tuple[str, str]]) -> list[str]:
        """Return what scores are the mean of, in words, for each pair of (tasks, domain) that there is a score of."""
        out = []
        for tasks, domain in scores:
            if key := next(iter(self.find_keys(SCORE, domain, tasks=tasks)), None):
                out.append(f"{NAMES[tasks]}{DOMAINS[domain]} score: {name_parts(self.study, key)}")
        if any(tasks for tasks, _ in scores) and not self.study.related:
            out.append("no task is named in noise_related: all count as unrelated to the noise")
        return out

    def list_missing(self, scores: Iterable[tuple[str, str]], methods: Iterable[str]) -> list[str]:
        """Return which heads lack a score of (tasks, domain), and so all claims on it, because a test is missing."""
        out, names = [], self._resolve(methods)
        for tasks, domain in scores:
            score, leaves = self._scores[tasks], []
            for task in self.study.list_members(score.task):
                metric = self.study.find_metric_of(task, score.metric)
                found = self.study.keys(metric=metric, task=task, domain=domain)
                leaves += [key for key in found if key.method and key.split != MEAN]
            needed = list(dict.fromkeys((key.task, key.split) for key in leaves))
            for whole in dict.fromkeys(key._replace(**score._asdict(), split=MEAN) for key in leaves):
                if whole.method and whole.method.name in names and whole not in self.study.table:
                    same = whole.method, whole.setting, whole.weights
                    own = {(k.task, k.split) for k in leaves if (k.method, k.setting, k.weights) == same}
                    lacks = [f"{task} ({split})" for task, split in needed if (task, split) not in own]
                    where = f"{NAMES[tasks]}{DOMAINS[domain]}"
                    out.append(f"{whole.head} has no {where} score, and no claim on it: it lacks {list_words(lacks)}")
        return out

    def find_way(self, y: str, tasks: str = "") -> int:
        """Return 1 if a larger y is better, or only larger, and −1 if a smaller score is better, as of a loss."""
        return MEASURES[self.find_metric(tasks)].way if y == SCORE else 1

    def name_place(self, key: Key) -> list[str]:
        """Return what tells a number from others of its name: of spectra the task, the layer and the split."""
        if not key.mode:
            return [f"{key.weights} weights"] if key.weights else []
        alike = self.study.keys(metric=key.metric, mode=key.mode, domain=key.domain, output=key.output)
        varied = ("task", "layer", "split", "weights") if key.domain == "ood" else ("task", "layer", "weights")
        return [getattr(key, name) for name in varied if len({getattr(k, name) for k in alike}) > 1]

    def find_row(self, key: Key) -> Row | None:
        """Return one of the rows behind a number, which tells its share of the training rows and such things."""
        sources = self.study.sources
        of = (
            source
            for leaf in find_leaves(self.study, key)
            for each in sources.get(leaf, [])
            for source in each.values()
        )
        return next((source.rows[0] for source in of), None)  # fmt: skip

    def find_rank(self, key: Key, x: str) -> float:
        """Return the share of training rows ("share"), or of wrong labels among them ("noise"), behind a number."""
        row = self.find_row(key)
        value = row and (row.train_share if x == "share" else row.downstream_noise)
        return math.nan if value is None else float(value)

    def name_suspects(self, key: Key) -> str:
        """Return what became of likely wrong labels among the training rows behind a number."""
        row = self.find_row(key)
        return (row and row.suspects) or "keep"

    def list_points(self, view: View) -> pd.DataFrame:
        """List the points of a panel: COLUMNS, one line for every seed."""
        lines = self._pair_measures(view) if view.x in SPECTRUM else self._list_lines(view)
        return pd.DataFrame(lines, columns=COLUMNS)

    def _list_lines(self, view: View) -> Iterator[tuple[float, str, str, int, float]]:
        keys = self.find_keys(view.y, view.domain, view.methods, view.tasks)
        keys = [key for key in keys if view.y in SPECTRUM or self.name_suspects(key) == view.suspects]
        ranks = {key: self.find_rank(key, view.x) for key in keys} if view.x in ("share", "noise") else {}
        digits = count_digits(100 * rank for rank in ranks.values() if math.isfinite(rank))
        several = len({key.split for key in keys}) > 1 and view.y in SPECTRUM
        for key in keys:
            for condition, values in zip(self.study.conditions, self.study.table[key], strict=True):
                rank = ranks[key] if ranks else condition.x
                label = f"{100 * rank:.{digits}g} %" if ranks else condition.label
                series = {"condition": self.study.at(condition), "test": key.split}.get(view.by, self.name(key, view))
                if view.by == "method" and view.x in ("share", "noise") and len(self.study.conditions) > 1:
                    series = f"{series}, {self.study.at(condition)}"
                series = f"{series}, {key.split}" if several and key.method and view.by != "test" else series
                yield from ((rank, label, series, seed, value) for (seed, _), value in values.items())

    def name(self, key: Key, view: View) -> str:
        """Return what a line of a panel is called: its method, with the setting unless that is what x is about."""
        if key.task == "pretrain":
            return "encoder"
        if not key.method:
            return ", ".join(self.name_place(key)) or "features"
        if view.y in DETECTORS:
            return METHODS[key.method.name]
        return str(key.method) if view.x in ("share", "noise") or not key.setting else key.head

    def _pair_measures(self, view: View) -> Iterator[tuple[float, str, str, int, float]]:
        """Yield a point for every test, condition and seed: a measure of the features and a score of the probe."""
        for measure, score in self.pair_keys(view.x, view.domain):
            for i, condition in enumerate(self.study.conditions):
                xs, ys = self.study.table[measure][i], self.study.table[score][i]
                for seed in (seed for seed in xs if seed in ys):
                    of = f"{score.task}, {score.split}" + (f", {score.setting}" if score.setting else "")
                    yield xs[seed], of, self.study.at(condition), seed[0], ys[seed]

    def pair_keys(self, x: str, domain: str) -> list[tuple[Key, Key]]:
        """Return (measure, score of the probe on the same test) for every test whose spectrum is known."""
        out = []
        for task in self.study.tasks:
            found = self.study.keys(metric=x, task=task, domain=domain, mode="paper", method=None)
            metric = self.study.find_metric_of(task, self.metric)
            scores = self.study.keys(metric=metric, task=task, domain=domain, method=self.probe)
            out += [(m, s) for m in found for s in scores if self._are_of_one(m, s)]
        return out

    def choose_whole(self, pairs: Sequence[tuple[Key, Key]]) -> list[tuple[Key, Key]]:
        """Return the pairs whose heads learned from the largest share of rows, with the fewest wrong labels among them.

        Heads without the suspects are left out. Without this a test would count once for each of its heads.
        """

        def rank(pair: tuple[Key, Key]) -> tuple[float, float, bool]:
            share, noise = (self.find_rank(pair[1], of) for of in ("share", "noise"))
            return -np.nan_to_num(share, nan=1.0), np.nan_to_num(noise), self.name_suspects(pair[1]) != "keep"

        ranks = [rank(pair) for pair in pairs]
        return [pair for pair, own in zip(pairs, ranks, strict=True) if own == min(ranks)]

    def _are_of_one(self, measure: Key, score: Key) -> bool:
        """Return whether a spectrum and a score are of the same features of the same rows."""
        row = self.find_row(score)
        layer = (row and row.layer) or measure.layer
        return (measure.split, measure.weights, measure.layer) == (score.split, score.weights, layer)
