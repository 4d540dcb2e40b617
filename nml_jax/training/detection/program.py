"""Training of a detector with the training loop: its model, objective and optimiser.

The parameters are {"encoder": those of the encoder without its head, "detector": ...}.
"""

import dataclasses
import functools
import operator
import re
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict, FrozenConfigDict

from nml_jax import ranges, runtime
from nml_jax.errors import UserError
from nml_jax.models import Model, detection
from nml_jax.models.detection import faster
from nml_jax.objectives import detection as objectives
from nml_jax.training import loop, optim
from nml_jax.training.leaves import name_leaves
from nml_jax.training.state import TrainState

STARTS = ("encoder", "random")


class Setup(NamedTuple):
    """The arguments of a detector beyond the sections of the config."""

    system: str  # a key of models.detection.SYSTEMS
    num_classes: int
    canvas: tuple[int, int]  # height and width, landscape


def build_model(model_config: Any, config: Any, setup: Setup, mesh: Mesh) -> Model:
    """Build the detector of a setup; see `models.detection.build`."""
    return detection.build(model_config, config, setup.system, num_classes=setup.num_classes, canvas=setup.canvas,
                           mesh=mesh)  # fmt: skip


@functools.lru_cache(maxsize=8)
def build(
    model_config: FrozenConfigDict,
    config: FrozenConfigDict,
    optimizer_config: FrozenConfigDict,
    setup: Setup,
    plan: loop.Plan,
    mesh: Mesh,
) -> loop.Program:
    """Build the program of a run for `loop.train`. Runs that differ only in data and seed share one program.

    Args:
        model_config, config, optimizer_config: the sections `model`, `detect` and `optimizer`.
    """
    model = build_model(model_config, config, setup, mesh)
    objective, params = objectives.make(config, setup.system), model.shapes[0]
    settings = build_optimizer(optimizer_config, config, params)
    length = {"steps": plan.steps, "steps_per_epoch": plan.per_epoch}
    tx, schedule = optim.make(settings, params, **length, name_key=functools.partial(name_key, config))
    return loop.assemble(model, functools.partial(objective.loss, model), tx, schedule, 0.0, mesh)


def name_key(config: Any, key: str) -> str:
    """Return the dotted name of a key of the optimiser: in `detect.optimizer` if it is there, else in `optimizer`."""
    return f"detect.optimizer.{key}" if key in config.optimizer else f"optimizer.{key}"


def build_optimizer(optimizer_config: Any, config: Any, params: Any) -> ConfigDict:
    """Build the section `optimizer` for `optim.make`: with the keys of `detect.optimizer`, and what is frozen.

    The rates are scaled from `detect.lr_batch` images to the batch.
    """
    own = {key: value for key, value in config.optimizer.to_dict().items() if value is not None}
    out = ConfigDict({**optimizer_config.to_dict(), **own})
    scale = config.batch / config.lr_batch if config.lr_batch else 1.0
    out.lr, out.warmup_lr = out.lr * scale, out.warmup_lr * scale
    frozen = detection.name_frozen(config)
    rules = ((frozen, 0.0),) if any(map(re.compile(frozen).fullmatch, name_leaves(params))) else ()
    out.lr_mult = (*rules, (r".*", 1.0))
    return out


def start(program: loop.Program, encoder: tuple[Any, Any] | None, mesh: Mesh, key: jax.Array) -> TrainState:
    """Return the state at step 0, with the weights of an encoder in place of random ones.

    Args:
        encoder: its (params, model_state), whole NumPy arrays, without a head; None: random weights.
    """
    state = program.init(key)
    if encoder is None:
        return state
    params, model_state = runtime.fetch((state.params, state.model_state), mesh)
    params["encoder"], model_state["encoder"] = encoder
    params, model_state = runtime.to_mesh((params, model_state), mesh)
    return dataclasses.replace(state, params=params, model_state=model_state)


# Keys of the section `detect` that choose among names which no table of the models has.
CHOICES: dict[str, tuple[str, ...]] = {
    "low_quality": ("own", "argmax"),
    "anchors.rounded": ("", "corners", "sizes"),
    "retina.p6_from": ("c5", "p5"),
    "retina.per": ("batch", "image"),
    "rpn.per": ("sampled", "full"),
    "roi.level_rule": tuple(faster.LEVEL_RULES),
}
# Subsections and their keys that are numbers of 1 or more.
COUNTS: dict[str, tuple[str, ...]] = {
    "retina": ("top",),
    "rpn": ("samples",),
    "roi": ("side", "samples", "width", "top"),
    "mask": ("side", "crop"),
    "solo": ("width", "mask_width", "kernel", "groups", "positives", "candidates", "top"),
}


def check_ranges(config: Any) -> None:
    """Raise UserError if a value of the section `detect` is out of range."""
    ranges.require_names("detect", config, "systems", "starts")
    ranges.require_at_least(1, "detect", config, "batch", "max_detections")
    ranges.require_at_least(0, "detect", config, "lr_batch", "freeze")
    ranges.require_positive("detect", config, "epochs")
    ranges.require_share("detect", config, "score_threshold", "nms")
    for key, known in (("systems", tuple(detection.SYSTEMS)), ("starts", STARTS)):
        if unknown := [name for name in config[key] if name not in known]:
            raise UserError(f"detect.{key}: unknown {unknown[0]!r}", f"choose from {', '.join(known)}")
    for key, known in CHOICES.items():
        if (value := functools.reduce(operator.getitem, key.split("."), config)) not in known:
            shown = ", ".join(map(repr, known))
            raise UserError(f"detect.{key}={value!r} is unknown", f"choose one of {shown}")
    for section, keys in COUNTS.items():
        ranges.require_at_least(1, f"detect.{section}", config[section], *keys)
    ranges.require_at_least(0, "detect.roi", config.roi, "sampling")
    ranges.require_share("detect.rpn", config.rpn, "share", "nms")
    ranges.require_share("detect.roi", config.roi, "share")
    for key in ("before", "after"):
        pair = config.rpn[key]
        if len(pair) != 2 or not all(type(n) is int and n > 0 for n in pair):
            cure = f"set --config.detect.rpn.{key}='(2000, 1000)', for training and after it"
            raise UserError(f"detect.rpn.{key}={tuple(pair)} must be two numbers of 1 or more", cure)
