"""What a json says in an unusual way is read, mended and counted, or refused with its reason."""

import json

import pytest

from nml_jax.prepare.coco.annotations import parse
from tests.prepare.coco.folders import CATEGORIES, build, image, note


def read(images=None, annotations=(), categories=None):
    tree = {"images": images or [image(1)], "annotations": list(annotations), "categories": categories or CATEGORIES}
    return parse("instances.json", json.dumps(tree).encode())


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
