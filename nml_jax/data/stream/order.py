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


def draw_replacement(seed: int, parts: Sequence[int]) -> Callable[[int, int], Iterator[int]]:
    """Return (record, position) -> at most TRIES other records of the same part, always the same ones."""
    ends = list(itertools.accumulate(parts))
    draw_seed = derive_seeds(seed, "replacements")

    def others(i: int, p: int) -> Iterator[int]:
        j = bisect.bisect_right(ends, i)
        drawn = make_generators(draw_seed)(p).integers(ends[j] - parts[j], ends[j], TRIES)
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
