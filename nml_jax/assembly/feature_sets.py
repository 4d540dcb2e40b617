"""Features to tune on, wherever they came from: banks that `extract` wrote, or the files of the stage `features`."""

import os
from pathlib import Path

from ml_collections import ConfigDict

from nml_jax import noise, ranges
from nml_jax.assembly.encoder import describe_origin
from nml_jax.data.features import banks
from nml_jax.data.features.sets import FeatureSet, Rows, Split
from nml_jax.errors import UserError
from nml_jax.runs.rows import read_rows

BLOCK = 16_384  # rows of an encoder's features
# of cgroups, version 2 and 1
LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def check_ranges(config: ConfigDict) -> None:
    """Refuse values of the section `features` that are out of range."""
    ranges.require_positive("features", config, "memory")
    ranges.require_share("features", config, "memory")


def open_feature_sets(config: ConfigDict, workdir: Path) -> list[FeatureSet]:
    """Every task and layer of a run.

    Raises:
        UserError: there are no features, or what was written of them is damaged.
    """
    if config.features.train:
        from nml_jax.assembly.feature_files import open_files  # which writes what is opened there

        return [open_files(config, workdir)]
    rows = [row for row in read_rows(workdir) if row.stage == "extract"]
    if not rows:
        raise UserError(f"{workdir} holds no features to tune on", "run the extract stage first, as in --force=extract")
    ledger = noise.Ledger.read(workdir / "noise.json") if (workdir / "noise.json").exists() else None
    origin = describe_origin(config, ledger, run=workdir.name, step=rows[0].step, weights=rows[0].weights)
    out = []
    for task in config.downstream.tasks:
        domains = {row.split: row.domain for row in rows if row.task == task}
        opened = {split: banks.Bank(workdir / "banks" / task / split) for split in domains}
        labels = {split: bank.read("label") for split, bank in opened.items()}
        for layer in config.extract.layers:
            splits = {
                split: Split(
                    split, domains[split], banks.Layer(bank, layer), labels[split], bank.index.get("scoring", {})
                )
                for split, bank in opened.items()
            }
            index = opened["train"].index
            classes = tuple(index["class_names"]) or tuple(range(index["num_classes"]))
            out.append(FeatureSet(task, layer, splits.pop("train"), tuple(splits.values()), classes, origin))
    return out


def fit_in_memory(share: float, rows: Rows, least: int) -> int:
    """How many such rows, as float32, that share of the memory holds; `least`, if these are more."""
    return max(int(share * read_memory_limit()) // (4 * rows.views * rows.dim), least)


def read_memory_limit() -> int:
    """Bytes that this process may have: those of the machine, or what its container or job is limited to."""
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for limit in LIMITS:
        text = limit.read_text("ascii").strip() if limit.is_file() else "max"
        found += [int(text)] if text.isdecimal() else []  # "max": none
    return min(found)
