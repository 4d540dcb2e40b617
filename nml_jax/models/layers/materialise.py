"""Where a compiler for CPUs must not fuse."""

import jax


def materialise(x: jax.Array) -> jax.Array:
    """x; on a CPU it and its gradient are computed once, and lie in memory.

    Left alone, XLA for CPUs computes a sum of residuals, or what precedes a convolution, anew inside every operation
    that reads it, in whatever order that one reads: with the number of blocks that work grows as its square. Other
    compilers know better, and get no barrier. It holds under `runtime.jit`; see `runtime.CPU_OPTIONS`.
    """
    return jax.lax.platform_dependent(x, cpu=jax.lax.optimization_barrier, default=lambda x: x)
