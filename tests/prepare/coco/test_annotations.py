"""What a json says in an unusual way is read, mended and counted, or refused with its reason."""

import json

import pytest

from nml_jax.data.sources import annotated
from nml_jax.errors import UserError
from nml_jax.prepare import __main__ as command
from nml_jax.prepare.coco.annotations import parse
from nml_jax.prepare.coco.build import build_coco_folder
from tests.prepare.coco.folders import CATEGORIES, SQUARE, build, image, note, write


def read(images=None, annotations=(), categories=None):
    tree = {"images": images or [image(1)], "annotations": list(annotations), "categories": categories or CATEGORIES}
    return parse("instances.json", json.dumps(tree).encode())


def test_whole_numbers_may_be_written_with_a_point():
    found = read([image(1.0) | {"height": 12.0, "width": 20.0}], [note(5.0)], [{"id": 3.0, "name": "cat"}])
    assert found.images == [{"id": 1, "file_name": "1.0.jpg", "height": 12, "width": 20}]
    assert type(found.images[0]["height"]) is int
    assert found.categories == {3: "cat"}
    assert [one["id"] for one in found.objects[1]] == [5]
    assert +found.mended == {}


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"height": "48"}, 'an image whose height is "48", not a whole number of pixels from 1 to 100000: {"id"'),
        ({"height": 47.5}, "an image whose height is 47.5, not a whole number"),
        ({"width": 0}, "an image whose width is 0, not a whole number"),
        ({"width": float("inf")}, "an image whose width is Infinity, not a whole number"),
        ({"width": None, "height": None}, "an image without height and width: "),
        ({"id": True}, "an image whose id is true, not a whole number or a text"),
        ({"id": 1.5}, "an image whose id is 1.5, not a whole number or a text"),
        ({"file_name": 1}, "an image whose file_name is 1, not a text"),
    ],
)
def test_what_is_wrong_with_an_image_is_named(changes, cause):
    with pytest.raises(UserError) as refused:
        read([image(1) | changes])
    assert refused.value.cause.startswith(f"instances.json: {cause}")


def test_what_is_wrong_with_a_category_is_named():
    with pytest.raises(UserError, match='a category whose id is "3", not a whole number: '):
        read(categories=[{"id": "3", "name": "cat"}])
    with pytest.raises(UserError, match="a category without id and name: 7"):
        read(categories=[7])


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        ("null", "is not in COCO's format: it is null, not"),
        ("true", "is not in COCO's format: it is true or false, not"),
        ("1.5", "is not in COCO's format: it is a number, not"),
        ('"a"', "is not in COCO's format: it is a text, not"),
        ('{"name": "my-package", "version": "1.0"}', "is not in COCO's format: it has name, version, not"),
        ("// settings\n{}", "is not a json, or is cut off: "),
    ],
)
def test_a_json_of_another_kind_may_be_taken_away(tmp_path, content, cause):
    src = write(tmp_path / "src", [note(5)])
    (src / "package.json").write_text(content)
    with pytest.raises(UserError) as refused:
        build_coco_folder(src, tmp_path / "out")
    assert f"package.json {cause}" in refused.value.cause
    assert refused.value.cure.endswith("or take it out of SRC if it is not a json of COCO's format")


def test_a_crowd_that_is_null_is_none(tmp_path):
    manifest, source = build(tmp_path, [note(5, iscrowd=None), note(6, iscrowd=1)])
    assert manifest["annotations_left_out"] == []
    assert source.objects(0).crowd.tolist() == [False, True]


@pytest.mark.parametrize("area", [1e12, 1e10, 13 * 21 + 1, -1, float("nan"), float("inf"), "36", True])
@pytest.mark.parametrize(("more", "measured"), [({}, 36), ({"segmentation": None, "bbox": [-1e6, 3, 2e6, 6]}, 20 * 6)])
def test_an_area_that_no_object_of_the_image_has_is_measured(area, more, measured):
    found = read(annotations=[note(5, area=area, **more)])
    assert [one["area"] for one in found.objects[1]] == [measured]
    what = "an area from the mask or box, as its own is not one within its image"
    assert found.mended[what] == 1
    assert found.mended_ids[what] == [5]


def test_an_area_of_the_whole_image_and_a_bit_is_kept():
    for area in (0, 20 * 12, 21 * 13):
        assert [one["area"] for one in read(annotations=[note(5, area=area)]).objects[1]] == [area]


@pytest.mark.parametrize(
    ("size", "counts", "what"),
    [
        (100_000, [5_000_000_000, 5_000_000_000], "a mask left out: an RLE with a count above 4294967295"),
        (12, [2**70, 1], "a mask left out: an RLE with a count above 4294967295"),
        (12, [10**4000 + 1, 1], "a mask left out: an RLE with a count above 4294967295"),
        (12, "o" * 10_000 + "0", "a mask left out: an RLE with a count of more than 6 characters"),
    ],
)
def test_a_mask_beyond_the_codec_is_left_out(size, counts, what):
    about = image(1) | {"height": size, "width": size}
    found = read([about], [note(5, segmentation={"size": [size, size], "counts": counts})])
    assert found.mended[what] == 1
    assert [one["segmentation"] for one in found.objects[1]] == [None]


def test_mended_annotations_are_listed_by_their_ids(tmp_path, capsys):
    broken = {"size": [12, 20], "counts": [100]}
    notes = [note(10 + i, segmentation=broken) for i in range(25)]
    notes += [note(50, bbox=None), note(50), note("a\nb", area=None), note(None, area=None)]
    notes += [note(60, bbox=[0, 0, -1, 3], segmentation=[[1, 2, 3, 4], *SQUARE])]
    src = write(tmp_path / "src", notes)
    assert command.main(["coco_folder", str(src), str(tmp_path / "out")]) == 0
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text("utf-8"))
    ids = manifest["annotations_mended_ids"]["train"]
    assert ids["a mask left out: an RLE whose counts"] == list(range(10, 30))
    assert ids["a box from the mask, as there was none"] == [50]
    assert ids["an id that other annotations have, too"] == [50]
    assert ids["an area from the mask or box, as there was none"] == ["a\nb"]
    assert not any("part of a mask" in what for what in manifest["annotations_mended"]["train"]), "60 is left out"
    lines = capsys.readouterr().out.splitlines()
    assert "  25 x a mask left out: an RLE whose counts; as in annotation 10, 11 and 12" in lines
    assert "  2 x an area from the mask or box, as there was none; as in annotation a\\nb" in lines
    assert "  1 x an annotation without an id" in lines
    assert len(annotated.load(str(tmp_path / "out"), "train").objects(0).labels) == 29
