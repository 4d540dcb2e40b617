"""A keyed pseudo-random permutation that needs no table, and the hashes it is made of.

The results are the same on every platform: published runs depend on each bit.
"""

import hashlib
import operator
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from nml_jax.errors import UserError

Ints = npt.NDArray[np.int64]
X = TypeVar("X", int, Ints)  # one id as a Python integer, or a block of ids: the same code gives the same bits

BLOCK = 1 << 14  # ids: 128 KiB an array, so that the few temporaries of a round share the L2 cache
_WORD = (1 << 32) - 1


class Permutation:
    """A keyed pseudo-random permutation of 0..n-1. Every value can be computed without the others, and inverted.

    It is an alternating Feistel network over Z_a × Z_b, b = 2**k and a = ceil(n / b), both near √n: each round adds a
    hash of one half to the other. The fewer than b values beyond n are mapped again until they fall inside.

    Calls take an integer, or an array of any shape and integer dtype, and return the same as int or int64.

    Args:
        n: number of records, at most 2**62.
        seed: any integer; n and seed are the whole key.

    Raises:
        UserError: n is out of range, or, in a call, an id is outside 0..n-1.
    """

    def __init__(self, n: int, seed: int):
        self.n, self.seed = operator.index(n), operator.index(seed)
        if not 0 <= self.n <= 1 << 62:
            raise UserError(f"the number of records is {n}", "give an integer from 0 to 2**62")
        bits = (self.n - 1).bit_length() // 2
        # From n = 33 on, 10**6 seeds cannot show a flaw of eight rounds. Below, pairs (P(i), P(j)) need more.
        keys = derive_keys("permutation", 8 if self.n > 1000 else 32, seed=self.seed, n=self.n)
        self._network = bits, (1 << bits) - 1, -(-self.n >> bits), tuple(zip(keys[::2], keys[1::2], strict=True))

    def __call__(self, ids: X) -> X:
        """Return the ranks of the records `ids`."""
        return apply_in_blocks(self.rank, ids, self.n)

    def inverse(self, ranks: X) -> X:
        """Return the records that have these `ranks`."""
        return apply_in_blocks(self.unrank, ranks, self.n)

    def rank(self, ids: Any) -> Any:
        """Return the ranks of one int or of a block of int64, whose range is not checked."""
        return self._walk(self._forward, ids)

    def unrank(self, ranks: Any) -> Any:
        """Return the records of ranks: the inverse of `rank`."""
        return self._walk(self._backward, ranks)

    def _walk(self, step: Callable[[Any], Any], x: Any) -> Any:
        """Repeat the step until every value is below n."""
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
            left += left >> 63 & a  # modulo a: if this is negative, its sign bit adds a back
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


def derive_keys(domain: str, count: int, **inputs: int) -> tuple[int, ...]:
    """Derive `count` 32-bit words, unrelated between domains and inputs, and the same on every platform."""
    text = " ".join(["nml_jax", domain, *(f"{name}={value}" for name, value in inputs.items())])
    return struct.unpack(f"<{count}I", hashlib.shake_256(text.encode()).digest(4 * count))


def hash_ids(ids: Ints, keys: Sequence[int]) -> Ints:
    """Hash every id in 0..2**62 to 32 bits."""
    return _mix(_mix(ids & _WORD, keys[0]) ^ ids >> 32, keys[1])


def apply_in_blocks(f: Callable[[Any], Any], ids: Any, n: int) -> Any:
    """Apply `f` to one id as a Python integer, or to an array of ids block by block.

    Raises:
        UserError: an id is not an integer in 0..n-1.
    """
    if isinstance(ids, (int, np.integer)):
        if not 0 <= ids < n:
            raise UserError(f"id {ids} is outside 0..{n - 1}", "give positions in the split before noise")
        return f(int(ids))
    if ids.dtype.kind not in "iu":
        raise UserError(f"ids are {ids.dtype}, not integers", "give positions in the split before noise")
    out = np.empty(ids.shape, np.int64)
    flat, result = ids.reshape(-1), out.reshape(-1)
    for block in split_blocks(ids.size):
        x = flat[block].astype(np.int64)
        if x.min() < 0 or x.max() >= n:
            bad = x[(x < 0) | (x >= n)][0]
            raise UserError(f"id {bad} is outside 0..{n - 1}", "give positions in the split before noise")
        result[block] = f(x)
    return out


def split_blocks(n: int) -> Iterator[slice]:
    """Yield slices of BLOCK records that cover 0..n-1."""
    return (slice(start, min(start + BLOCK, n)) for start in range(0, n, BLOCK))


def count_share(rate: float, n: int) -> int:
    """Return round(rate·n) in float64, half to even.

    Raises:
        UserError: the rate is not in [0, 1].
    """
    if not 0 <= rate <= 1:  # true for NaN
        raise UserError(f"noise rate {rate!r} must be in [0, 1]", "give a number such as 0.05 for 5 %")
    return round(float(rate) * n)


def _mix(x: X, key: int) -> X:
    """Mix a 32-bit word and a key to 32 bits, best mixed at the top. Multipliers: C. Wellons' lowbias32."""
    x = x ^ key  # a new array; from here on in place
    x *= 0x7FEB352D  # below 2**63
    x ^= x >> 15
    x *= 0x846CA68B  # int64 wraps, Python's integers grow: the low 32 bits are the same
    x &= _WORD
    return x
