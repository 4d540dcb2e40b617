"""Estimate what the stages on features from files cost, before they run: rows, trainings and their time."""

import functools
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from nml_jax.assembly.feature_sets import fit_in_memory, open_feature_sets
from nml_jax.assembly.suspects import FOLDS
from nml_jax.console import format_seconds, list_words
from nml_jax.data.features.sets import FeatureSet
from nml_jax.tuning import methods
from nml_jax.tuning.diagnosis import CS, make_config
from nml_jax.tuning.label_errors import MOST, TUNED
from nml_jax.tuning.trainers.gradient import ByGradient
from nml_jax.tuning.trainers.trainer import Problem

# Measured on two quiet cores with 1,000 × 512, 3,000 × 1,536, 20,000 × 768 and 1,000 × 3,072 rows and features.
SOLVED, NEXT = 28, 20  # evaluations of L-BFGS for one penalty, and for the next one on the same path
DOUBLE, EIGEN, QR, THIN = 2, 3, 10, 3  # how many times slower than `measure_rate`: float64, eigh, QR, few columns
TERMS = 5, 6  # the same for the terms of NMTune: products of matrices, and what is cubic in the batch
MEMORY = 1e10  # bytes per second at which AdamW reads and writes
CALL = 1e-3  # seconds of a step or an evaluation besides
STOPPED = 0.3  # share of the most epochs that early stopping leaves, from random weights: a guess
BEST = 120  # steps after which validation is best, from a probe: 20 to 150 in three files, see docs/benchmarks.md
COMPILED = 1.5  # seconds to compile a training step
SAMPLE = " on version "  # between a method and the number of what it is trained on, in the name of a part
READ = 0.5  # seconds to read the files
REPORT = 6.0  # seconds to draw the report


class Cost(NamedTuple):
    """The cost of a method, without that of the L-BFGS probe, which several methods share.

    choose: seconds to choose its settings, and its temperature with `tune.calibrate`.
    train: seconds to train a head and to score it.
    settings: trainings by which these are chosen.
    probe: whether it is a solved probe, or starts from one.
    step: seconds of a training step; 0 for methods that are solved.
    searched, kept: epochs by which settings are chosen, and those of a head.
    """

    choose: float
    train: float
    settings: int
    probe: bool = False
    step: float = 0.0
    searched: float = 0.0
    kept: float = 0.0


class Part(NamedTuple):
    """A part of the job: expected seconds, and the trainings and epochs in it."""

    seconds: float
    trainings: int = 0
    epochs: float = 0.0


@functools.cache
def measure_rate() -> float:
    """Return the FLOP per second of a product of matrices in float32 on this machine."""
    x = np.ones((768, 768), np.float32)
    _ = x @ x  # the first is slower
    times = []
    for _ in range(5):  # the median, as others may be at work on this machine
        begun = time.perf_counter()
        _ = x @ x
        times.append(time.perf_counter() - begun)
    return 2 * 768**3 / max(statistics.median(times), 1e-6)


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


def name_part(run: str, method: str, sample: int) -> str:
    """Return the name of the part that trains a method in a run on one of its samples of the training rows, from 0."""
    return f"{run}: {method}{f'{SAMPLE}{sample + 1} of the rows' if sample else ''}"


def _estimate(config: ConfigDict, found: FeatureSet, method: str, preset: str | None, measured: bool) -> Cost:
    tune, kind = config.tune, methods.find(method)
    rows, dim, k = len(found.train.labels), found.train.features.dim, len(found.classes)
    settings_ = len(tune[kind.grid]) if kind.probe else len(tune.lrs) * len(tune.weight_decays)
    from_probe = methods.starts_from_probe(kind, tune)
    plain = next((name for name in tune.methods if not methods.find(name).mlp), "")
    score = _estimate_scores(found) if kind.mlp or method == plain else 0.0  # heads without an MLP share their spectra
    more = int(tune.calibrate and kind.logits)  # a head by which the temperature is found
    if methods.is_solved(kind, tune):
        solve = 0.0 if kind.grid == "cs" or from_probe else _estimate_probe(rows, dim, k)
        settings_ = (settings_ if kind.probe else len(tune.cs)) + more
        return Cost(solve + more * _estimate_probe(rows, dim, k), score, settings_, probe=not solve)
    step = _measure_step(config, found, method, preset) if measured else _count_step(tune, kind, rows, dim, k)
    epochs, each = methods.count_epochs(rows, batch=tune.batch, epochs=tune.epochs, steps=tune.steps)
    searched, kept = _expect_epochs(tune, epochs, each)
    chosen = settings_ if methods.is_patient(tune) or settings_ > 1 else 0
    widened = int(tune.widen and len(tune.lrs) > 1)  # the best rate is mostly at an edge
    searched = (chosen + widened) * searched + more * kept
    choose = COMPILED + searched * each * step * (1 - tune.validation)
    return Cost(choose, kept * each * step + score, chosen + widened + more, from_probe, step, searched, kept)


def _expect_epochs(tune: Any, epochs: int, each: int) -> tuple[float, float]:
    """Return the epochs that a setting is expected to get in the search, on average, and those of a head."""
    if not tune.patience:
        halved = 0.25 + 0.75 / 2 if tune.halving else 1.0
        return halved * epochs, epochs
    best = max(1.0, BEST / each) if tune.start == "probe" else STOPPED * epochs
    stopped = min(best + methods.count_patience(tune, each), epochs)
    quarter = min(stopped, epochs / 4)
    return (quarter + stopped) / 2 if tune.halving else stopped, min(best, epochs)


def _estimate_scores(found: FeatureSet) -> float:
    """Estimate the seconds to score a head on every test and to measure the spectrum of its output."""
    return sum(_estimate_spectrum(len(test.labels), test.features.dim) for test in found.tests)


def _estimate_spectrum(rows: int, dim: int) -> float:
    return 8 * rows * dim * min(rows, dim) / measure_rate()


def _estimate_probe(rows: int, dim: int, k: int, penalties: int = 1, *, times: int = 1) -> float:
    """Estimate the seconds to solve a path of penalties.

    Args:
        times: how many times slower products of matrices are.
    """
    r, rate = min(rows, dim), measure_rate()
    span = (4 * QR + 2 * DOUBLE) * dim * r**2 if rows < dim else 0.0
    rotation = times * (4 * DOUBLE * rows * r**2 + 9 * EIGEN * r**3 + span) / rate
    each = CALL + 4 * THIN * rows * r * k / rate + 16 * rows * r / MEMORY
    return rotation + (SOLVED + NEXT * (penalties - 1)) * each


def _count_step(tune: Any, kind: methods.Method, rows: int, dim: int, k: int) -> float:
    batch, width = min(tune.batch, rows), methods.build_form(kind, tune, dim, rows).width if kind.mlp else 0
    parameters = 2 * width * dim**2 * tune.depth + dim * k
    terms = 12 * TERMS[0] * batch**2 * dim + 40 * TERMS[1] * batch**3 if kind.terms else 0
    return CALL + (6 * batch * parameters + terms) / measure_rate() + 40 * parameters / MEMORY


def _as_labels(labels: np.ndarray) -> np.ndarray:
    """Return labels in the type that trainers take them in."""
    return labels.astype(np.float32 if labels.dtype.kind == "f" else np.int32)


def _measure_step(config: ConfigDict, found: FeatureSet, method: str, preset: str | None) -> float:
    """Measure a step on the rows that fit into memory."""
    features, labels = found.train.features, found.train.labels
    most = min(len(labels), fit_in_memory(config.features.memory, features, 2 * config.tune.batch))
    block = features.rows(np.arange(most))
    problem = Problem(block, _as_labels(labels[:most]), method, preset, len(found.classes), config.tune)
    return ByGradient(problem).measure_step(most)


def estimate_parts(
    config: ConfigDict, cells: Mapping[str, ConfigDict], costs: Mapping[str, Cost] | None = None
) -> dict[str, Part]:
    """Estimate every part of the runs, by run, stage and method, as the stages name them.

    Args:
        config: of the experiment.
        cells: the runs that are not done.
        costs: as `estimate_methods` returns them; None: estimate them.
    """
    parts: dict[str, Part] = {}
    first = next(iter(cells.values()), None)
    if first is None:
        return parts
    (found,) = open_feature_sets(first, Path())
    tune, rows, dim, k = first.tune, len(found.train.labels), found.train.features.dim, len(found.classes)
    costs = estimate_methods(first, found) if costs is None else costs
    spectra = sum(_estimate_spectrum(len(s.labels), dim) for s in (found.train, *found.tests))
    shared, treated = tune.shared and bool(first.features.test), tune.suspects != "keep"
    for i, name in enumerate(cells):
        again = shared and i > 0
        # Spectra of whole files are measured once; without a test file every run has other rows.
        parts[f"{name}: features"] = Part(0.0 if i and shared else len(first.extract.spectra) * spectra + READ)
        if treated:
            parts[f"{name}: suspects"] = Part(len(tune.shares) * len(tune.noises) * _estimate_judging(rows, dim, k))
        for j, share in enumerate(np.repeat(tune.shares, (1 + treated) * len(tune.noises)).tolist()):
            solve = 0.0 if again else _estimate_probe(rows, dim, k, len(tune.cs)) + _estimate_probe(rows, dim, k)
            for method, cost in costs.items():
                own = _estimate_part(tune, cost, again)
                if cost.probe:
                    own, solve = own._replace(seconds=own.seconds + solve), 0.0  # the next method finds it solved
                parts[name_part(name, method, j)] = own._replace(seconds=share * own.seconds)
        if "diagnose" in config.stages and not i:
            parts[f"{name}: diagnose"] = _estimate_diagnosis(first, rows, dim, k)
    return parts | ({"report": Part(REPORT)} if "report" in config.stages else {})


def _estimate_part(tune: Any, cost: Cost, again: bool) -> Part:
    """Estimate a method in one run, on all rows; `again`: its settings were chosen in another run."""
    heads = 0 if again and not cost.step else tune.seeds if cost.step else 1
    seconds, epochs = tune.seeds * cost.train, tune.seeds * cost.kept
    if again:
        return Part(seconds, heads, epochs)
    return Part(seconds + cost.choose, heads + cost.settings, epochs + cost.searched)


def _estimate_diagnosis(config: ConfigDict, rows: int, dim: int, k: int) -> Part:
    """Estimate the stage diagnose: its cross-validation, two spectra, and the judgement of labels."""
    measured = 2 * _estimate_spectrum(rows, dim) + _estimate_judging(rows, dim, k)
    if not (folds := config.diagnose.folds):
        return Part(measured)
    train, tune = min(config.diagnose.rows, rows) * (folds - 1) // folds, make_config(config.diagnose.start)
    epochs, each = methods.count_epochs(train, batch=tune.batch, epochs=tune.epochs, steps=tune.steps)
    searched, kept = _expect_epochs(tune, epochs, each)
    searched = searched if methods.is_patient(tune) else 0.0
    step = _count_step(tune, methods.find("nmtune"), train, dim, k)
    tuned = (searched * (1 - tune.validation) + kept) * each * step + COMPILED
    probe = _estimate_probe(train, dim, k, len(CS)) + _estimate_probe(train, dim, k)
    return Part(measured + folds * (probe + tuned), epochs=folds * (searched + kept))


def _estimate_judging(rows: int, dim: int, k: int) -> float:
    """Estimate the seconds to judge labels: the probe on folds for a path of penalties, and on all of them again."""
    train, paths = min(MOST, rows * 4 // FOLDS), min(FOLDS, -(-TUNED * FOLDS // rows))
    one = _estimate_probe(train, dim, k, times=2)  # on one core
    return paths * _estimate_probe(train, dim, k, len(CS) - 1, times=2) + (2 * FOLDS - paths) * one


def describe(config: ConfigDict, cells: Mapping[str, ConfigDict]) -> list[str]:
    """Return lines on the files, the columns, the trainings and the time that they need, from measured steps."""
    first = next(iter(cells.values()))
    (found,) = open_feature_sets(first, Path())
    lines = []
    for split in (found.train, *found.tests):
        many = "scores" if found.is_scored else f"{np.unique(split.labels).size} classes"
        lines.append(f"{split.name}: {len(split.labels):,} rows × {split.features.dim:,} features, {many}")
    whole = getattr(found.train.features, "whole", found.train.features)
    if columns := getattr(whole, "columns", ()):
        taken, left_out = (list_words(_few(names)) for names in (columns, getattr(whole, "left_out", ())))
        lines.append(f"columns taken: {taken}; left out: {left_out or 'none'}")
    costs = estimate_methods(first, found, measured=True)
    parts = estimate_parts(config, cells, costs)
    for name, cost in costs.items():
        step = f", {1000 * cost.step:.0f} ms a step" if cost.step else ""
        own = [part for where, part in parts.items() if where.partition(": ")[2].partition(SAMPLE)[0] == name]
        seconds, trainings = sum(part.seconds for part in own), sum(part.trainings for part in own)
        lines.append(f"{name}: {trainings} trainings{step}, {format_seconds(max(seconds, 1))}")
    seconds, trainings = sum(part.seconds for part in parts.values()), sum(part.trainings for part in parts.values())
    lines.append(f"{trainings} trainings in all, about {format_seconds(max(seconds, 1))} on this machine")
    return lines


def _few(names: Any) -> list[str]:
    shown = [str(name) for name in names]
    return shown if len(shown) <= 6 else [*shown[:3], "...", *shown[-2:]]
