"""Summarise the scores of a run and of those that differ in their seed alone."""

import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from nml_jax.export.origin import Origin, list_siblings
from nml_jax.runs.heads import preset_label
from nml_jax.runs.rows import DIVERGED, Row, read_rows


class Result(NamedTuple):
    """A score: what it measures, its mean and, of several runs, its sample standard deviation."""

    words: tuple[str, ...]  # task, split, domain, method, metric
    value: float  # of the exported weights
    mean: float
    sd: float | None
    n: int


def summarise_results(origin: Origin) -> list[Result]:
    """Return the scores of the exported weights, with the mean and spread over the runs of the same condition.

    A fine-tuned setting has its own scores. For pre-trained weights they are those of the pre-training, of heads on all
    clean training rows, and of zero-shot classification and retrieval. There are none for a step that was not scored.
    """
    inside = origin.home.relative_to(origin.run)
    tables = {run: _tabulate(run / inside, origin) for run in list_siblings(origin)}
    own = tables.get(origin.run) or _tabulate(origin.home, origin)
    out = []
    for words, value in own.items():
        values = [table[words] for table in tables.values() if words in table] or [value]
        sd = statistics.stdev(values) if len(values) > 1 else None
        out.append(Result(words, value, statistics.fmean(values), sd, len(values)))
    return out


def _tabulate(folder: Path, origin: Origin) -> dict[tuple[str, ...], float]:
    """Return the scores of one run by what they measure; the mean over head seeds and layers' names kept apart."""
    found: dict[tuple[str, ...], list[float]] = {}
    for row in _select(read_rows(folder), origin):
        method = " ".join(filter(None, (row.method, row.preset and preset_label(vars(row)))))
        layer = f" on {row.layer}" if row.layer not in (None, "features") else ""
        words = (row.task, row.split, row.domain, (method or row.stage) + layer, row.metric)
        found.setdefault(words, []).append(row.value)
    return {words: statistics.fmean(values) for words, values in found.items()}


def _select(rows: Iterable[Row], origin: Origin) -> Iterable[Row]:
    """Yield the rows of the exported weights that a card shows."""
    for row in rows:
        same = row.step == origin.loaded.step and row.weights == origin.weights
        plain = row.wise_alpha is None and row.train_share in (None, 1.0) and not row.downstream_noise
        shown = plain and row.suspects in (None, "keep") and not row.spectrum_mode and row.metric != DIVERGED
        if shown and (origin.tuned or same) and _is_score(row):
            yield row


def _is_score(row: Row) -> bool:
    return row.stage == "pretrain" or row.metric == "accuracy" or "recall" in row.metric


def as_table(results: Iterable[Result]) -> list[dict[str, Any]]:
    """Return results as the card shows them."""
    return [
        {
            "words": result.words, "value": f"{result.value:.4g}", "mean": f"{result.mean:.4g}",
            "sd": "" if result.sd is None else f"{result.sd:.2g}", "n": result.n,
        }
        for result in results
    ]  # fmt: skip
