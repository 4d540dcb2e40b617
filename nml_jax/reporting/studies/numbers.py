"""Find the numbers that a study's panels and claims are about, as keys and as a table of points."""

import math
from collections.abc import Iterator, Sequence

import pandas as pd

from nml_jax.reporting import claims
from nml_jax.reporting.statistics.choose_method import DOMAINS, find_metric, name_parts
from nml_jax.reporting.statistics.compare import find_leaves
from nml_jax.reporting.statistics.studies import (
    MEAN,
    MEASURES,
    METHODS,
    PRIMARY,
    Key,
    Method,
    Study,
    find_own_metric,
)
from nml_jax.reporting.studies.recipes import PROBE, View
from nml_jax.runs.detections import METRICS as DETECTORS
from nml_jax.runs.rows import Row

COLUMNS = ["x", "x_label", "series", "seed", "y"]  # of a panel's points
SPECTRUM = tuple(claims.SPECTRUM)
SCORE = "score"  # as View.y, and in titles: the metric that decides
VALIDATION = "validation"  # as View.y: accuracy in pre-training, on clean validation


class Numbers:
    """The numbers of a study.

    task: the only task, or MEAN over several. metric: the one that decides. probe: the reference method.
    """

    def __init__(self, study: Study):
        self.study = study
        self.task = MEAN if len(study.tasks) > 1 else next(iter(study.tasks), "")
        self.metric = find_metric(study, self.task)
        self.probe = claims.find_reference(study)

    def find_keys(self, y: str, domain: str, methods: Sequence[str] = ()) -> list[Key]:
        """Return the keys of a score, over all tests of a domain, or of a measure of a spectrum in raw mode.

        Args:
            y, domain, methods: as in View. Scores of all methods, in the order of the rows, without `methods`.
                Detectors are those that start from the encoder.
        """
        if y in SPECTRUM:
            return self._find_spectra(y, domain, methods)
        if y in DETECTORS:
            found = [key for key in self.study.keys(metric=y, domain=domain) if MEAN not in (key.split, key.task)]
            return [key for name in methods for key in found if key.method == Method(name, "encoder")]
        if y == VALIDATION:
            return self.study.keys(metric="accuracy", task="pretrain", split="validation", domain=domain, weights="")
        found = self.study.keys(metric=self.metric, task=self.task, split=MEAN, domain=domain)
        if not methods:
            return [key for key in found if key.method]
        wanted = [self.probe.name if name == PROBE else name for name in methods]
        return [key for name in dict.fromkeys(wanted) for key in found if key.method and key.method.name == name]

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

    def list_parts(self) -> list[str]:
        """Return what the score of a domain is the mean of, in words, for each domain that has one."""
        out = []
        for domain, where in DOMAINS.items():
            keys = self.study.keys(metric=self.metric, task=self.task, split=MEAN, domain=domain)
            if key := next((key for key in keys if key.method), None):
                out.append(f"{where} score: {name_parts(self.study, key)}")
        return out

    def find_way(self, y: str) -> int:
        """Return 1 if a larger y is better, or only larger, and −1 if a smaller score is better, as of a loss."""
        return MEASURES[self.metric].way if y == SCORE else 1

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
        keys = self.find_keys(view.y, view.domain, view.methods)
        keys = [key for key in keys if view.y in SPECTRUM or self.name_suspects(key) == view.suspects]
        several = len({key.split for key in keys}) > 1 and view.y in SPECTRUM
        for key in keys:
            for condition, values in zip(self.study.conditions, self.study.table[key], strict=True):
                rank = self.find_rank(key, view.x) if view.x in ("share", "noise") else condition.x
                label = f"{100 * rank:.4g} %" if view.x in ("share", "noise") else condition.label
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
            metric = find_own_metric(task, self.study.table) if self.metric == PRIMARY else self.metric
            scores = self.study.keys(metric=metric, task=task, domain=domain, method=self.probe)
            out += [(m, s) for m in found for s in scores if self._are_of_one(m, s)]
        return out

    def _are_of_one(self, measure: Key, score: Key) -> bool:
        """Return whether a spectrum and a score are of the same features of the same rows."""
        row = self.find_row(score)
        layer = (row and row.layer) or measure.layer
        return (measure.split, measure.weights, measure.layer) == (score.split, score.weights, layer)
