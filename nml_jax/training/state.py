"""The state that training carries from step to step, sharded from the start."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from nml_jax import runtime


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that a bit-equal restart needs; the data iterator has no state."""

    step: jax.Array  # int32 [], steps done
    params: Any
    model_state: Any  # BatchNorm statistics
    ema: Any  # moving average of params, or None
    opt_state: Any
    key: jax.Array  # typed PRNG key []; step k draws from fold_in(key, k)
    skipped: jax.Array  # int32 [2], skipped steps (loss or gradient not finite): in all, and in a row up to now

    def advance(self, params: Any, model_state: Any, ema: Any, opt_state: Any, sound: jax.Array) -> "TrainState":
        """Return the state after a step: with the new values if `sound` (bool []), else with the old, as skipped."""
        old = self.params, self.model_state, self.ema, self.opt_state
        new = params, model_state, ema, opt_state
        params, model_state, ema, opt_state = jax.tree.map(lambda new, old: jnp.where(sound, new, old), new, old)
        skipped = jnp.where(sound, self.skipped * jnp.array([1, 0], jnp.int32), self.skipped + 1)
        return TrainState(self.step + 1, params, model_state, ema, opt_state, self.key, skipped)


def split_key(key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Split a run's key into that of the fresh weights and that of the steps."""
    for_init, for_steps = jax.random.split(key)
    return for_init, for_steps


def create(model, tx: optax.GradientTransformation, key: jax.Array, *, ema: bool, mesh: Mesh) -> TrainState:
    """Create a fresh state. The function is pure, so that it can be compiled with `out_shardings`."""
    init_key, step_key = split_key(key)
    # Drawn whole, then split: drawn in parts, some weights would be rounded differently.
    init = jax.jit(lambda key: model.init(key, model.spec), out_shardings=runtime.replicated_sharding(mesh))
    params, model_state = init(init_key)
    return make_state(params, model_state, step_key, tx=tx, ema=ema)


def make_shapes(model, tx: optax.GradientTransformation, *, ema: bool, mesh: Mesh) -> TrainState:
    """Return the state's shapes, dtypes and shardings, without computing it."""
    shapes = jax.eval_shape(functools.partial(make_state, tx=tx, ema=ema), *model.shapes, jax.random.key(0))
    return runtime.add_shardings(shapes, mesh)


def make_state(
    params: Any, model_state: Any, key: jax.Array, *, tx: optax.GradientTransformation, ema: bool
) -> TrainState:
    """Make the state at step 0 from weights and the key of the steps."""
    # A copy, because the donated state may hold no buffer twice.
    average = jax.tree.map(jnp.copy, params) if ema else None
    step, skipped = jnp.zeros((), jnp.int32), jnp.zeros(2, jnp.int32)
    return TrainState(step, params, model_state, average, tx.init(params), key, skipped)
