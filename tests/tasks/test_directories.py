"""Several prepared datasets as downstream tasks of one run."""

import numpy as np
import pytest
from PIL import Image

from configs import common
from nml_jax import inputs, settings
from nml_jax.errors import MissingInput, UserError
from nml_jax.prepare import image_folder
from nml_jax.tasks.classification import check_tasks, choose_dataset_name, load_task


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two prepared datasets: the name -> (its classes, its path)."""
    base, rng, out = tmp_path_factory.mktemp("directories"), np.random.default_rng(0), {}
    for name, classes, splits in (("insects", ("ant", "bee"), ("train", "test")), ("pets", "cdf", ("photo", "art"))):
        for split in splits:
            for label in classes:
                (base / "src" / name / split / label).mkdir(parents=True)
                for i in range(2 + len(split)):
                    pixels = rng.integers(0, 256, (9, 9, 3), dtype=np.uint8)
                    Image.fromarray(pixels).save(base / "src" / name / split / label / f"{i}.png")
        image_folder.build_image_folder(base / "src" / name, base / name, workers=1)
        out[name] = str(base / name)
    return out


def make_config(folders, **overrides):
    config = common.get_config()
    config.downstream.tasks = ("crawling", "furry")
    config.downstream.directories = (
        ("crawling", folders["insects"], "train", ("test",), ()),
        ("furry", folders["pets"], "photo[:60%]", ("photo[60%:]",), ("art",)),
    )
    config.update_from_flattened_dict(overrides)
    return config


def test_each_has_its_own_splits_and_classes(folders):
    config = make_config(folders, **{"downstream.shifts": ("inverted",)})
    check_tasks(config, data=True)
    crawling, furry = (load_task(name, config) for name in config.downstream.tasks)
    assert (crawling.name, crawling.num_classes, len(crawling.train)) == ("crawling", 2, 14)
    assert [(t.split, t.domain) for t in crawling.tests] == [("test", "id"), ("test/inverted", "ood")]
    assert (furry.name, furry.num_classes) == ("furry", 3)
    assert [(t.split, t.domain) for t in furry.tests] == [
        ("photo[60%:]", "id"), ("art", "ood"), ("photo[60%:]/inverted", "ood"),
    ]  # fmt: skip
    assert len(furry.train) + len(furry.tests[0].source) == 21
    assert choose_dataset_name("furry", config) == "pets", "class names and prompts are listed by the folder's name"


def test_test_records_without_training_records_are_told(folders, capsys):
    config = make_config(folders, **{"downstream.tasks": ("furry",)})
    config.downstream.directories = (("furry", folders["pets"], "photo[:4]", ("art",), ()),)
    assert set(load_task("furry", config).train.labels) == {0}
    said = " ".join(capsys.readouterr().err.split())
    assert "furry: 10 of 15 records of art are of 'd', 'f', of which there is no training record" in said


def test_their_content_is_part_of_what_a_run_depends_on(folders):
    part = settings.select_keys(settings.to_json(make_config(folders)), ("downstream",))
    assert {path for _, path in inputs.name_paths(part)} == set(folders.values())


def test_a_directory_that_no_task_names_is_not_read(folders):
    config = make_config(folders, **{"downstream.tasks": ("furry",)})
    part = settings.select_keys(settings.to_json(config), ("downstream",))
    assert inputs.name_paths(part) == [("downstream.directories", folders["pets"])]


@pytest.mark.parametrize(
    ("entry", "cause"),
    [
        (("a", "PATH", "train", ("test",)), "has \\('a', "),
        (("a", "PATH", "train", "test", ()), "has \\('a', "),
        (("a", "PATH", "train", (), ()), "has \\('a', "),
        (("", "PATH", "train", ("test",), ()), "has \\('', "),
        ("abcde", "has 'abcde'"),
        (("digits", "PATH", "train", ("test",), ()), "'digits' is the name of another task"),
        (("crawling", "PATH", "train", ("test",), ()), "'crawling' is the name of another task"),
        (("a", "PATH", "train", ("test",), ("test",)), "a: the split 'test' is tested twice"),
        (("a", "PATH", "test", ("test",), ()), "a: the test split 'test' is the training split"),
        (("a", "PATH", "train", ("test",), ("tset",)), "has no split 'tset'"),
        (("a", "/nowhere", "train", ("test",), ()), "'a' has no prepared dataset at '/nowhere'"),
    ],
)
def test_an_entry_that_cannot_be_is_refused(folders, entry, cause):
    config = make_config(folders)
    if isinstance(entry, tuple):
        entry = tuple(folders["insects"] if part == "PATH" else part for part in entry)
    config.downstream.directories = (*config.downstream.directories, entry)
    config.downstream.tasks = (*config.downstream.tasks, entry[0])
    with pytest.raises((UserError, MissingInput), match=cause):
        check_tasks(config, data=True)
