"""Numbers as the sum of two float32, good to 2^-46 of themselves, for devices without float64.

The functions use exact sums and products only (Dekker 1971, Knuth 1969). A product is taken of halves with 12 bits, so
that it is exact whether or not the compiler fuses it with a sum.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Pair(NamedTuple):
    """A number head + tail; where nothing else is said, |tail| is at most half a unit in the last place of head."""

    head: jax.Array
    tail: jax.Array

    @classmethod
    def of(cls, x: jax.Array) -> "Pair":
        return cls(x, jnp.zeros_like(x))


def add_exactly(a: jax.Array, b: jax.Array) -> Pair:
    """Return a + b, without rounding."""
    head = a + b
    back = head - a
    return Pair(head, (a - (head - back)) + (b - back))


def halve(x: jax.Array) -> Pair:
    """Split x into its first 12 bits and the rest."""
    first = jax.lax.reduce_precision(x, 8, 11)
    return Pair(first, x - first)


def multiply_halves(a: jax.Array, b: jax.Array) -> Pair:
    """Return a·b as the exact product of their first 12 bits, and the rest, whose size is 2^-11 of the product's."""
    (a1, a2), (b1, b2) = halve(a), halve(b)
    return Pair(a1 * b1, a1 * b2 + (a2 * b1 + a2 * b2))


def multiply_exactly(a: jax.Array, b: jax.Array) -> Pair:
    """Return a·b to 2^-47 of itself."""
    (a1, a2), (b1, b2) = halve(a), halve(b)
    head, first = add_exactly(a1 * b1, a1 * b2)
    head, second = add_exactly(head, a2 * b1)
    return add_exactly(head, (first + second) + a2 * b2)


def subtract(x: Pair, y: Pair) -> Pair:
    """Return x − y."""
    head, rest = add_exactly(x.head, -y.head)
    return add_exactly(head, rest + (x.tail - y.tail))


def add_last(x: Pair) -> Pair:
    """Return the sum over the last axis, which stays with length 1."""
    while (size := x.head.shape[-1]) > 1:
        if size % 2:
            x = Pair(*(jnp.pad(part, [(0, 0)] * (part.ndim - 1) + [(0, 1)]) for part in x))
            size += 1
        left, right = (Pair(*(part[..., s] for part in x)) for s in (slice(size // 2), slice(size // 2, size)))
        head, rest = add_exactly(left.head, right.head)
        x = add_exactly(head, rest + (left.tail + right.tail))
    return x


def average(x: Pair) -> Pair:
    """Return the mean over the last axis, which stays with length 1."""
    size, total = jnp.float32(x.head.shape[-1]), add_last(x)
    head = total.head / size
    back = multiply_exactly(head, size)
    return add_exactly(head, ((total.head - back.head) - back.tail + total.tail) / size)


def normalise(x: Pair) -> Pair:
    """Return rows of float32 numbers, divided by their L2 norm; a row of zeros stays zero."""
    peak = jnp.abs(x.head).max(-1, keepdims=True)
    row = jnp.ldexp(x.head, -find_exponent(peak))
    square = multiply_exactly(row, row)
    square = add_last(square)
    empty = square.head == 0
    first = jax.lax.rsqrt(jnp.where(empty, 1, square.head))
    # One step of Newton from 1/√s in float32: first·(1 + (1 − s·first²)/2).
    power = multiply_exactly(first, first)
    product = multiply_exactly(power.head, square.head)
    left = ((1 - product.head) - product.tail) - (power.tail * square.head + power.head * square.tail)
    inverse = add_exactly(first, first * (left / 2))
    scaled = multiply_exactly(row, inverse.head)
    scaled = add_exactly(scaled.head, scaled.tail + row * inverse.tail)
    return Pair(*(jnp.where(empty, 0, part) for part in scaled))


def find_exponent(x: jax.Array) -> jax.Array:
    """Return int32 e with x < 2^e, from −125 to 127; 0 for zeros."""
    return jnp.clip(jnp.where(x > 0, jnp.frexp(jnp.where(x > 0, x, 1))[1], 0), -125, 127)


def shift_exponent(x: Pair, exponent: jax.Array) -> Pair:
    """Return x·2^exponent."""
    return Pair(*(jnp.ldexp(part, exponent) for part in x))


def split_digits(x: Pair, count: int, bits: int) -> list[jax.Array]:
    """Return whole numbers d with x ≈ Σ d_i·2^(−bits·(i + 1)) for |x| < 1, float32, |d| at most 2^bits."""
    digits = []
    for _ in range(count):
        x = Pair(*(part * 2.0**bits for part in x))
        digit = jnp.round(x.head)
        digits.append(digit)
        x = add_exactly(x.head - digit, x.tail)
    return digits
