"""Load the model of a checkpoint, or initial weights from another run, a detector or a file with timm's names."""

import functools
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np

from nml_jax import console, errors, models, settings
from nml_jax.models import describe, published
from nml_jax.models.weights import files
from nml_jax.models.weights.state_dict import UnfitWeights
from nml_jax.processes.forks import refuse_fork
from nml_jax.stored import FAULTS, make_damage, require_fields, require_type
from nml_jax.training import checkpoint
from nml_jax.training.detection import saved
from nml_jax.training.leaves import name_leaves, unflatten

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
    if detector := saved.find_encoder(Path(run)):
        cure = "apply it with python -m nml_jax.predict, or give it as init_from, which takes its encoder"
        raise errors.UserError(f"{detector} is a detector", cure)
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
    init_from: str, config: Any, model: models.Model, key: jax.Array, *, head_for: str = "training"
) -> tuple[Any, Any]:
    """Load the weights of `init_from` for a model: of a run, or of a file or folder that others wrote.

    A head for another number of classes is drawn afresh, and nothing else is drawn. Then a line is logged. So are
    differences between the preprocessing that the weights were trained with and that of the config, and what is assumed
    of a file's.

    Args:
        init_from: `config.init_from`.
        config: the whole config.
        key: PRNG key; `model.init` with it gives the head that starts fresh.
        head_for: training | features (the head is not used) | logits (the head must be that of the weights).

    Returns:
        (params, model_state) as NumPy arrays in nested dicts that nobody else holds.

    Raises:
        UserError: `init_from` does not exist or holds weights of another model, or logits are asked for without a head.
    """
    path = Path(init_from)
    if not path.exists():
        cure = "give a .safetensors file, a published model's folder or a run's folder"
        raise errors.MissingInput(f"init_from={init_from} does not exist", cure)
    given = _load_given(path, config, model)
    theirs, ours = name_leaves(given), name_leaves(dict(zip(("params", "model_state"), model.shapes, strict=True)))
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
        sizes = [_count_head(path, theirs), ours[BIAS].shape[-1] if BIAS in ours else 0]
        what = f"a head for {sizes[0]:,} classes, and this model has {sizes[1]:,}" if sizes[0] else "no head"
        if head_for == "logits":
            raise errors.UserError(
                f"{init_from} has {what}: its logits are not known",
                f"set --config.data.num_classes={sizes[0]}" if sizes[0] else "leave logits out of extract.layers",
            )
        _notice(f"{init_from} has {what}: the head starts fresh")
    fresh = _draw_leaves(model, key, sorted(kept)) if kept else {}
    flat = {name: fresh[name] if name in kept else np.asarray(theirs[name], ours[name].dtype) for name in ours}
    loaded = unflatten(flat)
    return loaded["params"], loaded.get("model_state", {})


BIAS = "params/head/bias"


def _load_given(path: Path, config: Any, model: models.Model) -> dict[str, Any]:
    """Return {"params": ..., "model_state": ...} of `init_from`, and log what its preprocessing has to do with ours."""
    if detector := saved.find_encoder(path):
        given, theirs = saved.load_encoder(detector)
        compare_preprocessing(str(path), theirs, config)
        _notice(f"init_from={path} is a detector: its encoder is taken, the rest starts fresh")
        return given
    if is_run(path):
        loaded = load_model(path)
        compare_preprocessing(str(path), settings.from_json(loaded.meta["config"]), config)
        return {"params": loaded.params, "model_state": loaded.model_state}
    differing: Mapping[str, Any] = {}
    if published.find_config(path) is None:
        _notice(f"init_from={path} does not say how it was trained; assumed: {describe_preprocessing(config)}")
    else:
        differing = compare_published(str(path), published.read_keys(path), config)
    try:
        weights = files.read_weights(path, model.shapes)
    except UnfitWeights as e:
        if not differing:
            raise
        values = " ".join(f"--config.{key}={value}" for key, value in differing.items())
        raise errors.UserError(e.cause, f"set what the folder's config says: {values}") from e
    return dict(zip(("params", "model_state"), weights, strict=True))


def is_run(path: Path) -> bool:
    """Return whether a folder is that of a run, or of one checkpoint, and not one that others wrote."""
    if not path.is_dir() or (path / "checkpoints").is_dir():
        return path.is_dir()
    return published.find_config(path) is None and not files.has_weights(path)


def _count_head(path: Path, theirs: Mapping[str, Any]) -> int:
    """Return for how many classes the weights have a head; 0 for none."""
    return theirs[BIAS].shape[-1] if BIAS in theirs else 0 if is_run(path) else files.count_classes(path) or 0


def _draw_leaves(model: models.Model, key: jax.Array, names: list[str]) -> dict[str, np.ndarray]:
    """Draw some of the leaves that `model.init` draws; the compiler removes the others."""

    def init(key: jax.Array) -> dict[str, jax.Array]:
        leaves = name_leaves(dict(zip(("params", "model_state"), model.init(key, model.spec), strict=True)))
        return {name: leaves[name] for name in names}

    return jax.device_get(jax.jit(init)(key))


def count_classes(init_from: str) -> int | None:
    """Return the number of classes of the head of a run or a published folder; None for a file or a detector."""
    path = Path(init_from)
    if not path.is_dir():
        return None
    if saved.find_encoder(path):
        return None
    if is_run(path):
        return _read_newest(path, None, _read_meta)["num_classes"]
    return files.count_classes(path)


# ---- what weights expect of the pixels

# Keys that change what a model computes of the same image, but not always the shapes of its weights.
SEEN = ("model.mean", "model.std", "data.image_size")
SEEN_BY_SOME = ("model.quick_gelu", "model.pool", "model.patch")
SIZES = ("model.name", "data.num_classes")  # the shapes of the weights decide
NEVER = ("model.quick_gelu",)  # nobody means it to differ: the weights would be of another function
# The same of text encoders, whose config.json says all that they are.
NEVER_OF_TEXT = tuple(
    f"model.{key}" for key in ("dim", "depth", "heads", "hidden", "context", "vocab", "types", "epsilon", "activation")
)


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
    """Return what a config assumes of weights that say nothing: the preprocessing, and constants without a shape."""
    known = dict(settings.flatten(config.to_dict()))
    crop = known["augment.test_crop"] if known["augment.crop"] == "random_resized" else 1.0
    rest = {"augment.test_crop": crop} | {key: known[key] for key in ("augment.interpolation", "augment.resize")}
    rest |= published.list_constants(config.model.name, config.model.tower)
    rest |= {key: known[key] for key in ("model.epsilon", "model.padding") if known[key] is not None}
    assumed = list_preprocessing(config) | rest
    return ", ".join(f"{key}={value}" for key, value in assumed.items() if value is not None)


def compare_published(init_from: str, theirs: Mapping[str, Any], ours: Any) -> dict[str, Any]:
    """Log how the keys that a published folder sets differ from those of a config that takes its weights.

    Returns:
        Their values of the keys that differ.

    Raises:
        UserError: they differ in a key of NEVER.
    """
    now = dict(settings.flatten(ours.to_dict()))
    crop = theirs.get("augment.test_crop", 1.0)
    if crop < 1 and now["augment.crop"] != "random_resized" and now["augment.test_crop"] < 1:
        raise errors.UserError(
            f"init_from={init_from} needs a centre crop of {crop}, which augment.crop={now['augment.crop']} leaves out",
            "set --config.augment.crop=random_resized, or --config.augment.test_crop=1.0 for no crop",
        )
    keys = [key for key, value in theirs.items() if key not in SIZES and now[key] is not None and now[key] != value]
    differ = "; ".join(f"{key} is {theirs[key]} there and {now[key]} here" for key in keys)
    if wrong := [key for key in keys if key in (*NEVER, *(NEVER_OF_TEXT if "model.vocab" in theirs else ()))]:
        values = " ".join(f"--config.{key}={theirs[key]}" for key in wrong)
        raise errors.UserError(f"the config of init_from={init_from} says otherwise: {differ}", f"set {values}")
    if differ:
        _notice(f"the config of init_from={init_from} says otherwise: {differ}; what the run says counts")
    return {key: theirs[key] for key in keys}


def list_preprocessing(config: Any) -> dict[str, Any]:
    """Return the keys that a config's model reads of SEEN and SEEN_BY_SOME, with their values."""
    known = dict(settings.flatten(config.to_dict()))
    fields = describe.list_fields(config.model)
    keys = (*SEEN, *(key for key in SEEN_BY_SOME if key.partition(".")[2] in fields))
    return {key: tuple(known[key]) if isinstance(known[key], list) else known[key] for key in keys}


def _notice(message: str) -> None:
    """Print a line once for all runs of an experiment, on the first process of its job."""
    if jax.process_index() == 0:
        console.notice_once(message)
