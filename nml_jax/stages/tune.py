"""Train heads on features (linear probe, MLP, NMTune, ...) -> rows, and the best heads as files."""

import collections
import functools
import hashlib
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from nml_jax import console, errors, noise, settings
from nml_jax.assembly import tune_cost
from nml_jax.assembly.feature_sets import fit_in_memory, open_feature_sets
from nml_jax.assembly.spectra import make_rows, singular_values
from nml_jax.assembly.suspects import judge_rows
from nml_jax.data.class_weights import find_class_weights
from nml_jax.data.features.sets import FeatureSet, Split, Subset
from nml_jax.data.stratify import draw_stratified
from nml_jax.errors import UserError
from nml_jax.evals.baselines import find_baselines
from nml_jax.evals.mapped import Scorer
from nml_jax.evals.metrics import check_classes, find_metric
from nml_jax.evals.separability import measure_separability
from nml_jax.models.heads.mlp import make_head
from nml_jax.processes import crew, forecast, peers
from nml_jax.runs.heads import (
    confusion_path,
    correct_path,
    head_name,
    head_path,
    preset_label,
    write_confusions,
    write_correct,
)
from nml_jax.runs.predictions import Predictions, predictions_path, write_predictions
from nml_jax.runs.record import name_run
from nml_jax.runs.rows import DIVERGED, UNVALIDATED, Row, has_rows, read_rows, write_rows
from nml_jax.stages.stage import Outputs, Stage
from nml_jax.tasks import catalogue
from nml_jax.tuning import methods, select, spread, streamed
from nml_jax.tuning.head_file import TunedHead
from nml_jax.tuning.holdout import Demands, check_choices
from nml_jax.tuning.label_errors import LIMIT, LabelErrors
from nml_jax.tuning.trainers import make_trainer

SILENT = 10  # seconds above which a method logs its time
KEPT = 64  # results that runs of a process share
TREATMENTS = ("keep", "drop", "relabel")  # of likely wrong labels
SOLVED = 4  # heads in closed form need eight times the memory of their rows, so their limit is divided by this


def run(config: ConfigDict, workdir: Path, mesh: Mesh) -> str:
    """Tune with every method on every task's features and write the rows.

    The first process reads, chooses, scores and writes. Where heads are trained by gradient, all processes train.

    Heads other than k-NN are saved in `heads/<task>/` by method, preset and seed; predict.py applies them. For each
    head, runs/heads.py keeps which test rows are right. Until the stage ends, the rows of finished heads are in
    `tuning/`, so that an interrupted stage does not train them again. A method that diverges leaves a row of its own.

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
    seeds, pairs = settings.repetition_seeds(config.seed, config.tune.seeds), list(methods.list_methods(config.tune))
    for found in open_feature_sets(config, workdir):
        training = Training(config, found, seeds)
        for sample in _treat_suspects(workdir.name, config, training, _draw_samples(config, found)):
            for i, (method, preset) in enumerate(pairs):
                name = f"{workdir.name}: {tune_cost.name_method(method, preset, config)}"
                with peers.track(f"{found.task}: {method}, {i} of {len(pairs)} methods done"), forecast.part(name):
                    forecast.note(f"{i} of {len(pairs)} methods done")
                    rows += _tune_method(workdir, training, sample, method, preset)
                if method == "lbfgs" and config.features.train:
                    _tell_first_verdict(workdir, training, rows)
    if all(row.metric == DIVERGED for row in rows):
        raise UserError("training of every head diverged", "lower tune.lrs, or set tune.standardize for large features")
    with errors.report_disk_errors(workdir):
        write_rows(workdir, "tune", rows)
        shutil.rmtree(workdir / "tuning")
    return settings.hash_json([[row.metric, row.split, row.method, preset_label(vars(row)), row.value] for row in rows])


def _tell_first_verdict(workdir: Path, training: "Training", rows: list[Row]) -> None:
    """Print the accuracy of the L-BFGS probe on every test, beside what guessing gives there, and the separability."""
    found = training.found
    for test in found.tests:
        own = [r.value for r in rows if (r.method, r.metric, r.split) == ("lbfgs", "accuracy", test.name)]
        if own and not test.scoring:
            base = find_baselines(np.bincount(test.labels, minlength=len(found.classes)))
            console.notice(
                f"{name_run(workdir)}: first verdict: L-BFGS probe {100 * own[-1]:.1f} % on {test.name}; chance "
                f"{100 * base.chance['accuracy']:.1f} %, always {found.classes[base.answer]!r} "
                f"{100 * base.majority['accuracy']:.1f} %"
            )
    if len(found.train.features) <= training.shard:
        apart = measure_separability(training.whole[:, 0], found.train.labels)
        console.notice(
            f"{name_run(workdir)}: training rows: nearest class mean {100 * apart['class_mean_accuracy']:.1f} % "
            f"(leave-one-out), Fisher ratio {apart['fisher_ratio']:.3g}"
        )


class Training:
    """Training of heads on the features of one task: in memory, or streamed if they do not fit."""

    def __init__(self, config: ConfigDict, found: FeatureSet, seeds: Sequence[int]):
        self.config, self.found, self.seeds = config, found, seeds
        self.shard = fit_in_memory(config.features.memory, found.train.features, 2 * config.tune.batch)

    @functools.cached_property
    def whole(self) -> np.ndarray:
        """Read all training features into memory, once."""
        return self.found.train.features.read()

    def fit(self, chosen: np.ndarray, labels: np.ndarray, method: str, preset: str | None) -> list[select.HeadResult]:
        """Train a head per seed on the chosen rows."""
        how: dict[str, Any] = {"method": method, "preset": preset, "num_classes": len(self.found.classes),
                               "config": self.config.tune, "seeds": self.seeds,
                               "demands": self.find_demands(chosen, labels)}  # fmt: skip
        rows = self.found.train.features
        solved = bool(methods.find(method).probe)
        if len(rows) <= self.shard and not (solved and len(chosen) > self.shard // SOLVED):
            everything = len(chosen) == len(rows)  # then no copy is needed
            part = self.whole if everything else self.whole[chosen]
            return _fit_shared(part, labels, how) if self.config.tune.shared else select.fit_seeds(part, labels, **how)
        part = Subset(rows, chosen)
        return streamed.fit_seeds(part, labels, shard=self.shard // (SOLVED if solved else 2), **how)

    def find_demands(self, chosen: np.ndarray, labels: np.ndarray) -> Demands:
        """Return what heads on the chosen rows with these labels are to be good at."""
        groups = self.found.train.groups
        weights = weigh_classes(self.config, self.found, labels)
        return Demands(choose_metric(self.config, self.found), weights, None if groups is None else groups[chosen])


def choose_metric(config: ConfigDict, found: FeatureSet) -> str:
    """Return the metric that decides; "" for accuracy that is only the task's own. Say which class F1 is about.

    Raises:
        UserError: it is not one of so many classes.
    """
    metric = find_metric(config.tune.metric, catalogue.find_metric(found.task))
    check_classes(metric, len(found.classes), ordered=bool(found.tests[0].scoring.get("ordered")))
    if metric == "f1":
        console.notice_once(f"F1 is that of {found.classes[1]!r}, not of {found.classes[0]!r} (features.positive)")
    return metric


def weigh_classes(config: ConfigDict, found: FeatureSet, labels: np.ndarray) -> np.ndarray | None:
    """Return the weights of the classes, float64 [K]; None if all are 1.

    Raises:
        UserError: `tune.class_weight` does not fit the classes.
    """
    return find_class_weights(config.tune.class_weight, labels, found.classes, what="tune.class_weight")


_shared: dict[str, Any] = {}  # what the runs of this process share: by rows, method and settings


def _fit_shared(features: np.ndarray, labels: np.ndarray, how: dict[str, Any]) -> list[select.HeadResult]:
    """Train heads whose settings are chosen once, on the split of seed 0, for all runs with these training rows."""
    config, seeds = how["config"], how["seeds"]
    rows = hashlib.blake2b(np.ascontiguousarray(features).data).hexdigest()
    asked = {**settings.to_json(config), "seeds": 0}
    demands = [None if x is None else np.asarray(x).tolist() for x in how["demands"]]
    key = settings.hash_json([rows, labels.tolist(), how["method"], how["preset"], how["num_classes"], asked, demands])
    if key not in _shared:
        if len(_shared) >= KEPT:
            _shared.pop(next(iter(_shared)))
        X, y = select.check_features(features, labels, how["num_classes"])
        one = {name: how[name] for name in ("method", "preset", "num_classes", "config", "demands")}
        trainer = make_trainer(X, y, **one)
        hypers, validation = select.choose(trainer, X, y, config=config, seeds=(0,))
        _shared[key] = hypers[0], validation[0]
    if not methods.find(how["method"]).probe or not config.refit:
        return select.fit_seeds(features, labels, **how, chosen=_shared[key])
    solved = f"{key} solved"  # no seed decides anything about it
    if solved not in _shared:
        (_shared[solved],) = select.fit_seeds(features, labels, **{**how, "seeds": (0,)}, chosen=_shared[key])
    return [_shared[solved]] * len(seeds)


class Sample(NamedTuple):
    """The rows and labels that heads are trained on.

    chosen: indices of training rows, int [N].
    labels: their labels, possibly wrong, int [N].
    fields: the fields of a row that identify the sample.
    input_spectra: see `_measure_head`; shared by all samples of the same rows.
    """

    chosen: np.ndarray
    labels: np.ndarray
    fields: dict[str, Any]
    input_spectra: dict[tuple[int, str], np.ndarray]


def _draw_samples(config: ConfigDict, found: FeatureSet) -> Iterator[Sample]:
    """Yield every share of the training rows with every rate of wrong labels."""
    for share in config.tune.shares:
        chosen = draw_stratified(found.train.labels, share, config.seed)
        input_spectra: dict[tuple[int, str], np.ndarray] = {}
        for rate in config.tune.noises:
            fields = {"train_share": share, "downstream_noise": rate}
            yield Sample(chosen, _corrupt_labels(found, chosen, rate, config), fields, input_spectra)


def _treat_suspects(name: str, config: ConfigDict, training: Training, samples: Iterator[Sample]) -> Iterator[Sample]:
    """Yield every sample as it is, and without its likely wrong labels, or with likely ones in place of them.

    They are looked for among the training rows alone: the tests keep their labels. A class keeps its rows if all are
    suspects. `name` is that of the run.

    Raises:
        UserError: the features do not fit into memory, or there are too few rows of each class.
    """
    for sample in samples:
        if config.tune.suspects == "keep":
            yield sample
            continue
        yield sample._replace(fields=sample.fields | {"suspects": "keep"})
        with forecast.part(f"{name}: suspects"):
            found = _find_suspects(training, sample)
        bad = found.wrong > LIMIT
        if len(emptied := np.setdiff1d(sample.labels, sample.labels[~bad])):
            names = console.list_words(str(training.found.classes[c]) for c in emptied)
            console.notice(f"all rows of {names} are suspects; they stay as they are")
            bad &= ~np.isin(sample.labels, emptied)
        console.notice(f"{training.found.task}: {config.tune.suspects} {bad.sum():,} suspects of {len(bad):,} rows")
        sample = sample._replace(fields=sample.fields | {"suspects": config.tune.suspects})
        if config.tune.suspects == "relabel":
            yield sample._replace(labels=np.where(bad, found.likely, sample.labels).astype(np.int32))
        else:
            yield sample._replace(chosen=sample.chosen[~bad], labels=sample.labels[~bad], input_spectra={})


def _find_suspects(training: Training, sample: Sample) -> LabelErrors:
    """Judge the labels of a sample."""
    rows, most = training.found.train.features, training.shard
    if len(sample.chosen) > most:
        cause = f"tune.suspects needs {len(sample.chosen):,} rows in memory, and {most:,} fit"
        raise UserError(cause, "raise features.memory, or set tune.suspects=keep")
    part, groups = Subset(rows, sample.chosen), training.found.train.groups
    own = None if groups is None else groups[sample.chosen]
    return judge_rows(part, sample.labels, training.found.classes, most=most, groups=own)


def _tune_method(workdir: Path, training: Training, sample: Sample, method: str, preset: str | None) -> list[Row]:
    """Train, score and save a head of one method per seed, unless an earlier start did so; return the rows."""
    found = training.found
    views = found.train.features.views
    shared = {
        **found.origin, **sample.fields, "stage": "tune", "task": found.task, "method": method,
        "preset": methods.name_preset(preset, training.config.tune), "views": views,
    }  # fmt: skip
    heads_of = [{**shared, "head_seed": seed} for seed in training.seeds]
    places = [workdir / "tuning" / found.task / found.layer / head_name(head) for head in heads_of]
    if not all(has_rows(place) for place in places):
        begun = time.perf_counter()
        try:
            results = training.fit(sample.chosen, sample.labels, method, preset)
            for head, place, result in zip(heads_of, places, results, strict=True):
                own = {**head, "n_train": result.n_train, "hyper": _make_hyper(result)}
                _keep(workdir, place, found, own, result, sample.input_spectra)
        except select.Diverged as e:
            console.notice(f"{name_run(workdir)}: {found.task}: {e.cause}; it is left out. {e.cure}")
            for head, place in zip(heads_of, places, strict=True):
                with errors.report_disk_errors(place):
                    write_rows(place, "tune", [_make_diverged_row(head, found, len(sample.chosen))])
        if (seconds := time.perf_counter() - begun) > SILENT:
            what = f"{name_run(workdir)}: {found.task}, {' '.join(filter(None, (method, preset_label(shared))))}"
            console.notice(f"{what} took {console.format_seconds(seconds)}")
    return [row for place in places for row in read_rows(place)]


def check(config: ConfigDict, mesh: Mesh, *, data: bool = True) -> None:
    """Check the methods, the shares, the rates of wrong labels and the choices of settings."""
    for method, preset in methods.list_methods(config.tune):
        methods.choose_weights(method, preset, config.tune, views=config.extract.views)
        check_choices(config.tune.validation, {f"tune.{key}": config.tune[key] for key in methods.make_grid(method)})
        make_head(methods.build_form(methods.find(method), config.tune), 2)
    for key, words in (("shares", "above 0 and up to 1"), ("noises", "from 0 to 1")):
        values = config.tune[key]
        good = all(isinstance(x, (int, float)) and 0 <= x <= 1 and (x or key == "noises") for x in values)
        if not good or not 0 < len(values) == len(
            {f"{x:g}" for x in values}
        ):  # distinct as they appear in the file names of heads
            raise UserError(f"tune.{key} must be a tuple of distinct shares {words}, got {values}",
                            f"give at least one, as in --config.tune.{key}='(1.0,)'")  # fmt: skip
    if config.tune.metric == "log_loss" and (bare := [m for m in config.tune.methods if not methods.find(m).logits]):
        raise UserError(
            f"tune.metric=log_loss needs probabilities, and {console.list_words(bare)} has none",
            "leave it out of tune.methods, or choose another metric",
        )
    unweighted = [name for name in config.tune.methods if not methods.find(name).weighted]
    if config.tune.class_weight and unweighted:
        console.notice_once(f"tune.class_weight: {console.list_words(unweighted)} takes no weights")
    if data and config.features.train and (config.tune.class_weight or config.tune.metric == "f1"):
        for found in open_feature_sets(config, Path()):
            weigh_classes(config, found, found.train.labels)
            choose_metric(config, found)
    if config.tune.suspects not in TREATMENTS:
        raise UserError(f"tune.suspects={config.tune.suspects!r}", f"choose one of {', '.join(TREATMENTS)}")
    kinds = [kind for kind in noise.KINDS if noise.list_arguments(kind) == ("rate",)]
    if config.tune.noise_kind not in kinds:
        raise UserError(f"tune.noise_kind={config.tune.noise_kind!r}", f"choose {' or '.join(kinds)}")


def list_needed(workdir: Path, rows: list[Row]) -> set[Path]:
    """List the heads that the rows refer to, and the files of correct test rows."""
    rows = [row for row in rows if not row.spectrum_mode and row.metric != DIVERGED]
    saved = {head_path(workdir, vars(row)) for row in rows if row.method != "knn"}
    return saved | {correct_path(workdir, vars(row)) for row in rows}


def _corrupt_labels(found: FeatureSet, chosen: np.ndarray, rate: float, config: ConfigDict) -> np.ndarray:
    """Return the labels of the chosen rows, int32 [N]. The share `rate` of them is wrong."""
    labels = found.train.labels[chosen]
    if not rate:
        return labels
    kind = config.tune.noise_kind
    noisy = noise.corrupt_labels(labels, num_classes=len(found.classes), kind=kind, rate=rate, seed=config.seed)
    return np.asarray(noisy, np.int32)


def _keep(
    workdir: Path,
    place: Path,
    found: FeatureSet,
    shared: dict[str, Any],
    result: select.HeadResult,
    input_spectra: dict[tuple[int, str], np.ndarray],
) -> None:
    """Score a head; save it, which test rows it gets right, and last its rows. Their presence marks it complete."""
    measured, scorers = _measure_head(result, found, shared, input_spectra)
    where = shared | {"layer": found.layer}
    write_correct(correct_path(workdir, where), {test: scorer.correct for test, scorer in scorers.items()})
    write_confusions(confusion_path(workdir, where), {test: scorer.confusion for test, scorer in scorers.items()})
    answers = {test: _list_predictions(scorer) for test, scorer in scorers.items()}
    write_predictions(predictions_path(workdir, where), answers)
    _save(result.head, found, workdir, shared)
    with errors.report_disk_errors(place):
        write_rows(place, "tune", measured)


def _list_predictions(scorer: Scorer) -> Predictions:
    """Return what a head answered to a test, for its file."""
    answers = scorer.answers
    return Predictions(answers.labels, answers.predictions, *scorer.soft)


def _make_hyper(result: select.HeadResult) -> dict[str, float]:
    """Return the chosen settings for the rows, and whether they were chosen without validation."""
    return result.hyper | ({UNVALIDATED: 1.0} if result.unvalidated else {})


def _make_diverged_row(head: dict[str, Any], found: FeatureSet, n: int) -> Row:
    """Return the row of a head that diverged on `n` training rows."""
    return Row(**head, n_train=n, split="train", domain="id", layer=found.layer, metric=DIVERGED, value=1.0)


def _measure_head(
    result: select.HeadResult,
    found: FeatureSet,
    shared: dict[str, Any],
    input_spectra: dict[tuple[int, str], np.ndarray],
) -> tuple[list[Row], dict[str, Scorer]]:
    """Return the rows of a head's scores and of the spectrum of its Z, and the scorer of each test.

    Args:
        input_spectra: (training rows, test) -> the spectrum of the inputs. Without an MLP, Z is the input, so all such
            heads share this spectrum. The first of them computes it.
    """
    rows, scorers = [], {}
    for test in found.tests:
        where = {"split": test.name, "domain": test.domain, "n_test": len(test.labels), "layer": found.layer}
        soft = {"soft": methods.find(shared["method"]).logits, "temperature": getattr(result.head, "temperature", 1.0)}
        scorer = Scorer(len(found.classes), **test.scoring, **soft)

        def transform_blocks(test: Split = test, scorer: Scorer = scorer) -> Iterator[np.ndarray]:
            for features, labels in test.blocks():
                Z, logits = result.outputs(features)
                select.require_finite(shared["method"], logits)
                scorer.update(labels, logits)
                yield Z

        key = None if methods.find(shared["method"]).mlp else (result.n_train, test.name)
        if key in input_spectra:
            s = input_spectra[key]
            collections.deque(transform_blocks(), maxlen=0)
        else:
            s = singular_values(transform_blocks(), len(test.labels), test.features.dim, "paper")
        if key:
            input_spectra[key] = s
        scorers[test.name] = scorer
        rows += [Row(**shared, **where, metric=metric, value=value)
                 for metric, value in scorer.scores().items()]  # fmt: skip
        rows += make_rows(s, **shared, **where, output="Z", spectrum_mode="paper")
    return rows, scorers


def _save(head: Any, found: FeatureSet, workdir: Path, shared: dict[str, Any]) -> None:
    """Save a head to a file whose name identifies it within the run."""
    if not isinstance(head, TunedHead):
        return
    keys = ("task", "method", "preset", "hyper", "n_train", "head_seed", "model", "views")
    about = {key: shared[key] for key in keys} | {"preset": preset_label(shared)}
    about |= {"label": found.label} if found.label else {}  # predict.py takes that column
    about |= {"encoder": {**found.encoder, "layer": found.layer}} if found.encoder else {}  # predict.py compares it
    state = _scale(head.state, found)
    path = head_path(workdir, shared | {"layer": found.layer})
    TunedHead(head.form, head.params, state, found.classes, about, found.columns, head.temperature).save(path)


def _scale(state: Any, found: FeatureSet) -> Any:
    """Fold the scale of the features into the head's input scale, so that it takes features as stored."""
    if found.scale == 1:
        return state
    dim = found.train.features.dim
    own = state.get("input") or {"mean": np.zeros(dim, np.float32), "scale": np.ones(dim, np.float32)}
    return {**state, "input": {name: np.asarray(x / found.scale, np.float32) for name, x in own.items()}}


STAGE = Stage(
    name="tune",
    version=5,
    keys=("seed", "downstream", "extract", "features", "tune"),
    upstream=("extract", "features"),
    outputs=Outputs(("heads", "tuning", "correct/tune", "confusion/tune", "predictions/tune"), list_needed),
    check=check,
    run=run,
)
