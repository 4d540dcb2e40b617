"""Load the model of a checkpoint, or initial weights from another run or from a file with timm's names."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from nml_jax import console, errors, models, settings
from nml_jax.models.weights import files
from nml_jax.processes.forks import refuse_fork
from nml_jax.training import checkpoint
from nml_jax.training.leaves import name_leaf, name_leaves


class Loaded(NamedTuple):
    """A model from a checkpoint. `model.apply(params, model_state, batch, train=False, key=None)` runs it."""

    model: models.Model
    params: Any
    model_state: Any
    step: int
    meta: dict[str, Any]  # config, ledger, num_classes, versions


def load_model(run: str | Path, *, step: int | None = None, weights: str = "raw") -> Loaded:
    """Load the model of a finished or interrupted run, on one device.

    Args:
        run: the folder of a run (a cell of a sweep), or one checkpoint's folder.
        step: step of the checkpoint; None: the last.
        weights: "raw" or "ema".

    Raises:
        UserError: there is no checkpoint, it is damaged, or it has no moving average.
    """
    refuse_fork()
    folder = _find(Path(run), step)
    checkpoint.verify(folder)
    meta = checkpoint.read_meta(folder)
    config = settings.from_json(settings.fill_defaults(meta["config"]))
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


def load_weights(init_from: str, config: Any, params: Any, model_state: Any) -> tuple[Any, Any]:
    """Replace fresh weights by those of a .safetensors file with timm's names or of a run.

    A head for another number of classes keeps its fresh weights. Then a line is logged.

    Args:
        init_from: `config.init_from`.
        config: the whole config.
        params, model_state: fresh weights, which give the shapes.

    Raises:
        UserError: the file does not exist or holds weights of another model.
    """
    path = Path(init_from)
    if not path.exists():
        raise errors.UserError(f"init_from={init_from} does not exist", "give a .safetensors file or a run's folder")
    if path.is_dir():
        loaded = load_model(path)
        given = {"params": loaded.params, "model_state": loaded.model_state}
    else:
        given = dict(zip(("params", "model_state"), files.read_weights(path, (params, model_state)), strict=True))
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
    if kept:
        console.notice(f"{init_from}: its head is for another number of classes; the head starts fresh")
    merged = jax.tree_util.tree_map_with_path(
        lambda p, x: x if name_leaf(p) in kept else np.asarray(theirs[name_leaf(p)], x.dtype), fresh
    )
    return merged["params"], merged["model_state"]
