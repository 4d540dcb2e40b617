"""Load the model of a checkpoint, or initial weights from another run or from a file with timm's names."""

import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np

from nml_jax import console, errors, models, settings
from nml_jax.models.weights import files
from nml_jax.processes.forks import refuse_fork
from nml_jax.stored import FAULTS, make_damage, require_fields, require_type
from nml_jax.training import checkpoint
from nml_jax.training.leaves import name_leaf, name_leaves

T = TypeVar("T")

TRIES, PAUSE = 20, 0.1  # readings of checkpoints that go meanwhile, and the seconds between them


class Loaded(NamedTuple):
    """A model from a checkpoint. `model.apply(params, model_state, batch, train=False, key=None)` runs it."""

    model: models.Model
    params: Any
    model_state: Any
    step: int
    meta: dict[str, Any]  # config, ledger, num_classes, versions


def load_model(run: str | Path, *, step: int | None = None, weights: str = "raw") -> Loaded:
    """Load the model of a finished or interrupted run, or of one at work, on one device.

    A run at work deletes old checkpoints. If the last one goes while it is read, the newest is taken instead.

    Args:
        run: the folder of a run (a cell of a sweep), or one checkpoint's folder.
        step: step of the checkpoint; None: the last.
        weights: "raw" or "ema".

    Raises:
        UserError: there is no checkpoint, it is damaged, or it has no moving average.
    """
    refuse_fork()
    return _read_newest(Path(run), step, functools.partial(_load_folder, weights=weights))


def _read_newest(run: Path, step: int | None, read: Callable[[Path], T]) -> T:
    """Return what `read` reads of a run's checkpoint. If it has gone meanwhile, read the newest one there is."""
    for _ in range(TRIES):
        folder = _find(run, step)
        found = _identify(folder)
        try:
            return read(folder)
        except Exception:  # the storage library raises many kinds for files that go while it reads
            if _identify(folder) == found:
                raise
            time.sleep(PAUSE)
    raise errors.UserError(
        f"{run} deleted {TRIES} checkpoints while they were read", "read a copy, or raise --config.runtime.keep"
    )


def _identify(folder: Path) -> tuple[int, int] | None:
    """Return what tells a folder from another of its name; None if there is none."""
    try:
        status = folder.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _load_folder(folder: Path, *, weights: str) -> Loaded:
    """Load the model of one checkpoint."""
    checkpoint.verify(folder)
    meta = _read_meta(folder)
    config = settings.from_json(meta["config"])
    if weights not in ("raw", "ema") or (weights == "ema" and not config.train.ema):
        raise errors.UserError(
            f"{folder} holds no {weights!r} weights", "use weights='raw', or train with train.ema > 0"
        )
    model = models.build(config.model, num_classes=meta["num_classes"], image_size=config.data.image_size)
    params, model_state = model.shapes
    shapes = {"params": params, "model_state": model_state, "ema": params if config.train.ema else None}
    one = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=one), shapes)
    loaded = checkpoint.load(folder, {"model": shapes})["model"]
    params = loaded["params"] if weights == "raw" else loaded["ema"]
    return Loaded(model, params, loaded["model_state"], int(folder.name), meta)


def _read_meta(folder: Path) -> dict[str, Any]:
    """Read what is stored beside the arrays; missing keys of the config have their defaults.

    Raises:
        UserError: it is damaged.
    """
    cure = f"delete {folder}; the run continues from the checkpoint before it, to the same result"
    try:
        meta = require_type(checkpoint.read_meta(folder), dict[str, Any])
        require_fields(meta, {"config": dict[str, Any], "num_classes": int, "ledger": dict[str, Any] | None})
        return {**meta, "config": settings.check_stored(meta["config"], folder), "num_classes": meta["num_classes"]}
    except FAULTS as e:
        raise make_damage(folder / "meta", e, cure) from e


def _find(path: Path, step: int | None) -> Path:
    """Return the folder of the checkpoint below `path`."""
    if path.name.isdecimal() and step is None:
        parent, step = path.parent, int(path.name)
    else:
        parent = path / "checkpoints"
    there = checkpoint.list_steps(parent)
    if not there or (step is not None and step not in there):
        what = f"checkpoint {step}" if there else "checkpoint"
        has = f"it has {', '.join(map(str, there))}" if there else "a run's folder holds checkpoints/<step>"
        raise errors.UserError(f"{path} holds no {what}", f"name the folder of a run; {has}")
    return parent / str(step if step is not None else there[-1])


def load_weights(
    init_from: str, config: Any, params: Any, model_state: Any, *, head_for: str = "training"
) -> tuple[Any, Any]:
    """Replace fresh weights by those of a .safetensors file with timm's names or of a run.

    A head for another number of classes keeps its fresh weights. Then a line is logged. So are differences between the
    preprocessing that a run's weights were trained with and that of the config, and what is assumed of a file's.

    Args:
        init_from: `config.init_from`.
        config: the whole config.
        params, model_state: fresh weights, which give the shapes.
        head_for: training | features (the head is not used) | logits (the head must be that of the weights).

    Raises:
        UserError: the file does not exist or holds weights of another model, or logits are asked for without a head.
    """
    path = Path(init_from)
    if not path.exists():
        raise errors.MissingInput(f"init_from={init_from} does not exist", "give a .safetensors file or a run's folder")
    if path.is_dir():
        loaded = load_model(path)
        given = {"params": loaded.params, "model_state": loaded.model_state}
        compare_preprocessing(init_from, settings.from_json(loaded.meta["config"]), config)
    else:
        given = dict(zip(("params", "model_state"), files.read_weights(path, (params, model_state)), strict=True))
        _notice(f"init_from={init_from} does not say how it was trained; assumed: {describe_preprocessing(config)}")
    fresh = {"params": params, "model_state": model_state}
    theirs, ours = name_leaves(given), name_leaves(fresh)
    head = [name for name in ours if name.startswith("params/head/")]
    kept = {n for n in head if any(m not in theirs or theirs[m].shape != ours[m].shape for m in head)}
    wrong = [n for n in ours if n not in kept and (n not in theirs or theirs[n].shape != ours[n].shape)]
    if wrong := [*wrong, *(theirs.keys() - ours.keys() - kept)]:
        name = min(wrong)
        raise errors.UserError(
            f"{init_from} holds another model than model.name={config.model.name}: {name} does not fit",
            "set the keys of config.model to those of the weights",
        )
    if kept and head_for != "features":
        sizes = [x[BIAS].shape[-1] if BIAS in x else 0 for x in (theirs, ours)]
        what = f"a head for {sizes[0]:,} classes, and this model has {sizes[1]:,}" if sizes[0] else "no head"
        if head_for == "logits":
            raise errors.UserError(
                f"{init_from} has {what}: its logits are not known",
                f"set --config.data.num_classes={sizes[0]}" if sizes[0] else "leave logits out of extract.layers",
            )
        _notice(f"{init_from} has {what}: the head starts fresh")
    merged = jax.tree_util.tree_map_with_path(
        lambda p, x: x if name_leaf(p) in kept else np.asarray(theirs[name_leaf(p)], x.dtype), fresh
    )
    return merged["params"], merged["model_state"]


BIAS = "params/head/bias"


def count_classes(init_from: str) -> int | None:
    """Return the number of classes of a run's head; None if `init_from` is not a run."""
    path = Path(init_from)
    return _read_newest(path, None, _read_meta)["num_classes"] if path.is_dir() else None


# ---- what weights expect of the pixels

# Keys that change what a model computes of the same image, but not always the shapes of its weights.
SEEN = ("model.mean", "model.std", "data.image_size")
SEEN_BY_TRANSFORMERS = ("model.quick_gelu", "model.pool", "model.patch")
NEVER = ("model.quick_gelu",)  # nobody means it to differ: the weights would be of another function


def compare_preprocessing(init_from: str, theirs: Any, ours: Any) -> None:
    """Log how the preprocessing of a run differs from that of a config that takes over its weights.

    Raises:
        UserError: they differ in a key of NEVER.
    """
    before, now = list_preprocessing(theirs), list_preprocessing(ours)
    # A patch of None is the variant's, and its shape decides.
    keys = [key for key in now if key in before and before[key] != now[key] and None not in (before[key], now[key])]
    differ = "; ".join(f"{key} was {before[key]} and is {now[key]}" for key in keys)
    if wrong := [key for key in keys if key in NEVER]:
        values = " ".join(f"--config.{key}={before[key]}" for key in wrong)
        raise errors.UserError(f"init_from={init_from} was trained otherwise: {differ}", f"set {values}")
    if differ:
        _notice(f"init_from={init_from} was trained otherwise: {differ}")


def describe_preprocessing(config: Any) -> str:
    """Return the preprocessing of a config in words."""
    return ", ".join(f"{key}={value}" for key, value in list_preprocessing(config).items() if value is not None)


def list_preprocessing(config: Any) -> dict[str, Any]:
    """Return the keys that a config's model reads of SEEN and SEEN_BY_TRANSFORMERS, with their values."""
    known = dict(settings.flatten(config.to_dict()))
    transformer = any(word in f"{known['model.name']} {known['model.tower']}" for word in ("vit", "clip"))
    keys = (*SEEN, *(SEEN_BY_TRANSFORMERS if transformer else ()))
    return {key: tuple(known[key]) if isinstance(known[key], list) else known[key] for key in keys}


@functools.cache
def _notice(message: str) -> None:
    """Print a line once for all runs of a process; in a job, on its first process."""
    if jax.process_index() == 0:
        console.notice(message)
