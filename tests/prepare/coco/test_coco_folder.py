import json
import zipfile

import numpy as np
import pytest

from nml_jax import console
from nml_jax.data.images import masks
from nml_jax.data.sources import annotated
from nml_jax.errors import MissingInput, UserError
from nml_jax.prepare import __main__ as command
from nml_jax.prepare.coco.build import build_coco_folder, name_split
from nml_jax.tasks import detection
from tests.prepare.coco.folders import CATEGORIES, SQUARE, build, encode, image, note, write


def test_bytes_ids_polygons_and_rles_stay_what_they_are(tmp_path):
    rle = masks.encode(masks.decode(SQUARE, 12, 20).astype(bool))
    plain = {"size": [12, 20], "counts": [12 * 2 + 3, *[6, 6] * 5, 6, 12 * 20 - 27 - 66]}
    forms = [SQUARE, rle, plain, [*SQUARE, [10, 1, 14, 1, 14, 5]]]
    notes = [note(10 + k, segmentation=form, iscrowd=int(k == 2), category_id=7 if k else 3, bbox=[2.25, 3.1, 6, 6.5])
             for k, form in enumerate(forms)]  # fmt: skip
    manifest, source = build(tmp_path, notes, images=[image(41, "1.jpg"), image(1, "2.jpg")])
    assert manifest["annotations_left_out"] == []
    assert source.image(0) == encode()
    assert [source.image_ids[i] for i in range(2)] == [41, 1]
    assert source.keys[1] == "2.jpg"
    assert source.class_names == ("cat", "dog")
    assert source.category_ids == [3, 7]
    assert source.sizes.tolist() == [[12, 20]] * 2
    objects = source.objects(1)
    assert list(objects.masks) == forms
    assert objects.labels.tolist() == [0, 1, 1, 1]
    assert objects.crowd.tolist() == [False, False, True, False]
    np.testing.assert_array_equal(objects.boxes[0], [2.25, 3.1, 2.25 + 6, 3.1 + 6.5])
    assert source.counts.tolist() == [[0, 0], [3, 3]]
    truth = detection.make_truth(source)
    assert [a["category_id"] for a in truth["annotations"]] == [1, 2, 2, 2]
    one, read = {"image_id": 1, "category_id": 2, "score": 0.5, "bbox": [0, 0, 1, 1]}, []
    source.image_ids = type("Ids", (), {"__getitem__": lambda self, i: read.append(i) or [41, 1][i]})()
    assert detection.restore_ids(source, [one] * 3) == [{**one, "image_id": 1, "category_id": 7}] * 3
    assert read == [1], "the annotations of an image are parsed once, not for every detection"


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        (note(5, image_id=9), "of an image that is not listed"),
        (note(5, category_id=1), "of a category that is not listed"),
        (note(5, image_id=[1]), "of an image that is not listed"),
        (note(5, image_id=True), "of an image that is not listed"),
        (note(5, category_id={}), "of a category that is not listed"),
        (note(5, bbox=[2, 3, 0, 6]), "a box without extent"),
        (note(5, bbox=[2, 3, 6, -1]), "a box without extent"),
        (note(5, bbox=[2, 3, float("nan"), 6]), "not finite"),
        (note(5, bbox=[2, 3, float("inf"), 6]), "not finite"),
        (note(5, bbox=[2, 3, 10**400, 6]), "not finite"),
        (note(5, bbox=[2, 3, 6]), "not four numbers"),
        (note(5, bbox="2 3 6 6"), "not four numbers"),
        (note(5, bbox=[30, 3, 6, 6]), "beyond the image"),
        (note(5, iscrowd=2), "iscrowd is 2"),
        (note(5, bbox=None, segmentation=None), "neither a box nor a mask"),
        (note(5, bbox=None, segmentation=[[1, 2, 3, 4]]), "neither a box nor a mask"),
        ("box", "not listed"),
    ],
)
def test_an_annotation_that_cannot_be_used_is_left_out_by_its_id(tmp_path, entry, reason):
    manifest, source = build(tmp_path, [entry, note(6)])
    (left,) = manifest["annotations_left_out"]
    assert reason in left["reason"]
    assert (left["file"], left["split"]) == ("instances.json", "train")
    assert left["annotation"] == (5 if isinstance(entry, dict) else None)
    assert len(source.objects(0).labels) == 1


@pytest.mark.parametrize(
    ("changes", "what", "mask"),
    [
        ({"id": 0}, "annotation id 0", SQUARE),
        ({"id": 6}, "an id that other annotations have", SQUARE),
        ({"id": [5]}, "an annotation without an id", SQUARE),
        ({"bbox": None}, "a box from the mask", SQUARE),
        ({"area": 10**400}, "an area from the mask or box", SQUARE),
        ({"segmentation": [[2, 3, 8, 3, 8, 9, 2, 1e9]]}, "far beyond its image", None),
        ({"segmentation": [[2, 3, 8, 3, 8, 9, 2, 10**400]]}, "far beyond its image", None),
        ({"segmentation": {"size": [12.0, 20.0], "counts": [240]}}, "a mask left out: an RLE", None),
        ({"area": None, "category_id": 3.0}, "an area from the mask or box", SQUARE),
        ({"segmentation": None}, "no mask that can be used", None),
        ({"segmentation": [[1, 2, 3, 4], *SQUARE]}, "fewer than 3 points", SQUARE),
        ({"segmentation": [[1, 2, 3, 4, 5, 6, 7]]}, "odd number of coordinates", None),
        ({"segmentation": [[30, 30, 40, 30, 40, 40]]}, "no pixel in its image", None),
        ({"segmentation": {"size": [20, 12], "counts": [240]}}, "a mask left out: an RLE", None),
        ({"segmentation": {"size": [12, 20], "counts": "PPP"}}, "a mask left out: an RLE", None),
        ({"segmentation": "mask"}, "a mask left out", None),
        ({"bbox": [-3, 3, 40, 6]}, "reaches beyond its image", SQUARE),
    ],
)
def test_an_annotation_that_can_be_mended_is_counted(tmp_path, changes, what, mask):
    manifest, source = build(tmp_path, [note(5, **changes), note(6)])
    counts = {name: n for name, n in manifest["annotations_mended"]["train"].items() if what in name}
    assert list(counts.values()) == [2 if changes == {"id": 6} else 1], manifest["annotations_mended"]
    objects = source.objects(0)
    assert objects.masks[0] == mask
    assert objects.areas[0] == 36
    if changes == {"bbox": None}:
        assert objects.boxes[0].tolist() == [2, 3, 8, 9]


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (lambda tree: json.dumps(tree)[:-20], "is not a json, or is cut off"),
        (lambda tree: "[1, 2]", "it is a list"),
        (lambda tree: "[" * 100_000, "is not a json, or is cut off"),
        (lambda tree: json.dumps(tree | {"images": [image(1, "\ud800")]}), "whose file_name is "),
        (
            lambda tree: json.dumps(tree | {"images": [{**image(1), "width": 10**9}]}),
            "whose width is 1000000000, not a whole",
        ),
        (
            lambda tree: json.dumps(tree | {"categories": [{"id": 3, "name": "\udfff"}]}),
            "a category whose name is ",
        ),
        (lambda tree: json.dumps({"images": []}), "it has images, not images, annotations and categories"),
        (lambda tree: json.dumps(tree | {"images": [image(1), image(1, "2.jpg")]}), "image 1 comes twice"),
        (lambda tree: json.dumps(tree | {"images": [image(1), image(2, "1.jpg")]}), "file '1.jpg' comes twice"),
        (
            lambda tree: json.dumps(tree | {"images": [{"id": 1, "file_name": "1.jpg"}]}),
            "an image without height and width: ",
        ),
        (lambda tree: json.dumps(tree | {"categories": []}), "has no category"),
        (lambda tree: json.dumps(tree | {"categories": [{"id": 3}]}), "a category without name: "),
        (lambda tree: json.dumps(tree | {"categories": [CATEGORIES[0]] * 2}), "category 7 comes twice"),
        (
            lambda tree: json.dumps(tree | {"categories": [{"id": 0, "name": "a"}, {"id": 1, "name": "a"}]}),
            "the categories 0 and 1 are both called 'a'",
        ),
    ],
)
def test_a_json_that_cannot_be_trusted_is_refused(tmp_path, broken, words, capsys):
    src = write(tmp_path / "src", [note(5)])
    tree = json.loads((src / "instances.json").read_text())
    (src / "instances.json").write_text(broken(tree))
    assert command.main(["coco_folder", str(src), str(tmp_path / "out")]) == 2
    err = capsys.readouterr().err
    assert words in err
    assert "instances.json" in err
    assert "cure: " in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "there is no such file; it is image 2"),
        (encode(size=(10, 12)), "it is 10 x 12 pixels, and its annotations are for 20 x 12"),
        (encode(size=(20, 12), exif=b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"),
         "it is 12 x 20 pixels (turned as its EXIF orientation says)"),
        (encode()[:300], "truncated"),
        (b"", "empty"),
    ],
)  # fmt: skip
def test_an_image_that_is_not_what_the_json_says_is_refused(tmp_path, content, reason):
    files = {"1.jpg": encode(), **({"2.jpg": content} if content is not None else {})}
    manifest, source = build(tmp_path, [note(5), note(6, image_id=2)], files=files)
    (refused,) = manifest["refused"]
    assert refused["file"] == "2.jpg"
    assert reason in refused["reason"]
    assert len(source) == 1


@pytest.mark.parametrize(
    ("name", "content"),
    [("g.jpg", encode("L")), ("c.jpg", encode("CMYK")), ("a.png", encode("RGBA", form="PNG")),
     ("s.png", encode("I;16", form="PNG"))],
)  # fmt: skip
def test_unusual_pixels_become_rgb(tmp_path, name, content):
    manifest, source = build(tmp_path, [note(5)], images=[image(1, name)], files={name: content})
    assert manifest["refused"] == []
    out = detection.scenes.SceneTransform((32, 32), 12, 20).test(source[0])
    assert out["image"].shape == (32, 32, 3)


def test_files_that_no_json_names_are_listed(tmp_path):
    files = {"1.jpg": encode(), "2.jpg": encode(), "3.jpg": encode()}
    manifest, _ = build(tmp_path, [note(5)], files=files)
    assert manifest["files_left_out"] == [
        {"file": "images/3.jpg", "reason": "no json has an image of this file", "files": 1}
    ]


@pytest.mark.parametrize(
    ("names", "paths", "kept", "reason"),
    [
        (["a/1.jpg", "b/1.jpg"], ["b/1.jpg"], "b/1.jpg", "images/b/1.jpg may be the file of image 2; it is image 1"),
        (["1.jpg", "a/1.jpg"], ["a/1.jpg"], "a/1.jpg", "images/a/1.jpg may be the file of image 2; it is image 1"),
        (["a/1.jpg", "b/1.jpg", "2.jpg"], ["1.jpg", "2.jpg"], "2.jpg", "images/1.jpg may be the file of image"),
        (["1.jpg", "2.jpg"], ["a/1.jpg", "b/1.jpg", "2.jpg"], "2.jpg", "may be images/a/1.jpg or images/b/1.jpg"),
    ],
)
def test_no_image_gets_a_file_that_may_be_of_another(tmp_path, names, paths, kept, reason):
    images = [image(i, name) for i, name in enumerate(names, 1)]
    manifest, source = build(tmp_path, [note(5, 1), note(6, 2)], images=images, files=dict.fromkeys(paths, encode()))
    assert source.keys[0] == kept
    assert len(source) == 1
    assert all(reason in one["reason"] for one in manifest["refused"]), manifest["refused"]
    assert len(manifest["refused"]) == len(names) - 1


def test_zips_and_several_splits(tmp_path):
    src = tmp_path / "src"
    write(src / "annotations", [note(5)], name="instances_train.json", files={})
    renumbered = [{"id": 0, "name": "cat"}, {"id": 1, "name": "bird"}]
    write(src / "annotations", [note(0, category_id=0)], name="instances_val.json", files={}, categories=renumbered)
    (src / "annotations" / "captions_val.json").write_text("{}")
    for split, size in (("train", 90), ("val", 10)):
        with zipfile.ZipFile(src / f"{split}.zip", "w") as archive:
            for i in (1, 2):
                archive.writestr(f"{split}/{i}.jpg", encode(quality=size))
    manifest = build_coco_folder(src, tmp_path / "out", workers=2)
    train, val = (annotated.load(str(tmp_path / "out"), split) for split in ("train", "val"))
    assert train.image(0) == encode(quality=90)
    assert val.image(1) == encode(quality=10)
    assert train.class_names == val.class_names == ("cat", "dog", "bird")
    assert (train.category_ids, val.category_ids) == ([3, 7, -1], [0, -1, 1])
    assert val.objects(0).labels.tolist() == [0]
    assert manifest["missing_classes"] == {"train": ["dog", "bird"], "val": ["dog", "bird"]}
    whole = tmp_path / "all.zip"
    with zipfile.ZipFile(whole, "w") as archive:
        archive.writestr("data/instances.json", (src / "annotations" / "instances_train.json").read_text())
        for i in (1, 2):
            archive.writestr(f"data/images/{i}.jpg", encode())
    assert build_coco_folder(whole, tmp_path / "other")["splits"]["train"]["records"] == 2
    assert len(annotated.load(str(tmp_path / "out"), "train+val")) == 4


@pytest.mark.parametrize(
    ("name", "split"),
    [("instances.json", "train"), ("annotations/instances_val2017.json", "val2017"), ("val/instances.json", "val"),
     ("valid/_annotations.coco.json", "valid"), ("my.json", "my")],
)  # fmt: skip
def test_a_split_is_named_by_its_json_or_folder(name, split):
    assert name_split(name) == split


def test_classes_of_a_test_set_are_matched_by_name(tmp_path, capsys):
    console.notice_once.cache_clear()
    build_coco_folder(write(tmp_path / "a", [note(5), note(6, image_id=2, category_id=7)]), tmp_path / "train")
    other = [{"id": 0, "name": "dog"}, {"id": 1, "name": "owl"}]
    build_coco_folder(write(tmp_path / "b", [note(0, category_id=0)], categories=other), tmp_path / "test")
    train, test = (annotated.load(str(tmp_path / name), "train") for name in ("train", "test"))
    matched = detection.match_classes(train, test)
    assert matched.class_names == ("cat", "dog")
    assert matched.objects(0).labels.tolist() == [1]
    assert matched.category_ids == [-1, 0]
    assert "none of 1 of 2 classes, cat" in capsys.readouterr().err
    build_coco_folder(write(tmp_path / "c", [note(0, category_id=1)], categories=other), tmp_path / "more")
    with pytest.raises(UserError, match="'owl'"):
        detection.match_classes(train, annotated.load(str(tmp_path / "more"), "train"))


def test_data_that_are_not_there_or_of_another_kind_are_refused(tmp_path):
    with pytest.raises(MissingInput, match="no prepared dataset"):
        annotated.load(str(tmp_path), "train")
    manifest, _ = build(tmp_path, [note(5)])
    with pytest.raises(UserError, match="has no split 'val'"):
        annotated.load(str(tmp_path / "out"), "val")
    (tmp_path / "out" / "supervision" / "train.sizes.npy").unlink()
    with pytest.raises(UserError, match=r"sizes\.npy is missing"):
        annotated.load(str(tmp_path / "out"), "train")
    path = tmp_path / "out" / "manifest.json"
    path.write_text(json.dumps(manifest | {"builder": "image_folder"}))
    with pytest.raises(UserError, match="has no objects"):
        annotated.load(str(tmp_path / "out"), "train")


@pytest.mark.parametrize(("name", "n", "objects"), [("bccd", 292, 3941), ("coco_free", 33, 294), ("nuclei", 120, 3194)])
def test_the_shared_sets(shared_data, tmp_path, name, n, objects):
    manifest = build_coco_folder(shared_data / "coco" / name, tmp_path / name)
    source = annotated.load(str(tmp_path / name), "train")
    assert (len(source), sum(len(source.objects(i).labels) for i in range(n))) == (n, objects)
    assert len(manifest["annotations_left_out"]) == 2 * (name == "bccd")


def test_a_system_with_masks_needs_masks(tmp_path, capsys):
    console.notice_once.cache_clear()
    _, without = build(tmp_path / "a", [note(5, segmentation=None)])
    _, some = build(tmp_path / "b", [note(5, segmentation=None), note(6)])
    with pytest.raises(UserError, match="no object of the training split has one"):
        detection.check_masks(detection.Task("", without, some, "val"), "mask")
    for _ in range(2):
        detection.check_masks(detection.Task("", some, some, "val"), "mask")
    assert capsys.readouterr().err.count("1 of 2 objects of the training split have no mask") == 1
    transform = detection.scenes.SceneTransform((32, 32), 12, 20, most=4, crop=8)
    assert (transform.train(some[0], np.random.default_rng(0))["labels"] >= 0).sum() == 1
