"""Test the table of downstream tasks."""

from pathlib import Path

import numpy as np
import pytest

from configs import common, digits
from nml_jax.data import sources
from nml_jax.data.images import transforms
from nml_jax.errors import UserError
from nml_jax.tasks.classification import load_task


def test_digits_are_five_to_nine_and_never_those_of_pre_training():
    task = load_task("digits", common.get_config())
    assert task.num_classes == 5
    assert len(task.train) + len(task.tests[0].source) == 896  # of scikit-learn's 1,797
    assert task.tests[0].domain == "id"
    assert {test.shift for test in task.tests if test.domain == "ood"} == set(transforms.SHIFTS)
    assert all(test.source is task.tests[0].source for test in task.tests)
    # The first record of the task is the first digit >= 5 of the training part, renumbered from 0.
    from sklearn.datasets import load_digits

    target = load_digits().target
    assert np.array_equal(np.unique(task.train.labels), np.arange(5))
    counts = np.bincount(task.train.labels) + np.bincount(task.tests[0].source.labels)
    assert np.array_equal(counts, np.bincount(target)[5:])


@pytest.mark.parametrize(
    ("overrides", "cause"),
    [
        ({}, "no path"),
        ({"downstream.path": "/nowhere"}, "/nowhere"),
        ({"downstream.path": "/nowhere", "downstream.shifts": ("melted",)}, "melted"),
        ({"downstream.path": "/nowhere", "downstream.test": ()}, "no test split"),
    ],
)
def test_an_incomplete_description_of_a_directory(overrides: dict, cause: str):
    config = common.get_config()
    config.update_from_flattened_dict(overrides)
    with pytest.raises(UserError, match=cause):
        load_task("directory", config)


def test_the_default_directory_is_that_of_pre_training(tmp_path):
    from PIL import Image

    from nml_jax.prepare import image_folder

    rng = np.random.default_rng(0)
    for split in ("train", "val", "sketch"):
        for name in ("ant", "bee"):
            (tmp_path / "src" / split / name).mkdir(parents=True)
            for i in range(3):
                pixels = rng.integers(0, 256, (9, 9, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "src" / split / name / f"{i}.png")
    image_folder.build_image_folder(tmp_path / "src", tmp_path / "out", workers=1)
    config = common.get_config()
    config.data.path = str(tmp_path / "out")
    config.downstream.test, config.downstream.ood = ("val",), ("sketch",)
    config.downstream.shifts = ("inverted",)
    task = load_task("directory", config)
    assert [(t.split, t.domain, t.shift) for t in task.tests] == [
        ("val", "id", None),
        ("sketch", "ood", None),
        ("val/inverted", "ood", "inverted"),
    ]
    assert len(task.train) == 6


def test_texts_name_the_true_numbers_of_few_digits():
    task = load_task("digits_few", digits.get_config())
    train, test = len(task.train.labels), len(task.tests[0].source.labels)
    root = Path(__file__).parents[2]
    for file, words in (
        ("configs/digits.py", f"9 from {train} images. They are tested on {test} others"),
        ("docs/results.md", f"digits 5 to 9 from {train} images; the tests are {test} others"),
        ("docs/guides/downstream.md", f"with few rows to train on, {train}, and many to test on, {test} "),
    ):
        assert words in (root / file).read_text("utf-8")


def test_seen_digits_are_tested_on_images_that_pre_training_never_reads():
    config = digits.get_config()
    task = load_task("digits_seen", config)
    (test,) = task.tests
    assert (task.num_classes, test.domain) == (3, "id")
    assert config.data.train == "train"
    read = sources.load("digits", "", config.data.train, classes=config.data.classes)
    assert not {*read.keys} & {*test.source.keys}
    assert len(test.source) == 106
    assert np.array_equal(np.unique(test.source.labels), np.arange(3))


def test_an_unknown_task_lists_the_right_ones():
    with pytest.raises(UserError) as error:
        load_task("letters", common.get_config())
    assert "digits, digits_few, digits_seen, directory" in error.value.cure
