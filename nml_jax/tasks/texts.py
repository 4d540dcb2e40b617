"""The downstream task "texts": classes of texts, or of pairs of texts, in tables."""

from pathlib import Path
from typing import Any

import numpy as np

from nml_jax import console, inputs, ranges
from nml_jax.data.features.files import find_classes
from nml_jax.data.sources.sentences import ScoredSentences, number_classes, read_texts
from nml_jax.data.sources.source import Source
from nml_jax.data.stratify import bin_scores, hold_out, split_validation
from nml_jax.data.text.overlap import describe_overlap
from nml_jax.errors import UserError

MANY = 100  # more classes are taken for ids or scores unless each has two rows on average
SEED = 0  # of the held-out part, which is the same for every seed: a frozen encoder has one bank


def check_ranges(config: Any) -> None:
    """Raise UserError if a value of the section `texts` is out of range."""
    ranges.require_at_least(8, "texts", config, "length")
    if not config.buckets or list(config.buckets) != sorted({*config.buckets}) or config.buckets[0] < 1:
        raise UserError(f"texts.buckets is {config.buckets}", "give rising lengths, as (16, 32, 64, 128)")
    if not 0 < config.holdout < 1:
        raise UserError(f"texts.holdout is {config.holdout}", "give a share between 0 and 1")


def check_files(config: Any) -> None:
    """Check that the files are named and distinct.

    Raises:
        UserError: they are not.
    """
    chosen = config.texts
    if not chosen.train:
        raise UserError("the downstream task 'texts' has no training file", "set --config.texts.train=FILE")
    seen: dict[Any, str] = {}
    for spec in (chosen.train, *inputs.split_specs(chosen.test), *inputs.split_specs(chosen.ood)):
        path = Path(spec).expanduser()
        same = inputs.describe_content(path) if path.is_file() else str(path)
        if same in seen:
            raise UserError(f"{spec} is the same as {seen[same]}", "name each file once: a test needs rows of its own")
        seen[same] = spec


def load(config: Any) -> tuple[Source, list[tuple[str, str, Any]]]:
    """Return the training texts, and the tests as (split, domain, texts).

    Raises:
        UserError: a file is missing, damaged, or has a label that the training file has not.
    """
    check_files(config)
    chosen = config.texts
    path = Path(chosen.train).expanduser()
    texts, labels = read_texts(path, chosen.columns, chosen.label, scored=chosen.regression)
    classes = _find_classes(path, labels, chosen)
    train: Source = _make(path, texts, labels, classes)
    tests = []
    for domain, specs in (("id", chosen.test), ("ood", chosen.ood)):
        for spec in inputs.split_specs(specs):
            own = Path(spec).expanduser()
            source = _make(own, *read_texts(own, chosen.columns, chosen.label, scored=chosen.regression), classes)
            tests.append((_name(own, [name for name, *_ in tests]), domain, source))
    for split, _, own in tests:
        if overlap := describe_overlap(texts, own.texts, f"{path.stem}: {split}"):
            console.notice_once(overlap)
    if not chosen.test:
        train, held = _hold_out(train, texts, labels, chosen.holdout)
        tests.insert(0, ("holdout", "id", held))
        console.notice_once(f"{path}: {len(held):,} of its rows are held out as a test, the same for every seed")
    return train, tests


def _find_classes(path: Path, labels: np.ndarray, chosen: Any) -> np.ndarray | None:
    """Return the classes of the training file; None where labels are scores.

    Raises:
        UserError: labels look like scores or ids, or scores are all equal.
    """
    if chosen.regression:
        if np.ptp(labels) == 0:
            raise UserError(f"{path}: every score is {labels[0]:g}", "give rows with different scores")
        return None
    classes = find_classes(labels, str(path))
    if labels.dtype.kind == "f" or len(classes) > max(MANY, len(labels) // 2):
        raise UserError(
            f"{path}: {len(classes):,} different labels in {len(labels):,} rows, such as {classes[0]}",
            "name the column of the classes with --config.texts.label; if they are scores to be predicted, set "
            "--config.texts.regression=True and --config.tune.methods=\"('ridge','mlp','nmtune')\"",
        )
    return classes


def _hold_out(train: Source, texts: list[tuple[str, ...]], labels: np.ndarray, share: float) -> tuple[Source, Source]:
    if not isinstance(train, ScoredSentences):
        return split_validation(train, share, SEED)
    parts = map(np.sort, hold_out(bin_scores(labels), share, SEED))
    kept, held = (ScoredSentences([texts[i] for i in rows], labels[rows], train.class_names[0]) for rows in parts)
    return kept, held


def _name(path: Path, taken: list[str]) -> str:
    names = [path.stem, f"{path.resolve().parent.name}-{path.stem}", *(f"{path.stem}-{i}" for i in range(2, 100))]
    return next(name for name in names if name not in (*taken, "train", "holdout"))


def _make(path: Path, texts: list[tuple[str, ...]], labels: np.ndarray, classes: np.ndarray | None) -> Source:
    return ScoredSentences(texts, labels, "score") if classes is None else number_classes(path, texts, labels, classes)
