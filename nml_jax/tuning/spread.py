"""Train many heads at once: in one program over all devices, or one by one on the cores of a CPU.

In a job of several processes the first leads (processes/crew.py) and the devices of all take part. Each device has all
features and trains its own heads, so that no device says anything to another. A head that has stopped stays in the
program, masked.
"""

import functools
import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from nml_jax.arithmetic.bits import in_32_bits
from nml_jax.models.heads.mlp import Form, Tree
from nml_jax.objectives.terms import TERMS, Terms
from nml_jax.processes import crew
from nml_jax.processes.forks import refuse_fork
from nml_jax.processes.limits import limit_blas
from nml_jax.tuning import descent
from nml_jax.tuning.descent import Carry, Setting, Spec, TrainingSet

_numbers = itertools.count()


def is_spread() -> bool:
    """Return whether heads are trained in one program: on accelerators, and with the devices of other processes.

    In one process on a CPU that would be no faster: single runs fill its cores.
    """
    return jax.default_backend() != "cpu" or crew.is_leading()


@in_32_bits
def train(
    spec: Spec,
    bank: TrainingSet,
    settings: Sequence[Setting],
    n: int,
    *,
    epochs: int,
    mapped: bool | None = None,
) -> list[tuple[Tree, Tree]]:
    """Train one head per setting.

    Args:
        spec: static arguments; its `batch` is at most n.
        bank: training examples.
        settings: of Python or NumPy values.
        n: rows to train on.
        epochs: passes over them.
        mapped: train all settings in one program over all devices, or each in a call of its own, as many at a time as
            there are cores. None: as `is_spread` says.

    Returns:
        (params, state) of each, nested dicts of float32 NumPy arrays; not finite if training diverged. On CPUs they are
        the same bits, spread or not.
    """
    refuse_fork()
    ready = [descent.to_arrays(s) for s in settings]
    with limit_blas():
        if is_spread() if mapped is None else mapped:
            arrays = [*_flatten(bank), *_flatten(_stack(ready))]
            if spec.standardize and jax.default_backend() == "cpu":  # sums of another program round differently
                none = np.int32(n), np.int32(0)
                arrays += _flatten(_stack([descent.train_one(spec, bank, s, *none)[1]["input"] for s in ready]))
            static = [_to_json(spec), sorted(ready[0].numbers), int(n), int(epochs)]
            trees = crew.order(ACTIONS, "train", static, arrays)
            return [jax.tree.map(lambda x, i=i: x[i], trees) for i in range(len(ready))]
        out, cores = [], os.cpu_count() or 1  # a run uses one core, and calls return before they are done
        sizes = np.int32(n), np.int32(epochs)
        for i in range(0, len(ready), cores):
            out += jax.device_get([descent.train_one(spec, bank, setting, *sizes) for setting in ready[i : i + cores]])
        return out


class Group:
    """Heads in training that advance together, an epoch at a time, in one program over all devices.

    Args:
        spec: their static arguments.
        carries: where each starts.
        bank: training examples.
        settings: of `descent.to_arrays`.
        n: rows to train on, of each.
        total: steps of a whole run, of each.
    """

    @in_32_bits
    def __init__(
        self,
        spec: Spec,
        carries: Sequence[Carry],
        bank: TrainingSet,
        settings: Sequence[Setting],
        n: Sequence[int],
        total: Sequence[int],
    ):
        self.size, self._name = len(carries), f"group {next(_numbers)}"
        arrays = [*_flatten(bank), *_flatten(_stack(settings)), *_flatten(_stack(jax.device_get(carries)))]
        has_standard = "input" in carries[0].state
        static = [self._name, _to_json(spec), sorted(settings[0].numbers), has_standard, list(n), list(total)]
        crew.order(ACTIONS, "begin", static, arrays)

    @in_32_bits
    def advance(self, active: Sequence[bool], done: Sequence[int]) -> list[tuple[Tree, Tree]]:
        """Train the active heads for one more epoch, whose number is `done`, and return (params, state) of all."""
        arrays = [np.array(active, np.int32), np.array(done, np.int32)]
        trees = crew.order(ACTIONS, "advance", [self._name], arrays)
        return [jax.tree.map(lambda x, i=i: x[i], trees) for i in range(self.size)]

    def close(self) -> None:
        """Free the memory on the devices."""
        crew.order(ACTIONS, "close", [self._name], [])


# ---- what every process does -----------------------------------------------------------------------------------------


class _Running(NamedTuple):
    """A group on the devices."""

    program: Any
    carries: Any
    bank: Any
    settings: Any
    n: Any
    total: Any
    mesh: Mesh
    size: int


@in_32_bits
def _train(static: Any, arrays: list[np.ndarray], kept: dict[str, Any]) -> Any:
    (spec, names, n, epochs), mesh = static, _make_mesh()
    bank, settings, leaves = _unflatten(arrays, names)
    standards = _split(dict(zip(("mean", "scale"), leaves, strict=True)), mesh) if leaves else None
    size = len(settings.seed)
    program = compile_mapped(_from_json(spec), tuple(mesh.devices.flat))
    sizes = (_place(np.int32(x), mesh, PartitionSpec()) for x in (n, epochs))
    return _fetch(program(_whole(bank, mesh), _split(settings, mesh), *sizes, standards), size)


@in_32_bits
def _begin(static: Any, arrays: list[np.ndarray], kept: dict[str, Any]) -> None:
    (name, written, names, has_standard, n, total), mesh = static, _make_mesh()
    spec = _from_json(written)
    bank, settings, leaves = _unflatten(arrays, names)
    dim = bank.features.shape[-1]
    standard = {key: jax.ShapeDtypeStruct((dim,), np.float32) for key in ("mean", "scale")} if has_standard else None
    one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), settings)
    shapes = jax.eval_shape(lambda setting, standard: descent.start(spec, setting, dim, standard), one, standard)
    carries = jax.tree.unflatten(jax.tree.structure(shapes), leaves)
    alike = len(set(zip(n, total, strict=True))) == 1  # then no head waits in a loop for one with more steps
    rows, steps = (_place(np.int32(x[0]), mesh, _WHOLE) if alike else _split(np.int32(x), mesh) for x in (n, total))
    kept[name] = _Running(
        compile_advance(spec, tuple(mesh.devices.flat), alike), _split(carries, mesh), _whole(bank, mesh),
        _split(settings, mesh), rows, steps, mesh, len(settings.seed),
    )  # fmt: skip


@in_32_bits
def _advance(static: Any, arrays: list[np.ndarray], kept: dict[str, Any]) -> Any:
    (name,), group = static, kept[static[0]]
    active, done = (_split(x, group.mesh) for x in arrays)
    carries = group.program(group.carries, group.bank, group.settings, group.n, done, group.total, active)
    kept[name] = group._replace(carries=carries)
    return _fetch((carries.params, carries.state), group.size)


def _close(static: Any, arrays: list[np.ndarray], kept: dict[str, Any]) -> None:
    kept.pop(static[0], None)


ACTIONS: Mapping[str, crew.Action] = {"train": _train, "begin": _begin, "advance": _advance, "close": _close}


# ---- the programs ----------------------------------------------------------------------------------------------------

_HEADS, _WHOLE = PartitionSpec("heads"), PartitionSpec()


@functools.lru_cache(maxsize=32)
def compile_mapped(spec: Spec, devices: tuple[Any, ...]) -> Any:
    """Compile (bank, settings, n, epochs, standards) -> heads, spread over devices by the first axis of all but three.

    The program computes the mean and scale of the features, if `standards` is None.
    """

    def train_own(
        bank: TrainingSet, settings: Setting, n: jax.Array, epochs: jax.Array, standards: Tree | None
    ) -> tuple[Tree, Tree]:
        def train(head: tuple[Setting, Tree | None]) -> tuple[Tree, Tree]:
            return descent.run(spec, bank, head[0], n, epochs, head[1])

        return _map(train, devices)((settings, standards))

    return _spread(train_own, devices, (_WHOLE, _HEADS, _WHOLE, _WHOLE, _HEADS))


@functools.lru_cache(maxsize=32)
def compile_advance(spec: Spec, devices: tuple[Any, ...], alike: bool = True) -> Any:
    """Compile (carries, bank, settings, n, epoch of each, total, which are active) -> carries; it donates the first.

    Args:
        alike: n and total are one number each for all heads; otherwise each head has its own.
    """

    def advance_own(
        carries: Carry, bank: TrainingSet, settings: Setting, n: jax.Array, done: jax.Array, total: jax.Array,
        active: jax.Array,
    ) -> Carry:  # fmt: skip
        def advance(head: tuple[Any, ...]) -> Carry:
            carry, setting, i, is_active, *own = head
            rows, steps = own or (n, total)
            new = descent.run_epoch(spec, carry, bank, setting, rows, i, steps)
            return jax.tree.map(lambda a, b: jnp.where(is_active > 0, a, b), new, carry)

        return _map(advance, devices)((carries, settings, done, active, *(() if alike else (n, total))))

    size = _WHOLE if alike else _HEADS
    specs = (_HEADS, _WHOLE, _HEADS, size, _HEADS, size, _HEADS)
    return _spread(advance_own, devices, specs, donate_argnums=0)


def _map(function: Callable[[Any], Any], devices: tuple[Any, ...]) -> Callable[[Any], Any]:
    """Map over the heads of a device: on a CPU one by one, which are the bits of a single run, else batched."""
    return functools.partial(jax.lax.map, function) if devices[0].platform == "cpu" else jax.vmap(function)


def _spread(function: Callable[..., Any], devices: tuple[Any, ...], specs: tuple[Any, ...], **how: Any) -> Any:
    mesh = Mesh(np.array(devices), ("heads",))
    return jax.jit(jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=_HEADS, check_vma=False), **how)


def _make_mesh() -> Mesh:
    return Mesh(np.array(crew.list_devices()), ("heads",))


# ---- arrays, there and back ------------------------------------------------------------------------------------------


def _place(x: Any, mesh: Mesh, spec: PartitionSpec) -> jax.Array:
    x = np.asarray(x)
    return jax.make_array_from_callback(x.shape, NamedSharding(mesh, spec), lambda index: x[index])


def _whole(tree: Any, mesh: Mesh) -> Any:
    return jax.tree.map(lambda x: _place(x, mesh, _WHOLE), tree)


def _split(tree: Any, mesh: Mesh) -> Any:
    """Spread the first axis over the devices; copies of the last head fill it up."""

    def split(x: Any) -> jax.Array:
        more = -len(x) % mesh.size
        return _place(np.concatenate([x, np.repeat(x[-1:], more, 0)]) if more else x, mesh, _HEADS)

    return jax.tree.map(split, tree)


def _fetch(tree: Any, size: int) -> Any:
    """Return the first `size` heads as NumPy, on every process."""
    if len({device.process_index for device in crew.list_devices()}) > 1:
        from jax.experimental import multihost_utils

        tree = multihost_utils.process_allgather(tree, tiled=True)
    return jax.tree.map(lambda x: np.asarray(x)[:size], jax.device_get(tree))


def _stack(trees: Sequence[Any]) -> Any:
    return jax.tree.map(lambda *xs: np.stack(xs), *trees)


def _flatten(tree: Any) -> list[np.ndarray]:
    return [np.asarray(x) for x in jax.tree.leaves(tree)]


def _unflatten(arrays: list[np.ndarray], names: Sequence[str]) -> tuple[TrainingSet, Setting, list[np.ndarray]]:
    """Return the bank, the settings whose terms have numbers of these names, and what is left."""
    like = Setting(0, 0, 0, 0, dict.fromkeys(names, 0))
    count = len(TrainingSet._fields)
    end = count + len(jax.tree.leaves(like))
    settings = jax.tree.unflatten(jax.tree.structure(like), arrays[count:end])
    return TrainingSet(*arrays[:count]), settings, arrays[end:]


def _to_json(spec: Spec) -> dict[str, Any]:
    terms = spec.terms and {"name": spec.terms.name, "form": spec.terms.form._asdict()}
    return {**spec._asdict(), "form": spec.form._asdict(), "terms": terms}


def _from_json(written: dict[str, Any]) -> Spec:
    terms = written["terms"] and Terms(
        written["terms"]["name"], TERMS[written["terms"]["name"]].Weights(**written["terms"]["form"])
    )
    return Spec(**{**written, "form": Form(**written["form"]), "terms": terms})
