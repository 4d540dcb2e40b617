"""Mapped logits and scores of video frames."""

import numpy as np
import pytest

from nml_jax.errors import UserError
from nml_jax.evals import mapped, metrics
from nml_jax.tasks import class_maps

LOGITS = np.array([[0.0, 3.0, 1.0, 2.0], [5.0, -1.0, -2.0, -3.0], [-4.0, -3.0, -2.0, -1.0]])


def scores(labels, logits=LOGITS, blocks=1, **about) -> dict[str, float]:
    scorer = mapped.Scorer(logits.shape[1], **about)
    for part, of_part in zip(np.array_split(logits, blocks), np.array_split(labels, blocks), strict=True):
        scorer.update(of_part, part)
    return scorer.scores()


def test_the_largest_of_the_mapped_logits():
    out = mapped.map_logits(LOGITS, ((0, 2), (3,), (2, 3, 1)))
    assert out.tolist() == [[1.0, 2.0, 3.0], [5.0, -3.0, -1.0], [-2.0, -1.0, -1.0]]
    assert mapped.map_logits(LOGITS.astype(np.float32), ((1,),)).dtype == np.float32


def test_a_subset_lets_only_its_own_logits_compete():
    assert mapped.map_logits(LOGITS, ((3,), (1,))).tolist() == LOGITS[:, [3, 1]].tolist()
    out = scores([0, 1, 0], class_map=((3,), (2,)))  # predictions: 0, 1, 0
    assert out == dict.fromkeys(("accuracy", "macro_f1", "mean_per_class", "mcc", "f1"), 1.0)
    assert scores([1, 0, 3])["accuracy"] == 1.0  # without a map, all four compete


@pytest.mark.parametrize("name", ["imagenet_a", "objectnet", "imagenet_vid_robust"])
def test_against_a_loop_on_the_real_maps(name: str):
    class_map = class_maps.load_ids(name)
    logits = np.random.default_rng(0).normal(size=(50, 1000))
    labels = np.random.default_rng(1).integers(0, len(class_map), 50)
    wanted = np.array([[max(row[c] for c in classes) for classes in class_map] for row in logits])
    np.testing.assert_array_equal(mapped.map_logits(logits, class_map), wanted)
    counts = metrics.confusion(labels, wanted.argmax(1), len(class_map))
    assert scores(labels, logits, blocks=3, class_map=class_map) == metrics.compute_scores(counts)


@pytest.mark.parametrize("class_map", [((0,), ()), ((0,), (4,)), ((-1,),)])
def test_a_map_of_other_classes(class_map):
    with pytest.raises(UserError, match="of 4"):
        mapped.map_logits(LOGITS, class_map)


def test_anchors_and_the_worst_of_the_frames_around_them():
    correct = [True, True, False, True, False, True]
    groups = ((0, 1), (1, 3, 2), (4, 5), (5,))  # all right; right but for a neighbour; anchor wrong; alone
    assert mapped.pm_k(correct, groups) == (3 / 4, 2 / 4)
    assert mapped.pm_k(np.ones(6, bool), groups) == (1.0, 1.0)
    for nothing in ((), ((0, 1), ())):
        with pytest.raises(UserError, match="no anchor"):
            mapped.pm_k(correct, nothing)


def test_a_frame_with_two_animals_is_right_with_either():
    """Predictions are 1, 0, 3: the second frame shows classes 2 and 0, and counts as 2 in the plain accuracy."""
    out = scores([1, 2, 3], blocks=2, frame_labels=((1,), (2, 0), (3,)), groups=((0, 1, 2), (1, 2)))
    assert (out["pm0"], out["pm10"]) == (1.0, 1.0)
    assert out["accuracy"] == pytest.approx(2 / 3)
    out = scores([1, 2, 3], frame_labels=((1,), (2,), (3,)), groups=((0, 1), (1, 2), (2,), (0,)))
    assert (out["pm0"], out["pm10"]) == (3 / 4, 2 / 4)
    with pytest.raises(ValueError, match="zip"):
        scores([1, 2, 3], frame_labels=((1,),), groups=((0,),))
