"""The permutation on every size from nothing to 2**62."""

import numpy as np
import pytest
from scipy import stats

from nml_jax.noise import Permutation
from tests.noise.draws import SIZES, is_even, sha


@pytest.mark.parametrize("n", SIZES)
def test_permutation_visits_every_place_once_and_inverts(n: int):
    for seed in range(3):
        permutation, ids = Permutation(n, seed), np.arange(n)
        ranks = permutation(ids)
        np.testing.assert_array_equal(np.sort(ranks), ids)
        np.testing.assert_array_equal(permutation.inverse(ranks), ids)
        np.testing.assert_array_equal(permutation(permutation.inverse(ids)), ids)


@pytest.mark.parametrize("n", [2**31 - 1, 2**32 + 1, 27_000_000, 2**40, 2**62 - 1, 2**62])
def test_permutation_of_many(n: int):
    permutation = Permutation(n, 1)
    ids = np.concatenate([np.arange(1000), np.random.default_rng(0).integers(0, n, 9000), np.arange(n - 1000, n)])
    ranks = permutation(ids)
    assert ranks.min() >= 0
    assert ranks.max() < n
    np.testing.assert_array_equal(permutation.inverse(ranks), ids)
    assert is_even(np.histogram(ranks[:1000], bins=10, range=(0, n))[0])
    assert is_even(np.histogram(ranks[-1000:], bins=10, range=(0, n))[0])
    for i in (0, 1, 12345, n // 2, n - 1):
        assert permutation(i) == permutation(np.array([i]))[0]
        assert permutation.inverse(permutation(i)) == i


def test_every_place_is_equally_likely_at_n_10():
    counts = np.zeros((10, 10))
    for seed in range(1000):
        counts[np.arange(10), Permutation(10, seed)(np.arange(10))] += 1
    assert stats.chi2.sf(((counts - 100) ** 2 / 100).sum(), 9 * 9) > 0.001


def test_every_pair_of_places_is_equally_likely_at_n_10():
    counts = np.zeros((10, 10))
    for seed in range(20_000):  # so many that six rounds would fail
        permutation = Permutation(10, seed)
        counts[permutation(0), permutation(1)] += 1
    assert is_even(counts[~np.eye(10, dtype=bool)])


@pytest.mark.parametrize("n", [1001, 50_000, 27_000_000, 2**40])
def test_neighbours_know_nothing_of_each_other(n: int):
    for seed in (1, 2):
        ids = np.arange(min(n, 200_000))
        u = Permutation(n, seed)(ids) / n
        for stride in (1, 2, 64):
            r = np.corrcoef(u[:-stride], u[stride:])[0, 1]
            assert abs(r) * np.sqrt(ids.size) < 3.3
            # runs: two neighbours are both corrupted as often as chance says
            both = ((u[:-stride] < 0.3) & (u[stride:] < 0.3)).sum()
            assert abs(both - 0.09 * ids.size) < 3.3 * np.sqrt(0.09 * 0.91 * ids.size) + 1


def test_seed_and_n_are_the_key():
    ids = np.arange(1000)
    outputs = {sha(Permutation(n, seed)(ids)) for n in (2000, 2001) for seed in (-1, 0, 1, 2**70)}
    assert len(outputs) == 8


def test_permutation_takes_any_ids_in_any_order():
    permutation = Permutation(200_003, 4)
    ids = np.arange(200_003)
    ranks = permutation(ids)
    order = np.random.default_rng(0).permutation(ids)
    np.testing.assert_array_equal(permutation(order), ranks[order])
    np.testing.assert_array_equal(np.concatenate([permutation(ids[:7]), permutation(ids[7:])]), ranks)
    np.testing.assert_array_equal(permutation(ids[3::4]), ranks[3::4])  # as process 3 of 4 asks
    np.testing.assert_array_equal(permutation(ids[:6].reshape(2, 3).T), ranks[:6].reshape(2, 3).T)
    for dtype in (np.uint8, np.int32, np.uint64, ">i4"):
        np.testing.assert_array_equal(permutation(np.arange(200).astype(dtype)), ranks[:200])
    for i in (5, np.int64(5), np.uint8(5)):
        assert permutation(i) == ranks[5]
        assert type(permutation(i)) is int
    assert permutation(np.zeros(0, np.int64)).shape == (0,)
