"""Wrong supervision as data: label noise, caption swaps and their ledger, all from one keyed permutation (METHOD §2).

A record's rank P(i) says whether it is corrupted, a hash of (seed, i) to what. Neither knows the rate, so the records
corrupted at 5 % are among those of 10 % and carry the same wrong label there. Ids and ranks pass in blocks that stay in
cache: besides the labels themselves nothing grows with the number of records.
"""

import dataclasses
import hashlib
import json
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from nml_jax.errors import UserError

Ints = npt.NDArray[np.int64]
X = TypeVar("X", int, Ints)  # one id as a Python integer, or a block of ids: the same code, bit for bit

KINDS = {  # of label noise, and the arguments that each needs
    "symmetric": ("rate",),
    "asymmetric": ("rate", "classes"),
    "pair": ("rate",),
    "matrix": ("matrix",),
    "labels": ("noisy",),
}
FULL_MATRIX = 100  # classes up to which a ledger holds the whole transition matrix

_BLOCK = 1 << 14  # ids: 128 KiB an array, so that the few temporaries of a round share the L2 cache
_WORD = (1 << 32) - 1


class Permutation:
    """A keyed pseudo-random permutation of 0..n-1, evaluated at any place without the others, and invertible.

    An alternating Feistel network over Z_a × Z_b, b = 2**k and a = ceil(n / b), both near √n: each round adds a hash of
    one half to the other. The fewer than b values beyond n are walked along their cycle until they fall inside.

    Calls take an integer, or an array of any shape and integer dtype, and return the same as int or int64.

    Args:
        n: number of records, at most 2**62.
        seed: any integer; with n it is the whole key.

    Raises:
        UserError: n or seed is no such integer; on a call, an id is outside 0..n-1.
    """

    def __init__(self, n: int, seed: int):
        if not isinstance(n, Integral) or not 0 <= n <= 1 << 62:
            raise UserError(f"{n!r} is no number of records", "give an integer from 0 to 2**62")
        self.n, self.seed = int(n), _check_seed(seed)
        bits = (self.n - 1).bit_length() // 2
        # Eight rounds are even beyond what 10**6 seeds can show from n = 33 on. Below, pairs (P(i), P(j)) need more.
        keys = _keys("permutation", 8 if self.n > 1000 else 32, seed=self.seed, n=self.n)
        self._network = bits, (1 << bits) - 1, -(-self.n >> bits), tuple(zip(keys[::2], keys[1::2], strict=True))

    def __call__(self, ids: X) -> X:
        """Ranks of the records `ids`."""
        return _apply(self._rank, ids, self.n)

    def inverse(self, ranks: X) -> X:
        """The records of these `ranks`."""
        return _apply(self._record, ranks, self.n)

    def _rank(self, ids: Any) -> Any:
        return self._walk(self._forward, ids)

    def _record(self, ranks: Any) -> Any:
        return self._walk(self._backward, ranks)

    def _walk(self, step: Callable[[Any], Any], x: Any) -> Any:
        x = step(x)
        if isinstance(x, int):
            while x >= self.n:
                x = step(x)
            return x
        outside = np.flatnonzero(x >= self.n)
        while outside.size:
            x[outside] = step(x[outside])
            outside = outside[x[outside] >= self.n]
        return x

    def _forward(self, x: Any) -> Any:
        bits, mask, a, keys = self._network
        left, right = x >> bits, x & mask
        for key_left, key_right in keys:
            left += _mix(right, key_left) * a >> 32
            left -= a
            left += left >> 63 & a  # modulo a: the sign bit, spread, puts back what was one subtraction too many
            right += _mix(left, key_right) >> 32 - bits
            right &= mask
        return left << bits | right

    def _backward(self, x: Any) -> Any:
        bits, mask, a, keys = self._network
        left, right = x >> bits, x & mask
        for key_left, key_right in reversed(keys):
            right -= _mix(left, key_right) >> 32 - bits
            right &= mask
            left -= _mix(right, key_left) * a >> 32
            left += left >> 63 & a
        return left << bits | right


class CaptionSwap:
    """Who gets whose caption: the first m = round(rate·n) records by rank pass theirs along one cycle.

    So no caption of theirs stays with its image, none is lost and none is used twice (METHOD §2, `caption_swap`).
    Calls take an id (about 4 µs, 8 for a swapped one) or an array of ids, and return the records whose captions they
    get, themselves outside the swapped subset.

    Attributes:
        n, rate, seed: as given.
        count: m, the number of swapped records.

    Raises:
        UserError: rate is no share in [0, 1]; m is 1; n or seed is no integer in range; on a call, an id is outside
            0..n-1.
    """

    def __init__(self, *, n: int, rate: float, seed: int):
        self._permutation = Permutation(n, seed)
        self.n, self.seed = self._permutation.n, self._permutation.seed
        self.count, self.rate = _count(rate, self.n), float(rate)
        if self.count == 1:
            raise UserError(
                f"noise rate {rate} swaps 1 caption of {n}, and one alone has no partner",
                "choose a rate that swaps none or at least two",
            )

    def __call__(self, ids: X) -> X:
        return _apply(self._partner, ids, self.n)

    def swapped(self) -> Ints:
        """The `count` records that get another's caption, in the order of the cycle."""
        return self._permutation.inverse(np.arange(self.count))

    def _partner(self, ids: Any) -> Any:
        rank = self._permutation._rank(ids)
        if isinstance(rank, int):
            return self._permutation._record((rank + 1) % self.count) if rank < self.count else ids
        swapped = np.flatnonzero(rank < self.count)
        ids[swapped] = self._permutation._record((rank[swapped] + 1) % max(self.count, 1))
        return ids


def swap_captions(ids: npt.ArrayLike, *, n: int, rate: float, seed: int) -> Ints:
    """The records whose captions the records `ids` get, themselves outside the swapped subset: see `CaptionSwap`.

    Args:
        ids: integers in 0..n-1, any shape and order; those of the split before noise.
        n: number of records of that split; memory does not grow with it.
        rate: share of the records whose captions are exchanged among them, exactly round(rate·n) half to even.
        seed: any integer.

    Returns:
        Array of the shape of `ids`, int64.

    Raises:
        UserError: as `CaptionSwap`.
    """
    return CaptionSwap(n=n, rate=rate, seed=seed)(np.asarray(ids))


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
) -> npt.NDArray[np.integer]:
    """Noisy labels for a whole split, in its order (METHOD §2). The input is never changed.

    Args:
        labels: clean labels of all records, shape (n,), any integer dtype, in 0..num_classes-1.
        num_classes: K.
        seed: any integer. The result depends on it, the labels and the arguments below, on nothing else.
        kind: "symmetric": exactly round(rate·n) records, half to even, get a label uniform over the other K-1 classes.
            "asymmetric": the same among the records of `classes`, the new label uniform over the rest of `classes`.
            "pair": the same records as symmetric; class c becomes c+1 modulo K.
            "matrix": of each class, whole numbers of records by largest remainder go where its row of `matrix` says.
            "labels": the labels are `noisy`.
        rate: γ, share of records in [0, 1]. "matrix" and "labels" fix their own and take none.
        classes: S of "asymmetric".
        rate_of: for "asymmetric", whether `rate` is a share of "all" records or of those of "classes".
        matrix: P(noisy | true), shape (K, K), rows sum to 1.
        noisy: labels in the order of `labels`.

    Returns:
        Array of the shape and dtype of `labels`.

    Raises:
        UserError: labels that are no integers in range or do not fit their dtype; an argument that is missing, out of
            range or not of this kind; more records asked for than `classes` have; no other class to go to.
    """
    labels = _check_labels(labels, num_classes, "label")
    seed = _check_seed(seed)
    if kind not in KINDS:
        raise UserError(f"unknown noise kind {kind!r}", f"choose one of {', '.join(KINDS)}")
    if rate_of not in ("all", "classes"):
        raise UserError(f"unknown rate_of {rate_of!r}", "choose one of all, classes")
    given = {"rate": rate, "classes": tuple(classes) or None, "matrix": matrix, "noisy": noisy}
    for name, value in given.items():
        if name in KINDS[kind] and value is None:
            raise UserError(f"noise kind {kind!r} needs {name}", "give it, or choose another kind")
        if name not in KINDS[kind] and value is not None:
            raise UserError(f"noise kind {kind!r} takes no {name}", "remove it, or choose another kind")

    if kind == "labels":
        return _check_labels(noisy, num_classes, "noisy label", labels.size).astype(labels.dtype)
    if kind == "matrix":
        return _follow_matrix(labels, _check_matrix(matrix, num_classes), seed)
    members, total = np.arange(num_classes), labels.size
    if kind == "asymmetric":
        members = _check_classes(classes, num_classes)
        total = int(_class_counts(labels, num_classes)[members].sum())
    count = _count(rate, total if rate_of == "classes" else labels.size)
    if count > total:
        raise UserError(
            f"noise rate {rate} of all {labels.size} records is {count}, but classes {members.tolist()} have {total}",
            "lower the rate, name more classes, or set rate_of to classes",
        )
    if rate and members.size < 2:
        raise UserError(f"noise needs another class to go to, and there is 1 (rate {rate})", "set the rate to 0")
    return _exchange(labels, members, count, num_classes, seed, hashed=kind != "pair")


def _exchange(
    labels: npt.NDArray[np.integer], members: Ints, count: int, num_classes: int, seed: int, *, hashed: bool
) -> npt.NDArray[np.integer]:
    """The first `count` records of the classes `members`, by rank, go 1 or a hashed number of classes further.

    The hash is reduced to the q-1 steps by multiply and shift, so a step's probability is off by less than 2**-32:
    invisible below 2**64 / q records.
    """
    out = labels.copy()
    keys = _keys("label", 2, seed=seed)
    place = np.full(num_classes, -1)
    place[members] = np.arange(members.size)
    left = count
    for ids in _by_rank(labels.size, seed):
        if not left:
            break
        at = place[labels[ids]]
        chosen = np.flatnonzero(at >= 0)[:left]
        ids, at = ids[chosen], at[chosen]
        at += (_hash(ids, keys) * (members.size - 1) >> 32) + 1 if hashed else 1
        out[ids] = members[at % members.size]
        left -= chosen.size
    return out


def _follow_matrix(
    labels: npt.NDArray[np.integer], matrix: npt.NDArray[np.float64], seed: int
) -> npt.NDArray[np.integer]:
    """Each class's records, by rank, go 1, 2, ... classes further, as many as the quota of each step; the rest stay."""
    out, k = labels.copy(), len(matrix)
    sizes = _class_counts(labels, k)
    quota = _quota(sizes, matrix, seed)
    moving = sizes - quota[:, -1]
    starts, ends = sizes.cumsum() - sizes, quota.cumsum()  # all classes' records in one long row, class after class
    seen = np.zeros(k, np.int64)
    for ids in _by_rank(labels.size, seed):
        ids = ids[np.argsort(labels[ids], kind="stable")]
        c = labels[ids].astype(np.int64)
        here = np.bincount(c, minlength=k)
        place = np.arange(ids.size) - (here.cumsum() - here - seen)[c]  # of a record among those of its class
        seen += here
        moves = np.flatnonzero(place < moving[c])
        ids, c, place = ids[moves], c[moves], place[moves]
        step = np.searchsorted(ends, starts[c] + place, side="right") - c * k + 1
        out[ids] = (c + step) % k
    return out


def _quota(sizes: Ints, matrix: npt.NDArray[np.float64], seed: int) -> Ints:
    """Records of class c that go s classes further, at [c, s - 1], s = 1..K; rows sum to `sizes`, largest remainder."""
    k = len(sizes)
    quota = np.empty((k, k), np.int64)
    keys = _keys("remainder", 2, seed=seed)
    for c, size in enumerate(sizes):
        to = (c + np.arange(1, k + 1)) % k
        expected = size * matrix[c, to]
        quota[c] = np.floor(expected)
        # Remainders often tie (every class but the own in symmetric noise), and the lowest classes must not always win.
        order = np.lexsort((_hash(c * k + to, keys), -np.round(expected - quota[c], 9)))
        quota[c, order[: size - quota[c].sum()]] += 1
    return quota


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ledger:
    """What was done to the supervision of a run: written at its start, compared when it is resumed."""

    kind: str
    seed: int
    asked: float | None  # γ; None where the kind fixes its own rate
    realised: float  # count / n
    n: int  # records
    count: int  # records whose label differs, or whose caption was swapped
    noisy_sha256: str  # labels, or for captions partner ids, in record order as little-endian int64
    clean_sha256: str  # labels likewise, or captions in record order, each behind its length in bytes
    corrupted: tuple[int, ...] | None = None  # labels: changed records of each true class
    transitions: tuple[tuple[int, ...], ...] | None = None  # labels of up to 100 classes: records, [true][noisy]
    unchanged: int | None = None  # captions: swaps that put the same text back, where it was counted

    @classmethod
    def of_labels(
        cls, clean: npt.ArrayLike, noisy: npt.ArrayLike, *, num_classes: int, kind: str, asked: float | None, seed: int
    ) -> "Ledger":
        """The ledger of `noisy` labels, aligned with `clean`; both shape (n,), integers in 0..num_classes-1.

        Raises:
            UserError: labels of another length, no integers or out of range.
        """
        clean = _check_labels(clean, num_classes, "label")
        noisy = _check_labels(noisy, num_classes, "noisy label", clean.size)
        full = num_classes <= FULL_MATRIX
        sha_clean, sha_noisy = hashlib.sha256(), hashlib.sha256()
        corrupted = np.zeros(num_classes, np.int64)
        transitions = np.zeros(num_classes**2 if full else 0, np.int64)
        for block in _blocks(clean.size):
            c, y = clean[block].astype("<i8"), noisy[block].astype("<i8")
            sha_clean.update(c.tobytes())
            sha_noisy.update(y.tobytes())
            corrupted += np.bincount(c[c != y], minlength=num_classes)
            if full:
                transitions += np.bincount(c * num_classes + y, minlength=transitions.size)
        count = int(corrupted.sum())
        return cls(
            kind=kind,
            seed=_check_seed(seed),
            asked=None if asked is None else float(asked),
            realised=count / max(clean.size, 1),
            n=clean.size,
            count=count,
            noisy_sha256=sha_noisy.hexdigest(),
            clean_sha256=sha_clean.hexdigest(),
            corrupted=tuple(corrupted.tolist()),
            transitions=tuple(map(tuple, transitions.reshape(-1, num_classes).tolist())) if full else None,
        )

    @classmethod
    def of_captions(
        cls, swap: CaptionSwap, captions: Iterable[str | bytes], *, unchanged: int | None = None
    ) -> "Ledger":
        """The ledger of `swap`, over the clean `captions` in record order (read once, in constant memory).

        Raises:
            UserError: there are not `swap.n` captions.
        """
        sha_clean, sha_noisy = hashlib.sha256(), hashlib.sha256()
        n = 0
        for caption in captions:
            n += 1
            text = caption.encode() if isinstance(caption, str) else caption
            sha_clean.update(len(text).to_bytes(8, "little") + text)
        if n != swap.n:
            raise UserError(f"{n} captions for {swap.n} records", "give one a record, in the order of the split")
        for block in _blocks(n):
            sha_noisy.update(swap(np.arange(block.start, block.stop)).astype("<i8").tobytes())
        return cls(
            kind="caption_swap",
            seed=swap.seed,
            asked=swap.rate,
            realised=swap.count / max(n, 1),
            n=n,
            count=swap.count,
            noisy_sha256=sha_noisy.hexdigest(),
            clean_sha256=sha_clean.hexdigest(),
            unchanged=unchanged,
        )

    def to_dict(self) -> dict[str, Any]:
        """Every field by name, ready for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "Ledger":
        """The ledger that `to_dict` gave, also after a way through JSON.

        Raises:
            UserError: these are not the fields of a ledger.
        """
        try:
            return cls(**{name: _as_tuple(value) for name, value in fields.items()})
        except (AttributeError, TypeError) as e:
            raise UserError(f"this is no noise ledger: {e}", "give what a run's noise.json holds") from e

    @classmethod
    def read(cls, path: Path) -> "Ledger":
        """The ledger of a run's folder, from its JSON file.

        Raises:
            UserError: the file is damaged or holds something else.
        """
        try:
            return cls.from_dict(json.loads(path.read_text("utf-8")))
        except (ValueError, UserError) as e:
            what = e.cause if isinstance(e, UserError) else f"it is no JSON: {e}"
            raise UserError(f"{path} is damaged: {what}", "delete it; the run's command writes it anew") from e

    def check_same(self, other: "Ledger", where: str) -> None:
        """Compare with the ledger that stands at `where`.

        Raises:
            UserError: names the fields that differ.
        """
        mine, theirs = self.to_dict(), other.to_dict()
        differ = [name for name in mine if mine[name] != theirs[name]]
        if differ:
            values = [
                name if isinstance(mine[name], tuple) else f"{name} {theirs[name]!s:.12} there, {mine[name]!s:.12} here"
                for name in differ
            ]
            raise UserError(
                f"{where} has another noise ledger: {'; '.join(values)}",
                "go on with the noise settings and the data it was begun with, or choose another --workdir",
            )


def _keys(domain: str, count: int, **inputs: int) -> tuple[int, ...]:
    """`count` 32-bit words, unrelated for every domain and input, the same on every platform."""
    text = " ".join(["nml_jax", domain, *(f"{name}={value}" for name, value in inputs.items())])
    return struct.unpack(f"<{count}I", hashlib.shake_256(text.encode()).digest(4 * count))


def _mix(x: X, key: int) -> X:
    """32 bits, best mixed at the top, of a 32-bit word and a key. Multipliers: C. Wellons' lowbias32."""
    x = x ^ key  # a new array; from here on in place
    x *= 0x7FEB352D  # below 2**63
    x ^= x >> 15
    x *= 0x846CA68B  # int64 wraps, Python's integers grow: the low 32 bits are the same
    x &= _WORD
    return x


def _hash(ids: Ints, keys: Sequence[int]) -> Ints:
    """32 bits of every id in 0..2**62."""
    return _mix(_mix(ids & _WORD, keys[0]) ^ ids >> 32, keys[1])


def _apply(f: Callable[[Any], Any], ids: Any, n: int) -> Any:
    """`f` of one id as a Python integer, or of an array of them block by block."""
    if isinstance(ids, (int, np.integer)):
        if not 0 <= ids < n:
            raise UserError(f"id {ids} is outside 0..{n - 1}", "give positions in the split before noise")
        return f(int(ids))
    if ids.dtype.kind not in "iu":
        raise UserError(f"ids are {ids.dtype}, not integers", "give positions in the split before noise")
    out = np.empty(ids.shape, np.int64)
    flat, result = ids.reshape(-1), out.reshape(-1)
    for block in _blocks(ids.size):
        x = flat[block].astype(np.int64)
        if x.min() < 0 or x.max() >= n:
            bad = x[(x < 0) | (x >= n)][0]
            raise UserError(f"id {bad} is outside 0..{n - 1}", "give positions in the split before noise")
        result[block] = f(x)
    return out


def _blocks(n: int) -> Iterator[slice]:
    return (slice(start, min(start + _BLOCK, n)) for start in range(0, n, _BLOCK))


def _by_rank(n: int, seed: int) -> Iterator[Ints]:
    """All ids in order of rank, in blocks."""
    permutation = Permutation(n, seed)
    return (permutation._record(np.arange(block.start, block.stop)) for block in _blocks(n))


def _class_counts(labels: npt.NDArray[np.integer], num_classes: int) -> Ints:
    counts = np.zeros(num_classes, np.int64)
    for block in _blocks(labels.size):
        counts += np.bincount(labels[block].astype(np.int64), minlength=num_classes)
    return counts


def _count(rate: Any, n: int) -> int:
    """round(rate·n) in float64, half to even."""
    if not isinstance(rate, Real) or not 0 <= float(rate) <= 1:  # NaN is neither
        raise UserError(f"noise rate {rate!r} is no share in [0, 1]", "give a number such as 0.05 for 5 %")
    return round(float(rate) * n)


def _check_seed(seed: Any) -> int:
    if not isinstance(seed, Integral):
        raise UserError(f"noise seed {seed!r} is no integer", "give an integer")
    return int(seed)


def _check_labels(labels: Any, num_classes: int, name: str, n: int | None = None) -> npt.NDArray[np.integer]:
    if not isinstance(num_classes, Integral) or num_classes < 1:
        raise UserError(f"num_classes={num_classes!r} is no class count", "give an integer of at least 1")
    labels = np.asarray(labels)
    if labels.dtype.kind not in "iu" or labels.ndim != 1:
        raise UserError(
            f"the {name}s are {labels.dtype} of shape {labels.shape}, not one integer a record",
            "give class ids as integers, shape (n,)",
        )
    if n is not None and labels.size != n:
        raise UserError(f"{labels.size} {name}s for {n} records", "give one a record, in the order of the split")
    if num_classes - 1 > np.iinfo(labels.dtype).max:
        raise UserError(f"{num_classes} classes do not fit {labels.dtype} {name}s", "give the labels as int32 or int64")
    if labels.size and not (labels.min() >= 0 and labels.max() < num_classes):
        for block in _blocks(labels.size):
            bad = np.flatnonzero((labels[block] < 0) | (labels[block] >= num_classes))
            if bad.size:
                i = block.start + bad[0]
                raise UserError(
                    f"{name} {labels[i]} of record {i} is outside 0..{num_classes - 1}",
                    f"correct the {name}, or num_classes={num_classes} if that does not match the data",
                )
    return labels


def _check_classes(classes: Sequence[int], num_classes: int) -> Ints:
    members = np.unique(np.asarray(classes))
    if members.dtype.kind not in "iu" or members[0] < 0 or members[-1] >= num_classes:
        raise UserError(f"classes {tuple(classes)} are not ids in 0..{num_classes - 1}", "name class ids of the labels")
    return members.astype(np.int64)


def _check_matrix(matrix: Any, num_classes: int) -> npt.NDArray[np.float64]:
    matrix = np.asarray(matrix, np.float64)
    cure = "give P(noisy | true), a row for each true class, each row summing to 1"
    if matrix.shape != (num_classes, num_classes):
        raise UserError(f"the noise matrix has shape {matrix.shape}; there are {num_classes} classes", cure)
    bad = np.argwhere(~(matrix >= 0))  # NaN is not
    if bad.size:
        raise UserError(f"the noise matrix has {matrix[tuple(bad[0])]} at {tuple(bad[0].tolist())}", cure)
    sums = matrix.sum(1, keepdims=True)
    bad = np.flatnonzero(~(abs(sums - 1) <= 1e-6))
    if bad.size:
        raise UserError(f"row {bad[0]} of the noise matrix sums to {sums[bad[0], 0]:.6g}", cure)
    return matrix / sums


def _as_tuple(value: Any) -> Any:
    return tuple(map(_as_tuple, value)) if isinstance(value, list) else value
