"""The folders of trained detectors, and the weights of the encoder in them."""

from pathlib import Path
from typing import Any, NamedTuple

from nml_jax import console, settings
from nml_jax.errors import UserError
from nml_jax.runs.detections import FOLDER
from nml_jax.stored import FAULTS, make_damage, require_fields
from nml_jax.training import checkpoint

FIELDS = {"config": dict[str, Any], "num_classes": int, "system": str, "class_names": list[str],
          "category_ids": list[int]}  # fmt: skip


class Saved(NamedTuple):
    """A detector's last checkpoint: its folder and what is stored beside the arrays, the config resolved."""

    folder: Path
    meta: dict[str, Any]


def find_detector(path: Path) -> Path | None:
    """Return the folder of a detector: `path`, or the only one in a run; None if `path` is neither.

    Raises:
        UserError: a run has several.
    """
    if path.absolute().parent.name == FOLDER and checkpoint.list_steps(path / "checkpoints"):
        return path
    found = [p for p in sorted((path / FOLDER).glob("*")) if checkpoint.list_steps(p / "checkpoints")]
    if len(found) > 1:
        names = console.list_words(p.name for p in found)
        raise UserError(f"{path} has several detectors: {names}", f"give the folder of one, as in {found[0]}")
    return found[0] if found else None


def find_encoder(path: Path) -> Path | None:
    """Return the folder of the detector whose encoder `path` stands for; None if it has an encoder of its own.

    Raises:
        UserError: see `find_detector`.
    """
    own = path.absolute().parent.name != FOLDER and checkpoint.list_steps(path / "checkpoints")
    return None if own or not path.is_dir() else find_detector(path)


def read_saved(folder: Path) -> Saved:
    """Read what the last checkpoint of a detector's folder says.

    Raises:
        UserError: it is damaged.
    """
    step = folder / "checkpoints" / str(checkpoint.list_steps(folder / "checkpoints")[-1])
    checkpoint.verify(step)
    try:
        meta = checkpoint.read_meta(step)
        require_fields(meta, FIELDS)
        return Saved(step, {**meta, "config": settings.from_json(settings.check_stored(meta["config"], step))})
    except FAULTS as e:
        raise make_damage(step / "meta", e, f"delete {step} and train on from the checkpoint before it") from e


def load_encoder(folder: Path) -> tuple[dict[str, Any], Any]:
    """Return the encoder in a detector's folder as {"params", "model_state"}, and the config that it was trained with.

    Raises:
        UserError: the checkpoint is damaged.
    """
    saved = read_saved(folder)
    model = checkpoint.load(saved.folder, {"model": checkpoint.describe_model(saved.folder)})["model"]
    return {name: model[name]["encoder"] for name in ("params", "model_state")}, saved.meta["config"]
