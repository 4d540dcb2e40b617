"""The optimiser as one optax chain, and its schedule. What each parameter gets is decided by regexes over its path."""

import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from nml_jax import ranges
from nml_jax.errors import UserError
from nml_jax.training.leaves import name_leaf, name_leaves


def make(
    config: ConfigDict, params: Any, *, steps: int, steps_per_epoch: float
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """The optimiser of `config` for `params`.

    The chain: clip by global norm; adamw, lamb or sgd with decay; learning-rate multiplier; schedule; clamp. With wd
    the weight decay times the parameter's multiplier, η the learning rate times its own, u Adam's bias-corrected
    direction:

    * adamw: p ← p − η (u + wd·p), decoupled (arXiv 1711.05101).
    * lamb: p ← p − η r (u + wd·p) with r = ‖p‖ / ‖u + wd·p‖ per tensor, and r = 1 where a norm is 0 or wd is 0
      (arXiv 1904.00962; timm's `Lamb`, whose default also clips by global norm 1: set `clip_norm`).
    * sgd: b ← momentum·b + (g + wd·p), then p ← p − η b, or η (g + wd·p + momentum·b) with Nesterov (as in PyTorch).

    A learning-rate multiplier of 0 freezes: the update is exactly zero, there is no decay and no optimiser state, and
    the gradient does not count in the global norm.

    A parameter of `clamp` is within its interval after every step, to the last bit, and its moments are left alone: it
    leaves a bound as soon as its gradient points away (the gradient of a clipped forward pass would be 0 there).

    Args:
        config: the section `optimizer` of configs/common.py. The pairs of `decay` and `lr_mult` hold a regex that must
            match the whole path, as in "a/b/kernel"; the first match counts. The triples of
            `clamp` hold such a regex, which may match nothing, and the two ends of an interval.
        params: nested dicts of arrays or ShapeDtypeStructs.
        steps: of the whole run.
        steps_per_epoch: converts `warmup_epochs` to steps.

    Returns:
        The transformation, whose updates are added to the parameters, and the learning rate by step, from 0.

    Raises:
        UserError: a value is out of range, a regex is none, a parameter matches no pattern, a pattern decides nothing.
    """
    _check(config)
    names = list(name_leaves(params))
    decay = _multipliers("optimizer.decay", config.decay, names)
    lr_mult = _multipliers("optimizer.lr_mult", config.lr_mult, names)
    if not any(lr_mult.values()):
        raise UserError("optimizer.lr_mult freezes every parameter", "give a multiplier above 0 to those to be trained")
    schedule = make_schedule(config, steps=steps, steps_per_epoch=steps_per_epoch)
    intervals = _intervals(config.clamp, names)

    wd = {name: config.weight_decay * value for name, value in decay.items()}
    adam = optax.scale_by_adam(config.b1, config.b2, config.eps)
    add_decay = _per_parameter(lambda name, u, p: u + wd[name] * p if wd[name] else u)
    trust = optax.masked(optax.scale_by_trust_ratio(), lambda tree: _map_named(lambda name, _: wd[name] > 0, tree))
    optimizers = {
        "adamw": (adam, add_decay),
        "lamb": (adam, add_decay, trust),
        "sgd": (add_decay, optax.trace(config.momentum, config.nesterov)),
    }
    if config.name not in optimizers:
        raise UserError(f"there is no optimizer.name={config.name!r}", f"choose one of {', '.join(optimizers)}")

    def clamp(name: str, update: jax.Array, param: jax.Array) -> jax.Array:
        return _clamped(update, param, *intervals[name]) if name in intervals else update

    chain = optax.chain(
        optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity(),
        *optimizers[config.name],
        _per_parameter(lambda name, u, _: u * lr_mult[name]),
        optax.scale_by_learning_rate(schedule),
        # no link of the chain without need: its state would be another, and old checkpoints would not fit
        *([_per_parameter(clamp)] if intervals else []),
    )
    if all(lr_mult.values()):
        return chain, schedule
    labels = _map_named(lambda name, _: "trained" if lr_mult[name] else "frozen", params)
    return optax.partition({"trained": chain, "frozen": optax.set_to_zero()}, labels), schedule


def layer_decay(params: Any, decay: float, *, frozen: str = "") -> tuple[tuple[str, float], ...]:
    """Pairs for `optimizer.lr_mult` in which the learning rate falls by `decay` per layer from the top down.

    The rule of BEiT (arXiv 2106.08254, its code): layer 0 is what makes the input of the first block (a ViT's patches,
    class token, position embeddings and norm before the blocks; a ResNet's stem), layers 1 to n are the blocks in
    their order, and layer n + 1 is the rest (final norm, pools, projections, heads). Layer l gets decay^(n + 1 − l).
    A block is a ViT's `block{i}` or a ResNet's `stage{i}_block{j}`, at any depth of the tree.

    Args:
        params: nested dicts of arrays or ShapeDtypeStructs. The blocks of a text tower do not count as layers.
        decay: in (0, 1]; 1: none.
        frozen: a regex over whole names whose parameters get 0; "": none.

    Raises:
        UserError: `decay` is out of range.
    """
    if not 0 < decay <= 1:
        raise UserError(f"a layer-wise learning-rate decay of {decay}", "give a number above 0, at most 1")
    names = list(name_leaves(params))
    places = {name: _layer(name) for name in names}
    order = sorted(set(places.values()) | {_STEM, _TOP})
    rates = {place: decay ** (len(order) - 1 - i) for i, place in enumerate(order)}
    stopped = re.compile(frozen)
    return tuple((re.escape(n), 0.0 if frozen and stopped.fullmatch(n) else rates[places[n]]) for n in names)


_STEM, _TOP = (-1.0, 0.0), (math.inf, 0.0)


def _layer(name: str) -> tuple[float, float]:
    """What sorts a parameter's layer among the others': (stage, block) of a ResNet, (block, 0) of a ViT."""
    if re.search(r"(?:^|/)text/", name):
        return _TOP
    if found := re.search(r"(?:^|/)stage(\d+)_block(\d+)/", name):
        return float(found[1]), float(found[2])
    if found := re.search(r"(?:^|/)block(\d+)/", name):
        return float(found[1]), 0.0
    first = re.search(r"(?:^|/)(stem_(conv|bn)\d?|patch|norm_pre)/", name)
    first = first or re.search(r"(?:^|/)(?<!pool/)(cls|pos_embed)$", name)  # an attention pool has its own, at the top
    return _STEM if first else _TOP


def make_schedule(config: ConfigDict, *, steps: int, steps_per_epoch: float) -> optax.Schedule:
    """Linear from `warmup_lr` to `lr` over the warm-up, then half a cosine to `min_lr`, reached at `steps`.

    The warm-up is `warmup_steps`, or `warmup_epochs` where that is None.
    timm lets the cosine begin at step 0, beneath the warm-up; with 5 of 300 epochs the two differ by less than 0.1 %
    of the peak.

    Raises:
        UserError: the warm-up leaves no step for the cosine.
    """
    if config.warmup_steps is None:
        warmup = round(config.warmup_epochs * steps_per_epoch)
        asked = f"optimizer.warmup_epochs={config.warmup_epochs} is {warmup} steps"
    else:
        warmup = config.warmup_steps
        asked = f"optimizer.warmup_steps={warmup}"
    if warmup >= steps:
        raise UserError(f"{asked}, the whole run is {steps}", "warm up for less or train for longer")
    return optax.warmup_cosine_decay_schedule(config.warmup_lr, config.lr, warmup, steps, config.min_lr)


def check_ranges(config: ConfigDict) -> None:
    """Refuse values of the section `optimizer` that are out of range."""
    ranges.require_positive("optimizer", config, "lr")
    _check(config)


def _check(config: ConfigDict) -> None:
    for keys, high in (
        (("lr", "min_lr", "warmup_lr", "warmup_epochs", "eps", "weight_decay", "clip_norm"), math.inf),
        (("b1", "b2", "momentum"), 1.0),
    ):
        for key in keys:
            if not 0 <= config[key] < high:
                raise UserError(f"optimizer.{key}={config[key]} is out of range", f"set it to 0 or more, below {high}")
    if config.warmup_steps is not None and config.warmup_steps < 0:
        raise UserError(f"optimizer.warmup_steps={config.warmup_steps} is out of range", "set it to 0 or more")


def _multipliers(key: str, rules: Iterable[tuple[str, float]], names: Sequence[str]) -> dict[str, float]:
    """The value of the first rule whose regex matches, for every name."""
    try:
        parsed = [(re.compile(pattern), float(value)) for pattern, value in rules]
    except (re.error, TypeError, ValueError) as e:
        raise UserError(f"{key}={rules!r} is no list of (regex, number): {e}", "write it as ((r'.*', 1.0),)") from e
    for pattern, value in parsed:
        if not 0 <= value < math.inf:
            raise UserError(f"{key} has the multiplier {value} for {pattern.pattern!r}", "use a number of 0 or more")
    values, unused = {}, {pattern.pattern for pattern, _ in parsed} - {".*"}
    for name in names:
        match = next(((pattern, value) for pattern, value in parsed if pattern.fullmatch(name)), None)
        if match is None:
            raise UserError(f"{key}: no pattern matches the parameter {name!r}", "end the list with (r'.*', 1.0)")
        values[name] = match[1]
        unused.discard(match[0].pattern)
    if unused:
        raise UserError(
            f"{key}: the pattern {min(unused)!r} matches no parameter, or only what an earlier one took",
            f"correct or remove it; it must match a whole path, as {names[0]!r}",
        )
    return values


def _intervals(rules: Iterable[tuple[str, float, float]], names: Sequence[str]) -> dict[str, tuple[float, float]]:
    """(low, high) of the first rule whose regex matches, for every name that one matches."""
    try:
        parsed = [(re.compile(pattern), float(low), float(high)) for pattern, low, high in rules]
    except (re.error, TypeError, ValueError) as e:
        cure = "write it as ((r'(.*/)?logit_scale', 0.0, 4.6),)"
        raise UserError(f"optimizer.clamp={rules!r} is no list of (regex, low, high): {e}", cure) from e
    for pattern, low, high in parsed:
        if not low < high:
            raise UserError(f"optimizer.clamp has low={low}, high={high} for {pattern.pattern!r}", "set low < high")
    first = {name: next((ends for pattern, *ends in parsed if pattern.fullmatch(name)), None) for name in names}
    return {name: (ends[0], ends[1]) for name, ends in first.items() if ends}


def _clamped(update: jax.Array, param: jax.Array, low: float, high: float) -> jax.Array:
    """The update after which param + update is within the interval, in floating-point numbers."""
    dtype = param.dtype.type
    lowest, highest = dtype(low), dtype(high)  # the nearest of its type, which may lie outside
    lowest = np.nextafter(lowest, dtype(np.inf)) if float(lowest) < low else lowest
    highest = np.nextafter(highest, dtype(-np.inf)) if float(highest) > high else highest
    update = jnp.clip(param + update, lowest, highest) - param
    # The difference is rounded, so the sum may miss the bound by as much: the next number inwards does not.
    reached = param + update
    inwards = jnp.where(reached > highest, -jnp.inf, jnp.where(reached < lowest, jnp.inf, update))
    return jnp.nextafter(update, inwards.astype(update.dtype))


def _map_named(f: Callable[..., Any], tree: Any, *rest: Any) -> Any:
    return jax.tree_util.tree_map_with_path(lambda path, *leaves: f(name_leaf(path), *leaves), tree, *rest)


def _per_parameter(f: Callable[[str, jax.Array, jax.Array], jax.Array]) -> optax.GradientTransformation:
    """A stateless step of the chain: `f(name, update, parameter)`, leaf by leaf."""
    return optax.stateless(lambda updates, params: _map_named(f, updates, params))
