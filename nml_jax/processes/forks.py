"""Notice that this process was forked from one in which JAX runs: its threads are missing here, so JAX would hang."""

import os
import sys

from nml_jax.errors import UserError

_broken = False  # whether this process has a copy of a started JAX


def refuse_fork() -> None:
    """Raise UserError in a process that was forked after JAX had started. What needs a device calls this first."""
    if _broken:
        raise UserError(
            "this process was forked from one in which JAX had started, so JAX would hang here",
            'start workers with multiprocessing.get_context("spawn"), or fork before the first fit or prediction',
        )


def _look() -> None:
    """Remember, in a child, whether JAX had started in the parent. JAX's own question might wait for a lost lock."""
    global _broken
    _broken = _broken or bool(getattr(sys.modules.get("jax._src.xla_bridge"), "_backends", None))


os.register_at_fork(after_in_child=_look)
