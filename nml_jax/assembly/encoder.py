"""The frozen model that the stages after pre-training use, and the fields of a row that describe its origin."""

import functools
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from nml_jax import errors, models, noise, ranges, runtime, settings
from nml_jax.data.embeddings.service import describe_features
from nml_jax.data.text import tokenizer as tokenizers
from nml_jax.data.text.batches import has_tokens
from nml_jax.data.text.batches import load_tokenizer as load_text_tokenizer
from nml_jax.data.text.tokenizer import Tokenizer
from nml_jax.models.variants import REMOTE
from nml_jax.training import checkpoint, pretrained


class Encoder(NamedTuple):
    """A frozen model, placed on the mesh."""

    model: models.Model
    params: Any
    model_state: Any
    step: int
    ledger: noise.Ledger | None
    digest: str
    tower: str = ""  # SHA-256 of the image tower alone, see `hash_tower`


def check_ranges(config: ConfigDict) -> None:
    """Raise UserError if a value of the section `extract` is out of range."""
    ranges.require_at_least(1, "extract", config, "batch", "views")
    ranges.require_names("extract", config, "layers", "spectra")


def load(config: ConfigDict, workdir: Path, mesh: Mesh) -> Encoder:
    """Load the run's checkpoint (`extract.step`, raw or EMA weights), or `init_from` if the run has none.

    Raises:
        UserError: there is neither of them, the checkpoint is damaged, or the weights do not fit the model.
    """
    if is_remote(config):
        check_foreign(config)
        digest = settings.hash_json(describe_features(config))
        return Encoder(build(config, num_classes=1), {}, {}, 0, None, digest, digest)
    return place(*_read(config, workdir), mesh)


def check_weights(config: ConfigDict, workdir: Path) -> None:
    """Read the weights that `load` would read, and a text encoder's tokenizer, and keep nothing.

    Raises:
        UserError: see `load`; or the tokenizer is missing, or does not fit.
    """
    if not is_remote(config):
        model = _read(config, workdir)[0]
        if has_tokens(model.spec):
            load_text_tokenizer(config, model)


def _read(config: ConfigDict, workdir: Path) -> tuple[models.Model, tuple[Any, Any], int, noise.Ledger | None]:
    """Return the model of a run or of `init_from`, (params, model_state), step and ledger; see `load`."""
    if checkpoint.list_steps(workdir / "checkpoints"):
        loaded = pretrained.load_model(workdir, step=config.extract.step, weights=config.extract.weights)
        params, model_state, step = loaded.params, loaded.model_state, loaded.step
        ledger = noise.Ledger.from_dict(loaded.meta["ledger"])
        model = build(config, num_classes=loaded.meta["num_classes"])
    elif config.init_from:
        check_foreign(config)
        given = pretrained.count_classes(config.init_from)
        head_for = "logits" if "logits" in config.extract.layers else "features"
        num_classes = config.data.num_classes or given or 1
        if not given and head_for == "features" and reads_texts(config):
            num_classes = 0  # a fresh head that nothing reads would give each seed other weights
        step, ledger, model = 0, None, build(config, num_classes=num_classes)
        key = jax.random.key(config.seed)
        params, model_state = pretrained.load_weights(config.init_from, config, model, key, head_for=head_for)
    else:
        raise _make_missing(workdir)
    return model, (params, model_state), step, ledger


def place(model: models.Model, weights: tuple[Any, Any], step: int, ledger: noise.Ledger | None, mesh: Mesh) -> Encoder:
    """Hash weights, (params, model_state), and move them to the mesh."""
    host = jax.device_get(weights)
    digest = checkpoint.hash_tree(host)
    tower = hash_tower(*host) if {"image", *UNREAD} & host[0].keys() else digest
    del host
    params, model_state = runtime.move_to_mesh(weights, mesh)
    return Encoder(model, params, model_state, step, ledger, digest, tower)


UNREAD = ("head", "projection")  # weights that features do not depend on


def hash_tower(params: Any, model_state: Any) -> str:
    """Return the SHA-256 of the weights that features of images depend on: without a head, a projection, a text tower.

    Args:
        params, model_state: host arrays.
    """
    if "image" in params:
        params, model_state = params["image"], {kind: of["image"] for kind, of in model_state.items() if "image" in of}
    return checkpoint.hash_tree(({name: x for name, x in params.items() if name not in UNREAD}, model_state))


def is_remote(config: ConfigDict) -> bool:
    """Return whether the encoder is an embeddings service."""
    return config.model.name in REMOTE


def require_own(config: ConfigDict, stage: str) -> None:
    """Raise UserError if the encoder is a service, which a stage cannot train."""
    if is_remote(config):
        raise errors.UserError(
            f"the stage {stage} trains a model, and model.name={config.model.name} is a service",
            f"leave {stage} out of --config.stages, or choose another model",
        )


def check_foreign(config: ConfigDict) -> None:
    """Check that weights which this run does not train, of `init_from` or a service, can be what the config asks for.

    Raises:
        UserError: the config asks for noise in their training, or for a moving average.
    """
    theirs = config.api.model if is_remote(config) else config.init_from
    if config.noise:
        raise errors.UserError(
            f"noise={config.noise}, but {theirs} was not pre-trained by this run",
            "set --config.noise=0, or add the pretrain stage",
        )
    if config.extract.weights != "raw":
        raise errors.UserError(
            f"extract.weights={config.extract.weights}, but {theirs} has no moving average",
            "set --config.extract.weights=raw",
        )


def check_source(config: ConfigDict, workdir: Path) -> None:
    """Check that a run without the pretrain stage has an encoder: a checkpoint of its own, or `init_from`.

    Raises:
        UserError: it has neither, or `init_from` cannot be what the config asks for.
    """
    if checkpoint.list_steps(workdir / "checkpoints") and not is_remote(config):
        return
    if not config.init_from and not is_remote(config):
        raise _make_missing(workdir)
    check_foreign(config)


def _make_missing(workdir: Path) -> errors.UserError:
    return errors.UserError(
        f"there is no encoder: {workdir} holds no checkpoint, and init_from is empty",
        "name a published model's folder, --config=configs/published.py:FOLDER; set --config.init_from to a file or a "
        "run; or run the stage pretrain first",
    )


def build(config: ConfigDict, *, num_classes: int) -> models.Model:
    """Build the model of a config."""
    return models.build(config.model, num_classes=num_classes, image_size=config.data.image_size)


@functools.lru_cache(maxsize=4)
def list_layers(model: models.Model) -> tuple[str, ...]:
    """List the outputs that can be features: those with one row per image, or per text whatever its length."""

    def apply(params: Any, model_state: Any, batch: Any) -> Any:
        return model.apply(params, model_state, batch, train=False, key=None)[0]

    shapes = jax.eval_shape(apply, *model.shapes, model.inputs)
    long = "tokens" in model.spec
    return tuple(sorted(name for name, x in shapes.items() if x.ndim and not (long and x.ndim > 2)))


def load_tokenizer(config: ConfigDict) -> Tokenizer:
    """Load the tokenizer of `data.tokenizer`.

    Raises:
        UserError: the file does not exist, or its vocabulary differs from the model's.
    """
    tokenizer = tokenizers.load(config.data.tokenizer, config.model.text_context)
    tokenizers.check(tokenizer, config.model.text_vocab)
    return tokenizer


def reads_texts(config: ConfigDict) -> bool:
    """Return whether the config's model is a text encoder."""
    return has_tokens(build(config, num_classes=config.data.num_classes or 1).spec)


def require_images(config: ConfigDict, stage: str) -> None:
    """Raise UserError unless the model reads images, as a stage needs it."""
    if "image" not in build(config, num_classes=config.data.num_classes or 1).spec:
        raise errors.UserError(
            f"the stage {stage} trains on images, and model.name={config.model.name} reads texts",
            f"leave {stage} out of --config.stages, or choose another model",
        )


def has_text(config: ConfigDict) -> bool:
    """Return whether the config's model also encodes captions."""
    return "text" in build(config, num_classes=config.data.num_classes or 1).spec


def describe_origin(
    config: ConfigDict, ledger: noise.Ledger | None, *, run: str, step: int, weights: str
) -> dict[str, Any]:
    """Return the fields of a row that describe how the encoder was trained.

    Weights that no run of ours trained have no ledger.
    """
    return {
        "run": run,
        "step": step,
        "weights": weights,
        "noise_kind": ledger.kind if ledger else "unknown",
        "noise_asked": ledger.asked if ledger else None,
        "noise_realised": ledger.realised if ledger else None,
        "noise_seed": config.noise_seed,
        "seed": config.seed,
        "objective": config.objective.name,
        "model": config.api.model if is_remote(config) else config.model.name,
    }
