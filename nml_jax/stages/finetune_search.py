"""How a fine-tuning run is trained: where it starts, on what, at which learning rate; through the one loop."""

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
from nml_jax.assembly import encoder, evaluators
from nml_jax.data.sources.source import Source, Subset
from nml_jax.data.stream import pipeline
from nml_jax.data.stream.quarantine import Quarantine
from nml_jax.evals import EVALUATORS
from nml_jax.models import Model
from nml_jax.models.heads.mlp import Form
from nml_jax.objectives import finetune as objectives
from nml_jax.runs import goodput
from nml_jax.tasks.classification import Task
from nml_jax.training import checkpoint, finetune, loop
from nml_jax.training.journal import Journal
from nml_jax.training.state import TrainState
from nml_jax.tuning.holdout import hold_out

Head = tuple[Any, Any]  # params, state


class Heads(NamedTuple):
    """Where training starts: a trial, which must not have seen the rows that judge it, and the end. None: fresh."""

    trial: Head | None
    final: Head | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Site:
    """What the settings of one task, one share and one seed have in common."""

    config: ConfigDict  # as `training_config` makes it
    mesh: Mesh
    frozen: encoder.Encoder
    weights: tuple[Any, Any]  # the encoder's params, without a classifier of its own, and model_state, on the host
    task: Task
    rows: np.ndarray  # of task.train
    share: float
    folder: Path

    def setup(self, method: str, terms: str = "none") -> finetune.Setup:
        tune, own = self.config.tune, self.config.finetune
        form = Form(own.head == "mlp", tune.width, tune.depth, tune.residual, tune.norm)
        return finetune.Setup(
            method, terms, form, layer(self.config), self.task.num_classes, self.config.data.image_size
        )

    def place(self, method: str, terms: str = "none") -> Path:
        return self.folder / setting_name(method, self.preset(terms), self.share, self.config.seed)

    def preset(self, terms: str) -> str | None:
        """What rows call the terms."""
        return objectives.named(terms, **self.config.finetune.nmtune)


class Trained(NamedTuple):
    """A run at its end."""

    lr: float
    model: Model
    state: TrainState
    begin: Callable[[], tuple[Any, Any]]  # its first (params, model_state), on the host


def setting_name(method: str | None, preset: str | None, share: float | None, seed: int | None) -> str:
    """The folder of a setting, from the fields of its rows."""
    return f"{method},terms={preset or 'none'},share={share:g},seed={seed}"


def layer(config: ConfigDict) -> str:
    """The encoder's output that the head is on: zero-shot weights fit CLIP's embeddings, in the joint space."""
    return "embedding" if config.finetune.head_init == "zeroshot" else "features"


def training_config(config: ConfigDict, seed: int) -> ConfigDict:
    """The config as the loop reads it: the section `finetune` in the place of `train`, and nothing to start from."""
    out = config.copy_and_resolve_references()
    with out.unlocked():
        out.seed, out.init_from = seed, ""
        out.train.batch, out.train.epochs = config.finetune.batch, config.finetune.epochs
        out.train.ema, out.train.micro_batches, out.runtime.eval_every = 0.0, 1, 0.0
    return out


def chosen_and_trained(site: Site, method: str, terms: str, lrs: tuple[float, ...], start: Heads) -> Trained:
    """Training at the rate of highest accuracy on held-out rows (of equal ones, of lowest loss)."""
    folder, best = site.place(method, terms), lrs[0]
    if len(lrs) > 1:
        kept, held_out = parts(site)
        validation = Subset(site.task.train, held_out)
        found = []
        for lr in lrs:
            trial = partial(train, site, method, terms, lr, kept, start.trial, trial_folder(folder, lr))
            found.append((*validate(site, trial, validation), lr))
        (_, loss, best) = min(found, key=lambda v: (-v[0], v[1]))
        if loss == math.inf:
            raise errors.UserError(f"fine-tuning ({method}) diverged at every rate of {lrs}", "lower finetune.lrs")
    return train(site, method, terms, best, site.rows, start.final, folder)


def parts(site: Site) -> tuple[np.ndarray, np.ndarray]:
    """The rows that trials are trained on, and those that they are judged by."""
    labels = site.task.train.labels[site.rows]
    kept, held_out = hold_out(labels, site.config.tune.validation, site.config.seed)
    return site.rows[kept], site.rows[held_out]


def trial_folder(folder: Path, lr: float) -> Path:
    return folder / "search" / f"lr={lr:g}"


def validate(site: Site, trial: Callable[[], Trained], source: Source) -> tuple[float, float]:
    """(accuracy, loss) on held-out rows after a trial; (0, inf) if it diverged."""
    try:
        done = trial()
        values = dict(loop.run_all({"held out": classification(site, done.model, source)}, done.state))
    except errors.NonFinite as e:
        console.say(f"a rate is out of the question: {e}")
        return 0.0, math.inf
    return values["held out/accuracy"], values["held out/loss"]


def train(site: Site, method: str, terms: str, lr: float, rows: np.ndarray, head: Head | None, folder: Path) -> Trained:
    """One run through the loop, from where its checkpoints in `folder`/training are."""
    clock = goodput.Clock()
    config, mesh, source = site.config, site.mesh, Subset(site.task.train, rows)
    plan = loop.Plan.of(config, len(source))
    sections = settings.frozen(config.model, config.finetune)
    compiled = finetune.build(*sections, site.setup(method, terms), lr, plan, mesh)
    noisytune = 0.0 if method == finetune.PROBE else config.finetune.noisytune

    def start(key: jax.Array) -> TrainState:
        return finetune.start(compiled, site.weights, head, mesh, key, noisytune)

    def begin() -> tuple[Any, Any]:
        state = start(jax.random.key(config.seed))
        return runtime.fetch((state.params, state.model_state), mesh)

    def batches(start_step: int) -> Generator[Any]:
        how = {"batch": config.train.batch, "seed": config.seed, "start_step": start_step}
        return pipeline.train(source, **how, **evaluators.reading(config, mesh))

    undecodable = Quarantine(folder, source, config.runtime.quarantine, active=jax.process_index() == 0)
    named = {"label": f"{site.task.name} {folder.name}", "clock": clock, "quarantine": undecodable}
    checkpoints = checkpoint.Checkpoints(
        folder / "training",
        every=plan.every(config.runtime.save_every),
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


def initial_heads(site: Site) -> Heads:
    """The heads that every setting starts from, by `finetune.head_init`."""
    how = site.config.finetune.head_init
    if how == finetune.PROBE:
        done = chosen_and_trained(site, finetune.PROBE, "none", site.config.tune.lrs, Heads(None, None))
        folder = trial_folder(site.place(finetune.PROBE, "none"), done.lr)  # where the search has left it
        trial = train(site, finetune.PROBE, "none", done.lr, parts(site)[0], None, folder)
        return Heads(*(runtime.fetch((x.state.params["head"], x.state.model_state["head"]), site.mesh)
                       for x in (trial, done)))  # fmt: skip
    if how == "fresh":
        return Heads(None, None)
    model, params, model_state = site.frozen[:3]
    zero_shot = evaluators.zero_shot(
        site.config, model, site.mesh, site.task, site.task.tests[0], encoder.load_tokenizer(site.config),
        batch=site.config.extract.batch,
    )  # fmt: skip
    classes, scale = runtime.fetch((zero_shot.class_matrix(params, model_state), params["logit_scale"]), site.mesh)
    kernel = np.float32(np.exp(scale) * classes.T)
    head = {"classifier": {"kernel": kernel, "bias": np.zeros(len(classes), np.float32)}}, {}
    return Heads(head, head)


def classification(site: Site, model: Model, source: Source, **drawn: Any) -> loop.Evaluator:
    """Of the model's classes on all of `source`, against the labels that it has."""
    config, mesh = site.config, site.mesh
    batches = partial(evaluators.images, config, mesh, source, batch=config.extract.batch, **drawn)
    placing = {"put": runtime.put_batch(mesh), "fetch": partial(runtime.fetch, mesh=mesh)}
    known = source.num_classes
    return EVALUATORS["classification"](model.apply, batches, num_classes=known, clean=False, **placing)
