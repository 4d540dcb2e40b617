"""What the one training loop is given to fine-tune a classifier: a model, an objective and an optimiser, compiled.

The model is an encoder and a head. Its parameters are {"encoder": ..., "head": ...}, under "encoder" those of the
encoder itself or {"base", "lora"} (training/lora.py), and beside them {"initial"}, the encoder as it was, where a term
compares with it. A part that is not trained has a learning-rate multiplier of 0.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict, FrozenConfigDict

from nml_jax import models, ranges, runtime
from nml_jax.errors import UserError
from nml_jax.models import Model
from nml_jax.models.heads import mlp
from nml_jax.objectives import finetune
from nml_jax.training import loop, lora, optim, perturb
from nml_jax.training.state import TrainState

METHODS = ("lora", "full")
PROBE = "probe"  # the head alone, on the frozen encoder
HEADS = ("linear", "mlp")
DECAY = ((r"(.*/)?(bias|scale|cls|pos_embed|logit_(scale|bias))", 0.0), (r".*", 1.0))
FROZEN = {
    # of CLIP, a classifier of images neither has texts nor a scale of its own
    "full": r"initial/.*|encoder/text/.*|encoder/logit_(scale|bias)",
    "lora": r"initial/.*|encoder/base/.*",
    PROBE: r"initial/.*|encoder/.*",
}


class Setup(NamedTuple):
    """What a classifier is built from, besides the sections `model` and `finetune` of the config."""

    method: str  # of METHODS, or PROBE
    terms: str  # "none", or a key of nmtune.PRESETS
    form: mlp.Form
    layer: str  # the encoder's output that the head is on
    num_classes: int
    image_size: int


def build_classifier(model_config: Any, config: Any, setup: Setup) -> Model:
    """The model of a setup, as `models.Model`.

    Its outputs are the encoder's, with "features" float32 [B, D] and "logits" float32 [B, K] those of the head, and
    "initial_features" float32 [B, D] where a term asks for them. Of PROBE the encoder runs as in evaluation.

    NEFTune's noise goes to the patch embeddings of a ViT. A ResNet embeds no tokens: there it goes to the pooled
    features, as one token (see `perturb.neftune`).

    Args:
        model_config: the section `model` of configs/common.py.
        config: the section `finetune`.
    """
    noise = config.neftune if setup.method != PROBE else 0.0
    has_patches = "vit" in (model_config.tower if model_config.name == "clip" else model_config.name)
    described = ConfigDict({**model_config.to_dict(), **({"neftune": noise} if has_patches else {})})
    own = models.build(described, num_classes=0, image_size=setup.image_size)
    encoder = own
    if setup.method == "lora":
        encoder = lora.adapt_model(own, rank=config.rank, alpha=config.alpha, targets=config.targets)
    head = mlp.make_head(setup.form, setup.num_classes)
    compares = build_objective(config, setup.terms).mse > 0

    def init(key: jax.Array, batch_spec: Any) -> tuple[Any, Any]:
        for_encoder, for_head = jax.random.split(key)
        params, state = encoder.init(for_encoder, batch_spec)
        image = {"image": jnp.zeros(batch_spec["image"].shape, jnp.uint8)}
        outputs = jax.eval_shape(lambda: encoder.apply(params, state, image, train=False, key=None)[0])
        head_params, head_state = head.init(for_head, outputs[setup.layer].shape[-1])
        params, state = {"encoder": params, "head": head_params}, {"encoder": state, "head": head_state}
        if compares:
            params["initial"], state["initial"] = own.init(for_encoder, batch_spec)
        return params, state

    def apply(
        params: Any, model_state: Any, batch: Any, *, train: bool, key: jax.Array | None
    ) -> tuple[dict[str, jax.Array], Any]:
        image, state = {"image": batch["image"]}, dict(model_state)
        moves = train and setup.method != PROBE
        outputs, state["encoder"] = encoder.apply(
            params["encoder"], state["encoder"], image, train=moves, key=key if moves else None
        )
        F = outputs[setup.layer]
        F = F if setup.method != PROBE else jax.lax.stop_gradient(F)
        if key is not None and moves and noise and not has_patches:
            F = F + perturb.neftune(F.shape[:1], F.shape[1], jax.random.fold_in(key, 1), noise)
        out, state["head"] = head.apply(params["head"], state["head"], F, train=train)
        outputs = {**outputs, "features": out["features"], "logits": out["logits"]}
        if compares and train:
            initial = jax.lax.stop_gradient((params["initial"], state["initial"]))
            before, _ = own.apply(*initial, image, train=False, key=None)
            outputs["initial_features"] = before[setup.layer]
        return outputs, state

    return Model(init, apply, {"image": own.spec["image"]})


@functools.lru_cache(maxsize=32)
def build(
    model_config: FrozenConfigDict, config: FrozenConfigDict, setup: Setup, lr: float, plan: loop.Plan, mesh: Mesh
) -> loop.Program:
    """The program of a run for `loop.train`, the same object for all runs of a sweep that differ in data and seed only.

    AdamW with b1 0.9, b2 0.999 and eps 1e-8, the learning rate `lr` at the end of the warm-up and 0 at the end.
    """
    model = build_classifier(model_config, config, setup)
    own = build_objective(config, setup.terms)
    params, _ = model.shapes
    tx, schedule = optim.make(
        build_optimizer(config, params, setup.method, lr), params, steps=plan.steps, steps_per_epoch=plan.per_epoch
    )
    return loop.assemble(model, functools.partial(own.loss, model), tx, schedule, 0.0, mesh)


def build_objective(config: Any, terms: str) -> finetune.FineTuning:
    """The objective with the terms, weighted by the keys of the section `finetune`."""
    return finetune.make(terms, consistency=config.consistency, **config.nmtune)


def build_optimizer(config: Any, params: Any, method: str, lr: float) -> ConfigDict:
    """The section `optimizer` that `optim.make` reads, from the section `finetune`."""
    unused = FROZEN[method]
    if method != PROBE and "projection" in params["encoder"].get("image", {}) and config.head_init != "zeroshot":
        unused += r"|encoder/image/projection/.*"
    return ConfigDict(
        {
            "name": "adamw", "lr": lr, "min_lr": 0.0, "warmup_epochs": config.warmup_epochs, "warmup_steps": None,
            "warmup_lr": 0.0, "b1": 0.9, "b2": 0.999, "eps": 1e-8, "momentum": 0.0, "nesterov": False,
            "weight_decay": config.weight_decay, "decay": DECAY, "clamp": (), "clip_norm": config.clip_norm,
            "lr_mult": optim.layer_decay(params, config.layer_decay, frozen=unused),
        }
    )  # fmt: skip


def start(
    program: loop.Program,
    encoder: tuple[Any, Any],
    head: tuple[Any, Any] | None,
    mesh: Mesh,
    key: jax.Array,
    noisytune: float = 0.0,
) -> TrainState:
    """A fresh state whose encoder is the pre-trained one, and whose head is the one given.

    Args:
        encoder: its (params, model_state), as NumPy, whole.
        head: its (params, state); None: fresh.
        noisytune: λ; the encoder's weights are perturbed before anything is trained, a head's are not.
    """
    state = program.init(key)
    params, model_state = runtime.fetch((state.params, state.model_state), mesh)
    own = encoder[0]
    if noisytune:
        own = jax.device_get(jax.jit(perturb.noisytune)(own, jax.random.fold_in(key, 1), noisytune))
    params["encoder"] = {**params["encoder"], "base": own} if "lora" in params["encoder"] else own
    model_state["encoder"] = encoder[1]
    if "initial" in params:
        params["initial"], model_state["initial"] = encoder
    if head is not None:
        params["head"], model_state["head"] = head
    params, model_state = runtime.to_mesh((params, model_state), mesh)
    return dataclasses.replace(state, params=params, model_state=model_state)


def merged(tuned: tuple[Any, Any], config: Any) -> tuple[Any, Any]:
    """(params, model_state) of the plain classifier, {"encoder", "head"} each: factors merged, nothing else changed."""
    params, model_state = tuned
    encoder = params["encoder"]
    if "lora" in encoder:
        encoder = lora.merge(encoder["base"], encoder["lora"], config.alpha / config.rank)
    return (
        {"encoder": encoder, "head": params["head"]},
        {"encoder": model_state["encoder"], "head": model_state["head"]},
    )


def interpolate(initial: Any, tuned: Any, share: float) -> Any:
    """(1 − α)·initial + α·tuned, leaf by leaf (WiSE-FT, arXiv 2109.01903, eq. 1); at 0 and 1 the ends, to the bit.

    BatchNorm's running means and variances are interpolated as the weights are; the paper's models have none.

    Args:
        share: α in [0, 1].
    """
    return jax.tree.map(
        lambda a, b: a if share == 0 else b if share == 1 else (1 - share) * a + share * b, initial, tuned
    )


def check_ranges(config: Any) -> None:
    """Refuse values of the section `finetune` that are out of range."""
    ranges.require_names("finetune", config, "methods", "terms", "targets")
    ranges.require_distinct("positive numbers", "finetune", config, "lrs", "shares")
    ranges.require_at_least(1, "finetune", config, "rank", "seeds", "batch")
    ranges.require_at_least(0, "finetune", config, "alpha", "noisytune", "neftune")
    ranges.require_positive("finetune", config, "epochs")


def check(config: Any) -> None:
    """Refuse values of the section `finetune` that can only be mistakes.

    Raises:
        UserError: one line of cause, one of cure.
    """
    check_ranges(config)
    if wrong := [method for method in config.methods if method not in METHODS]:
        raise UserError(f"finetune.methods: no {wrong[0]!r}", f"it takes {', '.join(METHODS)}")
    for terms in config.terms:
        build_objective(config, terms)
    for key in ("mse", "per_dim"):
        if config.nmtune[key] is not None and not config.consistency:
            cure = "set finetune.consistency=True, or leave this key out"
            raise UserError(f"finetune.nmtune.{key}={config.nmtune[key]} is of a term that is left out", cure)
    for key, known in (("head", HEADS), ("head_init", ("fresh", PROBE, "zeroshot"))):
        if config[key] not in known:
            raise UserError(f"finetune.{key}={config[key]!r}", f"choose one of {', '.join(known)}")
    if config.head == "mlp" and config.head_init == "zeroshot":
        raise UserError("finetune.head=mlp has no zero-shot weights", "set finetune.head=linear")
    if not all(0 <= share <= 1 for share in config.wise):
        raise UserError(f"finetune.wise={config.wise}", "give shares of the fine-tuned weights, from 0 to 1")
    optim.layer_decay({}, config.layer_decay)
