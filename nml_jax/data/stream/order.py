"""Compute the record at each position of the training stream, and its random draws, from the seed alone.

Positions count from 0 without end. They do not depend on batches, processes or threads.
"""

import bisect
import functools
import itertools
import math
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from nml_jax.errors import UserError

FEW = 100_000  # records up to which more permutations are kept
TRIES = 100  # replacements to try for a record that cannot be decoded


def derive_seeds(seed: int, purpose: str) -> np.random.SeedSequence:
    """Return a seed for independent draws for every (seed, purpose)."""
    return np.random.SeedSequence([seed % 2**64, zlib.crc32(purpose.encode())])


def shuffle_blocks(seed: int, n: int, epochs: int = 1) -> Callable[[int], int]:
    """Return stream position -> record: one permutation of 0..n-1 per epoch, drawn when it is first needed.

    `epochs` is how many permutations are read at the same time. Batches near the end of an epoch need one more, and
    many more if there are few records.
    """

    @functools.lru_cache(maxsize=epochs + 1 if n > FEW else epochs + 15)
    def permutation(epoch: int) -> np.ndarray:
        ids = np.arange(n, dtype=np.int32 if n < 2**31 else np.int64)
        return np.random.default_rng(derive_seeds(seed, f"order of epoch {epoch}")).permutation(ids)

    lock = threading.Lock()  # else each thread of the first batch draws it

    def record(p: int) -> int:
        with lock:
            ids = permutation(p // n)
        return int(ids[p % n])

    return record


def mix_sources(seed: int, parts: Sequence[int], weights: Sequence[float]) -> Callable[[int], int]:
    """Return stream position -> record of a mixture. Each part has its share of every epoch, rounded."""
    if len(weights) != len(parts) or not all(0 < w < math.inf for w in weights):
        raise UserError(
            f"data.weights={tuple(weights)} for {len(parts)} dataset(s)", "give one positive number for each of them"
        )
    n, ends = sum(parts), list(itertools.accumulate(parts))
    slots = [round(n * w / sum(weights)) for w in itertools.accumulate(weights)]  # where the slots of each part end
    slot = shuffle_blocks(seed, n)
    counts = np.diff([0, *slots])
    own = [int(derive_seeds(seed, f"part {j}").generate_state(1, np.uint64)[0]) for j in range(len(parts))]
    # Near the end of an epoch two epochs are read, and each holds several permutations of a part that is shown often.
    orders = [shuffle_blocks(s, n, 2 * math.ceil(c / n)) for s, n, c in zip(own, parts, counts, strict=True)]

    def record(p: int) -> int:
        s = slot(p)
        j = bisect.bisect_right(slots, s)
        return ends[j] - parts[j] + orders[j](p // n * int(counts[j]) + s - slots[j] + int(counts[j]))

    return record


def deal_batches(seed: int, groups: np.ndarray, batch: int) -> Callable[[int], int]:
    """Return stream position -> record, where the positions of a batch have records of one group.

    The records of a group follow each other in an order of their own, which continues from one epoch to the next. By
    the end of every epoch a group has had as many batches as its records fill, rounded. So in the long run every record
    comes equally often, even those of a group that does not fill a batch. The batches of an epoch are permuted.

    Args:
        groups: int [N], the group of each record, from 0.
    """
    members = [np.flatnonzero(groups == g) for g in range(int(groups.max()) + 1)]
    sizes, n = [len(ids) for ids in members], len(groups)
    own = [int(derive_seeds(seed, f"group {g}").generate_state(1, np.uint64)[0]) for g in range(len(members))]
    orders = [shuffle_blocks(s, size, 2 + batch // size) if size else None for s, size in zip(own, sizes, strict=True)]

    def count(epoch: int) -> list[int]:
        """Return how many batches each group has had before an epoch."""
        return [(2 * epoch * size + batch) // (2 * batch) for size in sizes]

    @functools.lru_cache(maxsize=4)
    def deal(epoch: int) -> list[tuple[int, int]]:
        """Return (group, number of its batch) of the batches of an epoch, in order."""
        begin, end = count(epoch), count(epoch + 1)
        dealt = [(g, j) for g, (a, b) in enumerate(zip(begin, end, strict=True)) for j in range(a, b)]
        order = np.random.default_rng(derive_seeds(seed, f"batches of epoch {epoch}")).permutation(len(dealt))
        return [dealt[i] for i in order]

    def record(p: int) -> int:
        step, within = divmod(p, batch)
        epoch = max(0, step * batch // n - len(sizes) * (batch // n + 1))  # not above the one to be found
        while sum(count(epoch + 1)) <= step:
            epoch += 1
        group, j = deal(epoch)[step - sum(count(epoch))]
        in_order = orders[group]
        assert in_order is not None
        return int(members[group][in_order(j * batch + within)])

    return record


def cut_batches(n: int, batch: int, groups: np.ndarray | None) -> Sequence[tuple[int, Sequence[int]]]:
    """Cut the records 0..n-1, in order, into batches of one group each; return (group, records) of each.

    Args:
        groups: as in `deal_batches`; None: all records are in group 0.
    """
    whole = (
        [range(n)] if groups is None else [np.flatnonzero(groups == g).tolist() for g in range(int(groups.max()) + 1)]
    )
    return [(g, ids[k : k + batch]) for g, ids in enumerate(whole) for k in range(0, len(ids), batch)]


def draw_replacement(
    seed: int, parts: Sequence[int], groups: np.ndarray | None = None
) -> Callable[[int, int], Iterator[int]]:
    """Return (record, position) -> at most TRIES other records of the same part and group, always the same ones."""
    ends = list(itertools.accumulate(parts))
    draw_seed = derive_seeds(seed, "replacements")

    def others(i: int, p: int) -> Iterator[int]:
        rng = make_generators(draw_seed)(p)
        if groups is not None:
            drawn = rng.choice(np.flatnonzero(groups == groups[i]), TRIES)
        else:
            j = bisect.bisect_right(ends, i)
            drawn = rng.integers(ends[j] - parts[j], ends[j], TRIES)
        yield from (k for k in drawn.tolist() if k != i)

    return others


def make_generators(seed: np.random.SeedSequence) -> Callable[[int], np.random.Generator]:
    """Return position -> its generator, valid until the next call.

    Every call sets the counter of one Philox, because making a new one is slow.
    """
    bits = np.random.Philox(seed)
    generator, state = np.random.Generator(bits), bits.state

    def at(position: int) -> np.random.Generator:
        state["state"]["counter"][3] = position  # the highest word: streams 2¹⁹² draws apart
        bits.state = state
        return generator

    return at
