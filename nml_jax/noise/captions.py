"""Caption swaps: a share of the records pass their captions on among them."""

from typing import Any

import numpy as np
import numpy.typing as npt

from nml_jax.errors import UserError
from nml_jax.noise.permutation import Ints, Permutation, X, apply_in_blocks, count_share


class CaptionSwap:
    """A swap of captions: the first m = round(rate·n) records by rank pass theirs on along one cycle.

    So none of these captions stays with its image, none is lost and none is used twice. Calls take an id (about 4 µs,
    8 for a swapped one) or an array of ids, and return the records whose captions they get; a record outside the
    swapped subset keeps its own.

    Attributes:
        n, rate, seed: the arguments.
        count: m, the number of swapped records.

    Raises:
        UserError: the rate is outside [0, 1], m is 1, n is out of range, or, in a call, an id is outside 0..n-1.
    """

    def __init__(self, *, n: int, rate: float, seed: int):
        self._permutation = Permutation(n, seed)
        self.n, self.seed = self._permutation.n, self._permutation.seed
        self.count, self.rate = count_share(rate, self.n), float(rate)
        if self.count == 1:
            raise UserError(
                f"noise rate {rate} swaps only 1 caption of {n}, which has no partner",
                "choose a rate that swaps none or at least two",
            )

    def __call__(self, ids: X) -> X:
        return apply_in_blocks(self._find_partners, ids, self.n)

    def list_swapped(self) -> Ints:
        """Return the `count` records that get another's caption, in the order of the cycle."""
        return self._permutation.inverse(np.arange(self.count))

    def _find_partners(self, ids: Any) -> Any:
        rank = self._permutation.rank(ids)
        if isinstance(rank, int):
            return self._permutation.unrank((rank + 1) % self.count) if rank < self.count else ids
        swapped = np.flatnonzero(rank < self.count)
        ids[swapped] = self._permutation.unrank((rank[swapped] + 1) % max(self.count, 1))
        return ids


def swap_captions(ids: npt.ArrayLike, *, n: int, rate: float, seed: int) -> Ints:
    """Return the records whose captions the records `ids` get: themselves outside the swapped subset (`CaptionSwap`).

    Args:
        ids: integers in 0..n-1 of any shape and order, the positions in the split before noise.
        n: number of records of that split; memory does not grow with it.
        rate: share of the records that exchange their captions: exactly round(rate·n), half to even.
        seed: any integer.

    Returns:
        int64 array of the shape of `ids`.

    Raises:
        UserError: as for `CaptionSwap`.
    """
    return CaptionSwap(n=n, rate=rate, seed=seed)(np.asarray(ids))
