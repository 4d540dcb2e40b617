"""The training loop for whole models: build, restore, step, evaluate, save.

Every model and objective is trained by `train`. Batch k and every random draw of step k depend only on (seed, k). So an
interrupted run continues bit-equal, and the host has no state but the step.
"""

import contextlib
import functools
import math
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict, FrozenConfigDict

from nml_jax import models, objectives, runtime, settings
from nml_jax.errors import NonFinite, Preempted
from nml_jax.models.micro_batches import split_batches
from nml_jax.processes import peers
from nml_jax.processes.sigterm import Preemption
from nml_jax.training import optim
from nml_jax.training import state as train_state
from nml_jax.training.checkpoint import Checkpoints
from nml_jax.training.journal import Journal, Score
from nml_jax.training.plan import Plan as Plan
from nml_jax.training.pretrained import load_weights
from nml_jax.training.state import TrainState
from nml_jax.training.window import LAG, Signals, Window

Loss = Callable[..., Any]  # (params, model_state, batch, key) -> (scalar, (new_model_state, metrics))
# Start step -> (this process's rows of a batch, ids that they stand in for, or -1), without end.
Batches = Callable[[int], Generator[tuple[Mapping[str, np.ndarray], np.ndarray]]]


class Evaluator(Protocol):
    """An evaluation on a split."""

    def run(self, params: Any, model_state: Any) -> Iterable[tuple[str, float]]:
        """Yield (name, value)."""
        ...


class Program(NamedTuple):
    """The compiled functions of all runs of one shape. The runs of a sweep differ only in data and seeds."""

    model: models.Model
    schedule: optax.Schedule
    shapes: TrainState  # ShapeDtypeStructs with shardings
    init: Callable[[jax.Array], TrainState]  # key -> state, born sharded
    adopt: Callable[[Any, jax.Array], TrainState]  # (params, model_state), key of the steps -> state at step 0
    step: Callable[[TrainState, Any, Signals], tuple[TrainState, dict[str, Any]]]  # donates the state


def build(config: ConfigDict, plan: Plan, mesh: Mesh, *, num_classes: int) -> Program:
    """Build the program of a config. Configs that compile to the same share one program."""
    sections = settings.freeze_sections(config.model, config.objective, config.optimizer)
    sizes = config.train.micro_batches, config.data.image_size, num_classes
    return _build(*sections, config.train.ema, *sizes, plan, mesh)


@functools.lru_cache(maxsize=4)
def _build(
    model_config: FrozenConfigDict,
    objective_config: FrozenConfigDict,
    optimizer_config: FrozenConfigDict,
    ema: float,
    micro_batches: int,
    image_size: int,
    num_classes: int,
    plan: Plan,
    mesh: Mesh,
) -> Program:
    model = models.build(model_config, num_classes=num_classes, image_size=image_size)
    in_parts = split_batches(model, micro_batches, blocks=mesh.size)
    objective = objectives.make(objective_config, num_classes=num_classes, blocks=mesh.size)
    tx, schedule = optim.make(optimizer_config, model.shapes[0], steps=plan.steps, steps_per_epoch=plan.per_epoch)
    return assemble(model, functools.partial(objective.loss, in_parts), tx, schedule, ema, mesh)


def assemble(
    model: models.Model, loss: Loss, tx: optax.GradientTransformation, schedule: optax.Schedule, ema: float, mesh: Mesh
) -> Program:
    """Assemble the program of a model with any loss and optimiser."""
    shapes = train_state.make_shapes(model, tx, ema=ema > 0, mesh=mesh)
    shardings = jax.tree.map(lambda x: x.sharding, shapes)
    gather = runtime.make_gather(shardings.params, mesh)

    def init(key: jax.Array) -> TrainState:
        return train_state.create(model, tx, key, ema=ema > 0, mesh=mesh)

    def adopt(weights: tuple[Any, Any], key: jax.Array) -> TrainState:
        return train_state.make_state(*weights, key, tx=tx, ema=ema > 0)

    def step(state: TrainState, batch: Any, signals: Signals) -> tuple[TrainState, dict[str, Any]]:
        key = jax.random.fold_in(state.key, state.step)
        with_gradient = jax.value_and_grad(lambda params, *rest: loss(gather(params), *rest), has_aux=True)
        (value, (model_state, metrics)), grads = with_gradient(state.params, state.model_state, batch, key)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params: Any = optax.apply_updates(state.params, updates)
        average = optax.incremental_update(params, state.ema, 1 - ema) if ema else None
        metrics["grad_norm"] = (optax.tree.norm(grads), jnp.float32(1))
        # These are global values, so a step that is not finite on one shard is skipped on all.
        sound = jnp.isfinite(value) & jnp.isfinite(metrics["grad_norm"][0])
        state = state.advance(params, model_state, average, opt_state, sound)
        metrics = jax.tree.map(lambda x: jnp.where(sound, x, 0), metrics)
        metrics |= {"skipped": (~sound, 1), "streak": (state.skipped[1], 1), "asked": (signals.asked.sum(), 1)}
        metrics["quarantined"] = (signals.quarantined.sum(), len(jax.tree.leaves(batch)[0]))
        return state, metrics

    return Program(
        model,
        schedule,
        shapes,
        jax.jit(init, out_shardings=shardings),
        jax.jit(adopt, out_shardings=shardings),
        runtime.jit(step, mesh, donate_argnums=0, out_shardings=(shardings, None)),
    )


def start(config: ConfigDict, program: Program, mesh: Mesh, checkpoints: Checkpoints) -> TrainState:
    """Return the state to start from: the last checkpoint, or a fresh state, with weights from `init_from` if set."""
    last = checkpoints.restore(program.shapes)
    if last is not None:
        return last
    key = jax.random.key(config.seed)
    if not config.init_from:
        return program.init(key)
    for_init, for_steps = train_state.split_key(key)
    weights = load_weights(config.init_from, config, program.model, for_init)
    return program.adopt(runtime.move_to_mesh(weights, mesh), for_steps)


def train(
    config: ConfigDict,
    program: Program,
    plan: Plan,
    mesh: Mesh,
    *,
    batches: Batches,
    evaluators: Mapping[str, Evaluator],
    checkpoints: Checkpoints,
    journal: Journal,
) -> TrainState:
    """Train from the last checkpoint, or from the start, to the last step of the plan.

    A step is skipped if its loss or gradient is not finite: it changes only the count of such steps.

    Args:
        batches: see `Batches`.
        evaluators: by name; run every `runtime.eval_every` epochs before the last step.
        checkpoints: restore from here and save here.
        journal: writes metrics and samples.

    Raises:
        Preempted: a process got SIGTERM; all have saved the state of the same step.
        NonFinite: too many steps in a row were skipped, or a metric is not finite; names the ids of the batch.
        UserError: too many records cannot be decoded.
    """
    state = start(config, program, mesh, checkpoints)
    first = int(state.step)
    if first == plan.steps:
        return state
    put, clock, every = runtime.put_batch(mesh), journal.clock, plan.to_steps(config.runtime.eval_every)
    window = Window(mesh, config.runtime.max_skipped)
    preemption = Preemption(peers.find_position if jax.process_count() > 1 else None)
    # Reading may be refused, and then no file is open.
    with contextlib.closing(batches(first)) as iterator, journal.open(first), preemption:
        for step in range(first + 1, plan.steps + 1):
            local, quarantined = next(iterator)
            journal.count_batch(idle=window.is_idle(), then="compile" if step == first + 1 else "step")
            batch = put({k: v for k, v in local.items() if k != "label_clean"})
            # Each process says beside the batch whether it was asked to stop; the step tells all of them.
            signals = window.signal(asked=preemption.asked, quarantined=quarantined)
            with jax.transfer_guard("disallow"):
                state, values = program.step(state, batch, signals)
            clock.to("step")
            window.add(step, values, local["id"], quarantined)

            last = step == plan.steps
            stop = window.check_stop(lag=0 if last else LAG)
            preemption.step()
            evaluate = step % every == 0 and not last
            save = checkpoints.is_due(step) or last or stop
            if step % config.runtime.log_every == 0 or evaluate or save:
                seen, skipped = window.close(), int(np.asarray(state.skipped)[0])
                rate = float(np.asarray(program.schedule(max(step - skipped - 1, 0))))
                journal.write(step, seen, {"epoch": step / plan.per_epoch, "train/lr": rate}, skipped)
            if evaluate:
                clock.to("evaluate")
                journal.write_values(step, {score.name: score.value for score in run_all(evaluators, state)})
            if save:
                clock.to("save")
                checkpoints.save(state, must=last or stop)
                journal.write_goodput(step)
            clock.to("step")
            if stop or (last and runtime.any_process(preemption.asked)):
                raise Preempted(f"asked to stop: saved at step {step}; the same command continues")
    return state


def run_all(evaluators: Mapping[str, Evaluator], state: TrainState) -> Iterator[Score]:
    """Run every evaluator on the raw weights, and on the moving average if there is one; yield what they find.

    Raises:
        NonFinite: a value is not finite.
    """
    for name, evaluator in evaluators.items():
        for weights, params in (("raw", state.params), ("ema", state.ema)):
            if params is not None:
                for score in (Score(name, weights, *of) for of in evaluator.run(params, state.model_state)):
                    if not math.isfinite(score.value):
                        where = f"at step {int(state.step)}, {int(np.asarray(state.skipped)[0])} of which were skipped"
                        cure = "lower the learning rate, in another --workdir"
                        raise NonFinite(f"{score.name} is {score.value} {where}; {cure}")
                    yield score
