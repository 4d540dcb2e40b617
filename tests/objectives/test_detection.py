"""Matching, sampling and cells of detectors, by hand."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from nml_jax.objectives.detection import cells, losses
from nml_jax.objectives.detection.assign import IGNORED, NEGATIVE, match_objects
from nml_jax.objectives.detection.sample import draw_sample

# Overlaps with the first object: 0.8, 0.5, 0.1, 0; with the second: 0, 0, 0.2, 0.
ANCHORS = jnp.array([[0.0, 0, 8, 10], [0, 0, 5, 10], [9, 0, 10, 10], [50, 50, 60, 60]])
OBJECTS = jnp.array([[0.0, 0, 10, 10], [9, 0, 14, 10], [200, 200, 210, 210], [50, 50, 60, 60]])
LABELS = jnp.array([3, 1, 2, -1])


@pytest.mark.parametrize(
    ("floor", "rule", "expected"),
    [
        (None, "own", [0, IGNORED, NEGATIVE, NEGATIVE]),
        (0.0, "own", [0, IGNORED, 1, NEGATIVE]),
        (0.3, "own", [0, IGNORED, NEGATIVE, NEGATIVE]),
        (0.0, "argmax", [0, IGNORED, 1, NEGATIVE]),
    ],
)
def test_matching(floor: float | None, rule: str, expected: list[int]):
    """The third object overlaps nothing and the fourth is padding: neither is matched, even at a floor of 0."""
    assert match_objects(ANCHORS, OBJECTS, LABELS, 0.7, 0.4, floor, rule).tolist() == expected


def test_rules_of_low_quality_differ():
    """An anchor is the best of an object that is not its own best: mmdetection gives it to that object."""
    anchors, objects = jnp.array([[0.0, 0, 10, 10], [0, 0, 9, 10]]), jnp.array([[0.0, 0, 9, 10], [8, 0, 12, 10]])
    index = [match_objects(anchors, objects, jnp.array([0, 1]), 0.95, 0.3, 0.0, rule) for rule in ("own", "argmax")]
    assert [x.tolist() for x in index] == [[1, 0], [0, 0]]


def test_what_does_not_exist_is_ignored_and_nobodys_best():
    alive = jnp.array([False, True, True, True])
    assert match_objects(ANCHORS, OBJECTS, LABELS, 0.4, 0.4, 0.0, "own", alive).tolist() == [IGNORED, 0, 1, NEGATIVE]


@pytest.mark.parametrize(("positives", "negatives", "expected"), [(50, 50, (4, 12)), (2, 50, (2, 14)), (50, 3, (4, 3))])
def test_samples_have_their_share(positives: int, negatives: int, expected: tuple[int, int]):
    index = np.full(120, IGNORED, np.int32)
    index[:positives], index[60 : 60 + negatives] = 0, NEGATIVE
    sample = draw_sample(jax.random.key(0), jnp.asarray(index), 16, 0.25)
    drawn = index[sample.ids][np.asarray(sample.valid)]
    assert ((drawn >= 0).sum(), (drawn == NEGATIVE).sum(), len(sample.ids)) == (*expected, 16)
    assert len(set(sample.ids.tolist())) == 16
    assert (drawn[: expected[0]] >= 0).all(), "positive ones come first"
    other = draw_sample(jax.random.key(1), jnp.asarray(index), 16, 0.25)
    assert positives == 2 or not np.array_equal(other.ids, sample.ids)


def test_losses_by_hand():
    assert losses.smooth_l1(jnp.array([-2.0, 0.5, 0.0]), 1.0).tolist() == [1.5, 0.125, 0.0]
    assert losses.smooth_l1(jnp.array([-2.0, 0.5]), 0.0).tolist() == [2.0, 0.5]
    p = 1 / (1 + np.exp(-2.0))
    found = losses.focal(jnp.array([2.0, 2.0]), jnp.array([1.0, 0.0]))
    expected = [-0.25 * (1 - p) ** 2 * np.log(p), -0.75 * p**2 * np.log(1 - p)]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    extreme = jax.grad(lambda x: losses.focal(x, jnp.array([1.0, 0.0, 1.0, 0.0])).sum())(
        jnp.array([99.0, -99, -99, 99])
    )
    assert np.isfinite(extreme).all()


def solo(**values: Any) -> ConfigDict:
    return ConfigDict({"grids": (4,), "ranges": ((1, 100),), "centre": 0.2, "positives": 8, **values})


def test_cells_by_hand():
    """A large object has the four cells in the middle, a later small one takes one; the empty mask has none."""
    boxes = jnp.array([[0.0, 0, 64, 64], [34, 34, 46, 46], [0, 0, 30, 30], [0, 0, 9, 9]])
    centres = jnp.array([[32.0, 32], [40, 40], [-1, -1], [4, 4]])
    out = cells.assign_cells(boxes, jnp.array([5, 6, 7, -1]), centres, (64, 64), solo())
    classes = np.full((4, 4), -1)
    classes[1:3, 1:3] = [[5, 5], [5, 6]]
    np.testing.assert_array_equal(out["class"].reshape(4, 4), classes)
    used = np.asarray(out["used"])
    assert out["cell"][used].tolist() == [5, 6, 9, 10, 10]
    assert out["owner"][used].tolist() == [0, 0, 0, 0, 1]
    assert out["dropped"] == 0
    few = cells.assign_cells(boxes, jnp.array([5, 6, 7, -1]), centres, (64, 64), solo(positives=3))
    assert few["used"].all()
    assert few["dropped"] == 2


def test_peaks():
    scores = jnp.array([[0.5, 0.4, 0.9], [0.3, 0.6, 0.1]])[None, :, :, None]
    assert cells.keep_peaks(scores)[0, :, :, 0].tolist() == [[0.5, 0, pytest.approx(0.9)], [0, pytest.approx(0.6), 0]]
