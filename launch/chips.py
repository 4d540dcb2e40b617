"""Public figures of accelerators: TPUs and the slices of their pods, GPUs and the hosts that they are in."""

import math
import re
from typing import NamedTuple

from nml_jax.errors import UserError


class Chip(NamedTuple):
    """Public figures of a chip."""

    peak: float  # FLOP/s in bfloat16
    hbm: float  # bytes
    bandwidth: float  # bytes/s of the HBM
    ici: float  # bytes/s that it sends over all its links together: half of the figure for both directions
    pod: int  # chips in the largest slice
    shapes: str  # shapes of some slices


_FLAT = "2x2 2x4 4x4 4x8 8x8 8x16 16x16"
_CUBES = "2x2x1 2x2x2 2x2x4 2x4x4 4x4x4 4x4x8 4x8x8 8x8x8"

# docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e}, read in November 2026. They give the interconnect in GB/s of both
# directions (v5e 400, v5p 1200, v6e 800). Earlier versions gave it in Gbit/s of one (v4 2400, v5e 1600, v5p 4800).
CHIPS = {
    "v4": Chip(275e12, 32 * 2**30, 1200e9, 300e9, 4096, _CUBES),
    "v5e": Chip(197e12, 16 * 2**30, 819e9, 200e9, 256, _FLAT),
    "v5p": Chip(459e12, 95 * 2**30, 2765e9, 600e9, 6144, _CUBES),
    "v6e": Chip(918e12, 32 * 2**30, 1640e9, 400e9, 256, _FLAT),
}


class Slice(NamedTuple):
    """A slice of a pod."""

    chip: Chip
    shape: tuple[int, ...]

    @classmethod
    def parse(cls, name: str) -> "Slice":
        """Parse the name of a topology, such as v5e:8x8.

        Raises:
            UserError: the chip is unknown, or its pod has no slice of that shape.
        """
        kind, _, dims = name.partition(":")
        chip = CHIPS.get(kind)
        shape = tuple(int(n) for n in dims.split("x")) if re.fullmatch(r"\d+(x\d+)*", dims) else ()
        if chip is None or len(shape) != chip.shapes.split()[0].count("x") + 1 or not 0 < math.prod(shape) <= chip.pod:
            raise make_unknown_error(name)
        return cls(chip, shape)


def make_unknown_error(name: str) -> UserError:
    by_shapes = ((", ".join(k for k in CHIPS if CHIPS[k].shapes == shapes), shapes) for shapes in (_FLAT, _CUBES))
    known = "; ".join(f"{chips}: {', '.join(shapes.split())}" for chips, shapes in by_shapes)
    return UserError(f"there is no topology {name!r}", f"give a chip and a slice, as in v5e:8x8. {known}")


# Dense peaks in bfloat16, by a part of what JAX calls the device; the first that fits counts.
PEAKS = {
    **{name: chip.peak for name, chip in (("v5 lite", CHIPS["v5e"]), ("v5e", CHIPS["v5e"]), ("v6 lite", CHIPS["v6e"]),
                                          ("v6e", CHIPS["v6e"]), ("v5", CHIPS["v5p"]), ("v4", CHIPS["v4"]))},
    "H200": 989e12, "H100 PCIe": 756e12, "H100": 989e12, "A100": 312e12,
}  # fmt: skip


def find_peak(device_kind: str) -> float | None:
    """Return the dense peak of a device in FLOP/s, bfloat16; None if it is not known."""
    return next((peak for name, peak in PEAKS.items() if name.lower() in device_kind.lower()), None)
