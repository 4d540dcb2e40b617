"""Heads on feature banks (linear probe, MLP, NMTune) -> rows."""

from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from nml_jax import errors, log, noise, settings, spectrum
from nml_jax.data import banks
from nml_jax.stages.encoder import provenance
from nml_jax.stages.extract import spectrum_rows
from nml_jax.training import heads

VERSION = 1
KEYS = ("seed", "downstream", "extract", "tune")
UPSTREAM = ("extract",)


def run(config: ConfigDict, workdir: Path, mesh: Mesh) -> str:
    """Train every head on every task's bank and write the rows. Heads are small: the first process trains them.

    Returns:
        The digest of the rows.

    Raises:
        UserError: no bank, a damaged one, one with a value that is not finite.
    """
    if jax.process_index() > 0:
        return ""
    before = [row for row in log.read_rows(workdir) if row.stage == "extract"]
    if not before:
        raise errors.UserError(
            f"{workdir} holds no features to tune on", "run the extract stage first, as in --force=extract"
        )
    step, weights = before[0].step, before[0].weights
    ledger = noise.Ledger.read(workdir / "noise.json") if (workdir / "noise.json").exists() else None
    origin = provenance(config, ledger, run=workdir.name, step=step, weights=weights)
    rows: list[log.Row] = []
    for task in config.downstream.tasks:
        tests = {row.split: row.domain for row in before if row.task == task and row.split != "train"}
        train = banks.Bank(workdir / "banks" / task / "train")
        opened = {split: banks.Bank(workdir / "banks" / task / split) for split in tests}
        for layer in config.extract.layers:
            features, labels = train.read(layer), train.read("label")
            held_out = {split: (bank.read(layer)[:, 0], bank.read("label")) for split, bank in opened.items()}
            for method, preset in settings_of(config):
                head_seeds = range(config.seed, config.seed + config.tune.seeds)
                results = heads.fit_seeds(
                    features,
                    labels,
                    held_out,
                    method=method,
                    preset=preset,
                    num_classes=train.index["num_classes"],
                    config=config.tune,
                    seeds=head_seeds,
                )
                for head_seed, result in zip(head_seeds, results, strict=True):
                    shared = {
                        **origin,
                        "stage": "tune",
                        "task": task,
                        "n_train": len(labels),
                        "train_share": 1.0,
                        "downstream_noise": 0.0,
                        "method": method,
                        "preset": result.preset,
                        "head_seed": head_seed,
                        "views": features.shape[1],
                        "hyper": result.hyper,
                    }
                    rows += scores(result, tests, opened, layer=layer, **shared)
                    for split, domain in tests.items():
                        s = spectrum.singular_values(np.asarray(result.transform(held_out[split][0])))
                        rows += spectrum_rows(
                            s,
                            **shared,
                            split=split,
                            domain=domain,
                            layer="Z" if layer == "features" else f"Z of {layer}",
                            spectrum_mode="paper",
                            n_test=len(opened[split]),
                        )
    with errors.storage(workdir):
        log.write_rows(workdir, "tune", rows)
    return settings.sha([[row.metric, row.split, row.method, row.preset, row.value] for row in rows])


def check(config: ConfigDict, mesh: Mesh, *, data: bool = True) -> None:
    for method, preset in settings_of(config):
        heads.loss_of(method, preset, views=config.extract.views)


def intact(workdir: Path) -> bool:
    return True  # its rows are all it leaves


def forget(workdir: Path) -> None:
    """Rows are replaced when the stage ends; there is nothing else."""


def settings_of(config: ConfigDict) -> list[tuple[str, str | None]]:
    """(method, preset) of every head to train."""
    return [
        (method, preset)
        for method in config.tune.methods
        for preset in (config.tune.presets if method == "nmtune" else (None,))
    ]


def scores(
    result: heads.HeadResult, tests: dict[str, str], opened: dict[str, banks.Bank], **fields
) -> Iterator[log.Row]:
    for split, metrics in result.scores.items():
        for metric, value in metrics.items():
            yield log.Row(
                **fields, metric=metric, value=value, split=split, domain=tests[split], n_test=len(opened[split])
            )
