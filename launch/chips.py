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
    network: float | None = None  # GPUs: bytes/s that one sends to other hosts; ici is NVLink's, within a host
    target: str = ""  # GPUs: what the compiler must know of it


_FLAT = "2x2 2x4 4x4 4x8 8x8 8x16 16x16"
_CUBES = "2x2x1 2x2x2 2x2x4 2x4x4 4x4x4 4x4x8 4x8x8 8x8x8"
_HOSTS = "1x1 1x8 2x8 4x8 8x8 16x8 32x8"  # hosts x GPUs of each


def _describe_hopper(name: str, memory: int, bandwidth: float) -> str:
    """Return a Hopper GPU as XLA's GpuTargetConfigProto, in text; figures of NVIDIA's H100 and H200 data sheets."""
    device = {
        "threads_per_block_limit": 1024, "threads_per_warp": 32, "shared_memory_per_block": 49152,
        "shared_memory_per_core": 233472, "threads_per_core_limit": 2048, "core_count": 132, "fpus_per_core": 128,
        "block_dim_limit_x": 2**31 - 1, "block_dim_limit_y": 65535, "block_dim_limit_z": 65535,
        "memory_bandwidth": int(bandwidth), "l2_cache_size": 50 * 2**20, "clock_rate_ghz": 1.98,
        "device_memory_size": memory, "shared_memory_per_block_optin": 232448,
        "registers_per_core_limit": 65536, "registers_per_block_limit": 65536,
    }  # fmt: skip
    fields = "\n".join(f"{key}: {value}" for key, value in device.items())
    return (
        f"gpu_device_info {{ {fields} cuda_compute_capability {{ major: 9 }} }}\n"
        'platform_name: "CUDA" dnn_version_info { major: 9 minor: 8 } runtime_version { major: 12 minor: 8 }\n'
        f'device_description_str: "{name}"'
    )


def _make_hopper(name: str, gib: float, bandwidth: float) -> Chip:
    memory = int(gib * 2**30)
    # NVLink 900 GB/s and InfiniBand 2 × 50 GB/s a GPU, both directions together
    return Chip(989e12, memory, bandwidth, 450e9, 4096, _HOSTS, 50e9, _describe_hopper(name, memory, bandwidth))


# docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e}, read in November 2026. They give the interconnect in GB/s of both
# directions (v5e 400, v5p 1200, v6e 800). Earlier versions gave it in Gbit/s of one (v4 2400, v5e 1600, v5p 4800).
CHIPS = {
    "v4": Chip(275e12, 32 * 2**30, 1200e9, 300e9, 4096, _CUBES),
    "v5e": Chip(197e12, 16 * 2**30, 819e9, 200e9, 256, _FLAT),
    "v5p": Chip(459e12, 95 * 2**30, 2765e9, 600e9, 6144, _CUBES),
    "v6e": Chip(918e12, 32 * 2**30, 1640e9, 400e9, 256, _FLAT),
    "h100": _make_hopper("NVIDIA H100 80GB HBM3", 79.1, 3350e9),
    "h200": _make_hopper("NVIDIA H200", 139.8, 4800e9),
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

    @property
    def link(self) -> float:
        """Return the bytes/s that a device sends to the others: those of the slowest link on the way."""
        return self.chip.network if self.chip.network and self.shape[0] > 1 else self.chip.ici


def make_unknown_error(name: str) -> UserError:
    by_shapes = (
        (", ".join(k for k in CHIPS if CHIPS[k].shapes == shapes), shapes) for shapes in (_FLAT, _CUBES, _HOSTS)
    )
    known = "; ".join(f"{chips}: {', '.join(shapes.split())}" for chips, shapes in by_shapes)
    return UserError(f"there is no topology {name!r}", f"give a chip and a slice, as in v5e:8x8 or h200:4x8. {known}")


# Dense peaks in bfloat16, by a part of what JAX calls the device; the first that fits counts.
PEAKS = {
    **{name: chip.peak for name, chip in (("v5 lite", CHIPS["v5e"]), ("v5e", CHIPS["v5e"]), ("v6 lite", CHIPS["v6e"]),
                                          ("v6e", CHIPS["v6e"]), ("v5", CHIPS["v5p"]), ("v4", CHIPS["v4"]))},
    "H200": 989e12, "H100 PCIe": 756e12, "H100": 989e12, "A100": 312e12,
}  # fmt: skip


def find_peak(device_kind: str) -> float | None:
    """Return the dense peak of a device in FLOP/s, bfloat16; None if it is not known."""
    return next((peak for name, peak in PEAKS.items() if name.lower() in device_kind.lower()), None)
