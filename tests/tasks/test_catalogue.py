"""Test the catalogue of downstream sets. Every entry is opened from a tiny dataset with TFDS's own schema."""

import itertools
import sys
from pathlib import Path
from typing import Any

import pytest

from configs import common
from nml_jax.data.sources.source import Source, in_memory
from nml_jax.errors import UserError
from nml_jax.tasks import catalogue, class_maps
from nml_jax.tasks.catalogue_tasks import _check_classes, find_folder
from nml_jax.tasks.classification import check_tasks, load_task
from tests.scenes import tiny_sets

BY_TFDS = {
    name: entry for name, entry in (catalogue.TRAINED | catalogue.PARTNERS).items() if not entry.builder
} | {f"domainnet/{name}": catalogue.make_domain_entry(name) for name in catalogue.DOMAINS}  # fmt: skip


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    """Write all sets that TFDS prepares into one folder."""
    root = tmp_path_factory.mktemp("catalogue")
    for name, entry in BY_TFDS.items():
        for corruption in ("fog_1", "fog_5", "snow_1", "snow_5") if "{}" in entry.folder else ("",):
            labels = tuple(c for (c,) in class_maps.load_ids(name)[:7]) if entry.subset else ()
            tiny_sets.write(root, entry, corruption, labels)
    return root


def config(root: Path, **downstream: Any):
    """Return the default config with some keys of `downstream` changed."""
    out = common.get_config()
    out.update_from_flattened_dict({f"downstream.{k}": v for k, v in {"catalogue": str(root), **downstream}.items()})
    return out


TESTED = [name for name in catalogue.TRAINED if not catalogue.TRAINED[name].builder]


@pytest.mark.parametrize("name", TESTED)
def test_every_set_that_tfds_prepares(prepared: Path, name: str, capsys):
    entry = catalogue.TRAINED[name]
    task = load_task(name, config(prepared))
    assert (task.name, task.num_classes, task.metric) == (name, entry.num_classes, entry.metric)
    assert [(t.split, t.domain, t.class_map, t.frames) for t in task.tests] == [("test", "id", None, None)]
    cut = "[" in entry.train  # train[:80%] and train[80%:] of ten records
    assert (len(task.train), len(task.tests[0].source)) == ((8, 2) if cut else (10, 10))
    assert task.tests[0].source.num_classes == entry.num_classes
    said = capsys.readouterr().err
    assert f"has {len(task.train)} records; the published number is {entry.n_train:,}" in said
    assert f"the published number is {entry.n_test:,}" in said
    assert "tensorflow" not in sys.modules


def test_the_fourteen_sets_of_the_method():
    sizes = {name: (e.num_classes, e.n_train, e.n_full, e.n_test) for name, e in catalogue.TRAINED.items()}
    assert len(sizes) == 14 + 2  # plus ImageNet-1K and Country211
    assert sizes["flowers102"] == (102, 1_020, 2_040, 6_149)
    assert sizes["aircraft"] == (100, 3_334, 6_667, 3_333)
    assert sizes["dtd"] == (47, 1_880, 3_760, 1_880)
    assert sizes["resisc45"] == (45, 25_200, 0, 6_300)
    assert {n for n, e in catalogue.TRAINED.items() if e.metric == "mean_per_class"} == {
        "flowers102", "pets", "aircraft", "caltech101",
    }  # fmt: skip
    for entry in (*catalogue.TRAINED.values(), *catalogue.PARTNERS.values()):
        assert entry.licence
        assert entry.url.startswith("http")
        assert "nml_jax.prepare" in entry.obtain if entry.builder else "tfds build" in entry.obtain


def test_training_with_the_validation_split(prepared: Path):
    task = load_task("flowers102", config(prepared, with_validation=True))
    assert len(task.train) == 20
    assert len(load_task("pets", config(prepared, with_validation=True)).train) == 10  # it has no validation split


def test_domainnet_in_any_pairing(prepared: Path):
    task = load_task("domainnet", config(prepared))
    assert [(t.split, t.domain) for t in task.tests] == [
        ("real", "id"), ("clipart", "ood"), ("painting", "ood"), ("sketch", "ood"),
    ]  # fmt: skip
    assert (task.num_classes, len(task.train)) == (345, 10)
    for train, test in itertools.permutations(("sketch", "quickdraw", "infograph"), 2):
        task = load_task("domainnet", config(prepared, domain_train=train, domain_test=(test,)))
        assert [t.split for t in task.tests] == [train, test]
        assert task.train.fingerprint != task.tests[0].source.fingerprint


def test_each_corruption_is_a_split(prepared: Path):
    chosen = {"partners": ("cifar10_1", "cifar10_c"), "corruptions": ("snow", "fog"), "severities": (1, 5)}
    task = load_task("cifar10", config(prepared, tasks=("cifar10",), **chosen))
    assert [t.split for t in task.tests] == [
        "test", "cifar10_1", "cifar10_c/snow_1", "cifar10_c/snow_5", "cifar10_c/fog_1", "cifar10_c/fog_5",
    ]  # fmt: skip
    assert {t.domain for t in task.tests[1:]} == {"ood"}
    assert len({t.source.fingerprint for t in task.tests}) == 6


def test_variants_of_imagenet_and_their_class_maps(prepared: Path):
    partners = ("imagenet_v2", "imagenet_r", "imagenet_a", "imagenet_sketch")
    task = load_task("imagenet2012", config(prepared, partners=partners))
    by_split = {t.split: t for t in task.tests}
    assert list(by_split) == ["test", *partners]
    for name in ("imagenet_r", "imagenet_a"):
        test = by_split[name]
        assert test.class_map == class_maps.load_ids(name)
        assert test.source.num_classes == len(test.class_map) == 200
        assert test.source.labels.tolist() == [0, 1, 2, 3, 4, 5, 6, 0, 1, 2]  # the first seven of its own classes
        ids = [c for (c,) in test.class_map]
        assert list(test.source.class_names) == [task.train.class_names[c] for c in ids]
    assert by_split["imagenet_v2"].class_map is None
    assert by_split["imagenet_sketch"].source.num_classes == 1000


def test_class_maps_are_of_imagenet_and_of_the_published_sizes():
    for name, size in {"imagenet_a": 200, "imagenet_r": 200, "objectnet": 113, "imagenet_vid_robust": 30}.items():
        ids = [i for classes in class_maps.load_ids(name) for i in classes]
        assert len(class_maps.load_ids(name)) == size
        assert len(set(ids)) == len(ids)
        assert set(ids) <= set(range(1000))
    objectnet, vid = class_maps.load("objectnet"), class_maps.load("imagenet_vid_robust")
    assert list(objectnet) == sorted(objectnet)  # as the builder orders the classes
    assert objectnet["alarm_clock"] == (409, 530)  # analog clock, digital clock
    assert objectnet["chair"] == (423, 559, 765)  # barber chair, folding chair, rocking chair
    assert vid["dog"] == tuple(range(151, 269))
    assert vid["zebra"] == (340,)
    assert len([i for classes in vid.values() for i in classes]) == 288
    from tensorflow_datasets.datasets.imagenet2012 import imagenet_common

    names = Path(imagenet_common.label_names_file()).read_text().split()
    for task, wnid in ((vid["zebra"], "n02391049"), (objectnet["banana"], "n07753592"), (vid["dog"][:1], "n02085620")):
        assert names[task[0]] == wnid


def test_the_version_of_the_table_comes_first(tmp_path: Path, capsys):
    folder = tiny_sets.write(tmp_path, catalogue.TRAINED["dtd"])
    newer = folder.with_name("10.0.0")
    newer.symlink_to(folder.name)
    assert find_folder(config(tmp_path), catalogue.TRAINED["dtd"]) == folder
    folder.rename(folder.with_name("9.9.9"))
    newer.unlink()
    assert load_task("dtd", config(tmp_path)).num_classes == 47
    assert "using version 9.9.9 instead of 3.0.1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "keys", "cause", "cure"),
    [
        ("svhn", {}, "no prepared dataset in .*svhn_cropped", "tfds build svhn_cropped"),
        ("aircraft", {}, "no prepared dataset", "prepare fgvc_aircraft SRC"),
        ("cifar10", {"partners": ("imagenet_r",)}, "unknown 'imagenet_r'", "cifar10_1, cifar10_c"),
        ("cifar10", {"partners": ("cifar10_1", "cifar10_1")}, "twice", "once"),
        ("cifar10", {"corruptions": ("rain",)}, "unknown 'rain'", "gaussian_noise"),
        ("cifar10", {"severities": (6,)}, "unknown 6", "1, 2, 3"),
        ("cifar10", {"severities": ()}, "empty", "1 to 5"),
        ("domainnet", {"domain_train": "photo"}, "unknown 'photo'", "clipart"),
        ("domainnet", {"domain_test": ("real",)}, "'real' is given twice", "once"),
        ("svhn", {"partners": ("cifar10_1",)}, "unknown 'cifar10_1'", "nothing with these tasks"),
    ],
)
def test_bad_keys_are_refused(tmp_path: Path, name: str, keys: dict, cause: str, cure: str):
    chosen = config(tmp_path, tasks=(name,), **keys)
    with pytest.raises(UserError, match=cause) as error:
        check_tasks(chosen, data=True)
    assert cure in error.value.cure
    assert "\n" not in str(error.value.cause + error.value.cure)
    with pytest.raises(UserError, match=cause):
        load_task(name, chosen)


def test_a_set_of_other_classes_is_refused(tmp_path: Path):
    """Open the folder of one set under the name of another."""
    tiny_sets.write(tmp_path, catalogue.TRAINED["dtd"])
    (tmp_path / "dtd").rename(tmp_path / "svhn_cropped")
    with pytest.raises(UserError, match="has 47 classes, not 10"):
        load_task("svhn", config(tmp_path))


def test_tests_of_other_classes_are_refused():
    def source(names: list[str] | None, k: int = 3) -> Source:
        return in_memory([b""] * 3, [0, 1, 2], num_classes=k, class_names=names, name="x")

    train = source(["ant", "bee", "cat"])
    _check_classes(source(["ant", "bee", "cat"]), train, "new")
    _check_classes(source(None), train, "new")  # numbers are not compared with names
    _check_classes(train, source(None), "new")
    for other in (source(["ant", "cat", "bee"]), source(None, 4)):
        with pytest.raises(UserError, match="new has other classes"):
            _check_classes(other, train, "new")
