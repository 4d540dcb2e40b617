"""Train fine-tuning runs through the common loop: choose their start, rows and learning rate."""

import dataclasses
import math
from collections.abc import Callable, Generator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from nml_jax import console, errors, runtime, settings
from nml_jax.assembly import encoder, evaluators, streams
from nml_jax.data.sources.source import Source, Subset
from nml_jax.data.stratify import hold_out
from nml_jax.data.stream import pipeline
from nml_jax.data.stream.quarantine import Quarantine
from nml_jax.evals import EVALUATORS
from nml_jax.evals.metrics import METRICS, check_classes, find_metric
from nml_jax.models import Model
from nml_jax.models.heads.mlp import Form
from nml_jax.objectives import finetune as objectives
from nml_jax.runs import goodput
from nml_jax.tasks.task import Task
from nml_jax.training import checkpoint, finetune, loop
from nml_jax.training.journal import Journal
from nml_jax.training.state import TrainState

Head = tuple[Any, Any]  # params, state


class Heads(NamedTuple):
    """The heads that training starts from; None for a fresh one.

    trial: for trials. It must not have seen the rows that trials are validated on.
    final: for the final training.
    """

    trial: Head | None
    final: Head | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinetuneSetup:
    """What all settings of one task, share, rate of wrong labels and seed have in common.

    noise: share of wrong labels among the rows; `task` has them.
    """

    config: ConfigDict  # from `make_training_config`
    mesh: Mesh
    frozen: encoder.Encoder
    weights: tuple[Any, Any]  # the encoder's params without its classifier, and model_state, on the host
    task: Task
    rows: np.ndarray  # indices into task.train
    share: float
    folder: Path
    noise: float = 0.0

    def loop_setup(self, method: str, terms: str = "none") -> finetune.Setup:
        """Return the setup of a method and its terms for the loop."""
        tune, own = self.config.tune, self.config.finetune
        form = Form(own.head == "mlp", tune.width or 4, tune.depth, tune.residual, tune.norm)
        return finetune.Setup(
            method, terms, form, choose_layer(self.config), self.task.num_classes, self.config.data.image_size
        )

    def setting_folder(self, method: str, terms: str = "none") -> Path:
        """Return the folder of a setting."""
        return self.folder / name_setting(method, self.preset(terms), self.share, self.noise, self.config.seed)

    def preset(self, terms: str) -> str | None:
        """Return the name of the terms in rows."""
        return objectives.preset_label(terms, **self.config.finetune.nmtune)


class Trained(NamedTuple):
    """A finished run."""

    lr: float
    model: Model
    state: TrainState
    begin: Callable[[], tuple[Any, Any]]  # its first (params, model_state), on the host


def name_setting(
    method: str | None, preset: str | None, share: float | None, noise: float | None, seed: int | None
) -> str:
    """Name the folder of a setting by the fields of its rows."""
    wrong = f"noise={noise:g}," if noise else ""
    return f"{method},terms={preset or 'none'},share={share:g},{wrong}seed={seed}"


def choose_layer(config: ConfigDict) -> str:
    """Return the encoder output that the head takes. Zero-shot weights need CLIP's embeddings in the joint space."""
    return "embedding" if config.finetune.head_init == "zeroshot" else "features"


def make_training_config(config: ConfigDict, seed: int) -> ConfigDict:
    """Return the config for the loop: `finetune` takes the place of `train`, and `init_from` is empty."""
    out = config.copy_and_resolve_references()
    with out.unlocked():
        out.texts.tokenizer = config.texts.tokenizer or config.init_from  # of a text encoder
        out.seed, out.init_from = seed, ""
        out.train.batch, out.train.epochs = config.finetune.batch, config.finetune.epochs
        out.train.ema, out.train.micro_batches, out.runtime.eval_every = 0.0, 1, 0.0
    return out


def choose_and_train(setup: FinetuneSetup, method: str, terms: str, lrs: tuple[float, ...], start: Heads) -> Trained:
    """Train at the learning rate with the highest accuracy, or the best `tune.metric`, on held-out rows.

    On a tie, take the lowest loss.
    """
    folder, best = setup.setting_folder(method, terms), lrs[0]
    if len(lrs) > 1:
        kept, held_out = split_rows(setup)
        validation = Subset(setup.task.train, held_out)
        found = []
        for lr in lrs:
            trial = partial(train, setup, method, terms, lr, kept, start.trial, get_trial_folder(folder, lr))
            found.append((*validate(setup, trial, validation), lr))
        (_, loss, best) = min(found, key=lambda v: (-v[0], v[1]))
        if loss == math.inf:
            raise errors.UserError(f"fine-tuning ({method}) diverged at every rate of {lrs}", "lower finetune.lrs")
    return train(setup, method, terms, best, setup.rows, start.final, folder)


def split_rows(setup: FinetuneSetup) -> tuple[np.ndarray, np.ndarray]:
    """Split the rows into those that trials train on and those that validate them."""
    labels = setup.task.train.labels[setup.rows]
    kept, held_out = hold_out(labels, setup.config.tune.validation, setup.config.seed)
    return setup.rows[kept], setup.rows[held_out]


def get_trial_folder(folder: Path, lr: float) -> Path:
    """Return the folder of a trial."""
    return folder / "search" / f"lr={lr:g}"


def validate(setup: FinetuneSetup, trial: Callable[[], Trained], source: Source) -> tuple[float, float]:
    """Run a trial and return the score on held-out rows, negative if smaller is better, and the loss.

    If training diverged, return the worst score and an infinite loss.
    """
    name = find_metric(setup.config.tune.metric, setup.task.metric) or "accuracy"
    check_classes(name, source.num_classes)
    try:
        done = trial()
        more = {"more": (name,)} if name in ("mcc", "f1") else {}
        evaluator = build_classification(setup, done.model, source, **more)
        values = {score.metric: score.value for score in loop.run_all({"held out": evaluator}, done.state)}
    except errors.NonFinite as e:
        console.notice(f"a learning rate is left out: {e}")
        return -math.inf, math.inf
    values["log_loss"] = values["loss"]
    return METRICS[name].way * values[name], values["loss"]


def train(
    setup: FinetuneSetup, method: str, terms: str, lr: float, rows: np.ndarray, head: Head | None, folder: Path
) -> Trained:
    """Train one run through the loop; continue from its checkpoints in `folder`/training."""
    clock = goodput.Clock()
    config, mesh, source = setup.config, setup.mesh, Subset(setup.task.train, rows)
    plan = loop.Plan.from_config(config, len(source))
    sections = settings.freeze_sections(config.model, config.finetune)
    compiled = finetune.build(*sections, setup.loop_setup(method, terms), lr, plan, mesh)
    noisytune = 0.0 if method == finetune.PROBE else config.finetune.noisytune

    def start(key: jax.Array) -> TrainState:
        return finetune.start(compiled, setup.weights, head, mesh, key, noisytune)

    def begin() -> tuple[Any, Any]:
        state = start(jax.random.key(config.seed))
        return runtime.fetch((state.params, state.model_state), mesh)

    def batches(start_step: int) -> Generator[pipeline.Portion]:
        how = {"batch": config.train.batch, "seed": config.seed}
        return streams.read_training(config, mesh, setup.frozen.model, source, start_step, **how)

    undecodable = Quarantine(folder, source, config.runtime.quarantine, active=jax.process_index() == 0)
    named = {"label": f"{setup.task.name} {folder.name}", "clock": clock, "quarantine": undecodable}
    checkpoints = checkpoint.Checkpoints(
        folder / "training",
        every=plan.to_steps(config.runtime.save_every),
        keep=config.runtime.keep,
        keep_every=0,
        meta={"config": settings.to_json(config), "num_classes": source.num_classes, "lr": lr},
    )
    try:
        state = loop.train(
            config,
            compiled._replace(init=start),
            plan,
            mesh,
            batches=batches,
            evaluators={},
            checkpoints=checkpoints,
            journal=Journal(folder, config, steps=plan.steps, **named),
        )
    finally:
        checkpoints.close()
    return Trained(lr, compiled.model, state, begin)


def make_initial_heads(setup: FinetuneSetup) -> Heads:
    """Make the heads that every setting starts from, as `finetune.head_init` asks."""
    how = setup.config.finetune.head_init
    if how == finetune.PROBE:
        done = choose_and_train(setup, finetune.PROBE, "none", setup.config.tune.lrs, Heads(None, None))
        folder = get_trial_folder(setup.setting_folder(finetune.PROBE, "none"), done.lr)  # where the search left it
        trial = train(setup, finetune.PROBE, "none", done.lr, split_rows(setup)[0], None, folder)
        return Heads(*(runtime.fetch((x.state.params["head"], x.state.model_state["head"]), setup.mesh)
                       for x in (trial, done)))  # fmt: skip
    if how == "fresh":
        return Heads(None, None)
    model, params, model_state = setup.frozen[:3]
    zero_shot = evaluators.build_zero_shot(
        setup.config, model, setup.mesh, setup.task, setup.task.tests[0], encoder.load_tokenizer(setup.config),
        batch=setup.config.extract.batch,
    )  # fmt: skip
    classes, scale = runtime.fetch((zero_shot.embed_classes(params, model_state), params["logit_scale"]), setup.mesh)
    kernel = np.float32(np.exp(scale) * classes.T)
    head = {"classifier": {"kernel": kernel, "bias": np.zeros(len(classes), np.float32)}}, {}
    return Heads(head, head)


def build_classification(setup: FinetuneSetup, model: Model, source: Source, **drawn: Any) -> loop.Evaluator:
    """Build the evaluator that compares the model's classes on all of `source` with its labels."""
    config, mesh = setup.config, setup.mesh
    how = {"batch": config.extract.batch, **drawn}
    batches = partial(streams.read_records, config, mesh, setup.frozen.model, source, **how)
    placing = {"put": runtime.put_batch(mesh), "fetch": partial(runtime.fetch, mesh=mesh)}
    known = source.num_classes
    return EVALUATORS["classification"](model.apply, batches, num_classes=known, clean=False, **placing)
