"""The TPUs that a step can be compiled for: public figures of their chips, and the slices of their pods."""

import math
import re
from typing import NamedTuple

from nml_jax.errors import UserError


class Chip(NamedTuple):
    """Public figures of a chip."""

    peak: float  # FLOP/s in bfloat16
    hbm: float  # bytes
    bandwidth: float  # bytes/s, of the HBM
    ici: float  # bytes/s that it sends to other chips over all its links together: half the figure for both ways
    pod: int  # chips in the largest slice
    shapes: str  # of some slices


_FLAT = "2x2 2x4 4x4 4x8 8x8 8x16 16x16"
_CUBES = "2x2x1 2x2x2 2x2x4 2x4x4 4x4x4 4x4x8 4x8x8 8x8x8"

# docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e}, read in November 2026. The interconnect is given there in both
# directions (v5e 400 GB/s, v5p 1200, v6e 800), which is earlier versions' Gbit/s (v4 2400, v5e 1600, v5p 4800) in one.
CHIPS = {
    "v4": Chip(275e12, 32 * 2**30, 1200e9, 300e9, 4096, _CUBES),
    "v5e": Chip(197e12, 16 * 2**30, 819e9, 200e9, 256, _FLAT),
    "v5p": Chip(459e12, 95 * 2**30, 2765e9, 600e9, 6144, _CUBES),
    "v6e": Chip(918e12, 32 * 2**30, 1640e9, 400e9, 256, _FLAT),
}


class Slice(NamedTuple):
    chip: Chip
    shape: tuple[int, ...]

    @classmethod
    def of(cls, name: str) -> "Slice":
        """The slice that a topology's name means.

        Raises:
            UserError: there is no such chip, or its pod has no slice of that shape.
        """
        kind, _, dims = name.partition(":")
        chip = CHIPS.get(kind)
        shape = tuple(int(n) for n in dims.split("x")) if re.fullmatch(r"\d+(x\d+)*", dims) else ()
        if chip is None or len(shape) != chip.shapes.split()[0].count("x") + 1 or not 0 < math.prod(shape) <= chip.pod:
            raise unknown(name)
        return cls(chip, shape)


def unknown(name: str) -> UserError:
    by_shapes = ((", ".join(k for k in CHIPS if CHIPS[k].shapes == shapes), shapes) for shapes in (_FLAT, _CUBES))
    known = "; ".join(f"{chips}: {', '.join(shapes.split())}" for chips, shapes in by_shapes)
    return UserError(f"there is no topology {name!r}", f"give a chip and a slice, as in v5e:8x8. {known}")
