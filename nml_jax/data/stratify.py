"""Stratified draws: the same share, or the same number, of every class."""

from typing import Any

import numpy as np

from nml_jax.data.sources.source import Source, Subset
from nml_jax.errors import UserError


def split_validation(source: Source, share: float, seed: int = 0) -> tuple[Source, Source]:
    """(train, validation): the same share of every class is held out, by largest remainder, and never all of one.

    Without labels all records are of one class. Both keep the source order; ids count from 0 in each. Depends on the
    labels, `share` and `seed` alone.

    Raises:
        UserError: share is outside [0, 1), or above 0 and too small for a single record.
    """
    if not 0 <= share < 1:
        raise UserError(f"a validation share of {share}", "give a number from 0 up to, not including, 1")
    labels = source.labels if len(source.labels) else np.zeros(len(source), np.int32)
    counts = np.bincount(labels, minlength=source.num_classes)
    quota = counts * share
    held = np.floor(quota).astype(int)
    rest = round(float(quota.sum())) - held.sum()
    held[np.argsort(held - quota, kind="stable")[:rest]] += 1
    held = np.minimum(held, np.maximum(counts - 1, 0))
    if share and not held.any():
        raise UserError(f"a validation share of {share} of {len(source)} records is none", "give a larger share")
    draw = np.random.Philox(key=seed).random_raw(len(source))  # the raw stream: stable over NumPy versions
    out = rank_in_class(labels, draw) < held[labels]
    return Subset(source, np.flatnonzero(~out)), Subset(source, np.flatnonzero(out))


DOMAIN = 0x736861726573  # sets these draws apart from others of the same seed


def draw_stratified(labels: Any, share: float, seed: int = 0) -> np.ndarray:
    """The rows of a share of the records: as near as can be the same share of every class, and never none of one.

    All records are put in one order that depends on (labels, seed) alone: first one of each class, then the record of
    rank r (from 0) of a class of n by (r + 1/2)/n, which is rounding to the nearest in every class at once (Webster's
    method). A share is the beginning of that order, so a smaller share lies within every larger one; the largest
    remainder, class by class, would not be nested.

    Args:
        labels: int [N].
        share: in (0, 1].

    Returns:
        int64 [max(round(share·N), number of classes present)], ascending.

    Raises:
        UserError: the share is outside (0, 1].
    """
    if not 0 < share <= 1:
        raise UserError(f"a training share of {share}", "give a number above 0, up to 1")
    labels = np.asarray(labels)
    n = len(labels)
    draw = np.random.Philox(key=np.array([seed, DOMAIN], np.uint64)).random_raw(n)  # stable over NumPy versions
    _, of, counts = np.unique(labels, return_inverse=True, return_counts=True)
    rank = rank_in_class(of, draw)
    priority = np.where(rank == 0, 0.0, (rank + 0.5) / counts[of])
    order = np.lexsort((draw, priority))
    return np.sort(order[: max(round(share * n), len(counts))])


def hold_out(labels: np.ndarray, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Split rows at random, class by class: round(share·N) are held out, at least one, but never all of a class.

    Each class gives by the largest remainder of share·(its count), and keeps one. Which of equal remainders give is
    drawn, too: else the first classes alone would be tested where rows are few.

    Args:
        labels: int [N].
        share: in (0, 1).
        seed: of the draw.

    Returns:
        Rows to train on and rows held out, int64.

    Raises:
        UserError: nothing can be held out.
    """
    classes, counts = np.unique(labels, return_counts=True)
    total = max(1, round(share * len(labels)))
    held = np.minimum(np.floor(share * counts).astype(int), counts - 1)
    rng = np.random.default_rng(seed)
    rows = [rng.permutation(np.flatnonzero(labels == c)) for c in classes]
    for c in np.lexsort((rng.random(len(classes)), np.round(held - share * counts, 9))):
        held[c] += held.sum() < total and held[c] < counts[c] - 1
    if not (0 < share < 1 and held.any()):
        raise UserError(
            f"nothing can be held out: tune.validation={share}, {counts.max()} row(s) in the largest class",
            "set tune.validation above 0 and give more rows; or one value each of tune.lrs and tune.weight_decays",
        )
    kept = [r[k:] for r, k in zip(rows, held, strict=True)]
    return np.concatenate(kept), np.concatenate([r[:k] for r, k in zip(rows, held, strict=True)])


def draw_per_class(labels: np.ndarray, each: int, seed: int) -> np.ndarray:
    """bool [N]: `each` rows of every class, drawn at random, or all that it has."""
    return rank_in_class(labels, np.argsort(np.random.default_rng(seed).permutation(len(labels)))) < each


def rank_in_class(classes: np.ndarray, draw: np.ndarray) -> np.ndarray:
    """The rank, from 0, of every record within its class [N], int64 [N]; in the order of `draw` [N]."""
    counts = np.unique(classes, return_counts=True)[1]
    out = np.empty(len(classes), np.int64)
    out[np.lexsort((draw, classes))] = np.arange(len(classes)) - np.repeat(np.cumsum(counts) - counts, counts)
    return out
