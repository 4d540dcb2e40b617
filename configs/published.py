"""Take the features of a published encoder, and find the best head for them, on photos of your own.

    python -m nml_jax.prepare image_folder SRC prepared/mine        # SRC/<split>/<class>/*.jpg
    python -m nml_jax.main --config=configs/published.py:weights/swin_large --config.data.path=prepared/mine

The part after the colon is a folder as it is downloaded: timm's (config.json, model.safetensors), open_clip's
(open_clip_config.json, open_clip_model.safetensors), or transformers' of a CLIPModel. It says which model, image size,
crop, filter, mean, standard deviation, epsilon, padding and activation to use; `--dry_run` prints them. A key on the
command line wins, and a line says so. A bare .safetensors file is `--config.init_from=FILE` with the keys of its model.

A linear probe (by L-BFGS), an MLP and NMTune (both presets) are trained on the features of the split `train` with five
seeds, and scored on `test` (in-domain) and on shifted test images (out-of-domain).
"""

from pathlib import Path

from ml_collections import ConfigDict

from configs import common
from configs.features import set_heads
from nml_jax.errors import UserError
from nml_jax.models.published import read_keys


def get_config(folder: str = "") -> ConfigDict:
    config = make_config(folder, "published")
    config.data.source = "directory"
    config.downstream.tasks = ("directory",)
    config.extract.batch = 32
    return config.lock()


def make_conditions(folders: str, study: str) -> tuple[tuple[str, tuple[tuple[str, object], ...]], ...]:
    """Make the conditions of a study, one for each folder of an encoder; folders are separated by commas.

    Raises:
        UserError: there is none, or one cannot be read.
    """
    paths = [Path(folder).expanduser() for folder in folders.split(",") if folder]
    if not paths:
        raise UserError(f"{study} needs folders of encoders", f"write {study}.py:FOLDER,FOLDER")
    return tuple((p.name, (("init_from", str(p)), *read_keys(p).items())) for p in paths)


def make_config(folder: str, name: str) -> ConfigDict:
    """Make the part of the config that images and texts share: an encoder from a folder, and heads on its features."""
    config = common.get_config()
    config.name = name
    config.stages = ("extract", "tune", "report")
    config.sweep.noise = ()
    config.sweep.seed = (0, 1, 2, 3, 4)
    if folder:  # without one, --config.init_from and the keys of its model must follow
        path = Path(folder).expanduser()
        config.name = f"{name}_{path.resolve().name}"
        config.init_from = str(path)
        config.update_from_flattened_dict(read_keys(path))

    set_heads(config.tune)
    return config
