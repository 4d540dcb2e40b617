"""A barrier against fusion by XLA's compiler for CPUs."""

import jax


def materialise(x: jax.Array) -> jax.Array:
    """Return x, and on a CPU make XLA compute it and its gradient only once and store them in memory.

    Without the barrier, XLA for CPUs recomputes a sum of residuals, or the input of a convolution, inside every
    operation that reads it. That work grows as the square of the number of blocks. Other compilers do not need the
    barrier and do not get it. It is only effective under `runtime.jit`; see `runtime.CPU_OPTIONS`.
    """
    return jax.lax.platform_dependent(x, cpu=jax.lax.optimization_barrier, default=lambda x: x)
