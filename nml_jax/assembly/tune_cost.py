"""Estimate what the stages on features from files cost, before they run: rows, trainings and their time."""

import functools
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from nml_jax.assembly.feature_sets import fit_in_memory, open_feature_sets
from nml_jax.console import format_seconds, list_words
from nml_jax.data.features.sets import FeatureSet
from nml_jax.tuning import methods
from nml_jax.tuning.trainers import ByGradient

ITERATIONS = 60  # of L-BFGS for one penalty, about
STOPPED = 0.3  # share of the most epochs that early stopping leaves, about
MEMORY = 5e9  # bytes per second at which AdamW reads and writes, about


class Cost(NamedTuple):
    """The cost of a method: seconds to choose its settings, and to train a head; how many trainings those are.

    step: seconds of a training step; 0 for methods that are solved.
    """

    choose: float
    train: float
    trainings: int
    step: float = 0.0


@functools.cache
def measure_rate() -> float:
    """Return the FLOP per second of a product of matrices in float32 on this machine."""
    x = np.ones((768, 768), np.float32)
    _ = x @ x  # the first is slower
    begun = time.perf_counter()
    for _ in range(3):
        _ = x @ x
    return 3 * 2 * 768**3 / max(time.perf_counter() - begun, 1e-6)


def estimate_methods(config: ConfigDict, found: FeatureSet, *, measured: bool = False) -> dict[str, Cost]:
    """Estimate the cost of every method by its name in lines, such as "nmtune paper".

    Args:
        config: of a run.
        found: its features.
        measured: time a training step of every method, which takes seconds; else count its operations.
    """
    return {
        name_method(method, preset, config): _estimate(config, found, method, preset, measured)
        for method, preset in methods.list_methods(config.tune)
    }


def name_method(method: str, preset: str | None, config: ConfigDict) -> str:
    return " ".join(filter(None, (method, methods.name_preset(preset, config.tune))))


def _estimate(config: ConfigDict, found: FeatureSet, method: str, preset: str | None, measured: bool) -> Cost:
    tune, kind = config.tune, methods.find(method)
    rows, dim, k = len(found.train.labels), found.train.features.dim, len(found.classes)
    settings_ = len(tune[kind.grid]) if kind.probe else len(tune.lrs) * len(tune.weight_decays)
    solve = _estimate_probe(rows, dim, k)
    if kind.probe or (methods.starts_from_probe(kind, tune) and not kind.mlp):
        values = settings_ if kind.probe else len(tune.cs)
        return Cost(solve * (1 + 0.2 * values), solve, values + 1)
    step = _measure_step(config, found, method, preset) if measured else _count_step(tune, kind, rows, dim, k)
    epochs, each = methods.count_epochs(rows, batch=tune.batch, epochs=tune.epochs, steps=tune.steps)
    patient = methods.is_patient(tune)
    share = STOPPED if tune.patience else 1.0
    full = epochs * each * step
    several = settings_ * (0.25 + 0.75 / 2) if tune.halving and settings_ > 1 else settings_
    choose = several * full * share * (1 - tune.validation) if patient or settings_ > 1 else 0.0
    start = 2 * solve if patient and methods.starts_from_probe(kind, tune) else 0.0
    return Cost(choose + start, full * share + start / 2, settings_ + 1, step)


def _estimate_probe(rows: int, dim: int, k: int) -> float:
    r = min(rows, dim)
    return (2 * (2 * rows * dim * r + 9 * r**3) + ITERATIONS * 4 * rows * r * k) / measure_rate()


def _count_step(tune: ConfigDict, kind: methods.Method, rows: int, dim: int, k: int) -> float:
    batch, width = min(tune.batch, rows), methods.build_form(kind, tune, dim, rows).width if kind.mlp else 0
    parameters = 2 * width * dim**2 * tune.depth + dim * k
    terms = 12 * batch**2 * dim + 40 * batch**3 if kind.terms else 0
    return 1e-3 + (6 * batch * parameters + terms) / measure_rate() + 40 * parameters / MEMORY


def _measure_step(config: ConfigDict, found: FeatureSet, method: str, preset: str | None) -> float:
    """Measure a step on the rows that fit into memory."""
    features, labels = found.train.features, found.train.labels
    most = min(len(labels), fit_in_memory(config.features.memory, features, 2 * config.tune.batch))
    block = features.rows(np.arange(most))
    how: dict[str, Any] = {"method": method, "preset": preset, "num_classes": len(found.classes)}
    trainer = ByGradient(block, labels[:most].astype(np.int32), **how, config=config.tune)
    return trainer.measure_step(most)


def estimate_parts(config: ConfigDict, cells: Mapping[str, ConfigDict]) -> dict[str, float]:
    """Return the expected seconds of every part of the runs: by run, stage and method, as the stages name them.

    Args:
        config: of the experiment.
        cells: the runs that are not done.
    """
    parts: dict[str, float] = {}
    first = next(iter(cells.values()), None)
    if first is None:
        return parts
    (found,) = open_feature_sets(first, Path())
    costs = estimate_methods(first, found)
    rows, dim, k = len(found.train.labels), found.train.features.dim, len(found.classes)
    spectra = sum(8 * len(s.labels) * dim * min(len(s.labels), dim) for s in (found.train, *found.tests))
    shared = first.tune.shared and bool(first.features.test)
    several = len(first.tune.shares) * len(first.tune.noises)
    for i, name in enumerate(cells):
        parts[f"{name}: features"] = len(first.extract.spectra) * spectra / measure_rate() + 0.5
        for method, cost in costs.items() if "tune" in config.stages else ():
            chosen = 0 if shared and i else cost.choose
            heads = 0 if shared and i and not cost.step else first.tune.seeds
            parts[f"{name}: {method}"] = several * (chosen + heads * cost.train)
        if "diagnose" in config.stages and not i:
            own = min(first.diagnose.rows, rows)
            probe = _estimate_probe(own, dim, k)
            tuned = 400 * _count_step(first.tune, methods.find("nmtune"), own, dim, k)
            parts[f"{name}: diagnose"] = first.diagnose.folds * (4 * probe + tuned)
    return parts


def describe(config: ConfigDict, cells: Mapping[str, ConfigDict]) -> list[str]:
    """Return lines on the files, the columns, the trainings and the time that they need, from measured steps."""
    first = next(iter(cells.values()))
    (found,) = open_feature_sets(first, Path())
    lines = []
    for split in (found.train, *found.tests):
        many = np.unique(split.labels).size
        lines.append(f"{split.name}: {len(split.labels):,} rows × {split.features.dim:,} features, {many} classes")
    whole = getattr(found.train.features, "whole", found.train.features)
    if columns := getattr(whole, "columns", ()):
        taken, left_out = (list_words(_few(names)) for names in (columns, getattr(whole, "left_out", ())))
        lines.append(f"columns taken: {taken}; left out: {left_out or 'none'}")
    costs = estimate_methods(first, found, measured=True)
    for name, cost in costs.items():
        step = f", {1000 * cost.step:.0f} ms a step" if cost.step else ""
        lines.append(
            f"{name}: {cost.trainings} trainings{step}; settings {format_seconds(cost.choose)}, "
            f"each head {format_seconds(cost.train)}"
        )
    shared = first.tune.shared and bool(first.features.test)
    trainings = sum(
        (cost.trainings - 1) * (1 if shared else len(cells)) + (1 if shared and not cost.step else len(cells))
        for cost in costs.values()
    )
    total = sum(estimate_parts(config, cells).values())
    quick = estimate_methods(first, found)
    heads = len(cells)
    total += sum(
        (costs[n].choose - quick[n].choose) * (1 if shared else heads) + (costs[n].train - quick[n].train) * heads
        for n in costs
        if costs[n].step
    )
    lines.append(f"{trainings} trainings in all, about {format_seconds(max(total, 1))} on this machine")
    return lines


def _few(names: Any) -> list[str]:
    shown = [str(name) for name in names]
    return shown if len(shown) <= 6 else [*shown[:3], "...", *shown[-2:]]
