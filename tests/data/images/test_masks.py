import re

import numpy as np
import pytest
from pycocotools import mask as codec

from nml_jax.data.images import masks

SQUARE = [[2.0, 3.0, 8.0, 3.0, 8.0, 9.0, 2.0, 9.0]]  # x 2..8, y 3..9


def rectangle(height, width, x1, y1, x2, y2):
    out = np.zeros((height, width), np.uint8)
    out[y1:y2, x1:x2] = 1
    return out


def test_all_three_forms_are_the_same_pixels():
    want = rectangle(12, 10, 2, 3, 8, 9)
    np.testing.assert_array_equal(masks.decode(SQUARE, 12, 10), want)
    compressed = masks.encode(want.astype(bool))
    np.testing.assert_array_equal(masks.decode(compressed, 12, 10), want)
    plain = {"size": [12, 10], "counts": [27, *[6, 6] * 5, 6, 27]}
    np.testing.assert_array_equal(masks.decode(plain, 12, 10), want)
    for form in (SQUARE, compressed, plain):
        masks.check(form, 12, 10)
        assert masks.measure(form, 12, 10) == (36.0, [2.0, 3.0, 8.0, 9.0])


def test_the_parts_of_an_object_are_one_mask_and_a_hole_is_filled_as_in_coco():
    two = [*SQUARE, [0.0, 0.0, 2.0, 0.0, 2.0, 2.0, 0.0, 2.0]]
    want = rectangle(12, 10, 2, 3, 8, 9) + rectangle(12, 10, 0, 0, 2, 2)
    np.testing.assert_array_equal(masks.decode(two, 12, 10), want)
    hole = [*SQUARE, [4.0, 5.0, 6.0, 5.0, 6.0, 7.0, 4.0, 7.0]]
    np.testing.assert_array_equal(masks.decode(hole, 12, 10), rectangle(12, 10, 2, 3, 8, 9))


@pytest.mark.parametrize(
    ("form", "words"),
    [
        ([], "no polygon"),
        ([[1.0, 1.0, 2.0, 2.0]], "fewer than 3 points"),
        ([[1.0, 1.0, 2.0, 2.0, 3.0, 3.0, 4.0]], "odd number"),
        ([[1.0, 1.0, 2.0, 2.0, 3.0, float("nan")]], "not finite"),
        (["12"], "not a list of numbers"),
        ("RLE", "neither polygons nor an RLE"),
        ({"size": [10, 12], "counts": [120]}, "an RLE of size [10, 12] for an image of [12, 10]"),
        ({"size": [12, 10], "counts": [100]}, "add up to 100, not to the 120"),
        ({"size": [12, 10], "counts": [130, -10]}, "whole numbers of 0 or more"),
        ({"size": [12, 10], "counts": "PPP0"}, "add up"),
        ({"size": [12, 10], "counts": "\x01"}, "the character"),
        ({"size": [12, 10], "counts": "P"}, "cut off"),
        ({"size": [12, 10], "counts": [2**32, 0]}, "a count above 4294967295"),
        ({"size": [12, 10], "counts": "ooooooo0"}, "a count of more than 6 characters"),
    ],
)
def test_what_is_no_mask_says_why(form, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        masks.check(form, 12, 10)


def test_compressed_counts_are_read_as_pycocotools_writes_them():
    rng = np.random.default_rng(0)
    for shape in ((1, 1), (7, 5), (90, 70), (300, 1)):
        for share in (0.0, 0.02, 0.5, 1.0):
            mask = rng.random(shape) < share
            rle = masks.encode(mask)
            counts = masks._read_counts(rle["counts"])
            assert sum(counts) == mask.size
            flat = np.repeat(np.arange(len(counts)) % 2, counts).reshape(shape[::-1]).T
            np.testing.assert_array_equal(flat, mask)


def test_a_polygon_is_resized_before_it_becomes_pixels_and_an_rle_after():
    rle = masks.encode(masks.decode(SQUARE, 12, 10).astype(bool))
    for form in (SQUARE, rle):
        np.testing.assert_array_equal(masks.draw(form, (12, 10), (24, 20), flip=False), rectangle(24, 20, 4, 6, 16, 18))
        np.testing.assert_array_equal(masks.draw(form, (12, 10), (24, 20), flip=True), rectangle(24, 20, 4, 6, 16, 18))
    wide = [[1.0, 3.0, 4.0, 3.0, 4.0, 9.0, 1.0, 9.0]]
    for form in (wide, masks.encode(masks.decode(wide, 12, 10).astype(bool))):
        np.testing.assert_array_equal(masks.draw(form, (12, 10), (12, 10), flip=True), rectangle(12, 10, 6, 3, 9, 9))


def test_a_crop_is_the_mask_within_its_box():
    left = [[2.0, 3.0, 5.0, 3.0, 5.0, 9.0, 2.0, 9.0]]  # the left half of the box
    box = np.array([2.0, 3.0, 8.0, 9.0])
    rle = masks.encode(masks.decode(left, 12, 10).astype(bool))
    for form in (left, rle):
        np.testing.assert_array_equal(masks.crop(form, (12, 10), box, 6, flip=False), rectangle(6, 6, 0, 0, 3, 6))
        np.testing.assert_array_equal(masks.crop(form, (12, 10), box, 6, flip=True), rectangle(6, 6, 3, 0, 6, 6))
        np.testing.assert_array_equal(masks.crop(form, (12, 10), box, 12, flip=False), rectangle(12, 12, 0, 0, 6, 12))


def test_pasting_interpolates_between_the_centres_of_the_cells():
    whole = masks.paste(np.ones((4, 4)), np.array([2.0, 3.0, 10.0, 11.0]), 14, 12)
    np.testing.assert_array_equal(whole, rectangle(14, 12, 2, 3, 10, 11))
    mask = np.zeros((4, 4))
    mask[:, 1:3] = 1
    np.testing.assert_array_equal(
        masks.paste(mask, np.array([2.0, 3.0, 10.0, 11.0]), 14, 12), rectangle(14, 12, 4, 3, 8, 11)
    )
    beyond = masks.paste(np.ones((4, 4)), np.array([-4.0, -4.0, 4.0, 4.0]), 6, 6)
    np.testing.assert_array_equal(beyond, rectangle(6, 6, 0, 0, 4, 4))
    assert not masks.paste(np.ones((4, 4)), np.array([3.0, 3.0, 3.0, 3.0]), 6, 6).any()


def test_a_map_is_resized_to_the_picture_without_the_padding():
    mask = np.zeros((4, 8), np.float32)
    mask[:, :2] = 1
    got = masks.resize_map(mask, (16, 32), (16, 16), 32, 32)
    np.testing.assert_array_equal(got, rectangle(32, 32, 0, 0, 16, 32))
    assert codec.area(codec.encode(np.asfortranarray(got, np.uint8))) == 512


@pytest.mark.parametrize("order", ["C", "F"])
def test_the_part_of_a_mask_that_is_not_empty_begins_and_ends_at_multiples(order):
    mask = np.asarray(rectangle(11, 22, 5, 3, 9, 10), order=order)
    part, top, left = masks.cut_out(mask, 4)
    assert (top, left) == (0, 4)
    np.testing.assert_array_equal(part, rectangle(12, 8, 1, 3, 5, 10))
    assert masks.cut_out(np.zeros((8, 4), np.uint8, order=order), 4)[0].size == 0
