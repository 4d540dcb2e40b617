"""Train heads on features (linear probe, MLP, NMTune, ...) -> rows, and the best heads as files."""

import dataclasses
import itertools
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from nml_jax import console, errors, ranges, settings
from nml_jax.assembly.feature_sets import open_feature_sets
from nml_jax.assembly.heads import tune_cost
from nml_jax.assembly.heads.samples import TREATMENTS, Sample, draw_samples, treat_suspects
from nml_jax.assembly.heads.scores import keep, make_diverged_row, make_hyper
from nml_jax.assembly.heads.training import Training, check_scored, choose_metric, list_own_methods, weigh_classes
from nml_jax.assembly.heads.wrong_labels import check_downstream_kind
from nml_jax.data.features.sets import Subset
from nml_jax.errors import UserError
from nml_jax.evals import correlations
from nml_jax.evals.baselines import find_baselines
from nml_jax.evals.separability import measure_separability
from nml_jax.models.heads.mlp import make_head
from nml_jax.processes import crew, forecast, peers
from nml_jax.runs.heads import correct_path, head_name, head_path, preset_label
from nml_jax.runs.predictions import predictions_path
from nml_jax.runs.record import name_run
from nml_jax.runs.rows import DIVERGED, Row, has_rows, holds_rows, read_rows, write_rows
from nml_jax.stages.stage import HEADS, Outputs, Stage
from nml_jax.tuning import methods, regression, select, spread
from nml_jax.tuning.holdout import check_choices

SILENT = 10  # seconds above which a method logs its time


def run(config: ConfigDict, workdir: Path, mesh: Mesh) -> str:
    """Tune with every method on every task's features and write the rows.

    The first process reads, chooses, scores and writes. Where heads are trained by gradient, all processes train.

    Heads other than k-NN are saved in `heads/<task>/` by method, preset and seed; predict.py applies them. For each
    head, runs/heads.py keeps which test rows are right. Until the stage ends, the rows of finished heads are in
    `tuning/`, so that an interrupted stage does not train them again. A method that diverges leaves a row of its own.
    Heads that an earlier start trained with the same settings are taken as they are. The rows of those that are not
    asked for now wait in `tuning/`.

    Returns:
        The digest of the rows.

    Raises:
        UserError: features are missing, damaged or not finite, or every method diverged.
    """
    if jax.process_index() > 0:
        with peers.track("heads of the first process"):
            crew.serve(spread.ACTIONS)
        return ""
    with crew.lead():
        return _run_first(config, workdir)


def _run_first(config: ConfigDict, workdir: Path) -> str:
    """Do the work of the first process, which orders the others to train with it."""
    rows: list[Row] = []
    _restore_finished(workdir)
    seeds = settings.repetition_seeds(config.seed, config.tune.seeds)
    for found in open_feature_sets(config, workdir):
        training, pairs = Training(config, found, seeds), list_own_methods(config, found)
        samples = treat_suspects(workdir.name, config, training, draw_samples(config, found))
        for j, sample in enumerate(samples):
            for i, (method, preset) in enumerate(pairs):
                name = tune_cost.name_part(workdir.name, tune_cost.name_method(method, preset, config), j)
                with peers.track(f"{found.task}: {method}, {i} of {len(pairs)} methods done"), forecast.part(name):
                    forecast.note(f"{i} of {len(pairs)} methods done")
                    rows += _tune_method(workdir, training, sample, method, preset)
                if method == "lbfgs" and config.features.train and not found.is_scored:
                    _tell_first_verdict(workdir, training, rows)
    if all(row.metric == DIVERGED for row in rows):
        raise UserError("training of every head diverged", "lower tune.lrs, or set tune.standardize for large features")
    with errors.report_disk_errors(workdir):
        write_rows(workdir, "tune", rows)
        for place in {_find_place(workdir, vars(row)) for row in rows}:
            shutil.rmtree(place)
        if not holds_rows(workdir / "tuning"):
            shutil.rmtree(workdir / "tuning")
    return settings.hash_json([[row.metric, row.split, row.method, preset_label(vars(row)), row.value] for row in rows])


def _restore_finished(workdir: Path) -> None:
    """Put the rows of heads that the stage has finished before, and whose files are there, back into `tuning/`."""
    heads: dict[Path, list[Row]] = {}
    for row in (row for row in read_rows(workdir) if row.stage == "tune"):
        heads.setdefault(_find_place(workdir, vars(row)), []).append(row)
    with errors.report_disk_errors(workdir):
        for place, rows in heads.items():
            if not has_rows(place) and all(path.exists() for path in list_needed(workdir, rows)):
                write_rows(place, "tune", rows)


def _find_place(workdir: Path, of: Mapping[str, Any]) -> Path:
    """Return the folder of a head's rows while the stage runs, from the fields of its rows."""
    return workdir / "tuning" / of["task"] / (of["layer"] or "features") / head_name(of)


def _tell_first_verdict(workdir: Path, training: Training, rows: list[Row]) -> None:
    """Print the accuracy of the L-BFGS probe on every test, beside what guessing gives there, and the separability.

    Seeds that share training rows and tests have the same verdict, which is printed once.
    """
    found = training.found
    run = f"{name_run(workdir)}: " * isinstance(found.train.features, Subset)  # each seed has other rows
    for test in found.tests:
        own = [r.value for r in rows if (r.method, r.metric, r.split) == ("lbfgs", "accuracy", test.name)]
        if own and not test.scoring:
            base = find_baselines(np.bincount(test.labels, minlength=len(found.classes)))
            console.notice_once(
                f"{run}first verdict: L-BFGS probe {100 * own[-1]:.1f} % on {test.name}; chance "
                f"{100 * base.chance['accuracy']:.1f} %, always {found.classes[base.answer]!r} "
                f"{100 * base.majority['accuracy']:.1f} %"
            )
    if len(found.train.features) <= training.shard:
        apart = measure_separability(training.whole[:, 0], found.train.labels)
        console.notice_once(
            f"{run}training rows: nearest class mean {100 * apart['class_mean_accuracy']:.1f} % "
            f"(leave-one-out), Fisher ratio {apart['fisher_ratio']:.3g}"
        )


def _tune_method(workdir: Path, training: Training, sample: Sample, method: str, preset: str | None) -> list[Row]:
    """Train, score and save a head of one method per seed, unless an earlier start did so; return the rows."""
    found = training.found
    views = found.train.features.views
    shared = {
        **found.origin, **sample.fields, "stage": "tune", "task": found.task, "method": method,
        "preset": methods.name_preset(preset, training.config.tune), "views": views,
    }  # fmt: skip
    heads_of = [{**shared, "head_seed": seed} for seed in training.seeds]
    places = [_find_place(workdir, {**head, "layer": found.layer}) for head in heads_of]
    if not all(has_rows(place) for place in places):
        begun = time.perf_counter()
        try:
            results = training.fit(sample.chosen, sample.labels, method, preset)
            for head, place, result in zip(heads_of, places, results, strict=True):
                own = {**head, "n_train": result.n_train, "hyper": make_hyper(result)}
                keep(workdir, place, found, own, result)
        except select.Diverged as e:
            console.notice(f"{name_run(workdir)}: {found.task}: {e.cause}; it is left out. {e.cure}")
            for head, place in zip(heads_of, places, strict=True):
                with errors.report_disk_errors(place):
                    write_rows(place, "tune", [make_diverged_row(head, found, len(sample.chosen))])
        if (seconds := time.perf_counter() - begun) > SILENT:
            what = f"{name_run(workdir)}: {found.task}, {' '.join(filter(None, (method, preset_label(shared))))}"
            console.notice(f"{what} took {console.format_seconds(seconds)}")
    treated = {"suspects": sample.fields.get("suspects")}  # an earlier start may not have looked for suspects
    return [dataclasses.replace(row, **treated) for place in places for row in read_rows(place)]


def differs(config: ConfigDict, rows: list[Row]) -> bool:
    """Return whether the rows are of other heads than those that the section `tune` asks for."""
    tune = config.tune
    treatments = {"keep", tune.suspects}
    presets = [(method, methods.name_preset(preset, tune)) for method, preset in methods.list_methods(tune)]
    seeds = settings.repetition_seeds(config.seed, tune.seeds)
    asked = {*itertools.product(presets, tune.shares, tune.noises, treatments, seeds)}
    found: dict[tuple[str, str | None], set[Any]] = {}
    for row in rows:
        head = ((row.method, row.preset), row.train_share, row.downstream_noise, row.suspects or "keep", row.head_seed)
        found.setdefault((row.task, row.layer), set()).add(head)
    return not found or any(asked != heads for heads in found.values())


def check(config: ConfigDict, mesh: Mesh, *, data: bool = True) -> None:
    """Check the methods, the shares, the rates of wrong labels and the choices of settings."""
    for method, preset in methods.list_methods(config.tune):
        methods.choose_weights(method, preset, config.tune, views=config.extract.views)
        check_choices(config.tune.validation, {f"tune.{key}": config.tune[key] for key in methods.make_grid(method)})
        make_head(methods.build_form(methods.find(method), config.tune), 2)
    ranges.require_shares("tune", config.tune, "shares")
    ranges.require_shares("tune", config.tune, "noises", zero=True)
    if config.tune.metric == "log_loss" and (bare := [m for m in config.tune.methods if not methods.find(m).logits]):
        raise UserError(
            f"tune.metric=log_loss needs probabilities, and {console.list_words(bare)} has none",
            "leave it out of tune.methods, or choose another metric",
        )
    unweighted = [name for name in config.tune.methods if not methods.find(name).weighted]
    if config.tune.class_weight and unweighted:
        console.notice_once(f"tune.class_weight: {console.list_words(unweighted)} takes no weights")
    if data and config.features.train:
        for found in open_feature_sets(config, Path()):
            if found.is_scored:
                check_scored(config, found)
                regression.check_methods(config.tune.methods)
            weigh_classes(config, found, found.train.labels)
            choose_metric(config, found)
    if config.tune.suspects not in TREATMENTS:
        raise UserError(f"tune.suspects={config.tune.suspects!r}", f"choose one of {', '.join(TREATMENTS)}")
    check_downstream_kind(config)


def list_needed(workdir: Path, rows: list[Row]) -> set[Path]:
    """List the heads that the rows refer to, and the files of correct test rows."""
    rows = [row for row in rows if not row.spectrum_mode and row.metric != DIVERGED]
    saved = {head_path(workdir, vars(row)) for row in rows if row.method != "knn"}
    numbers = {name + end for name in correlations.SCORES for end in ("", correlations.UNDEFINED)}
    return saved | {(predictions_path if row.metric in numbers else correct_path)(workdir, vars(row)) for row in rows}


STAGE = Stage(
    name="tune",
    version=5,
    keys=("seed", "downstream", "extract", "features", "tune"),
    upstream=("extract", "features"),
    outputs=Outputs(("heads", "tuning", "correct/tune", "confusion/tune", "predictions/tune"), list_needed),
    check=check,
    run=run,
    lists=HEADS,
    differs=differs,
)
