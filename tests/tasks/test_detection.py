"""The splits of a detector's task: what is refused, and what is said."""

import io
import json

import pytest
from PIL import Image

from configs import common
from nml_jax import console
from nml_jax.data.sources import annotated
from nml_jax.errors import UserError
from nml_jax.prepare.coco.build import build_coco_folder
from nml_jax.tasks import detection

IDS = {"cat": 3, "dog": 7}


def write(folder, splits, *, ids=None, first=None, sides=None):
    """Prepare splits of one image per list of names of objects; `ids` and `first` image id may be those of a split."""
    for split, images in splits.items():
        of, start = (ids or {}).get(split, IDS), (first or {}).get(split, 1)
        (folder / "src" / "images" / split).mkdir(parents=True)
        entries, notes = [], []
        for i, names in enumerate(images):
            out, height = io.BytesIO(), (sides or {}).get(names[0], 12) if split == "train" else 12
            Image.new("RGB", (20, height)).save(out, "PNG")
            (folder / "src" / "images" / split / f"{i}.png").write_bytes(out.getvalue())
            entries.append({"id": start + i, "file_name": f"{split}/{i}.png", "height": height, "width": 20})
            notes += [{"image_id": start + i, "category_id": of[name.strip("*")], "bbox": [2, 1, 6, 6], "area": 36,
                       "iscrowd": int("*" in name)} for name in names]  # fmt: skip
        notes = [{"id": k, **note} for k, note in enumerate(notes)]
        categories = [{"id": i, "name": name} for name, i in of.items()]
        tree = {"images": entries, "annotations": notes, "categories": categories}
        (folder / "src" / f"instances_{split}.json").write_text(json.dumps(tree))
    build_coco_folder(folder / "src", folder / "out", workers=1)
    return folder / "out"


def open_task(path, **data):
    console.notice_once.cache_clear()
    config = common.get_config()
    config.detect.data.update(
        {"source": "directory", "path": str(path), "train": "train", "test": "val", "smallest": 1, **data}
    )
    return detection.open_task(config)


def test_a_class_that_is_only_tested_is_told(tmp_path, capsys):
    out = write(tmp_path, {"train": [["cat"], ["cat", "dog*"]], "val": [["cat"], ["dog"]]})
    task = open_task(out)
    assert task.test.class_names == ("cat", "dog")
    assert "no training object of 'dog': their AP is 0, and counts in the mean" in capsys.readouterr().err
    open_task(out, train="train+val", test="val")
    assert "no training object" not in capsys.readouterr().err


def test_a_class_of_crowds_alone_is_not_tested(tmp_path, capsys):
    open_task(write(tmp_path, {"train": [["cat", "dog"]], "val": [["cat", "dog*"]]}))
    assert "none of 1 of 2 classes, dog" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("about", "words"),
    [
        ({"ids": {"other": {"cat": 0, "dog": 1}}, "first": {"other": 9}}, "have other category ids"),
        ({}, "2 images have the id 1"),
    ],
)
def test_splits_whose_ids_clash_are_not_one_test(tmp_path, about, words):
    out = write(tmp_path, {"train": [["cat", "dog"]], "val": [["cat"]], "other": [["dog"]]}, **about)
    assert len(open_task(out, test="other").test) == 1
    with pytest.raises(UserError, match=words):
        open_task(out, test="val+other")


def test_parts_that_overlap_are_not_one_test(tmp_path):
    out = write(tmp_path, {"train": [["cat"]], "val": [["cat"], ["cat"], ["cat"]]})
    assert len(open_task(out, test="val[:1]+val[2:]").test) == 2
    with pytest.raises(UserError, match="2 images have the id 2"):
        open_task(out, test="val[:2]+val[1:]")


def test_a_class_on_images_that_are_too_small_to_train_on_is_told(tmp_path, capsys):
    out = write(tmp_path, {"train": [["cat"], ["cat"]], "val": [["cat"]]})
    capsys.readouterr()
    open_task(out)
    assert "no training object" not in capsys.readouterr().err
    small = write(tmp_path / "small", {"train": [["cat"], ["dog"]], "val": [["dog"]]}, sides={"dog": 8})
    open_task(small, smallest=9)
    assert "no training object of 'dog'" in capsys.readouterr().err


def test_splits_whose_ids_differ_are_one_test(tmp_path):
    splits = {"train": [["cat", "dog"]], "val": [["cat"]], "other": [["dog"]]}
    task = open_task(write(tmp_path, splits, first={"other": 9}), test="val+other")
    assert list(task.test.image_ids) == [1, 9]


@pytest.mark.parametrize("field", ["category_ids", "classes", "builder"])
def test_a_manifest_without_a_field_is_damaged(tmp_path, field):
    out = write(tmp_path, {"train": [["cat"]]})
    manifest = json.loads((out / "manifest.json").read_text())
    del manifest[field]
    (out / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"manifest\.json is missing or damaged"):
        annotated.load(str(out), "train")
