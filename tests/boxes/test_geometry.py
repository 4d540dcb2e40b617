"""Geometry of boxes against hand-computed values and plain NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nml_jax import boxes
from nml_jax.objectives.detection.crops import crop_masks


def suppress_greedily(found: np.ndarray, valid: np.ndarray, threshold: float, groups: np.ndarray) -> np.ndarray:
    """The definition, box by box."""
    iou, keep = np.asarray(boxes.compute_iou(found, found)), np.zeros(len(found), bool)
    for i in range(len(found)):
        before = keep[:i] & (groups[:i] == groups[i])
        keep[i] = valid[i] and not (before & (iou[:i, i] > threshold)).any()
    return keep


def draw(n: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, 60, (n, 2))
    return np.concatenate([low, low + rng.uniform(1, 40, (n, 2))], 1).astype(np.float32)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("threshold", [0.1, 0.5])
def test_suppression_is_greedy(seed: int, threshold: float):
    rng = np.random.default_rng(seed)
    found, valid, groups = draw(150, seed), rng.random(150) < 0.9, rng.integers(0, 2, 150)
    found[10:20] = found[0:10]  # equal boxes overlap by 1
    found[20] = found[21] = 5  # of no extent: they overlap nothing, not even each other
    keep = boxes.suppress(jnp.asarray(found), jnp.asarray(valid), threshold, jnp.asarray(groups))
    np.testing.assert_array_equal(keep, suppress_greedily(found, valid, threshold, groups))
    assert 10 < keep.sum() < valid.sum() - 10


def test_a_chain_of_overlaps_is_resolved_from_its_start():
    """Each box overlaps only its neighbours: every second one stays."""
    found = jnp.stack([jnp.array([6.0 * i, 0, 6.0 * i + 10, 10]) for i in range(9)])
    keep = boxes.suppress(found, jnp.ones(9, bool), 0.2)
    assert keep.tolist() == [i % 2 == 0 for i in range(9)]


def test_overlaps_by_hand():
    a = jnp.array([[0.0, 0, 4, 4], [0, 0, 0, 0]])
    b = jnp.array([[2.0, 2, 6, 6], [0, 0, 4, 2], [4, 0, 8, 4]])
    np.testing.assert_allclose(boxes.compute_iou(a, b), [[4 / 28, 0.5, 0], [0, 0, 0]], rtol=1e-6)


def test_deltas_by_hand_and_back():
    anchors, found = jnp.array([[0.0, 0, 10, 20]]), jnp.array([[5.0, 5, 25, 15]])
    deltas = boxes.encode(found, anchors, (0.1, 0.1, 0.2, 0.2))
    np.testing.assert_allclose(deltas, [[10, 0, np.log(2) / 0.2, np.log(0.5) / 0.2]], atol=1e-5)
    np.testing.assert_allclose(boxes.decode(deltas, anchors, (0.1, 0.1, 0.2, 0.2)), found, atol=1e-4)
    wild = jnp.array([[0.0, 0, 99, -99]])
    both, upper = (boxes.decode(wild, anchors, both=both)[0] for both in (True, False))
    np.testing.assert_allclose(both[2] - both[0], 625, rtol=1e-5)
    np.testing.assert_allclose(both[3] - both[1], 20 * 16 / 1000, rtol=1e-3)
    np.testing.assert_allclose(upper[3] - upper[1], 0, atol=1e-6)


def test_anchors_by_hand():
    anchors = boxes.make_anchors((1, 2), 8, (1.0, 2.0), (0.25, 4.0))
    own = np.float32([[-8, -2, 8, 2], [-16, -4, 16, 4], [-2, -8, 2, 8], [-4, -16, 4, 16]])
    np.testing.assert_array_equal(anchors, np.concatenate([own, own + np.float32([8, 0, 8, 0])]))
    assert boxes.are_inside((2, 3), 8, 2, jnp.array([8, 17])).tolist() == [True] * 6 + [False] * 6


@pytest.mark.parametrize(("area", "level"), [(1.0, 0), (111.0**2, 0), (112.0**2, 1), (223.0**2, 1), (224.0**2, 2)])
def test_level_of_a_region(area: float, level: int):
    region = jnp.array([[0.0, 0, area**0.5, area**0.5]])
    assert boxes.find_level(region, 4, 4, 1e-6, 0.0)[0] == level
    assert boxes.find_level(region * 1000, 4, 4, 1e-6, 0.0)[0] == 3


def pool_plainly(image: np.ndarray, region: np.ndarray, side: int, samples: int, aligned: bool) -> np.ndarray:
    """ROIAlign by its definition, sample by sample."""
    height, width = image.shape
    start = region[:2] - 0.5 * aligned
    extent = region[2:] - region[:2] if aligned else np.maximum(region[2:] - region[:2], 1)
    bins = extent / side
    count = np.maximum(np.ceil(bins).astype(int), 1) if samples == 0 else np.array([samples] * 2)

    def read(y: float, x: float) -> float:
        if not (-1 <= y <= height and -1 <= x <= width):
            return 0.0
        y, x = (min(max(at, 0.0), end - 1) for at, end in ((y, height), (x, width)))
        i, j = int(y), int(x)
        i1, j1, fy, fx = min(i + 1, height - 1), min(j + 1, width - 1), y - int(y), x - int(x)
        top = image[i, j] * (1 - fx) + image[i, j1] * fx
        return top * (1 - fy) + (image[i1, j] * (1 - fx) + image[i1, j1] * fx) * fy

    out = np.zeros((side, side))
    for row in range(side):
        for column in range(side):
            values = [
                read(
                    start[1] + (row + (i + 0.5) / count[1]) * bins[1],
                    start[0] + (column + (j + 0.5) / count[0]) * bins[0],
                )
                for i in range(count[1])
                for j in range(count[0])
            ]
            out[row, column] = np.mean(values)
    return out


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("samples", [2, 0])
def test_pooling_is_roi_align(samples: int, aligned: bool):
    """Inside two maps, at their border, beyond them, smaller than a pixel; each region reads its own level."""
    rng = np.random.default_rng(0)
    maps = [rng.normal(size=(9, 12, 1)).astype(np.float32), rng.normal(size=(5, 6, 1)).astype(np.float32)]
    regions = np.float32([[4, 4, 30, 20], [-8, -8, 8, 8], [30, 10, 60, 44], [9, 9, 9.5, 9.25], [80, 80, 99, 99]])
    level = np.int32([0, 0, 1, 1, 0])
    pooled = boxes.pool_regions(
        [jnp.asarray(x) for x in maps], (4, 8), jnp.asarray(regions), level, 3, samples, aligned
    )
    for region, own, found in zip(regions, level, pooled, strict=True):
        plain = pool_plainly(maps[own][..., 0], region / (4, 8)[own], 3, samples, aligned)
        np.testing.assert_allclose(found[..., 0], plain, atol=1e-5)
    assert not np.asarray(pooled[-1]).any(), "beyond the map all is 0"


def test_gradient_of_pooling():
    """The sum of a pooled region has a gradient that sums to the number of bins, all of it inside the region."""
    region, level = jnp.array([[8.0, 8, 24, 24]]), jnp.zeros(1, jnp.int32)
    pool = lambda x: boxes.pool_regions([x], (4,), region, level, 2).sum()  # noqa: E731
    gradient = jax.grad(pool)(jnp.zeros((9, 9, 1)))[..., 0]
    np.testing.assert_allclose(gradient.sum(), 4, rtol=1e-5)
    assert not gradient[7:].any()
    assert not gradient[:1].any()


def test_masks_are_cropped_to_regions():
    """A mask of the right half of its object, seen through the object, its right half, and a place beyond it."""
    mask = np.zeros((4, 8, 8), np.uint8)
    mask[:, :, 4:] = 1
    objects = jnp.tile(jnp.array([10.0, 10, 26, 26]), (4, 1))
    regions = jnp.array([[10.0, 10, 26, 26], [18, 10, 26, 26], [26, 26, 42, 42], [18, 10, 34, 26]])
    seen = crop_masks(jnp.asarray(mask), objects, regions, 4, True, True)
    np.testing.assert_array_equal(seen[0], np.tile([0, 0, 1, 1], (4, 1)))
    np.testing.assert_array_equal(seen[1], np.ones((4, 4)))
    np.testing.assert_array_equal(seen[2], np.zeros((4, 4)))
    np.testing.assert_array_equal(seen[3], np.tile([1, 1, 0, 0], (4, 1)))
