"""Open an encoder by its folder: a run's, a fine-tuned setting's, a checkpoint's, or a published one's."""

from pathlib import Path
from typing import NamedTuple

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from nml_jax import noise, settings
from nml_jax.assembly import encoder
from nml_jax.errors import UserError
from nml_jax.models import published
from nml_jax.runs.classes import read_counts
from nml_jax.runs.record import read_config
from nml_jax.training import checkpoint, pretrained


class Opened(NamedTuple):
    """An encoder with the config that describes its network and preprocessing.

    class_names: of its own head, one for each class; () if they are not on record.
    num_classes: of its own head; 0 without one.
    """

    config: ConfigDict
    encoder: encoder.Encoder
    class_names: tuple[str, ...]
    num_classes: int


def open_encoder(path: Path, mesh: Mesh) -> Opened:
    """Load an encoder and place it on the mesh.

    Raises:
        UserError: the folder does not exist or holds no encoder, or it is damaged.
    """
    if not path.exists():
        raise UserError(f"--encoder={path} does not exist", "give the folder of a run, or of an encoder's weights")
    if "stages" in read_config(path):
        return _open_run(path, mesh)
    if checkpoint.list_steps(path / "checkpoints") or path.name.isdecimal():
        return _open_checkpoint(path, mesh)
    return _open_published(path, mesh)


def _open_run(path: Path, mesh: Mesh) -> Opened:
    """Open what the run's features come from: its checkpoint, or the weights that it starts from."""
    config = settings.from_json(settings.check_stored(read_config(path), path / "config.json"))
    if not checkpoint.list_steps(path / "checkpoints") and config.init_from:
        source = Path(config.init_from)
        if not pretrained.is_run(source):  # the classifier of published weights is theirs, whatever the run's task is
            return Opened(config, *_load_published(config, source, path, mesh))
    frozen = encoder.load(config, path, mesh)
    names = tuple(read_counts(path).get("train", {}))
    return Opened(config, frozen, *_match_head(frozen, names))


def _open_published(path: Path, mesh: Mesh) -> Opened:
    """Open a folder of published weights with the preprocessing that its config names."""
    if published.find_config(path) is None:
        raise UserError(
            f"--encoder={path} is neither a run nor a folder of published weights",
            "give a folder with checkpoints/, or with config.json, open_clip_config.json or nml_config.json",
        )
    config = settings.from_json(settings.default_config())
    with config.unlocked():
        config.update_from_flattened_dict({"init_from": str(path), **published.read_keys(path)})
    return Opened(config.lock(), *_load_published(config, path, path, mesh))


def _load_published(
    config: ConfigDict, source: Path, workdir: Path, mesh: Mesh
) -> tuple[encoder.Encoder, tuple[str, ...], int]:
    """Load published weights. Return the encoder, the names of its classes, and their number."""
    num_classes = pretrained.count_classes(str(source)) or 0
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.data.num_classes = num_classes or None
    frozen, names = encoder.load(config, workdir, mesh), published.read_class_names(source)
    return frozen, (names if len(names) == num_classes else ()), num_classes


def _open_checkpoint(path: Path, mesh: Mesh) -> Opened:
    """Open the last checkpoint of a fine-tuned setting, or one checkpoint."""
    loaded = pretrained.load_model(path)
    config = settings.from_json(loaded.meta["config"])
    ledger = noise.Ledger.from_dict(loaded.meta["ledger"]) if loaded.meta["ledger"] else None
    frozen = encoder.place(loaded.model, jax.device_get((loaded.params, loaded.model_state)), loaded.step, ledger, mesh)
    names = loaded.meta.get("class_names") or read_counts(path.resolve().parents[1]).get("train", {})
    return Opened(config, frozen, *_match_head(frozen, tuple(names)))


def _match_head(frozen: encoder.Encoder, names: tuple[str, ...]) -> tuple[tuple[str, ...], int]:
    """Return the names of the head's classes, if there is one for each class, and their number."""
    num_classes = frozen.params["head"]["bias"].shape[-1] if "head" in frozen.params else 0
    return (names if len(names) == num_classes else ()), num_classes
