"""Label noise: wrong labels for a whole split."""

import inspect
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from nml_jax.errors import UserError
from nml_jax.noise.permutation import Ints, Permutation, count_share, derive_keys, hash_ids, split_blocks

Labels = npt.NDArray[np.integer]


def corrupt_labels(
    labels: npt.ArrayLike,
    *,
    num_classes: int,
    seed: int,
    kind: str = "symmetric",
    rate: float | None = None,
    classes: Sequence[int] = (),
    rate_of: str = "all",
    matrix: npt.ArrayLike | None = None,
    noisy: npt.ArrayLike | None = None,
) -> Labels:
    """Return noisy labels for a whole split, in its order. The input is not changed.

    Args:
        labels: clean labels of all records, shape (n,), any integer dtype, in 0..num_classes-1.
        num_classes: K.
        seed: any integer. The result depends only on it, the labels and the arguments below.
        kind: "symmetric": exactly round(rate·n) records, half to even, get a label uniform over the other classes.
            "asymmetric": the same among the records of `classes`; the new label is uniform over the rest of `classes`.
            "pair": the same records as symmetric; class c becomes c+1 modulo K.
            These three leave out classes without a record: no label becomes a class that no record has.
            "matrix": each class sends its records to other classes as its row of `matrix` says, in whole numbers by
            largest remainder.
            "labels": the labels are `noisy`.
            "matched": symmetric noise on exactly as many records as `noisy` has wrong, to compare the two.
        rate: γ, share of records in [0, 1]. The last three fix their own rate and take none.
        classes: S of "asymmetric".
        rate_of: for "asymmetric", whether `rate` is a share of "all" records or of those of "classes".
        matrix: P(noisy | true), shape (K, K), rows sum to 1.
        noisy: labels in the order of `labels`; of "matched", those whose number of wrong ones is drawn.

    Returns:
        Array of the shape and dtype of `labels`.

    Raises:
        UserError: labels are not integers in range or do not fit their dtype; an argument is missing, out of range or
            of another kind; `classes` have fewer records than asked for; there is no other class with a record.
    """
    num_classes = operator.index(num_classes)
    labels = check_labels(labels, num_classes, "label")
    if rate_of not in ("all", "classes"):
        raise UserError(f"unknown rate_of {rate_of!r}", "choose one of all, classes")
    needed = list_arguments(kind)
    arguments = {"rate": rate, "classes": tuple(classes) or None, "matrix": matrix, "noisy": noisy}
    for name, value in arguments.items():
        if name in needed and value is None:
            raise UserError(f"noise kind {kind!r} needs {name}", f"give {name}, or choose another kind")
        if name not in needed and value is not None:
            raise UserError(f"noise kind {kind!r} takes no {name}", f"remove {name}, or choose another kind")
    given = {name: arguments[name] for name in needed}
    return KINDS[kind](labels, num_classes, seed, **given, **({"rate_of": rate_of} if "classes" in needed else {}))


def list_arguments(kind: str) -> tuple[str, ...]:
    """Return the arguments that a kind of label noise needs: some of rate, classes, matrix and noisy.

    Raises:
        UserError: there is no such kind.
    """
    if kind not in KINDS:
        raise UserError(f"unknown noise kind {kind!r}", f"choose one of {', '.join(KINDS)}")
    parameters = inspect.signature(KINDS[kind]).parameters.values()
    return tuple(p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is p.empty)


def check_labels(labels: Any, num_classes: int, name: str, n: int | None = None) -> Labels:
    """Return labels as an array, checked.

    Args:
        name: what messages call one label.
        n: number of labels that there must be.

    Raises:
        UserError: the labels are not `n` integers in 0..num_classes-1, or their dtype cannot hold every class.
    """
    labels = np.asarray(labels)
    if labels.dtype.kind not in "iu" or labels.ndim != 1:
        raise UserError(
            f"the {name}s are {labels.dtype} of shape {labels.shape}, not one integer a record",
            "give class ids as integers, shape (n,)",
        )
    if n is not None and labels.size != n:
        raise UserError(f"{labels.size} {name}s for {n} records", "give one for each record, in the order of the split")
    if num_classes - 1 > np.iinfo(labels.dtype).max:
        raise UserError(f"{num_classes} classes do not fit {labels.dtype} {name}s", "give the labels as int32 or int64")
    if labels.size and not (labels.min() >= 0 and labels.max() < num_classes):
        for block in split_blocks(labels.size):
            bad = np.flatnonzero((labels[block] < 0) | (labels[block] >= num_classes))
            if bad.size:
                i = block.start + bad[0]
                raise UserError(
                    f"{name} {labels[i]} of record {i} is outside 0..{num_classes - 1}",
                    f"correct the {name}, or num_classes={num_classes} if that does not match the data",
                )
    return labels


def _corrupt_symmetric(labels: Labels, num_classes: int, seed: int, *, rate: float) -> Labels:
    return _exchange_share(labels, range(num_classes), num_classes, seed, rate)


def _corrupt_asymmetric(
    labels: Labels, num_classes: int, seed: int, *, rate: float, classes: Sequence[int], rate_of: str = "all"
) -> Labels:
    members = _check_classes(classes, num_classes)
    return _exchange_share(labels, members, num_classes, seed, rate, inside=rate_of == "classes")


def _corrupt_pair(labels: Labels, num_classes: int, seed: int, *, rate: float) -> Labels:
    return _exchange_share(labels, range(num_classes), num_classes, seed, rate, hashed=False)


def _corrupt_by_matrix(labels: Labels, num_classes: int, seed: int, *, matrix: npt.ArrayLike) -> Labels:
    return _follow_matrix(labels, _check_matrix(matrix, num_classes), seed)


def _take_labels(labels: Labels, num_classes: int, seed: int, *, noisy: npt.ArrayLike) -> Labels:
    return check_labels(noisy, num_classes, "noisy label", labels.size).astype(labels.dtype)


def _match_count(labels: Labels, num_classes: int, seed: int, *, noisy: npt.ArrayLike) -> Labels:
    wrong = (_take_labels(labels, num_classes, seed, noisy=noisy) != labels).sum()
    return _exchange_share(labels, range(num_classes), num_classes, seed, wrong / max(labels.size, 1))


# The kinds of label noise: f(labels, num_classes, seed, *, what it needs) -> noisy labels.
KINDS: dict[str, Callable[..., Labels]] = {
    "symmetric": _corrupt_symmetric,
    "asymmetric": _corrupt_asymmetric,
    "pair": _corrupt_pair,
    "matrix": _corrupt_by_matrix,
    "labels": _take_labels,
    "matched": _match_count,
}


def _check_classes(classes: Sequence[int], num_classes: int) -> Ints:
    """Return the sorted class ids."""
    members = np.unique(np.asarray(classes))
    if members.dtype.kind not in "iu" or members[0] < 0 or members[-1] >= num_classes:
        raise UserError(f"classes {tuple(classes)} are not ids in 0..{num_classes - 1}", "give class ids of the labels")
    return members.astype(np.int64)


def _check_matrix(matrix: Any, num_classes: int) -> npt.NDArray[np.float64]:
    """Return the matrix in float64, with rows that sum to 1 exactly."""
    matrix, cure = np.asarray(matrix), "give P(noisy | true), a row for each true class, each row summing to 1"
    if matrix.dtype.kind not in "biuf":
        raise UserError(f"the noise matrix has dtype {matrix.dtype}; it must be numbers", cure)
    matrix = matrix.astype(np.float64)
    if matrix.shape != (num_classes, num_classes):
        raise UserError(f"the noise matrix has shape {matrix.shape}; there are {num_classes} classes", cure)
    bad = np.argwhere(~(matrix >= 0))  # also NaN
    if bad.size:
        raise UserError(f"the noise matrix has {matrix[tuple(bad[0])]} at {tuple(bad[0].tolist())}", cure)
    sums = matrix.sum(1, keepdims=True)
    bad = np.flatnonzero(~(abs(sums - 1) <= 1e-6))
    if bad.size:
        raise UserError(f"row {bad[0]} of the noise matrix sums to {sums[bad[0], 0]:.6g}", cure)
    return matrix / sums


def _exchange_share(
    labels: Labels,
    classes: Sequence[int] | Ints,
    num_classes: int,
    seed: int,
    rate: float,
    *,
    inside: bool = False,
    hashed: bool = True,
) -> Labels:
    """Exchange labels among those of `classes` that have a record. The rate is a share of their records if `inside`."""
    counts = _count_classes(labels, num_classes)
    members = np.asarray(classes, np.int64)
    members = members[counts[members] > 0]
    total = int(counts[members].sum())
    count = count_share(rate, total if inside else labels.size)
    if count > total:
        raise UserError(
            f"noise rate {rate} of all {labels.size} records is {count}, but classes {members.tolist()} have {total}",
            "lower the rate, name more classes, or set rate_of to classes",
        )
    if rate and labels.size and members.size < 2:
        raise UserError(
            f"noise of rate {rate} needs another class, but only {members.size} of {len(classes)} has a record",
            "set the rate to 0, or give records of two classes",
        )
    return _exchange(labels, members, count, num_classes, seed, hashed=hashed)


def _exchange(labels: Labels, members: Ints, count: int, num_classes: int, seed: int, *, hashed: bool) -> Labels:
    """Move the first `count` records of the classes `members`, by rank, one class further or a hashed number of them.

    Multiply and shift reduce the hash to the q-1 steps, so that a step's probability is off by less than 2**-32. This
    is invisible below 2**64 / q records.
    """
    out = labels.copy()
    keys = derive_keys("label", 2, seed=seed)
    position = np.full(num_classes, -1)
    position[members] = np.arange(members.size)
    left = count
    for ids in _walk_ranks(labels.size, seed):
        if not left:
            break
        at = position[labels[ids]]
        chosen = np.flatnonzero(at >= 0)[:left]
        ids, at = ids[chosen], at[chosen]
        at += (hash_ids(ids, keys) * (members.size - 1) >> 32) + 1 if hashed else 1
        out[ids] = members[at % members.size]
        left -= chosen.size
    return out


def _follow_matrix(labels: Labels, matrix: npt.NDArray[np.float64], seed: int) -> Labels:
    """Move each class's records, by rank, 1, 2, ... classes further, as the quota of each step says; the rest stay."""
    out, k = labels.copy(), len(matrix)
    sizes = _count_classes(labels, k)
    quota = _fill_quota(sizes, matrix, seed)
    moving = sizes - quota[:, -1]
    starts, ends = sizes.cumsum() - sizes, quota.cumsum()  # as if all classes' records were in one row, by class
    seen = np.zeros(k, np.int64)
    for ids in _walk_ranks(labels.size, seed):
        ids = ids[np.argsort(labels[ids], kind="stable")]
        c = labels[ids].astype(np.int64)
        here = np.bincount(c, minlength=k)
        position = np.arange(ids.size) - (here.cumsum() - here - seen)[c]  # of a record within its class
        seen += here
        moves = np.flatnonzero(position < moving[c])
        ids, c, position = ids[moves], c[moves], position[moves]
        step = np.searchsorted(ends, starts[c] + position, side="right") - c * k + 1
        out[ids] = (c + step) % k
    return out


def _fill_quota(sizes: Ints, matrix: npt.NDArray[np.float64], seed: int) -> Ints:
    """Return how many records of class c go s classes further, at [c, s - 1], s = 1..K, by largest remainder.

    Rows sum to `sizes`.
    """
    k = len(sizes)
    quota = np.empty((k, k), np.int64)
    keys = derive_keys("remainder", 2, seed=seed)
    for c, size in enumerate(sizes):
        to = (c + np.arange(1, k + 1)) % k
        expected = size * matrix[c, to]
        quota[c] = np.floor(expected)
        # Remainders often tie, as those of all other classes in symmetric noise. A hash breaks ties, so that the lowest
        # classes do not always win.
        order = np.lexsort((hash_ids(c * k + to, keys), -np.round(expected - quota[c], 9)))
        quota[c, order[: size - quota[c].sum()]] += 1
    return quota


def _walk_ranks(n: int, seed: int) -> Iterator[Ints]:
    """Yield all ids in order of rank, in blocks."""
    permutation = Permutation(n, seed)
    return (permutation.unrank(np.arange(block.start, block.stop)) for block in split_blocks(n))


def _count_classes(labels: Labels, num_classes: int) -> Ints:
    """Count the records of each class."""
    counts = np.zeros(num_classes, np.int64)
    for block in split_blocks(labels.size):
        counts += np.bincount(labels[block].astype(np.int64), minlength=num_classes)
    return counts
