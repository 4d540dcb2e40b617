"""The reduction of JAX arrays to D × D where their rows are: jitted, batched, and summed over all devices.

Rows stay on their devices and processes. Each device adds up the Gram matrix of its rows, or takes their QR factor, and
what comes to the host is D × D.

- Devices with float64 (CPUs, GPUs) compute in float64, as the host does.
- TPUs have none. There every number becomes DIGITS whole numbers of BITS bits each, relative to the largest of its
  column. The matrix unit multiplies them as int8 and sums in int32, exactly. So the Gram matrix is as good as in
  float64, and the same bit for bit on any number of devices.
"""

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from nml_jax.arithmetic import twofold
from nml_jax.errors import UserError
from nml_jax.spectrum.rows import LARGEST, Kind, find_platform, make_row_error

NO_FLOAT64 = ("tpu",)  # platforms; tests add the CPU
BLOCK = 1024  # rows that are converted to float64 at a time
WHOLE_BLOCK = 16384  # rows whose products of digits are added in int32: a level's are at most 2^15.4 each
DIGITS, BITS = 8, 7
CARRY = 16  # bits of the lower half of a sum of whole numbers
EPS = float(np.finfo(np.float64).eps)
NONE = np.iinfo(np.int32).max


def has_float64(F: jax.Array) -> bool:
    """Return whether F's devices have float64."""
    return find_platform(F) not in NO_FLOAT64


def reduce_rows(F: jax.Array, mask: Any, mode: Kind) -> Iterator[dict[str, np.ndarray]]:
    """Yield the state of a `SpectrumMeter` that has seen all rows, for each matrix of F.

    Args:
        F: real [M, N, D], sharded in any way.
        mask: bool [N].
        mode: with `exact`, F's devices must have float64.

    Raises:
        UserError: a row that counts holds NaN, infinity or a number above 1e140. It is named.
    """
    if not np.can_cast(F.dtype, np.float64, "same_kind") and F.dtype != jnp.bfloat16:
        raise UserError(f"features of dtype {F.dtype} are not real numbers", "pass floats or integers")
    double = has_float64(F)
    with jax.enable_x64(double):
        sums = jax.device_get(_compile_reduction(_make_mesh(F), mode, double)(F, np.asarray(mask, bool)))
    n = int(np.asarray(mask, bool).sum())
    for index in range(F.shape[0]):
        own = {name: value[index] for name, value in sums.items()}
        if own["bad"] != NONE:
            raise make_row_error(own["bad"], own["value"])
        yield _make_state(own, n, len(mask), mode)


def fetch(F: jax.Array) -> np.ndarray:
    """Return a whole array as NumPy on every process."""
    return np.asarray(_compile_slice(_make_mesh(F), len(F))(F, np.int32(0)))


def fetch_rows(F: jax.Array, mask: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the rows of F [N, D] that count, and their numbers, on every process, in blocks of 4096."""
    size = min(4 * BLOCK, len(F))
    take = _compile_slice(_make_mesh(F), size)
    for start in range(0, len(F), size):
        first = min(start, len(F) - size)  # the last block overlaps the one before
        ids = np.arange(first, first + size)
        kept = mask[ids] & (ids >= start)
        if kept.any():
            yield np.asarray(take(F, np.int32(first)))[kept], ids[kept]


@functools.lru_cache(maxsize=32)
def _compile_slice(mesh: Mesh, size: int) -> Any:
    """Compile (F [N, ...], first) -> rows [size, ...] from the first on, whole on every process."""
    return jax.jit(
        lambda F, first: jax.lax.dynamic_slice_in_dim(F, first, size), out_shardings=NamedSharding(mesh, P())
    )


def _make_state(sums: dict[str, np.ndarray], n: int, rows: int, mode: Kind) -> dict[str, np.ndarray]:
    """Return the meter's state; for a QR factor, `factor` is [devices, D, D], one for each device."""
    roundings = -(-rows // BLOCK)
    if "high" in sums:
        factor, mean, roundings = _add_digits(sums, n, mode)
    else:
        factor, mean = sums["factor"], sums["mean"]
    return {
        "n": np.array(n, np.int64),
        "sums": np.array(roundings, np.int64),
        "mean": np.asarray(mean, np.float64),
        "factor": np.asarray(factor, np.float64),
    }


def _add_digits(sums: dict[str, np.ndarray], n: int, mode: Kind) -> tuple[np.ndarray, np.ndarray, int]:
    """Return the Gram matrix, the mean, and its error as a number of float64 roundings, from sums of products."""
    scale = np.ldexp(1.0, sums["exponent"].astype(np.int64))
    gram, total = (
        sum(
            np.ldexp(np.ldexp(high.astype(np.float64), CARRY) + low, -BITS * (level + first))
            for level, (high, low) in reversed(list(enumerate(zip(highs, lows, strict=True))))
        )
        for highs, lows, first in (
            (sums["high"], sums["low"], 2),
            (sums["total_high"], sums["total_low"], 1),
        )
    )
    gram, total, mean = gram * np.outer(scale, scale), total * scale, np.zeros(len(scale))
    if mode.center == "features":
        gram -= np.outer(total, total) / max(n, 1)
        mean = sums["shift"] + total / max(n, 1)
    # Products of digits beyond the last level are left out: at most 2^-54 of the largest products, in every row.
    lost, trace = n * 2.0**-54 * np.sum(scale**2), np.trace(gram)
    return gram, mean, int(np.ceil(min(lost / (EPS * trace), 2**40))) if trace > 0 else 0


def _make_mesh(F: jax.Array) -> Mesh:
    """Make a mesh with one axis, of F's devices in F's order."""
    mesh = F.sharding.mesh if isinstance(F.sharding, NamedSharding) else None
    own = list(mesh.devices.flat) if isinstance(mesh, Mesh) else sorted(F.sharding.device_set, key=lambda d: d.id)
    return Mesh(np.array(own), ("rows",), axis_types=(AxisType.Auto,))


@functools.lru_cache(maxsize=32)
def _compile_reduction(mesh: Mesh, mode: Kind, double: bool) -> Any:
    """Compile (F [M, N, D], mask [N]) -> sums of each matrix, whole on every process."""

    def reduce_all(F: jax.Array, mask: jax.Array) -> dict[str, jax.Array]:
        devices, n = mesh.size, F.shape[1]
        each = max(-(-n // devices), 1)
        block = -(-each // -(-each // (BLOCK if double else WHOLE_BLOCK)))  # of equal size, so that few rows are added
        more = -n % (block * devices)
        F, mask = jnp.pad(F, ((0, 0), (0, more), (0, 0))), jnp.pad(mask, (0, more))

        def reduce_shard(F: jax.Array, mask: jax.Array) -> dict[str, jax.Array]:
            first = jax.lax.axis_index("rows") * len(mask)
            ids = (first + jnp.arange(len(mask), dtype=jnp.int32)).reshape(-1, block)
            blocks = mask.reshape(-1, block)
            one = functools.partial(_reduce_double if double else _reduce_single, mode=mode, mask=blocks, ids=ids)
            return jax.lax.map(lambda rows: one(rows.reshape(-1, block, rows.shape[-1])), F)

        sharded = jax.shard_map(
            reduce_shard, mesh=mesh, in_specs=(P(None, "rows"), P("rows")), out_specs=P(), check_vma=False
        )
        return sharded(F, mask)

    return jax.jit(reduce_all, out_shardings=NamedSharding(mesh, P()))


def _find_bad(rows: jax.Array, mask: jax.Array, ids: jax.Array, limit: float) -> tuple[jax.Array, jax.Array]:
    """Return the number of the first row on any device that counts and has no usable value, and its largest value."""
    peak = jnp.abs(rows.astype(jnp.promote_types(rows.dtype, jnp.float32))).max(-1)  # the limit must be finite in it
    wrong = jnp.where(mask & ~(peak <= limit), ids, NONE)
    first = wrong.min()
    value = jnp.where(wrong == first, peak, -jnp.inf).max()
    everywhere = jax.lax.pmin(first, "rows")
    value = jax.lax.pmax(jnp.where((first == everywhere) & ~jnp.isnan(value), value, -jnp.inf), "rows")
    return everywhere, jnp.where(value == -jnp.inf, jnp.nan, value)


def _scan(body: Any, start: Any, *blocks: jax.Array) -> Any:
    """Return the last carry of a scan over blocks of rows."""
    return jax.lax.scan(lambda carry, block: (body(carry, *block), None), start, blocks)[0]


# ---- with float64 ----------------------------------------------------------------------------------------------------


def _reduce_double(rows: jax.Array, *, mode: Kind, mask: jax.Array, ids: jax.Array) -> dict[str, jax.Array]:
    """Reduce one matrix [blocks, B, D] of a shard in float64."""
    dim = rows.shape[-1]
    bad, value = _find_bad(rows, mask, ids, LARGEST if rows.dtype == jnp.float64 else float(jnp.finfo(jnp.float32).max))

    def prepare(block: jax.Array, mask: jax.Array) -> jax.Array:
        x = jnp.where(mask[:, None], block, 0).astype(jnp.float64)
        if mode.normalize == "rows":
            peak = jnp.abs(x).max(-1, keepdims=True)
            x = x / jnp.where(peak > 0, peak, 1)
            x = x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1)
        if mode.center == "samples":
            x = x - x.mean(-1, keepdims=True)
        return x

    mean = jnp.zeros(dim, jnp.float64)
    if mode.center == "features":
        total = _scan(lambda carry, block, mask: carry + prepare(block, mask).sum(0), mean, rows, mask)
        mean = jax.lax.psum(total, "rows") / jnp.maximum(jax.lax.psum(mask.sum(), "rows"), 1)

    def add(carry: jax.Array, block: jax.Array, mask: jax.Array) -> jax.Array:
        x = jnp.where(mask[:, None], prepare(block, mask) - mean, 0)
        if mode.exact:
            return jnp.linalg.qr(jnp.concatenate([carry, x]), mode="r")
        return carry + jnp.matmul(x.T, x, precision="highest")

    factor = _scan(add, jnp.zeros((dim, dim), jnp.float64), rows, mask)
    factor = jax.lax.all_gather(factor, "rows") if mode.exact else jax.lax.psum(factor, "rows")
    return {"mean": mean, "factor": factor, "bad": bad, "value": value}


# ---- without float64 -------------------------------------------------------------------------------------------------


def _reduce_single(rows: jax.Array, *, mode: Kind, mask: jax.Array, ids: jax.Array) -> dict[str, jax.Array]:
    """Reduce one matrix [blocks, B, D] of a shard in float32 and int32: sums of products of digits."""
    dim = rows.shape[-1]
    bad, value = _find_bad(rows, mask, ids, float(jnp.finfo(jnp.float32).max))

    def prepare(block: jax.Array, mask: jax.Array) -> twofold.Pair:
        x = twofold.Pair.of(jnp.where(mask[:, None], block, 0).astype(jnp.float32))
        if mode.normalize == "rows":
            x = twofold.normalise(x)
        if mode.center == "samples":
            x = twofold.subtract(x, twofold.average(x))
        return x

    # Any shift near the mean will do: what is left of the mean is added up exactly, and taken off by the host.
    shift = jnp.zeros(dim, jnp.float32)
    if mode.center == "features":
        count = jnp.maximum(jax.lax.psum(mask.sum(), "rows"), 1).astype(jnp.float32)
        part = lambda carry, block, mask: carry + (prepare(block, mask).head / count).sum(0)  # noqa: E731
        shift = jax.lax.psum(_scan(part, shift, rows, mask), "rows")

    def shifted(block: jax.Array, mask: jax.Array) -> twofold.Pair:
        x = twofold.subtract(prepare(block, mask), twofold.Pair.of(shift))
        return twofold.Pair(*(jnp.where(mask[:, None], part, 0) for part in x))

    largest = _scan(lambda carry, b, m: jnp.maximum(carry, jnp.abs(shifted(b, m).head).max(0)), shift * 0, rows, mask)
    largest = jax.lax.pmax(largest, "rows")
    exponent = twofold.find_exponent(largest)
    above = jnp.ldexp(largest, -exponent) * (2**BITS / 126)  # a first digit of 127 or more would not fit into int8
    exponent += (above > 1).astype(jnp.int32) + (above > 2)  # the latter beyond 2^127

    def add(carry: Any, block: jax.Array, mask: jax.Array) -> Any:
        scaled = twofold.shift_exponent(shifted(block, mask), -exponent)
        digits = [digit.astype(jnp.int8) for digit in twofold.split_digits(scaled, DIGITS, BITS)]
        gram, total = carry
        levels = []
        for level in range(DIGITS):
            pairs = [(p, level - p) for p in range(level // 2 + 1)]
            products = [jnp.matmul(digits[p].T, digits[q], preferred_element_type=jnp.int32) for p, q in pairs]
            levels.append(sum(x if p == q else x + x.T for x, (p, q) in zip(products, pairs, strict=True)))
        sums = jnp.stack([digit.sum(0, dtype=jnp.int32) for digit in digits])
        return _carry(gram, jnp.stack(levels)), _carry(total, sums)

    def zeros(*shape: int) -> tuple[jax.Array, jax.Array]:
        return jnp.zeros(shape, jnp.int32), jnp.zeros(shape, jnp.int32)

    gram, total = _scan(add, (zeros(DIGITS, dim, dim), zeros(DIGITS, dim)), rows, mask)
    (high, low), (total_high, total_low) = jax.lax.psum((gram, total), "rows")
    return {"high": high, "low": low, "total_high": total_high, "total_low": total_low, "shift": shift,
            "exponent": exponent, "bad": bad, "value": value}  # fmt: skip


def _carry(halves: tuple[jax.Array, jax.Array], new: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Add whole numbers to a sum in two halves, (higher, lower), exactly."""
    high, low = halves[0], halves[1] + (new & (2**CARRY - 1))
    return high + (new >> CARRY) + (low >> CARRY), low & (2**CARRY - 1)
