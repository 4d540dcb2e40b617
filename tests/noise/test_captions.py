import tracemalloc

import numpy as np
import pytest

from nml_jax.errors import UserError
from nml_jax.noise import CaptionSwap, Permutation, permutation, swap_captions
from tests.noise.draws import RATES, SIZES, sha


@pytest.mark.parametrize("n", SIZES)
def test_swap_is_a_derangement_of_exactly_the_corrupted(n: int):
    ids, before = np.arange(n), np.zeros(0, np.int64)
    for rate in RATES:
        count = round(rate * n)
        if count == 1:
            with pytest.raises(UserError, match=f"swaps only 1 caption of {n}"):
                swap_captions(ids, n=n, rate=rate, seed=3)
            continue
        partners = swap_captions(ids, n=n, rate=rate, seed=3)
        np.testing.assert_array_equal(np.sort(partners), ids)
        moved = np.flatnonzero(partners != ids)
        assert moved.size == count
        assert np.isin(before, moved).all()  # nested
        before = moved
        np.testing.assert_array_equal(moved, np.sort(Permutation(n, 3).inverse(np.arange(count))))


def test_swap_is_one_cycle():
    swap = CaptionSwap(n=1000, rate=0.2, seed=0)
    start = Permutation(1000, 0).inverse(0)
    seen, i = {start}, swap(start)
    while i != start:
        seen.add(i)
        i = swap(i)
    assert len(seen) == swap.count == 200


def test_swap_of_one_id_and_of_many_agree():
    swap, ids = CaptionSwap(n=5003, rate=0.3, seed=9), np.arange(5003)
    partners = swap_captions(ids, n=5003, rate=0.3, seed=9)
    assert [swap(i) for i in ids.tolist()] == partners.tolist()
    order = np.random.default_rng(0).permutation(ids)
    np.testing.assert_array_equal(swap_captions(order, n=5003, rate=0.3, seed=9), partners[order])
    np.testing.assert_array_equal(swap(order.reshape(-1, 1)[:10]), partners[order].reshape(-1, 1)[:10])
    assert type(swap(np.int64(3))) is int


def test_swap_memory_does_not_grow_with_n():
    blocks = [np.arange(start, start + 50_000) for start in range(0, 27_000_000, 1_350_000)]
    tracemalloc.start()
    for ids in blocks:
        swap_captions(ids, n=27_000_000, rate=0.3, seed=0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3e6  # of 216e6 that a table of partners takes


# These bytes are what published runs were trained on.
STABLE = {
    10: "c063becae85459bc036984ae257158781611e847b0f18996271fcdd2eb203432",
    50_000: "ebb418ed762be70af2467fefa00e9f681e8963e21bb10c44f1e3f5c0a95868a3",
    2**40: "8ba9f6b12385e93cb05ae62c1d783b466432c2e8da0c77816f1a425ac2ce6698",
}


@pytest.mark.parametrize("n", [10, 50_000, 2**40])
def test_swaps_are_stable(n: int, monkeypatch):
    for block in (permutation.BLOCK, 1013):
        monkeypatch.setattr(permutation, "BLOCK", block)
        assert sha(swap_captions(np.arange(min(n, 50_000)), n=n, rate=0.3, seed=7)) == STABLE[n]


@pytest.mark.parametrize("rate", [0.0, 0.1, 1.0])
def test_list_swapped_returns_the_records_that_get_another_caption(rate):
    swap = CaptionSwap(n=200, rate=rate, seed=3)
    partners = swap(np.arange(200))
    assert sorted(swap.list_swapped()) == np.flatnonzero(partners != np.arange(200)).tolist()


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        ({"rate": 2}, "noise rate 2"),
        ({"n": -1}, "the number of records is -1"),
        ({"n": 2**62 + 1}, "the number of records is"),
        ({"ids": [3, 10]}, "id 10 is outside 0..9"),
        ({"ids": [-1]}, "id -1 is outside 0..9"),
        ({"ids": 10}, "id 10 is outside 0..9"),
        ({"ids": [0.5]}, "ids are float64"),
        ({"rate": 0.1}, "swaps only 1 caption of 10"),
    ],
)
def test_bad_captions(change: dict, cause: str):
    arguments = {"ids": [1, 2], "n": 10, "rate": 0.3, "seed": 0} | change
    with pytest.raises(UserError, match=cause) as e:
        swap_captions(arguments.pop("ids"), **arguments)
    assert "\n" not in e.value.cause + e.value.cure
    with pytest.raises(UserError, match="id 10 is outside"):
        CaptionSwap(n=10, rate=0.3, seed=0)(10)
