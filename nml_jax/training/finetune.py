"""Fine-tuning of a classifier with the training loop: its model, objective and optimiser.

The model is an encoder and a head. Its parameters are {"encoder": ..., "head": ...}. "encoder" holds those of the
encoder itself, or {"base", "lora"} (training/lora.py). If a term compares with the encoder as it was, "initial" holds
that one. A part that is not trained has a learning-rate multiplier of 0.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
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
PROBE = "probe"  # trains only the head, on the frozen encoder
HEADS = ("linear", "mlp")
DECAY = ((r"(.*/)?(bias|scale|cls|pos_embed|positions/embedding|logit_(scale|bias))", 0.0), (r".*", 1.0))
FROZEN = {
    # a classifier of images uses neither CLIP's text tower nor its logit scale
    "full": r"initial/.*|encoder/text/.*|encoder/logit_(scale|bias)",
    "lora": r"initial/.*|encoder/base/.*",
    PROBE: r"initial/.*|encoder/.*",
}


class Setup(NamedTuple):
    """The arguments of a classifier beyond the sections `model` and `finetune` of the config."""

    method: str  # one of METHODS, or PROBE
    terms: str  # "none", or a key of nmtune.PRESETS
    form: mlp.Form
    layer: str  # the encoder's output that is the head's input
    num_classes: int
    image_size: int


def build_classifier(model_config: Any, config: Any, setup: Setup) -> Model:
    """Build the model of a setup.

    Its outputs are the encoder's, except "features" float32 [B, D] and "logits" float32 [B, K], which are the head's.
    "initial_features" float32 [B, D] are added if a term needs them. With PROBE the encoder runs as in evaluation.

    NEFTune's noise is added to the patch embeddings of a ViT, and to the word embeddings of a text encoder. A ResNet
    embeds no tokens, so the noise is added to its pooled features, as one token (see `perturb.neftune`).

    Args:
        model_config: the section `model` of configs/common.py.
        config: the section `finetune`.
    """
    noise = config.neftune if setup.method != PROBE else 0.0
    embeds = models.embeds_tokens(model_config)
    noisy_config = ConfigDict({**model_config.to_dict(), **({"neftune": noise} if embeds else {})})
    plain = models.build(noisy_config, num_classes=0, image_size=setup.image_size)
    encoder = plain
    if setup.method == "lora":
        encoder = lora.adapt_model(plain, rank=config.rank, alpha=config.alpha, targets=config.targets)
    head = mlp.make_head(setup.form, setup.num_classes)
    compares = build_objective(config, setup.terms).mse > 0

    def init(key: jax.Array, batch_spec: Any) -> tuple[Any, Any]:
        for_encoder, for_head = jax.random.split(key)
        params, state = encoder.init(for_encoder, batch_spec)
        like = {name: batch_spec[name] for name in plain.inputs}
        outputs = jax.eval_shape(lambda inputs: encoder.apply(params, state, inputs, train=False, key=None)[0], like)
        head_params, head_state = head.init(for_head, outputs[setup.layer].shape[-1])
        params, state = {"encoder": params, "head": head_params}, {"encoder": state, "head": head_state}
        if compares:
            params["initial"], state["initial"] = plain.init(for_encoder, batch_spec)
        return params, state

    def apply(
        params: Any, model_state: Any, batch: Any, *, train: bool, key: jax.Array | None
    ) -> tuple[dict[str, jax.Array], Any]:
        inputs, state = {name: batch[name] for name in plain.inputs}, dict(model_state)
        trains_encoder = train and setup.method != PROBE
        outputs, state["encoder"] = encoder.apply(
            params["encoder"], state["encoder"], inputs, train=trains_encoder, key=key if trains_encoder else None
        )
        F = outputs[setup.layer]
        F = F if setup.method != PROBE else jax.lax.stop_gradient(F)
        if key is not None and trains_encoder and noise and not embeds:
            F = F + perturb.neftune(F.shape[:1], F.shape[1], jax.random.fold_in(key, 1), noise)
        out, state["head"] = head.apply(params["head"], state["head"], F, train=train)
        outputs = {**outputs, "features": out["features"], "logits": out["logits"]}
        if compares and train:
            initial = jax.lax.stop_gradient((params["initial"], state["initial"]))
            before, _ = plain.apply(*initial, inputs, train=False, key=None)
            outputs["initial_features"] = before[setup.layer]
        return outputs, state

    return Model(init, apply, plain.inputs)


@functools.lru_cache(maxsize=32)
def build(
    model_config: FrozenConfigDict, config: FrozenConfigDict, setup: Setup, lr: float, plan: loop.Plan, mesh: Mesh
) -> loop.Program:
    """Build the program of a run for `loop.train`. Runs that differ only in data and seed share one program.

    The optimiser is AdamW with b1 0.9, b2 0.999 and eps 1e-8. The learning rate is `lr` after the warm-up and 0 at the
    end.
    """
    model = build_classifier(model_config, config, setup)
    objective = build_objective(config, setup.terms)
    params, _ = model.shapes
    settings = build_optimizer(config, params, setup.method, lr)
    length = {"steps": plan.steps, "steps_per_epoch": plan.per_epoch}
    tx, schedule = optim.make(settings, params, **length, name_key="finetune.{}".format)
    return loop.assemble(model, functools.partial(objective.loss, model), tx, schedule, 0.0, mesh)


def build_objective(config: Any, terms: str) -> finetune.FineTuning:
    """Build the objective with `terms`, weighted by the section `finetune`."""
    return finetune.make(terms, consistency=config.consistency, **config.nmtune)


def build_optimizer(config: Any, params: Any, method: str, lr: float) -> ConfigDict:
    """Build the section `optimizer` for `optim.make` from the section `finetune`."""
    unused = FROZEN[method]
    if method != PROBE and "projection" in params["encoder"].get("image", {}) and config.head_init != "zeroshot":
        unused += r"|encoder/image/projection/.*"
    return ConfigDict(
        {
            "name": "adamw", "lr": lr, "schedule": "cosine", "min_lr": 0.0, "milestones": (), "gamma": 1.0,
            "warmup_epochs": config.warmup_epochs, "warmup_steps": None,
            "warmup_lr": 0.0, "b1": 0.9, "b2": 0.999, "eps": 1e-8, "momentum": 0.0, "nesterov": False,
            "weight_decay": config.weight_decay, "decay": DECAY, "clamp": (), "clip_norm": config.clip_norm,
            "lr_mult": optim.decay_layers(params, config.layer_decay, frozen=unused),
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
    """Make a fresh state with the pre-trained encoder and, if given, a tuned head.

    Args:
        encoder: its (params, model_state), whole NumPy arrays.
        head: its (params, state); None: fresh.
        noisytune: λ; perturbs the encoder's weights before training, but not the head's.
    """
    state = program.init(key)
    params, model_state = runtime.fetch((state.params, state.model_state), mesh)
    weights = encoder[0]
    if noisytune:
        weights = jax.device_get(jax.jit(perturb.noisytune)(weights, jax.random.fold_in(key, 1), noisytune))
    params["encoder"] = {**params["encoder"], "base": weights} if "lora" in params["encoder"] else weights
    model_state["encoder"] = encoder[1]
    if "initial" in params:
        params["initial"], model_state["initial"] = encoder
    if head is not None:
        params["head"], model_state["head"] = head
    params, model_state = runtime.to_mesh((params, model_state), mesh)
    return dataclasses.replace(state, params=params, model_state=model_state)


def merge_factors(tuned: tuple[Any, Any], config: Any) -> tuple[Any, Any]:
    """Return (params, model_state), each {"encoder", "head"}, with the factors of LoRA merged into the encoder."""
    params, model_state = tuned
    encoder = params["encoder"]
    if "lora" in encoder:
        encoder = lora.merge(encoder["base"], encoder["lora"], config.alpha / config.rank)
    return (
        {"encoder": encoder, "head": params["head"]},
        {"encoder": model_state["encoder"], "head": model_state["head"]},
    )


def interpolate(initial: Any, tuned: Any, share: float) -> Any:
    """Return (1 − α)·initial + α·tuned, leaf by leaf (WiSE-FT, arXiv 2109.01903, eq. 1); at 0 and 1 bit-equal.

    BatchNorm's running means and variances are interpolated like weights; the paper's models have none.

    Args:
        share: α in [0, 1].
    """
    return jax.tree.map(
        lambda a, b: a if share == 0 else b if share == 1 else (1 - share) * a + share * b, initial, tuned
    )


def check_ranges(config: Any) -> None:
    """Raise UserError if a value of the section `finetune` is out of range."""
    ranges.require_names("finetune", config, "methods", "terms", "targets")
    ranges.require_distinct("positive numbers", "finetune", config, "lrs")
    ranges.require_shares("finetune", config, "shares")
    ranges.require_shares("finetune", config, "noises", zero=True)
    ranges.require_at_least(1, "finetune", config, "rank", "seeds", "batch")
    ranges.require_at_least(0, "finetune", config, "alpha", "noisytune", "neftune")
    ranges.require_positive("finetune", config, "epochs")


def check(config: Any) -> None:
    """Raise UserError if the section `finetune` has an invalid value."""
    check_ranges(config)
    if wrong := [method for method in config.methods if method not in METHODS]:
        raise UserError(f"finetune.methods: unknown {wrong[0]!r}", f"choose from {', '.join(METHODS)}")
    for terms in config.terms:
        build_objective(config, terms)
    for key in ("mse", "per_dim"):
        if config.nmtune[key] is not None and not config.consistency:
            cure = "set finetune.consistency=True, or leave this key out"
            raise UserError(f"finetune.nmtune.{key}={config.nmtune[key]} belongs to a term that is left out", cure)
    for key, known in (("head", HEADS), ("head_init", ("fresh", PROBE, "zeroshot"))):
        if config[key] not in known:
            raise UserError(f"finetune.{key}={config[key]!r} is unknown", f"choose one of {', '.join(known)}")
    if config.head == "mlp" and config.head_init == "zeroshot":
        raise UserError("finetune.head=mlp has no zero-shot weights", "set finetune.head=linear")
    if not all(0 <= share <= 1 for share in config.wise):
        raise UserError(f"finetune.wise={config.wise} is out of range", "give shares of the tuned weights, from 0 to 1")
    optim.decay_layers({}, config.layer_decay)
