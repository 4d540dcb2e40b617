import pickle

import numpy as np
import pytest

from nml_jax.data.images import masks
from nml_jax.data.sources import digit_scenes
from nml_jax.data.sources.digit_scenes import DigitScenes
from nml_jax.errors import UserError


def test_a_scene_depends_on_seed_and_id_alone():
    few, many = DigitScenes("train", 3, 64), DigitScenes("train", 9, 64)
    for i in (2, 0):
        np.testing.assert_array_equal(few.image(i), many.image(i))
        np.testing.assert_array_equal(few.objects(i).boxes, many.objects(i).boxes)
    again = pickle.loads(pickle.dumps(many))
    np.testing.assert_array_equal(again.image(5), many.image(5))
    for other in (DigitScenes("train", 3, 64, seed=1), DigitScenes("test", 3, 64)):
        assert (other.image(0) != few.image(0)).any()
        assert other.fingerprint != few.fingerprint


def test_boxes_are_the_extents_of_masks_and_hardly_overlap():
    source = DigitScenes("train", 40, 64)
    counts = set()
    for i in range(40):
        objects = source.objects(i)
        counts.add(len(objects.labels))
        for box, mask, area in zip(objects.boxes, objects.masks, objects.areas, strict=True):
            assert masks.measure(mask, 64, 64) == (area, box.tolist())
        for a in range(len(objects.labels)):
            for b in range(a):
                assert digit_scenes._overlap(*objects.boxes[[a, b]].tolist()) < digit_scenes.OVERLAP
        assert {int(x) for x in objects.labels} <= set(range(10))
    assert counts == {1, 2, 3, 4, 5}
    assert source.image(0).min() < 20 < 200 < source.image(0).max()


def test_the_pixels_of_test_scenes_are_of_other_digits():
    (train, _), (test, _) = (digit_scenes._read_glyphs(split) for split in ("train", "test"))
    assert len(train) + len(test) == 1797
    assert not {x.tobytes() for x in train} & {x.tobytes() for x in test}
    scene = DigitScenes("test", 1, 64)
    assert scene.split == "test"


def test_kinds_take_turns():
    source = DigitScenes("train", 12, 64, kinds=digit_scenes.KINDS)
    for i in (1, 5, 9):
        assert len(source.objects(i).labels) == 0
    for i in (2, 6, 10):
        assert source.objects(i).crowd.tolist()[0]
        assert not source.objects(i).crowd[1:].any()
    for i in (3, 7, 11):
        boxes = source.objects(i).boxes
        assert len(boxes) == 2
        assert boxes[0, 2] == boxes[1, 0], "they touch"


@pytest.mark.parametrize(
    "wrong", [{"kinds": ("plane",)}, {"kinds": ()}, {"side": 16}, {"count": 0}, {"split": "validation"}]
)
def test_what_cannot_be_drawn_is_refused(wrong):
    with pytest.raises(UserError):
        DigitScenes(**{"split": "train", "count": 3, "side": 64, **wrong})
