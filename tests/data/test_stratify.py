"""Test stratified draws."""

import numpy as np
import pytest

from nml_jax.data.sources.source import Arrays, digest
from nml_jax.data.stratify import draw_per_class, draw_stratified, hold_out, hold_out_groups, split_validation
from nml_jax.errors import UserError

PINNED = {
    "validation": "47cb5e351a914a90", "share": "0cbf9929dd6b64a3", "holdout": "2f40fa25e27eb2e4",
    "per class": "c4e92c0b8693faf8",
}  # fmt: skip
SHARES = (0.01, 0.1, 0.25, 0.5, 0.75, 1.0)


def skewed(rng: np.random.Generator) -> np.ndarray:
    """Draw labels in random order, of classes of sizes from 1 to hundreds. Some class ids have no record."""
    counts = np.maximum(rng.lognormal(2, 1.5, rng.integers(1, 40)).astype(int), 1)
    ids = rng.choice(200, len(counts), replace=False)
    return rng.permutation(np.repeat(ids, counts))


@pytest.mark.parametrize("draw", range(30))
def test_shares_are_nested_exact_and_stratified(draw: int):
    labels = skewed(np.random.default_rng(draw))
    n, present = len(labels), np.unique(labels)
    smaller: set[int] = set()
    for share in SHARES:
        rows = draw_stratified(labels, share, seed=draw)
        assert rows.dtype == np.int64
        assert (np.diff(rows) > 0).all()
        assert len(rows) == max(round(share * n), len(present))
        assert set(labels[rows]) == set(present)
        assert smaller <= set(rows.tolist())
        smaller = set(rows.tolist())
    assert np.array_equal(rows, np.arange(n))


def test_every_class_gives_its_share():
    """Every class gives exactly its share if that is a whole number; otherwise it is off by less than one."""
    labels = np.repeat(np.arange(5), (10, 20, 40, 100, 1000))
    assert np.bincount(labels[draw_stratified(labels, 0.1)]).tolist() == [1, 2, 4, 10, 100]
    labels = np.repeat(np.arange(4), (7, 33, 58, 902))
    for share in (0.2, 0.37, 0.5, 0.81):
        counts = np.bincount(labels[draw_stratified(labels, share)])
        assert np.abs(counts - share * np.array([7, 33, 58, 902])).max() < 1


def test_many_small_classes_are_each_there_once():
    labels = np.repeat(np.arange(50), 3)
    rows = draw_stratified(labels, 0.1)
    assert np.bincount(labels[rows]).tolist() == [1] * 50  # the share would be 15, but no class may vanish
    assert len(draw_stratified(labels, 0.5)) == 75


def test_seeds_draw_other_records_and_no_library_changes_them():
    labels = np.repeat(np.arange(3), 100)
    a, b = draw_stratified(labels, 0.5, seed=0), draw_stratified(labels, 0.5, seed=1)
    assert not np.array_equal(a, b)
    assert 30 < len(np.intersect1d(a, b)) < 120  # independent halves have 75 in common on average
    rows = draw_stratified(np.tile([0, 1], 10), 0.2, seed=7)
    assert rows.tolist() == [6, 9, 15, 16]


@pytest.mark.parametrize("share", [0.0, -0.1, 1.01, float("nan")])
def test_a_share_out_of_range(share: float):
    with pytest.raises(UserError, match="training share"):
        draw_stratified(np.zeros(4, int), share)


def test_draws_stay_as_they_are():
    """Runs on disk depend on these draws, so the rows must never change."""
    found: dict[str, list] = {"validation": [], "share": [], "holdout": [], "per class": []}
    for seed in range(20):
        labels = skewed(np.random.default_rng(seed))
        pixels = np.zeros((len(labels), 1, 1, 3), np.uint8)
        source = Arrays(pixels, labels, num_classes=200, fingerprint="toy")
        for share in (0.1, 0.33, 0.5):
            train, validation = split_validation(source, share, seed)
            found["validation"] += [train.indices, validation.indices]  # type: ignore[attr-defined]
            found["share"].append(draw_stratified(labels, share, seed))
            found["holdout"] += hold_out(labels, share, seed)
            found["per class"].append(np.flatnonzero(draw_per_class(labels, int(10 * share), seed)))
    assert {name: digest(*parts)[:16] for name, parts in found.items()} == PINNED


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5])
def test_groups_stay_together(share: float):
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 60, 600)
    labels = (rng.random(600) < 0.2 + 0.3 * (groups % 2)).astype(int)
    parts = [hold_out_groups(labels, groups, share, seed) for seed in range(4)]
    for kept, held in parts:
        assert not set(groups[kept]) & set(groups[held])
        np.testing.assert_array_equal(np.sort(np.concatenate([kept, held])), np.arange(600))
        assert set(labels[kept]) == {0, 1}
        np.testing.assert_allclose(np.bincount(labels[held]) / np.bincount(labels), share, atol=0.06)
    assert len({tuple(held) for _, held in parts}) == 4


def test_groups_that_cannot_be_held_out():
    with pytest.raises(UserError, match="none of 2 groups"):
        hold_out_groups(np.array([0, 0, 1, 1]), np.array(["a", "a", "b", "b"]), 0.5, 0)
    kept, held = hold_out_groups(np.array([0, 1, 0, 1, 0, 1]), np.array([0, 0, 0, 0, 1, 1]), 0.1, 0)
    assert (kept.tolist(), held.tolist()) == ([0, 1, 2, 3], [4, 5])  # the smallest, though it is more than was asked
