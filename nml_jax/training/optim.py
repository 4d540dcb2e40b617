"""The optimiser as one optax chain, and its schedule. Regexes over a parameter's path set its options."""

import itertools
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

Namer = Callable[[str], str]  # key of the section -> its dotted name in messages
NAME: Namer = "optimizer.{}".format


def make(
    config: ConfigDict,
    params: Any,
    *,
    steps: int,
    steps_per_epoch: float,
    name_key: Namer = NAME,
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """Make the optimiser of `config` for `params`, and its schedule.

    The chain is: clip by global norm; adamw, lamb or sgd with decay; learning-rate multiplier; schedule; clamp. Let wd
    be the weight decay and η the learning rate, each times the parameter's multiplier, and u Adam's bias-corrected
    direction. Then a step is:

    * adamw: p ← p − η (u + wd·p), decoupled (arXiv 1711.05101).
    * lamb: p ← p − η r (u + wd·p) with r = ‖p‖ / ‖u + wd·p‖ per tensor, and r = 1 where a norm is 0 or wd is 0
      (arXiv 1904.00962; timm's `Lamb`, whose default also clips by global norm 1: set `clip_norm`).
    * sgd: b ← momentum·b + (g + wd·p), then p ← p − η b, or η (g + wd·p + momentum·b) with Nesterov (as in PyTorch).

    A learning-rate multiplier of 0 freezes a parameter: it has no update, no decay and no optimiser state, and its
    gradient does not count in the global norm.

    A parameter of `clamp` is within its interval after every step, to the last bit. Its moments are not changed, so
    it leaves a bound as soon as its gradient points inwards. (The gradient of a clipped forward pass would be 0 there.)

    Args:
        config: the section `optimizer` of configs/common.py. `decay` and `lr_mult` are pairs of a regex, which must
            match the whole path, such as "a/b/kernel", and a number; the first match counts. `clamp` has triples of a
            regex, which may match nothing, and the two ends of an interval.
        params: nested dicts of arrays or ShapeDtypeStructs.
        steps: length of the whole run.
        steps_per_epoch: converts `warmup_epochs` to steps.
        name_key: returns the dotted name of a key in messages.

    Returns:
        The transformation, whose updates are added to the parameters, and the learning rate by step, from 0.

    Raises:
        UserError: a value is out of range, a regex is invalid, a parameter matches no pattern, or a pattern has no
            effect.
    """
    _check(config, name_key)
    names = list(name_leaves(params))
    decay = _find_multipliers(name_key("decay"), config.decay, names)
    lr_mult = _find_multipliers(name_key("lr_mult"), config.lr_mult, names)
    if not any(lr_mult.values()):
        raise UserError(
            f"{name_key('lr_mult')} freezes every parameter", "give a multiplier above 0 to those to be trained"
        )
    schedule = make_schedule(config, steps=steps, steps_per_epoch=steps_per_epoch, name_key=name_key)
    intervals = _find_intervals(config.clamp, names)

    wd = {name: config.weight_decay * value for name, value in decay.items()}
    adam = optax.scale_by_adam(config.b1, config.b2, config.eps)
    add_decay = _transform_each(lambda name, u, p: u + wd[name] * p if wd[name] else u)
    trust = optax.masked(optax.scale_by_trust_ratio(), lambda tree: _map_named(lambda name, _: wd[name] > 0, tree))
    optimizers = {
        "adamw": (adam, add_decay),
        "lamb": (adam, add_decay, trust),
        "sgd": (add_decay, optax.trace(config.momentum, config.nesterov)),
    }
    if config.name not in optimizers:
        raise UserError(f"{name_key('name')}={config.name!r} is unknown", f"choose one of {', '.join(optimizers)}")

    def clamp(name: str, update: jax.Array, param: jax.Array) -> jax.Array:
        return _clamp_update(update, param, *intervals[name]) if name in intervals else update

    chain = optax.chain(
        optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity(),
        *optimizers[config.name],
        _transform_each(lambda name, u, _: u * lr_mult[name]),
        optax.scale_by_learning_rate(schedule),
        # only if needed, as every link of the chain changes the state's structure, and old checkpoints would not fit
        *([_transform_each(clamp)] if intervals else []),
    )
    if all(lr_mult.values()):
        return chain, schedule
    labels = _map_named(lambda name, _: "trained" if lr_mult[name] else "frozen", params)
    return optax.partition({"trained": chain, "frozen": optax.set_to_zero()}, labels), schedule


def decay_layers(params: Any, decay: float, *, frozen: str = "") -> tuple[tuple[str, float], ...]:
    """Return pairs for `optimizer.lr_mult` in which the learning rate falls by `decay` per layer from the top down.

    This is the rule of BEiT (arXiv 2106.08254, its code). Layer 0 is all before the first block: a ViT's patches, class
    token, position embeddings and first norm, or the stem of a network of stages. Layers 1 to n are the blocks in their
    order. Layer n + 1 is the rest: final norm, pools, projections, heads. Layer l gets decay^(n + 1 − l). A block is
    `block{i}` or `stage{i}_block{j}`, at any depth of the tree; what halves the map before a stage belongs to its first
    block, as in timm.

    Args:
        params: nested dicts of arrays or ShapeDtypeStructs. The blocks of a text tower do not count as layers.
        decay: factor in (0, 1]; 1 leaves the rates equal.
        frozen: a regex; parameters whose whole name it matches get 0; "": none.

    Raises:
        UserError: `decay` is out of range.
    """
    if not 0 < decay <= 1:
        raise UserError(f"a layer-wise learning-rate decay of {decay}", "give a number above 0, at most 1")
    names = list(name_leaves(params))
    layers = {name: _find_layer(name) for name in names}
    order = sorted(set(layers.values()) | {_STEM, _TOP})
    rates = {layer: decay ** (len(order) - 1 - i) for i, layer in enumerate(order)}
    pattern = re.compile(frozen)
    return tuple((re.escape(n), 0.0 if frozen and pattern.fullmatch(n) else rates[layers[n]]) for n in names)


_STEM, _TOP = (-1.0, 0.0), (math.inf, 0.0)
_EMBEDDINGS = "words|positions|types|embed_norm"  # of text encoders


def _find_layer(name: str) -> tuple[float, float]:
    """Return a sort key of a parameter's layer: (stage, block) of a network of stages, (block, 0) of a ViT."""
    if re.search(r"(?:^|/)text/", name):
        return _TOP
    if found := re.search(r"(?:^|/)stage(\d+)_block(\d+)/", name):
        return float(found[1]), float(found[2])
    if found := re.search(r"(?:^|/)(?:block|stage)(\d+)(?:_[a-z]+)?/", name):
        return float(found[1]), 0.0
    first = re.search(rf"(?:^|/)(stem_(conv|bn|norm)\d?|patch|patch_norm|norm_pre|{_EMBEDDINGS})/", name)
    first = first or re.search(r"(?:^|/)(?<!pool/)(cls|pos_embed)$", name)  # those of an attention pool are at the top
    return _STEM if first else _TOP


def make_schedule(config: ConfigDict, *, steps: int, steps_per_epoch: float, name_key: Namer = NAME) -> optax.Schedule:
    """Make a schedule: linear from `warmup_lr` to `lr`, then as SCHEDULES[config.schedule] says.

    The warm-up lasts `warmup_steps`, or `warmup_epochs` if that is None. In timm the cosine begins at step 0, before
    the warm-up ends; with 5 of 300 epochs the two differ by less than 0.1 % of the peak.

    Raises:
        UserError: the warm-up leaves no step for the rest, or a milestone is not within the run.
    """
    if config.warmup_steps is None:
        warmup = round(config.warmup_epochs * steps_per_epoch)
        setting = f"{name_key('warmup_epochs')}={config.warmup_epochs} is {warmup} steps"
    else:
        warmup = config.warmup_steps
        setting = f"{name_key('warmup_steps')}={warmup}"
    if warmup >= steps:
        raise UserError(f"{setting}, the whole run is {steps}", "warm up for less or train for longer")
    return SCHEDULES[config.schedule](config, warmup, steps, steps_per_epoch, name_key)


def _make_cosine(config: ConfigDict, warmup: int, steps: int, *_: Any) -> optax.Schedule:
    """Make half a cosine from `lr` to `min_lr`, which it reaches at `steps`."""
    return optax.warmup_cosine_decay_schedule(config.warmup_lr, config.lr, warmup, steps, config.min_lr)


def _make_steps(config: ConfigDict, warmup: int, steps: int, steps_per_epoch: float, name_key: Namer) -> optax.Schedule:
    """Multiply the rate by `gamma` at every milestone, which is so many epochs after the start, warm-up included.

    A milestone within the warm-up lowers the rate that the warm-up leads to, as in PyTorch.
    """
    at = [round(epoch * steps_per_epoch) for epoch in config.milestones]
    if not at or any(not 0 < step < steps for step in at) or any(a >= b for a, b in itertools.pairwise(at)):
        shown = f"{round(steps / steps_per_epoch, 3):g} epochs, {steps} steps"
        raise UserError(
            f"{name_key('milestones')}={tuple(config.milestones)} do not rise within the run of {shown}",
            "give rising numbers of epochs below its length, as in '(8.0, 11.0)', "
            f"or set {name_key('schedule')}=cosine",
        )
    decay = optax.piecewise_constant_schedule(1.0, {step: float(config.gamma) for step in at})
    rise = optax.linear_schedule(config.warmup_lr, config.lr, warmup) if warmup else lambda _: config.lr
    return lambda step: rise(step) * decay(step)


SCHEDULES = {"cosine": _make_cosine, "step": _make_steps}


def check_ranges(config: ConfigDict) -> None:
    """Raise UserError if a value of the section `optimizer` is out of range."""
    ranges.require_positive("optimizer", config, "lr")
    _check(config, NAME)


def _check(config: ConfigDict, name_key: Namer) -> None:
    for keys, high in (
        (("lr", "min_lr", "warmup_lr", "warmup_epochs", "eps", "weight_decay", "clip_norm"), math.inf),
        (("b1", "b2", "momentum"), 1.0),
    ):
        for key in keys:
            if not 0 <= config[key] < high:
                raise UserError(f"{name_key(key)}={config[key]} is out of range", f"set it to 0 or more, below {high}")
    if config.schedule not in SCHEDULES:
        raise UserError(
            f"{name_key('schedule')}={config.schedule!r} is unknown", f"choose one of {', '.join(SCHEDULES)}"
        )
    if not 0 < config.gamma <= 1:
        raise UserError(f"{name_key('gamma')}={config.gamma} is out of range", "set it above 0, to at most 1")
    if config.warmup_steps is not None and config.warmup_steps < 0:
        raise UserError(f"{name_key('warmup_steps')}={config.warmup_steps} is out of range", "set it to 0 or more")


def _find_multipliers(key: str, rules: Iterable[tuple[str, float]], names: Sequence[str]) -> dict[str, float]:
    """Return for every name the value of the first rule whose regex matches."""
    try:
        parsed = [(re.compile(pattern), float(value)) for pattern, value in rules]
    except (re.error, TypeError, ValueError) as e:
        cure = "write it as ((r'.*', 1.0),)"
        raise UserError(f"{key}={rules!r} must be a list of (regex, number): {e}", cure) from e
    for pattern, value in parsed:
        if not 0 <= value < math.inf:
            raise UserError(f"{key} has the multiplier {value} for {pattern.pattern!r}", "give a number of 0 or more")
    values, unused = {}, {pattern.pattern for pattern, _ in parsed} - {".*"}
    for name in names:
        match = next(((pattern, value) for pattern, value in parsed if pattern.fullmatch(name)), None)
        if match is None:
            raise UserError(f"{key}: no pattern matches the parameter {name!r}", "end the list with (r'.*', 1.0)")
        values[name] = match[1]
        unused.discard(match[0].pattern)
    if unused:
        raise UserError(
            f"{key}: the pattern {min(unused)!r} matches no parameter, or only those of an earlier pattern",
            f"correct or remove it; it must match a whole path, as {names[0]!r}",
        )
    return values


def _find_intervals(rules: Iterable[tuple[str, float, float]], names: Sequence[str]) -> dict[str, tuple[float, float]]:
    """Return (low, high) of the first rule whose regex matches, for every name that one matches."""
    try:
        parsed = [(re.compile(pattern), float(low), float(high)) for pattern, low, high in rules]
    except (re.error, TypeError, ValueError) as e:
        cure = "write it as ((r'(.*/)?logit_scale', 0.0, 4.6),)"
        raise UserError(f"optimizer.clamp={rules!r} must be a list of (regex, low, high): {e}", cure) from e
    for pattern, low, high in parsed:
        if not low < high:
            raise UserError(f"optimizer.clamp has low={low}, high={high} for {pattern.pattern!r}", "set low < high")
    first = {name: next((ends for pattern, *ends in parsed if pattern.fullmatch(name)), None) for name in names}
    return {name: (ends[0], ends[1]) for name, ends in first.items() if ends}


def _map_named(f: Callable[..., Any], tree: Any, *rest: Any) -> Any:
    return jax.tree_util.tree_map_with_path(lambda path, *leaves: f(name_leaf(path), *leaves), tree, *rest)


def _transform_each(f: Callable[[str, jax.Array, jax.Array], jax.Array]) -> optax.GradientTransformation:
    """Make a stateless link of the chain that applies `f(name, update, parameter)` leaf by leaf."""
    return optax.stateless(lambda updates, params: _map_named(f, updates, params))


def _clamp_update(update: jax.Array, param: jax.Array, low: float, high: float) -> jax.Array:
    """Return the update after which param + update, as floating-point numbers add up, is within the interval."""
    dtype = param.dtype.type
    lowest, highest = dtype(low), dtype(high)  # the nearest numbers of the type, which may lie outside
    lowest = np.nextafter(lowest, dtype(np.inf)) if float(lowest) < low else lowest
    highest = np.nextafter(highest, dtype(-np.inf)) if float(highest) > high else highest
    update = jnp.clip(param + update, lowest, highest) - param
    # The difference is rounded, so the sum may miss the bound; with the next number inwards it does not.
    reached = param + update
    inwards = jnp.where(reached > highest, -jnp.inf, jnp.where(reached < lowest, jnp.inf, update))
    return jnp.nextafter(update, inwards.astype(update.dtype))
