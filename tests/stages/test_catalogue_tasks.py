"""Datasets of the catalogue through the stages: one of each kind, tiny, of TFDS's own schema."""

from pathlib import Path

import numpy as np
import pytest

from nml_jax import log
from nml_jax.data import banks, catalogue, class_maps, tasks
from nml_jax.evals import mapped
from tests import small, tiny_sets

KINDS = {
    "downstream.tasks": ("cifar10", "domainnet"),
    "downstream.partners": ("cifar10_1", "cifar10_c"),
    "downstream.corruptions": ("fog",),
    "downstream.severities": (5,),
    "downstream.domain_test": ("sketch",),
    "tune.methods": ("linear",),
    "tune.epochs": 1,
    "extract.spectra": ("paper",),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """A folder with the datasets and a run on them."""
    root = tmp_path_factory.mktemp("runs")
    trained, partners = catalogue.TRAINED, catalogue.PARTNERS
    for entry, corruption in (
        (trained["cifar10"], ""), (partners["cifar10_1"], ""), (partners["cifar10_c"], "fog_5"),
        (catalogue.domain("real"), ""), (catalogue.domain("sketch"), ""),
    ):  # fmt: skip
        tiny_sets.write(root / "sets", entry, corruption, labels=(0, 1, 2), records=24)
    keys = {**KINDS, "downstream.catalogue": str(root / "sets"), "stages": ("pretrain", "extract", "tune")}
    small.launch(root / "first", **keys)
    return root


def test_heads_on_catalogue_sets(runs: Path):
    (cell,) = (runs / "first").glob("noise=*")
    rows = [row for row in log.read_rows(cell) if row.stage == "tune" and row.metric == "accuracy"]
    assert {(row.task, row.split, row.domain, row.n_train, row.n_test) for row in rows} == {
        ("cifar10", "test", "id", 24, 24),
        ("cifar10", "cifar10_1", "ood", 24, 24),
        ("cifar10", "cifar10_c/fog_5", "ood", 24, 24),
        ("domainnet", "real", "id", 24, 24),
        ("domainnet", "sketch", "ood", 24, 24),
    }
    assert all(0 <= row.value <= 1 for row in rows)


def test_features_of_a_test_with_a_class_map(runs: Path):
    """The labels in the bank are those of the test classes; a head of 1000 classes is scored on them by the map."""
    a_set = class_maps.ids("imagenet_a")
    tiny_sets.write(runs / "sets", catalogue.TRAINED["imagenet2012"], labels=(6, 11, 13), records=6)
    tiny_sets.write(runs / "sets", catalogue.PARTNERS["imagenet_a"], labels=(a_set[3][0], a_set[0][0]), records=4)
    (first,) = (runs / "first").glob("noise=*")
    keys = {
        "init_from": str(first), "noise": 0.0, "stages": ("extract",), "downstream.tasks": ("imagenet2012",),
        "downstream.partners": ("imagenet_a",), "downstream.catalogue": str(runs / "sets"),
    }  # fmt: skip
    small.launch(runs / "second", **keys)
    (cell,) = (runs / "second").glob("noise=*")
    bank = banks.Bank(cell / "banks" / "imagenet2012" / "imagenet_a")
    labels = bank.read("label")
    assert labels.tolist() == [3, 0, 3, 0]
    (test,) = (t for t in tasks.load("imagenet2012", small.config(**keys)).tests if t.split == "imagenet_a")
    logits = np.zeros((4, 1000))
    logits[:, 1] = 9.0  # no class of ImageNet-A, so it does not compete
    logits[:2, a_set[3][0]] = 1.0
    scorer = mapped.Scorer(1000, class_map=test.class_map)
    scorer.update(labels, logits)
    assert scorer.scores()["accuracy"] == 0.5  # two are called class 3, and by the tie two class 0
