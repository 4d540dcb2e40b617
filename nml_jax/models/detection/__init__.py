"""Detectors on a ResNet: RetinaNet, Faster R-CNN, Mask R-CNN and SOLOv2 as models like any other.

SYSTEMS is the table: a row for each name in `detect.systems`. A row makes a `System` (see `system.py`) from the section
`detect`; `build` puts it on an encoder.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict, FrozenConfigDict

from nml_jax import models, settings
from nml_jax.errors import UserError
from nml_jax.models import Model, Tree
from nml_jax.models.detection import faster, mask, retina, solo
from nml_jax.models.detection.system import Setting, System

SYSTEMS: dict[str, Callable[[Setting], System]] = {
    "retina": retina.make,
    "faster": faster.make,
    "mask": mask.make,
    "solo": solo.make,
}
NORMS = ("train", "eval", "frozen")


def build(
    model_config: Any,
    config: Any,
    system: str,
    *,
    num_classes: int,
    canvas: tuple[int, int],
    mesh: Mesh | None = None,
) -> Model:
    """Build a detector on the ResNet that the section `model` describes.

    The parameters are {"encoder": those of the encoder, "detector": ...}, and so is the model's state. `apply` takes
    batches of `Model.spec`, on any canvas: a step is traced once for each. Its outputs in training are for the
    objective of the same name. Without `train` they are detections on the canvas, by falling score:

        boxes    float32 [B, D, 4]   within the picture
        scores   float32 [B, D]      0 where there is no detection
        classes  int32 [B, D]        −1 where there is no detection

    and the masks of systems that have them. The same arguments return the same object.

    Args:
        model_config, config: the sections `model` and `detect` of configs/common.py.
        system: a key of SYSTEMS.
        canvas: height and width of `Model.spec`.
        mesh: devices over which batches are split; matching, sampling and suppression run on each for its own rows.

    Raises:
        UserError: the system is unknown, or the encoder has not the maps that it needs.
    """
    if system not in SYSTEMS:
        raise UserError(f"detect.systems: unknown {system!r}", f"choose from {', '.join(SYSTEMS)}")
    if config.norm not in NORMS:
        raise UserError(f"detect.norm={config.norm!r} is unknown", f"choose one of {', '.join(NORMS)}")
    sections = settings.freeze_sections(model_config, config)
    return _build(*sections, system, num_classes, tuple(canvas), mesh, jax.config.jax_enable_x64)  # pyright: ignore


@lru_cache(maxsize=8)
def _build(
    model_config: FrozenConfigDict,
    config: FrozenConfigDict,
    name: str,
    num_classes: int,
    canvas: tuple[int, int],
    mesh: Mesh | None,
    wide: bool,
) -> Model:
    require_resnet(model_config.name)
    encoder = models.build(ConfigDict(model_config.to_dict()), num_classes=0, image_size=min(canvas))
    image = {"image": jax.ShapeDtypeStruct((1, *canvas, 3), jnp.uint8)}
    maps = find_maps(encoder, image)
    system = SYSTEMS[name](Setting(config, num_classes, tuple(maps), jnp.dtype(model_config.dtype), mesh))
    fill = np.asarray(model_config.mean, np.float32) * 255

    def run(params: Tree, state: Tree, batch: Any, train: bool, key: jax.Array | None) -> tuple[list[jax.Array], Tree]:
        inputs = {"image": blank_padding(batch["image"], batch["size"], fill)}
        outputs, state = encoder.apply(params, state, inputs, train=train, key=key)
        return [outputs[f"{stage}_map"] for stage in maps.values()], state

    def init(key: jax.Array, batch_spec: Any) -> tuple[Tree, Tree]:
        for_encoder, for_detector = jax.random.split(key)
        shape = {"image": jax.ShapeDtypeStruct((1, *batch_spec["image"].shape[1:]), jnp.uint8)}
        params, state = encoder.init(for_encoder, shape)
        found = jax.eval_shape(lambda: encoder.apply(params, state, _zeros(shape), train=False, key=None)[0])
        shapes = [found[f"{stage}_map"] for stage in maps.values()]
        return {"encoder": params, "detector": system.init(for_detector, shapes)}, {"encoder": state}

    def apply(
        params: Tree, model_state: Tree, batch: Any, *, train: bool, key: jax.Array | None
    ) -> tuple[dict[str, jax.Array], Tree]:
        live = train and config.norm == "train"
        keys = (None, None) if key is None else jax.random.split(key)
        found, state = run(params["encoder"], model_state["encoder"], batch, live, keys[0])
        if train:
            return system.train(params["detector"], found, batch, keys[1]), {"encoder": state}
        return system.detect(params["detector"], found, batch), model_state

    return Model(init, apply, image | system.describe_batch(canvas))


def require_resnet(name: str) -> None:
    """Raise UserError if an encoder is not a plain ResNet."""
    if not name.startswith("resnet"):
        cure = "give a ResNet as model.name: detectors need maps of several strides"
        raise UserError(f"no detector has an encoder model.name={name}", cure)


def find_maps(encoder: Model, image: Any) -> dict[int, str]:
    """Find the maps of a ResNet: stride -> name of the stage that gives it, the finest first."""
    found = jax.eval_shape(
        lambda params, state, batch: encoder.apply(params, state, batch, train=False, key=None)[0],
        *encoder.shapes,
        image,
    )
    stages = [key.removesuffix("_map") for key in found if key.startswith("stage") and key.endswith("_map")]
    height = image["image"].shape[1]
    return {_round_up(height / found[f"{stage}_map"].shape[1]): stage for stage in stages}


def _round_up(ratio: float) -> int:
    """Return the power of two next to the ratio of an image's side and a map's, which may have been rounded up."""
    return 2 ** round(np.log2(ratio))


def blank_padding(image: jax.Array, size: jax.Array, fill: np.ndarray) -> jax.Array:
    """Return images [B, H, W, 3] as float32 with `fill` [3] outside of the pictures' sizes [B, 2]."""
    rows = jnp.arange(image.shape[1]) < size[:, :1]
    columns = jnp.arange(image.shape[2]) < size[:, 1:]
    inside = rows[:, :, None, None] & columns[:, None, :, None]
    return jnp.where(inside, image.astype(jnp.float32), fill)


def name_frozen(config: Any) -> str:
    """Return a regex of the parameters that are not trained, for optimizer.lr_mult: stem, first stages, BatchNorm."""
    stages = "|".join(f"stage{i + 1}_" for i in range(config.freeze))
    frozen = [rf"encoder/(stem_|{stages}).*"] if config.freeze else []
    return "|".join([*frozen, *([r"encoder/.*(bn\d*|downsample_bn)/.*"] if config.norm == "frozen" else [])]) or r"(?!)"


def _zeros(shapes: Any) -> Any:
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
