"""Draw the same share, or the same number, of records of every class."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from nml_jax.data.sources.source import Source, Subset
from nml_jax.errors import UserError


def split_validation(source: Source, share: float, seed: int = 0) -> tuple[Source, Source]:
    """Split a source into (train, validation), stratified by class with the largest-remainder method.

    Every class keeps a training record. Without labels all records count as one class. Both parts keep the source
    order and number their ids from 0. The split depends only on labels, `share` and `seed`.

    Raises:
        UserError: share is outside [0, 1), or above 0 and too small for a single record.
    """
    if not 0 <= share < 1:
        raise UserError(
            f"a validation share of {share} is out of range", "give a number from 0 up to, but not including, 1"
        )
    labels = source.labels if len(source.labels) else np.zeros(len(source), np.int32)
    counts = np.bincount(labels, minlength=source.num_classes)
    quota = counts * share
    held = np.floor(quota).astype(int)
    rest = round(float(quota.sum())) - held.sum()
    held[np.argsort(held - quota, kind="stable")[:rest]] += 1
    held = np.minimum(held, np.maximum(counts - 1, 0))
    if share and not held.any():
        raise UserError(
            f"a validation share of {share} of {len(source)} records is less than one record", "give a larger share"
        )
    draw = np.random.Philox(key=seed).random_raw(len(source))  # the raw stream: stable over NumPy versions
    out = rank_in_class(labels, draw) < held[labels]
    return Subset(source, np.flatnonzero(~out)), Subset(source, np.flatnonzero(out))


DOMAIN = 0x736861726573  # sets these draws apart from others of the same seed


def draw_stratified(labels: Any, share: float, seed: int = 0) -> np.ndarray:
    """Draw a share of the records, as nearly as possible the same share of every class and at least one of each.

    All records are put in one order that depends only on (labels, seed). First comes one record of each class. Then
    the record of rank r (from 0) in a class of n is sorted by (r + 1/2)/n, which rounds to nearest in every class
    (Webster's method). A share is the beginning of that order, so a smaller share lies within every larger one. Shares
    drawn by largest remainder would not be nested.

    Args:
        labels: int [N].
        share: in (0, 1].

    Returns:
        int64 [max(round(share·N), number of classes present)], ascending.

    Raises:
        UserError: the share is outside (0, 1].
    """
    if not 0 < share <= 1:
        raise UserError(f"a training share of {share} is out of range", "give a number above 0, up to 1")
    labels = np.asarray(labels)
    n = len(labels)
    draw = np.random.Philox(key=np.array([seed, DOMAIN], np.uint64)).random_raw(n)  # stable over NumPy versions
    _, of, counts = np.unique(labels, return_inverse=True, return_counts=True)
    rank = rank_in_class(of, draw)
    priority = np.where(rank == 0, 0.0, (rank + 0.5) / counts[of])
    order = np.lexsort((draw, priority))
    return np.sort(order[: max(round(share * n), len(counts))])


BINS, IN_BIN = 10, 10  # most bins of scores, by quantile, that are drawn from like classes, and rows of each at least


def bin_scores(labels: Any) -> np.ndarray:
    """Return labels as classes to draw from, int [N]: classes as they are, scores in bins of equal size.

    There are ten of 100 rows or more, and fewer of fewer. Equal scores share a bin.
    """
    labels = np.asarray(labels)
    if labels.dtype.kind != "f":
        return labels
    bins = min(BINS, max(1, len(labels) // IN_BIN))
    edges = np.quantile(labels, np.arange(1, bins) / bins)
    return np.unique(np.searchsorted(edges, labels, side="right"), return_inverse=True)[1]


def hold_out(labels: np.ndarray, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Hold out round(share·N) rows at random, at least one, stratified by class.

    Each class gives rows by the largest remainder of share·(its count) and keeps at least one. Ties between remainders
    are broken at random, or else only the first classes would be tested if rows are few.

    Args:
        labels: int [N].
        share: in (0, 1).
        seed: seed of the draw.

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
            "set tune.validation above 0 and give more rows, or give one value each of tune.lrs and tune.weight_decays",
        )
    kept = [r[k:] for r, k in zip(rows, held, strict=True)]
    return np.concatenate(kept), np.concatenate([r[:k] for r, k in zip(rows, held, strict=True)])


def hold_out_groups(labels: np.ndarray, groups: np.ndarray, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Hold out about round(share·N) rows, at least one group, so that no group has rows in both parts.

    Groups are looked at in random order, and one is held out if that brings the numbers of held-out rows of the classes
    nearer to share·(their counts), in squares. Every class keeps a row to train on.

    Args:
        labels: int [N].
        groups: [N], of any dtype that sorts.
        share: in (0, 1).
        seed: seed of the draw.

    Returns:
        Rows to train on and rows held out, int64, ascending.

    Raises:
        UserError: no group can be held out, because some class would keep no row.
    """
    _, codes = np.unique(labels, return_inverse=True)
    names, of = np.unique(groups, return_inverse=True)
    counts = np.zeros((len(names), codes.max() + 1), np.int64)
    np.add.at(counts, (of, codes), 1)
    left, missing = counts.sum(0), share * counts.sum(0)
    held = np.zeros(len(names), bool)
    order = np.random.default_rng(seed).permutation(len(names))
    for group in order:
        own = counts[group]
        if ((left - own) > 0).all() and ((missing - own) ** 2).sum() < (missing**2).sum():
            left, missing, held[group] = left - own, missing - own, True
    if not held.any():  # every group is larger than the share: take the one that is nearest to it
        possible = [group for group in order if ((left - counts[group]) > 0).all()]
        if not possible:
            raise UserError(
                f"none of {len(names)} groups can be held out: some class would have no row left to train on",
                "give more groups of each class, or a test file of its own",
            )
        held[min(possible, key=lambda group: ((missing - counts[group]) ** 2).sum())] = True
    return np.flatnonzero(~held[of]), np.flatnonzero(held[of])


TRIES = 20  # divisions of groups into folds


def check_groups(groups: ArrayLike | None, n: int) -> np.ndarray | None:
    """Return numbers of groups, int [N]; None for None.

    Raises:
        UserError: there is not one for each row, or all rows are one group.
    """
    if groups is None:
        return None
    named, codes = np.unique(np.asarray(groups), return_inverse=True)
    if np.shape(groups) != (n,):
        raise UserError(f"groups {np.shape(groups)} for {n} rows", "give one for each row")
    if len(named) < 2:
        raise UserError("all rows are one group", "give several groups, or None")
    return codes


def count_groups(codes: np.ndarray, groups: np.ndarray | None) -> np.ndarray:
    """Return the number of groups that have rows of each class, int [K]; of rows without groups."""
    if groups is None:
        return np.bincount(codes)
    pairs = np.unique(np.stack([codes, groups]), axis=1)
    return np.bincount(pairs[0], minlength=codes.max() + 1)


def split_rows(
    codes: np.ndarray, folds: int, seed: int, groups: np.ndarray | None = None
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Split rows by class into folds; return the rows to train on and to test on of each. Groups stay together.

    Raises:
        UserError: no division of the groups leaves every class in every training part.
    """
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold  # takes a second

    empty = np.zeros(len(codes))
    if groups is None:
        return list(StratifiedKFold(folds, shuffle=True, random_state=seed % 2**32).split(empty, codes))
    for attempt in range(TRIES):
        how = {"shuffle": True, "random_state": (seed + attempt) % 2**32}
        parts = list(StratifiedGroupKFold(folds, **how).split(empty, codes, groups))
        if all(len(test) and len(np.unique(codes[train])) == len(np.unique(codes)) for train, test in parts):
            return parts
    raise UserError(f"{folds} folds of whole groups leave some class without rows", "give more groups of each class")


def draw_per_class(labels: np.ndarray, each: int, seed: int) -> np.ndarray:
    """Draw `each` rows of every class at random, or all if it has fewer; bool [N]."""
    return rank_in_class(labels, np.argsort(np.random.default_rng(seed).permutation(len(labels)))) < each


def rank_in_class(classes: np.ndarray, draw: np.ndarray) -> np.ndarray:
    """Return the rank from 0 of every record within its class, in the order of `draw` [N]; int64 [N]."""
    counts = np.unique(classes, return_counts=True)[1]
    out = np.empty(len(classes), np.int64)
    out[np.lexsort((draw, classes))] = np.arange(len(classes)) - np.repeat(np.cumsum(counts) - counts, counts)
    return out
