"""Computing in 32 bits, whatever jax_enable_x64 says."""

import functools
from collections.abc import Callable
from typing import Any

import jax


def in_32_bits(function: Callable[..., Any]) -> Callable[..., Any]:
    """Make a function run with JAX's 32-bit types, even where the user has set jax_enable_x64."""

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        with jax.enable_x64(False):
            return function(*args, **kwargs)

    return run
