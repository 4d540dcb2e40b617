"""Train heads on features that do not fit into memory.

Settings are chosen on a sample. Heads are trained on shards that change with every epoch. A shard has as many rows as
memory allows, in runs of neighbouring rows drawn from the whole file. So a file may be sorted by class, and a disk need
not seek for every row. Within a shard rows are shuffled.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from nml_jax.data.features.files import count_block_rows
from nml_jax.data.features.sets import Rows
from nml_jax.data.stratify import bin_scores, draw_stratified
from nml_jax.errors import UserError
from nml_jax.models.heads.mlp import Tree
from nml_jax.processes.limits import limit_blas
from nml_jax.tuning import descent, methods, patient, regression, select
from nml_jax.tuning.descent import TrainingSet
from nml_jax.tuning.head_file import TunedHead
from nml_jax.tuning.holdout import PLAIN, Demands
from nml_jax.tuning.select import HeadResult
from nml_jax.tuning.trainers.gradient import ByGradient
from nml_jax.tuning.trainers.trainer import HeadFit, Problem

NEIGHBOURS = 256  # rows that are read together


def fit_seeds(
    features: Rows,
    labels: np.ndarray,
    *,
    shard: int,
    method: str,
    preset: str | None = None,
    num_classes: int,
    config: Any,
    seeds: Sequence[int],
    demands: Demands = PLAIN,
) -> list[HeadResult]:
    """Do as `select.fit_seeds`, with at most two shards of rows in memory.

    Hyper-parameters are chosen on a stratified sample of one shard. Methods that are solved instead of trained (L-BFGS,
    ridge, k-NN) see only that sample, and `n_train` is its size.

    Args:
        features: the N training rows.
        labels: int32 [N]; of a regression targets, real [N].
        shard: rows per shard.
        demands: what heads are to be good at; groups [N].

    Raises:
        UserError: as `select.fit_seeds`, or `refit` is off.
    """
    if not config.refit:
        cure = "raise features.memory, or leave tune.refit=True"
        raise UserError("tune.refit=False needs all training rows in memory", cure)
    regresses, targets = regression.is_regression(num_classes), labels
    if regresses:
        labels = regression.measure_scale(regression.check_targets(targets)).standardize(targets)
    sample = draw_stratified(bin_scores(labels), min(1.0, shard / len(labels)), seeds[0])
    if demands.groups is not None:
        demands = demands._replace(groups=demands.groups[sample])
    some, some_labels = select.check_features(features.rows(sample), labels[sample], num_classes)
    some_labels = labels[sample] if regresses else some_labels  # in the units of all rows
    if methods.find(method).probe:
        how: dict[str, Any] = {"method": method, "preset": preset, "num_classes": num_classes, "config": config}
        return select.fit_seeds(some, targets[sample], **how, demands=demands, seeds=seeds)
    trainer = ByGradient(Problem(some, some_labels, method, preset, num_classes, config, demands))
    trainer.from_probe &= (
        trainer.method.mlp
    )  # the probe has seen a sample only; a linear head is to learn from all rows
    hypers, validation = select.choose(trainer, some, some_labels, config=config, seeds=seeds)
    standard = _standard(features) if config.standardize else None
    size = -(-len(labels) // -(-len(labels) // shard))  # shards of equal size, up to a row
    heads = [
        _train(trainer, features, labels, HeadFit(np.arange(size), hyper, seed), standard)
        for hyper, seed in zip(hypers, seeds, strict=True)
    ]
    heads = select.require_converged(method, heads)
    if regresses:
        heads = regression.restore_heads(heads, targets)
    return [
        HeadResult(head=select.set_temperature(head, hyper), preset=trainer.preset, hyper=hyper, validation=each,
                   n_train=len(labels), unvalidated=select.cannot_validate(trainer, each))
        for head, hyper, each in zip(heads, hypers, validation, strict=True)
    ]  # fmt: skip


def _train(trainer: ByGradient, features: Rows, labels: np.ndarray, fit: HeadFit, standard: Tree | None) -> TunedHead:
    size = len(fit.rows)
    probe = trainer.solve_probe(fit, standard)
    spec, setting = trainer.make_program(fit, min(size, len(labels)), len(labels), probe)
    counts = [min(size, len(labels) - start) for start in range(0, len(labels), size)]
    epochs = trainer.count_epochs(len(labels))
    last = int(fit.hyper.get("epochs", epochs))
    total = np.int32(epochs * sum(math.ceil(count / spec.batch) for count in counts))
    with limit_blas():
        carry = descent.begin(spec, setting, features.dim, standard)
        carry = patient.start_at(carry, probe) if probe else carry
        for i, rows in enumerate(_draw_shards(len(labels), size, last, fit.seed)):
            block = features.rows(rows)
            # One shape, so that it is compiled once. The padding of the last shard is not trained on.
            block = block if len(rows) == size else np.resize(block, (size, *block.shape[1:]))
            own = np.resize(labels[rows], size)
            weights = trainer.demands.weigh(own)
            bank = TrainingSet(block, own, np.ones(size, np.float32) if weights is None else np.float32(weights))
            carry = descent.advance(spec, carry, bank, setting, np.int32(len(rows)), np.int32(i), total)
        params, state = jax.device_get((carry.params, carry.state))
    return TunedHead(trainer.form, params, state)


def _draw_shards(n: int, size: int, epochs: int, seed: int) -> Iterator[np.ndarray]:
    """Yield the rows of every shard of every epoch, in ascending order; each epoch has every row once."""
    for epoch in range(epochs):
        rng = np.random.default_rng([seed % 2**32, epoch])
        starts = NEIGHBOURS * rng.permutation(-(-n // NEIGHBOURS))
        order = (starts[:, None] + np.arange(NEIGHBOURS)).reshape(-1)
        order = order[order < n]
        for start in range(0, n, size):
            yield np.sort(order[start : start + size])


def _standard(features: Rows) -> Tree:
    """Compute {"mean", "scale"} over all rows and views in float64, as float32 [D]; a constant feature has scale 1."""
    first = features.rows(np.arange(1))[0, 0].astype(np.float64)  # subtracted, so that a large mean costs no digits
    total, squares, count = np.zeros(features.dim), np.zeros(features.dim), len(features) * features.views
    for _, block in features.blocks(count_block_rows(features.views, features.dim)):
        moved = block.reshape(-1, features.dim) - first
        total += moved.sum(0)
        squares += (moved * moved).sum(0)
    variance = np.maximum(squares / count - (total / count) ** 2, 0)
    mean = first + total / count
    scale = np.where(variance <= 1e-10 * mean**2, 1, np.sqrt(variance))
    return {"mean": mean.astype(np.float32), "scale": scale.astype(np.float32)}
