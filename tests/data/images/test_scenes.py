import numpy as np
import pytest

from nml_jax.data.images import masks, scenes
from nml_jax.data.sources.objects import make_objects


def picture(height=40, width=60, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def rectangle(height, width, x1, y1, x2, y2):
    out = np.zeros((height, width), bool)
    out[y1:y2, x1:x2] = True
    return masks.encode(out)


OBJECTS = make_objects(
    [[10, 10, 30, 20], [0, 0, 60, 40], [5, 5, 5.5, 9], [40, 10, 70, 30]], [3, 1, 2, 0], [False, True, False, False],
    [200, 2400, 2, 400], [rectangle(40, 60, 10, 10, 30, 20), rectangle(40, 60, 0, 0, 60, 40), None,
                          rectangle(40, 60, 40, 10, 60, 30)],
)  # fmt: skip
RECORD = {"image": picture(), "id": 7, "objects": OBJECTS}


def transform(**changes):
    return scenes.SceneTransform(scenes.pad_canvas(40, 64), 40, 64, most=4, **changes)


def test_sizes_keep_their_ratio_within_the_canvas():
    assert scenes.pad_canvas(800, 1333) == (800, 1344)
    assert scenes.fit(480, 640, 800, 1333) == (800, 1067)
    assert scenes.fit(640, 480, 800, 1333) == (1067, 800)
    assert scenes.fit(100, 1000, 800, 1333) == (133, 1333)
    assert scenes.fit(1, 5000, 800, 1333) == (1, 1333)


def test_an_example_has_the_objects_to_learn_and_padding():
    out = transform().train(RECORD, np.random.default_rng(0))
    assert out["image"].shape == (64, 64, 3)
    np.testing.assert_array_equal(out["image"][:40, :60], RECORD["image"])
    assert not out["image"][40:].any()
    assert out["size"].tolist() == [40, 60]
    # no crowd, none below a pixel, and what is beyond the picture is cut
    np.testing.assert_array_equal(out["boxes"], [[10, 10, 30, 20], [40, 10, 60, 30], [0] * 4, [0] * 4])
    assert out["labels"].tolist() == [3, 0, -1, -1]
    assert set(out) == {"id", "image", "size", "boxes", "labels"}


def test_a_flip_turns_image_boxes_and_masks_alike():
    out = transform(flip=1.0, crop=10, stride=4).train(RECORD, np.random.default_rng(0))
    np.testing.assert_array_equal(out["image"][:40, :60], RECORD["image"][:, ::-1])
    np.testing.assert_array_equal(out["boxes"][:2], [[30, 10, 50, 20], [0, 10, 20, 30]])
    maps = np.unpackbits(out["maps"], axis=-1)
    assert maps.shape == (4, 16, 16)
    np.testing.assert_allclose(out["centres"][:2], [[39.5, 14.5], [9.5, 19.5]])
    want = np.zeros((16, 16))
    want[2:5, 8:12] = 1  # rows 10 to 20, columns 30 to 50 of the canvas at a quarter; half pixels count
    assert np.abs(maps[0].astype(int) - want)[3:4, 9:12].sum() == 0
    assert out["masks"][0].all()
    assert not out["masks"][2:].any()


def test_the_scale_is_drawn_and_the_masks_follow():
    drawn = {tuple(transform(scales=(20, 40)).train(RECORD, np.random.default_rng(s))["size"]) for s in range(9)}
    assert drawn == {(20, 30), (40, 60)}
    out = scenes.SceneTransform((64, 64), 20, 64, most=4, stride=2).train(RECORD, np.random.default_rng(0))
    np.testing.assert_array_equal(out["boxes"][0], [5, 5, 15, 10])
    np.testing.assert_allclose(out["centres"][0], [9.5, 7], atol=0.6)


def test_a_portrait_has_the_turned_canvas():
    tall = transform().test({"image": picture(60, 40), "id": 1})
    assert transform().canvas == (64, 64)
    assert tall["size"].tolist() == [60, 40]
    wide = scenes.SceneTransform(scenes.pad_canvas(32, 64), 32, 64)
    assert wide.test({"image": picture(64, 30), "id": 1})["image"].shape == (64, 32, 3)
    assert wide.test({"image": picture(30, 64), "id": 1})["image"].shape == (32, 64, 3)


def test_more_objects_than_there_is_room_for_are_cut_at_the_end():
    out = scenes.SceneTransform((64, 64), 40, 64, most=1).train(RECORD, np.random.default_rng(0))
    assert out["labels"].tolist() == [3]


@pytest.mark.parametrize("objects", [make_objects([], [], [], [], []), OBJECTS.take(np.array([1]))])
def test_an_image_without_objects_is_all_padding(objects):
    out = transform(crop=4, stride=4).train(RECORD | {"objects": objects}, np.random.default_rng(0))
    assert out["labels"].tolist() == [-1] * 4
    assert not out["boxes"].any()
    assert not out["masks"].any()
