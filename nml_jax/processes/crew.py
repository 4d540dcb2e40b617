"""Work of the first process that all processes of a job share: it leads, and the others do what it orders.

An order is the name of an action, its static arguments as JSON, and arrays. Every process then calls the action with
the same arguments, so that it can run a program over the devices of all.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from nml_jax.processes import peers

Action = Callable[[Any, list[np.ndarray], dict[str, Any]], Any]  # (static, arrays, what earlier orders keep) -> result
_kept: dict[str, Any] = {}
_leading = _serving = False


@contextlib.contextmanager
def lead() -> Iterator[None]:
    """Let this process, the first, order the others within the context; they `serve`.

    After an error they get no order to end: they end as `peers` has them end after the loss of a process.
    """
    global _leading
    _leading = jax.process_count() > 1
    try:
        yield
    finally:
        _leading = False
        _kept.clear()
    peers.agree(None)


def serve(actions: Mapping[str, Action]) -> None:
    """Do what the first process orders, until it leaves `lead`."""
    global _serving
    kept: dict[str, Any] = {}
    _serving = True
    try:
        no_order: Any = None
        while order := peers.agree(no_order):
            arrays = broadcast([np.zeros(shape, dtype) for shape, dtype in order["arrays"]])
            actions[order["action"]](order["static"], arrays, kept)
    finally:
        _serving = False


def is_leading() -> bool:
    """Return whether other processes wait for the orders of this one."""
    return _leading


def list_devices() -> list[Any]:
    """List the devices of an action: those of all processes if they take part, in their order, else this one's."""
    devices = jax.devices() if _leading or _serving else jax.local_devices()
    return sorted(devices, key=lambda device: (device.process_index, device.id))


def order(actions: Mapping[str, Action], name: str, static: Any, arrays: Sequence[np.ndarray]) -> Any:
    """Call an action, here and in the processes that serve, and return its result here.

    Args:
        static: JSON values.
        arrays: of this process.
    """
    arrays = [np.asarray(x, order="C") for x in arrays]
    if _leading:
        peers.agree({"action": name, "static": static, "arrays": [[x.shape, x.dtype.name] for x in arrays]})
        arrays = broadcast(arrays)
    return actions[name](static, arrays, _kept)


def broadcast(arrays: list[np.ndarray]) -> list[np.ndarray]:
    """Return the first process's arrays of 32-bit numbers on every process, bit by bit.

    Args:
        arrays: of this process; on the others only their shapes and dtypes count.
    """
    if jax.process_count() == 1:
        return arrays
    from jax.experimental import multihost_utils

    sent = multihost_utils.broadcast_one_to_all([x.view(np.uint32) for x in arrays])
    return [np.asarray(got).view(x.dtype).reshape(x.shape) for got, x in zip(sent, arrays, strict=True)]
