"""Score a head on every test of its task, and write what is known about it."""

import collections
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from nml_jax import errors
from nml_jax.assembly.spectra import make_rows, singular_values
from nml_jax.data.features.sets import FeatureSet, Split
from nml_jax.evals.mapped import Scorer
from nml_jax.evals.numbers import NumberScorer
from nml_jax.runs.heads import (
    confusion_path,
    correct_path,
    head_path,
    preset_label,
    write_confusions,
    write_correct,
)
from nml_jax.runs.predictions import Predictions, predictions_path, write_predictions
from nml_jax.runs.rows import DIVERGED, UNVALIDATED, Row, write_rows
from nml_jax.tuning import methods, select
from nml_jax.tuning.head_file import TunedHead

KEPT = 64  # spectra that runs of a process share


def keep(workdir: Path, place: Path, found: FeatureSet, shared: dict[str, Any], result: select.HeadResult) -> None:
    """Score a head; save it, which test rows it gets right, and last its rows. Their presence marks it complete."""
    measured, scorers = _measure_head(result, found, shared)
    where = shared | {"layer": found.layer}
    classified = {test: scorer for test, scorer in scorers.items() if isinstance(scorer, Scorer)}
    if classified:
        write_correct(correct_path(workdir, where), {test: s.correct for test, s in classified.items()})
        write_confusions(confusion_path(workdir, where), {test: s.confusion for test, s in classified.items()})
    answers = {test: _list_predictions(scorer) for test, scorer in scorers.items()}
    write_predictions(predictions_path(workdir, where), answers)
    _save(result.head, found, workdir, shared)
    with errors.report_disk_errors(place):
        write_rows(place, "tune", measured)


def _list_predictions(scorer: Scorer | NumberScorer) -> Predictions:
    """Return what a head answered to a test, for its file."""
    answers = scorer.answers
    if isinstance(scorer, NumberScorer):
        return Predictions(answers.labels, answers.predictions)
    return Predictions(answers.labels, answers.predictions, *scorer.soft)


def make_hyper(result: select.HeadResult) -> dict[str, float]:
    """Return the chosen settings for the rows, and whether they were chosen without validation."""
    return result.hyper | ({UNVALIDATED: 1.0} if result.unvalidated else {})


def make_diverged_row(head: dict[str, Any], found: FeatureSet, n: int) -> Row:
    """Return the row of a head that diverged on `n` training rows."""
    return Row(**head, n_train=n, split="train", domain="id", layer=found.layer, metric=DIVERGED, value=1.0)


def _measure_head(
    result: select.HeadResult, found: FeatureSet, shared: dict[str, Any]
) -> tuple[list[Row], dict[str, Scorer | NumberScorer]]:
    """Return the rows of a head's scores and of the spectrum of its Z, and the scorer of each test."""
    rows, scorers = [], {}
    for test in found.tests:
        where = {"split": test.name, "domain": test.domain, "n_test": len(test.labels), "layer": found.layer}
        soft = {"soft": methods.find(shared["method"]).logits, "temperature": getattr(result.head, "temperature", 1.0)}
        scorer = NumberScorer() if found.is_scored else Scorer(len(found.classes), **test.scoring, **soft)

        def transform_blocks(test: Split = test, scorer: Any = scorer) -> Iterator[np.ndarray]:
            for features, labels in test.blocks():
                Z, logits = result.outputs(features)
                select.require_finite(shared["method"], logits)
                scorer.update(labels, logits)
                yield Z

        s = _measure_outputs(transform_blocks(), test, None if methods.find(shared["method"]).mlp else result.head)
        scorers[test.name] = scorer
        rows += [Row(**shared, **where, metric=metric, value=value)
                 for metric, value in scorer.scores().items()]  # fmt: skip
        rows += make_rows(s, **shared, **where, output="Z", spectrum_mode="paper")
    return rows, scorers


_inputs: dict[tuple[int, bytes], tuple[Any, np.ndarray]] = {}  # tests and the spectra of what linear heads see of them


def _measure_outputs(blocks: Iterator[np.ndarray], test: Split, linear: Any) -> np.ndarray:
    """Return the singular values of a head's Z on a test.

    Args:
        blocks: of Z. They are read to their end, as scores need them.
        linear: the head, if it has no MLP. Its Z is the standardised input, so methods and runs share this spectrum.
    """
    n, dim = len(test.labels), test.features.dim
    if linear is None:
        return singular_values(blocks, n, dim, "paper")
    standard = linear.state.get("input") if isinstance(linear, TunedHead) else linear.standard
    key = id(test.features), b"".join(np.asarray(x).tobytes() for x in jax.tree.leaves(standard))
    if key in _inputs:
        collections.deque(blocks, maxlen=0)
        return _inputs[key][1]
    if len(_inputs) >= KEPT:
        _inputs.pop(next(iter(_inputs)))
    _inputs[key] = test.features, singular_values(blocks, n, dim, "paper")  # the test is kept so that its id is its own
    return _inputs[key][1]


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
