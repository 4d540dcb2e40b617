"""Heads on features (linear probe, MLP, NMTune, ...) -> rows, and the best heads as files."""

import collections
import functools
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
from nml_jax.assembly.feature_sets import fit_in_memory, open_feature_sets
from nml_jax.assembly.spectra import make_rows, singular_values
from nml_jax.data.features.sets import FeatureSet, Split, Subset
from nml_jax.data.stratify import draw_stratified
from nml_jax.errors import UserError
from nml_jax.evals.mapped import Scorer
from nml_jax.models.heads.mlp import make_head
from nml_jax.processes import peers
from nml_jax.runs.heads import correct_path, head_name, head_path, write_correct
from nml_jax.runs.rows import DIVERGED, UNVALIDATED, Row, has_rows, read_rows, write_rows
from nml_jax.stages.stage import Outputs, Stage
from nml_jax.tuning import methods, select, streamed
from nml_jax.tuning.head_file import TunedHead
from nml_jax.tuning.holdout import check_choices

SILENT = 10  # seconds that a method may take without a word
SOLVED = 4  # what is solved and not trained takes eight times its rows: it gets this part of the memory for them


def run(config: ConfigDict, workdir: Path, mesh: Mesh) -> str:
    """Tune with every method on every task's features and write the rows. Heads are small: the first process trains.

    Every head but k-NN's is saved in `heads/<task>/`, under its method, preset and seed (stages/predict.py applies it);
    of every head outcomes.py keeps which test rows it gets right. What is finished of an interrupted stage is not done
    again: until the end the rows of every head are in `tuning/`. A method that diverges leaves a row that says so.

    Returns:
        The digest of the rows.

    Raises:
        UserError: no features, damaged ones, a value that is not finite, or every method diverged.
    """
    if jax.process_index() > 0:
        return ""
    rows: list[Row] = []
    seeds, pairs = settings.repetition_seeds(config.seed, config.tune.seeds), list(methods.list_methods(config.tune))
    for found in open_feature_sets(config, workdir):
        training = Training(config, found, seeds)
        for sample in _draw_samples(config, found):
            for i, (method, preset) in enumerate(pairs):
                with peers.track(f"{found.task}: {method}, {i} of {len(pairs)} methods done"):
                    rows += _tune_method(workdir, training, sample, method, preset)
    if all(row.metric == DIVERGED for row in rows):
        raise UserError("training of every head diverged", "lower tune.lrs, or set tune.standardize for large features")
    with errors.report_disk_errors(workdir):
        write_rows(workdir, "tune", rows)
        shutil.rmtree(workdir / "tuning")
    return settings.hash_json([[row.metric, row.split, row.method, row.preset, row.value] for row in rows])


class Training:
    """How heads are trained on the features of one task: in memory, or streamed where they do not fit."""

    def __init__(self, config: ConfigDict, found: FeatureSet, seeds: Sequence[int]):
        self.config, self.found, self.seeds = config, found, seeds
        self.shard = fit_in_memory(config.features.memory, found.train.features, 2 * config.tune.batch)

    @functools.cached_property
    def whole(self) -> np.ndarray:
        return self.found.train.features.read()

    def fit(self, chosen: np.ndarray, labels: np.ndarray, method: str, preset: str | None) -> list[select.HeadResult]:
        """A head per seed, on the chosen rows."""
        how: dict[str, Any] = {"method": method, "preset": preset, "num_classes": len(self.found.classes),
                               "config": self.config.tune, "seeds": self.seeds}  # fmt: skip
        rows = self.found.train.features
        solved = bool(methods.find(method).probe)
        if len(rows) <= self.shard and not (solved and len(chosen) > self.shard // SOLVED):
            everything = len(chosen) == len(rows)  # no copy
            return select.fit_seeds(self.whole if everything else self.whole[chosen], labels, **how)
        part = Subset(rows, chosen)
        return streamed.fit_seeds(part, labels, shard=self.shard // (SOLVED if solved else 2), **how)


class Sample(NamedTuple):
    """What heads are trained on.

    chosen: the rows of the training features.
    labels: those that they are given.
    named: the fields of a row that say which these are.
    input_spectra: as `_measured` says; shared by all samples of the same rows.
    """

    chosen: np.ndarray
    labels: np.ndarray
    named: dict[str, float]
    input_spectra: dict[tuple[int, str], np.ndarray]


def _draw_samples(config: ConfigDict, found: FeatureSet) -> Iterator[Sample]:
    """Every share of the training rows, with every rate of wrong labels."""
    for share in config.tune.shares:
        chosen = draw_stratified(found.train.labels, share, config.seed)
        input_spectra: dict[tuple[int, str], np.ndarray] = {}
        for rate in config.tune.noises:
            named = {"train_share": share, "downstream_noise": rate}
            yield Sample(chosen, _corrupt_labels(found, chosen, rate, config), named, input_spectra)


def _tune_method(workdir: Path, training: Training, sample: Sample, method: str, preset: str | None) -> list[Row]:
    """The rows of one method, a head for every seed: trained, measured and kept, unless an earlier start did so."""
    found = training.found
    views = found.train.features.views
    shared = {
        **found.origin, **sample.named, "stage": "tune", "task": found.task, "method": method,
        "preset": methods.choose_weights(method, preset, training.config.tune, views)[1], "views": views,
    }  # fmt: skip
    heads_of = [{**shared, "head_seed": seed} for seed in training.seeds]
    places = [workdir / "tuning" / found.task / found.layer / head_name(head) for head in heads_of]
    if not all(has_rows(place) for place in places):
        begun = time.perf_counter()
        try:
            results = training.fit(sample.chosen, sample.labels, method, preset)
            for head, place, result in zip(heads_of, places, results, strict=True):
                own = {**head, "n_train": result.n_train, "hyper": _hyper(result)}
                _keep(workdir, place, found, own, result, sample.input_spectra)
        except select.Diverged as e:
            console.notice(f"{workdir.name}: {found.task}: {e.cause}; it is left out. {e.cure}")
            for head, place in zip(heads_of, places, strict=True):
                with errors.report_disk_errors(place):
                    write_rows(place, "tune", [_diverged(head, found, len(sample.chosen))])
        if (seconds := time.perf_counter() - begun) > SILENT:
            what = f"{workdir.name}: {found.task}, {' '.join(filter(None, (method, shared['preset'])))}"
            console.notice(f"{what} took {console.format_seconds(seconds)}")
    return [row for place in places for row in read_rows(place)]


def check(config: ConfigDict, mesh: Mesh, *, data: bool = True) -> None:
    for method, preset in methods.list_methods(config.tune):
        methods.choose_weights(method, preset, config.tune, views=config.extract.views)
        check_choices(config.tune.validation, {f"tune.{key}": config.tune[key] for key in methods.make_grid(method)})
        make_head(methods.build_form(methods.find(method), config.tune), 2)
    for key, words in (("shares", "above 0 and up to 1"), ("noises", "from 0 to 1")):
        values = config.tune[key]
        good = all(isinstance(x, (int, float)) and 0 <= x <= 1 and (x or key == "noises") for x in values)
        if not good or not 0 < len(values) == len({f"{x:g}" for x in values}):  # as files of heads are called
            raise UserError(f"tune.{key} must be a tuple of distinct shares {words}, got {values}",
                            f"give at least one, as in --config.tune.{key}='(1.0,)'")  # fmt: skip
    if config.tune.noise_kind not in ("symmetric", "pair"):
        raise UserError(f"tune.noise_kind={config.tune.noise_kind!r}", "choose symmetric or pair")


def list_needed(workdir: Path, rows: list[Row]) -> set[Path]:
    """The heads that the rows speak of, each of them, and which test rows they got right."""
    rows = [row for row in rows if not row.spectrum_mode and row.metric != DIVERGED]
    saved = {head_path(workdir, vars(row)) for row in rows if row.method != "knn"}
    return saved | {correct_path(workdir, vars(row)) for row in rows}


def _corrupt_labels(found: FeatureSet, chosen: np.ndarray, rate: float, config: ConfigDict) -> np.ndarray:
    """The labels of the chosen rows, of which the share `rate` is wrong."""
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
    """Score a head, and write it, what it gets right, and its rows, which come last: they say that all is there."""
    measured, correct = _measure_head(result, found, shared, input_spectra)
    write_correct(correct_path(workdir, shared | {"layer": found.layer}), correct)
    _save(result.head, found, workdir, shared)
    with errors.report_disk_errors(place):
        write_rows(place, "tune", measured)


def _hyper(result: select.HeadResult) -> dict[str, float]:
    """As rows have it: what was chosen, and whether it was without validation."""
    return result.hyper | ({UNVALIDATED: 1.0} if result.unvalidated else {})


def _diverged(head: dict[str, Any], found: FeatureSet, n: int) -> Row:
    return Row(**head, n_train=n, split="train", domain="id", layer=found.layer, metric=DIVERGED, value=1.0)


def _measure_head(
    result: select.HeadResult,
    found: FeatureSet,
    shared: dict[str, Any],
    input_spectra: dict[tuple[int, str], np.ndarray],
) -> tuple[list[Row], dict[str, np.ndarray]]:
    """The scores of a head on every test, the spectrum of its Z there, and which rows of each test it gets right.

    Args:
        input_spectra: (training rows, test) -> the spectrum of the inputs. It is that of Z where a head has no MLP: so
            it is computed for one such head, and kept there for the others.
    """
    rows, correct = [], {}
    layer = "Z" if found.layer == "features" else f"Z of {found.layer}"
    for test in found.tests:
        where = {"split": test.name, "domain": test.domain, "n_test": len(test.labels)}
        scorer = Scorer(len(found.classes), **test.scoring)

        def transformed(test: Split = test, scorer: Scorer = scorer) -> Iterator[np.ndarray]:
            for features, labels in test.blocks():
                Z, logits = result.outputs(features)
                select.require_finite(shared["method"], logits)
                scorer.update(labels, logits)
                yield Z

        key = None if methods.find(shared["method"]).mlp else (result.n_train, test.name)
        if key in input_spectra:
            s = input_spectra[key]
            collections.deque(transformed(), maxlen=0)
        else:
            s = singular_values(transformed(), len(test.labels), test.features.dim, "paper")
        if key:
            input_spectra[key] = s
        correct[test.name] = scorer.correct
        rows += [Row(**shared, **where, layer=found.layer, metric=metric, value=value)
                 for metric, value in scorer.scores().items()]  # fmt: skip
        rows += make_rows(s, **shared, **where, layer=layer, spectrum_mode="paper")
    return rows, correct


def _save(head: Any, found: FeatureSet, workdir: Path, shared: dict[str, Any]) -> None:
    """The head as a file that is called by all that tells heads of a run apart."""
    if not isinstance(head, TunedHead):
        return
    about = {
        key: shared[key] for key in ("task", "method", "preset", "hyper", "n_train", "head_seed", "model", "views")
    }
    state = _scale(head.state, found)
    path = head_path(workdir, shared | {"layer": found.layer})
    TunedHead(head.form, head.params, state, found.classes, about, found.columns).save(path)


def _scale(state: Any, found: FeatureSet) -> Any:
    """The state of a head that takes features as they are stored: their scale goes into that of the input."""
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
    outputs=Outputs(("heads", "tuning", "correct/tune"), list_needed),
    check=check,
    run=run,
)
