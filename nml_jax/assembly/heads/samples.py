"""Draw the rows and labels that the heads of a run are trained on: shares, wrong labels, and treated suspects."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from nml_jax import console
from nml_jax.assembly.heads.training import Training
from nml_jax.assembly.heads.wrong_labels import corrupt_downstream
from nml_jax.assembly.suspects import judge_rows
from nml_jax.data.features.sets import FeatureSet, Subset
from nml_jax.data.stratify import bin_scores, draw_stratified
from nml_jax.errors import UserError
from nml_jax.processes import forecast
from nml_jax.tuning.label_errors import LIMIT, LabelErrors

TREATMENTS = ("keep", "drop", "relabel")  # of likely wrong labels


class Sample(NamedTuple):
    """The rows and labels that heads are trained on.

    chosen: indices of training rows, int [N].
    labels: their labels, possibly wrong, int [N]; or scores, float32 [N].
    fields: the fields of a row that identify the sample.
    """

    chosen: np.ndarray
    labels: np.ndarray
    fields: dict[str, Any]


def draw_samples(config: ConfigDict, found: FeatureSet) -> Iterator[Sample]:
    """Yield every share of the training rows with every rate of wrong labels."""
    for share in config.tune.shares:
        chosen = draw_stratified(bin_scores(found.train.labels), share, config.seed)
        for rate in config.tune.noises:
            fields = {"train_share": share, "downstream_noise": rate}
            labels = corrupt_downstream(found.train.labels[chosen], len(found.classes), rate, config)
            yield Sample(chosen, labels, fields)


def treat_suspects(name: str, config: ConfigDict, training: Training, samples: Iterator[Sample]) -> Iterator[Sample]:
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
            yield sample._replace(chosen=sample.chosen[~bad], labels=sample.labels[~bad])


def _find_suspects(training: Training, sample: Sample) -> LabelErrors:
    """Judge the labels of a sample."""
    rows, most = training.found.train.features, training.shard
    if len(sample.chosen) > most:
        cause = f"tune.suspects needs {len(sample.chosen):,} rows in memory, and {most:,} fit"
        raise UserError(cause, "raise features.memory, or set tune.suspects=keep")
    part, groups = Subset(rows, sample.chosen), training.found.train.groups
    own = None if groups is None else groups[sample.chosen]
    return judge_rows(part, sample.labels, training.found.classes, most=most, groups=own)
