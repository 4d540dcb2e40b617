"""Open the features to tune on: the banks of the stage `extract`, or the files of the stage `features`."""

from pathlib import Path

from ml_collections import ConfigDict

from nml_jax import noise, ranges
from nml_jax.assembly.encoder import describe_origin
from nml_jax.data.features import banks
from nml_jax.data.features.sets import FeatureSet, Rows, Split
from nml_jax.errors import UserError
from nml_jax.processes.limits import read_memory_limit
from nml_jax.runs.banks import bank_folder, read_index

BLOCK = 16_384  # rows of features that are read at a time


def check_ranges(config: ConfigDict) -> None:
    """Raise UserError if a value of the section `features` is out of range."""
    ranges.require_positive("features", config, "memory")
    ranges.require_share("features", config, "memory")


def open_feature_sets(config: ConfigDict, workdir: Path) -> list[FeatureSet]:
    """Open the features of every task and layer of a run.

    Raises:
        UserError: there are no features, or they are damaged.
    """
    if config.features.train:
        from nml_jax.assembly.feature_files import open_files

        return [open_files(config, workdir)]
    index = read_index(workdir)
    if not index:
        raise UserError(f"{workdir} holds no features to tune on", "run the extract stage first, as in --force=extract")
    ledger = noise.Ledger.read(workdir / "noise.json") if (workdir / "noise.json").exists() else None
    origin = describe_origin(config, ledger, run=workdir.name, step=index.step, weights=index.weights)
    out = []
    for task, domains in index.domains.items():
        bank_of = {split: banks.Bank(bank_folder(workdir, task, split)) for split in domains}
        labels = {split: bank.read("label") for split, bank in bank_of.items()}
        for layer in config.extract.layers:
            splits = {
                split: Split(
                    split, domains[split], banks.Layer(bank, layer), labels[split], bank.index.get("scoring", {})
                )
                for split, bank in bank_of.items()
            }
            about = bank_of["train"].index
            classes = tuple(about["class_names"]) or tuple(range(about["num_classes"]))
            one = FeatureSet(task, layer, splits.pop("train"), tuple(splits.values()), classes, origin)
            texts = {"texts": index.texts[task]} if task in index.texts else {}
            out.append(one._replace(encoder=index.encoder | texts))
    return out


def fit_in_memory(share: float, rows: Rows, least: int) -> int:
    """Return how many rows, as float32, fit into that share of the memory, but no fewer than `least`."""
    return max(int(share * read_memory_limit()) // (4 * rows.views * rows.dim), least)
