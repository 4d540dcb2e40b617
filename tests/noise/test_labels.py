"""Label noise on every size from nothing on: exact counts, even draws, stable bytes and bad input."""

import subprocess
import sys
import tracemalloc

import numpy as np
import pytest

import nml_jax
from nml_jax.errors import UserError
from nml_jax.noise import Ledger, Permutation, corrupt_labels, list_arguments, permutation, swap_captions
from nml_jax.noise import labels as labels_module
from tests.noise.draws import RATES, SIZES, draw_labels, is_even, sha


def find_next(labels, present):
    return present[(np.searchsorted(present, labels) + 1) % max(len(present), 1)]


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("kind", ["symmetric", "pair"])
def test_exact_count_never_the_own_class_and_nested(n: int, kind: str):
    for num_classes in (2, 3, 10):
        clean = draw_labels(n, num_classes)
        present = np.unique(clean)
        if n and len(present) < 2:
            with pytest.raises(UserError, match=f"only 1 of {num_classes} has a record"):
                corrupt_labels(clean, num_classes=num_classes, kind=kind, rate=1.0, seed=5)
            continue
        before, ranks = clean, Permutation(n, 5)(np.arange(n))
        for rate in RATES:
            noisy = corrupt_labels(clean, num_classes=num_classes, kind=kind, rate=rate, seed=5)
            moved = noisy != clean
            np.testing.assert_array_equal(moved, ranks < round(rate * n))  # 0: identity, 1: everything
            assert set(noisy) <= set(present)  # never a class that no record has
            kept = before != clean
            np.testing.assert_array_equal(noisy[kept], before[kept])  # the same wrong label at the higher rate
            if kind == "pair":
                np.testing.assert_array_equal(noisy[moved], find_next(clean[moved], present))
            before = noisy


@pytest.mark.parametrize(
    ("n", "rate", "count"), [(10, 0.05, 0), (10, 0.15, 2), (10, 0.25, 2), (10, 0.35, 4), (3, 0.5, 2)]
)
def test_counts_round_half_to_even(n: int, rate: float, count: int):
    clean = np.arange(n) % 3
    assert (corrupt_labels(clean, num_classes=4, rate=rate, seed=0) != clean).sum() == count


@pytest.mark.parametrize("num_classes", [2, 3, 10, 100])
def test_realised_rate_is_the_asked_one(num_classes: int):
    # drawing the new label over all K classes would realise γ(1 - 1/K)
    clean = draw_labels(10_000, num_classes)
    for seed in range(5):
        assert (corrupt_labels(clean, num_classes=num_classes, rate=0.3, seed=seed) != clean).mean() == 0.3


@pytest.mark.parametrize("seed", range(3))
def test_new_labels_are_uniform_over_the_other_classes(seed: int):
    clean = draw_labels(200_000, 7)
    noisy = corrupt_labels(clean, num_classes=7, rate=0.5, seed=seed)
    counts = np.bincount(clean * 7 + noisy, minlength=49).reshape(7, 7)
    for c in range(7):
        assert is_even(np.delete(counts[c], c))
    moved = noisy[clean != noisy] - clean[clean != noisy]
    steps = moved % 7 - 1
    assert is_even(np.bincount(steps[:-1] * 6 + steps[1:], minlength=36))  # neighbours are independent
    assert is_even(np.bincount(np.flatnonzero(clean != noisy) * 10 // 200_000))  # and lie all over the split


def test_new_labels_are_uniform_over_many_classes():
    clean = np.append(np.full(300_000, 17), np.arange(1000))  # every class has a record
    noisy = corrupt_labels(clean, num_classes=1000, rate=1.0, seed=0)[:300_000]
    assert is_even(np.delete(np.bincount(noisy, minlength=1000), 17))


def test_classes_without_a_record_get_none():
    clean = np.array([0, 2, 3, 6]).repeat(1000)
    for kind, more in (("symmetric", {}), ("pair", {}), ("asymmetric", {"classes": (0, 1, 2, 6, 7)})):
        noisy = corrupt_labels(clean, num_classes=9, kind=kind, rate=0.5, seed=0, **more)
        assert set(noisy) == {0, 2, 3, 6}
        assert (noisy != clean).sum() == 2000
    only = {"kind": "asymmetric", "classes": (0, 1)}
    with pytest.raises(UserError, match="needs another class, but only 1 of 2 has a record"):
        corrupt_labels(clean, num_classes=9, rate=0.1, seed=0, **only)
    # with all classes present the same bits as ever; the gap only renumbers
    dense = np.array([0, 1, 2, 3]).repeat(1000)
    noisy = corrupt_labels(clean, num_classes=9, rate=0.5, seed=0)
    np.testing.assert_array_equal(np.array([0, 2, 3, 6])[corrupt_labels(dense, num_classes=4, rate=0.5, seed=0)], noisy)


def test_a_new_kind_is_one_function_and_one_line(monkeypatch):
    def fall(labels, num_classes, seed, *, rate):
        return np.where(np.arange(labels.size) < rate * labels.size, 0, labels)

    monkeypatch.setitem(labels_module.KINDS, "fall", fall)
    assert list_arguments("fall") == ("rate",)
    assert corrupt_labels([1, 2, 3, 4], num_classes=5, kind="fall", rate=0.5, seed=0).tolist() == [0, 0, 3, 4]
    with pytest.raises(UserError, match="'fall' needs rate"):
        corrupt_labels([1, 2], num_classes=3, kind="fall", seed=0)
    assert {kind: list_arguments(kind) for kind in EVERY_KIND} == {
        "symmetric": ("rate",),
        "asymmetric": ("rate", "classes"),
        "pair": ("rate",),
        "matrix": ("matrix",),
    }


@pytest.mark.parametrize("rate_of", ["all", "classes"])
def test_asymmetric_stays_within_its_classes(rate_of: str):
    clean, inside = draw_labels(6000, 10), (7, 2, 5, 3)
    member = np.isin(clean, inside)
    ranks, before = Permutation(6000, 8)(np.arange(6000)), clean
    for rate in (0.0, 0.05, 0.1, 0.3):
        noisy = corrupt_labels(
            clean, num_classes=10, kind="asymmetric", rate=rate, classes=inside, rate_of=rate_of, seed=8
        )
        moved = np.flatnonzero(noisy != clean)
        count = round(rate * (6000 if rate_of == "all" else member.sum()))
        first = np.flatnonzero(member)[np.argsort(ranks[member])][:count]  # ranked within S
        np.testing.assert_array_equal(moved, np.sort(first))
        assert np.isin(noisy[moved], inside).all()
        np.testing.assert_array_equal(noisy[before != clean], before[before != clean])
        before = noisy
    for c in inside:
        assert is_even(np.bincount(before[(clean == c) & (before != c)], minlength=10)[[k for k in inside if k != c]])
    again = corrupt_labels(
        clean, num_classes=10, kind="asymmetric", rate=0.3, classes=sorted(inside), rate_of=rate_of, seed=8
    )
    np.testing.assert_array_equal(again, before)  # a set has no order


def test_matrix_by_hand():
    # class 0: 10 records × (.72, .17, .11) = 7.2, 1.7, 1.1 -> 7, 2, 1; class 1: 4 × (.4, .3, .3) -> 2, 1, 1
    clean = np.array([0, 1, 0, 0, 1, 0, 0, 1, 0, 0, 0, 2, 0, 1, 0, 2])
    matrix = [[0.72, 0.17, 0.11], [0.4, 0.3, 0.3], [0.0, 0.0, 1.0]]
    noisy = corrupt_labels(clean, num_classes=3, kind="matrix", matrix=matrix, seed=2)
    ledger = Ledger.from_labels(clean, noisy, num_classes=3, kind="matrix", asked=None, seed=2)
    assert ledger.transitions == ((7, 2, 1), (2, 1, 1), (0, 0, 2))
    ranks = Permutation(16, 2)(np.arange(16))
    for c, to in ((0, [1, 1, 2] + [0] * 7), (1, [2, 0, 0, 1])):  # by rank: one class further first, the own last
        records = np.flatnonzero(clean == c)
        assert noisy[records[np.argsort(ranks[records])]].tolist() == to


@pytest.mark.parametrize("seed", range(3))
def test_matrix_keeps_largest_remainder_and_breaks_ties_fairly(seed: int):
    # 200 classes of 13 records: no single transition is worth a whole record, and yet 10 % must move
    k = 200
    clean, matrix = np.repeat(np.arange(k), 13), np.full((k, k), 0.1 / (k - 1))
    np.fill_diagonal(matrix, 0.9)
    noisy = corrupt_labels(clean, num_classes=k, kind="matrix", matrix=matrix, seed=seed)
    moved = noisy != clean
    assert moved.sum() == k  # 13 × .9 = 11.7 stay: 12, and one goes
    received = np.bincount(noisy[moved], minlength=k)
    assert received.max() < 10  # the lowest class would get all of them
    assert is_even(received.reshape(10, 20).sum(1))


def test_matrix_extremes():
    clean = draw_labels(5000, 6)
    same = corrupt_labels(clean, num_classes=6, kind="matrix", matrix=np.eye(6), seed=0)
    np.testing.assert_array_equal(same, clean)
    shift = np.roll(np.eye(6), 2, axis=1)
    np.testing.assert_array_equal(
        corrupt_labels(clean, num_classes=6, kind="matrix", matrix=shift, seed=0), (clean + 2) % 6
    )
    rng = np.random.default_rng(1)
    for size in (0, 1, 5, 5000):
        matrix = rng.dirichlet(np.full(6, 0.3), 6)
        matrix[:, 4] = 0
        matrix /= matrix.sum(1, keepdims=True)
        noisy = corrupt_labels(clean[:size], num_classes=6, kind="matrix", matrix=matrix, seed=0)
        got = np.bincount(clean[:size] * 6 + noisy, minlength=36).reshape(6, 6)
        wanted = np.bincount(clean[:size], minlength=6)[:, None] * matrix
        assert (abs(got - wanted) < 1).all()
        assert not got[:, 4].any()


def test_labels_are_taken_as_they_are():
    clean, given = np.array([0, 1, 2], np.uint8), [2, 1, 0]
    noisy = corrupt_labels(clean, num_classes=3, kind="labels", noisy=given, seed=0)
    assert noisy.tolist() == given
    assert noisy.dtype == np.uint8


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int32, np.uint64, ">i2"])
def test_dtype_is_kept_and_the_input_left_alone(dtype):
    clean = draw_labels(3000, 100)
    given = clean.astype(dtype)
    given.setflags(write=False)
    matrix = np.full((100, 100), 0.01)
    for arguments in ({"rate": 0.4}, {"kind": "matrix", "matrix": matrix}):
        noisy = corrupt_labels(given, num_classes=100, seed=0, **arguments)
        assert noisy.dtype == given.dtype
        np.testing.assert_array_equal(given, clean)
        np.testing.assert_array_equal(noisy, corrupt_labels(clean, num_classes=100, seed=0, **arguments))
        ledgers = [
            Ledger.from_labels(given, y, num_classes=100, kind="k", asked=None, seed=0)
            for y in (noisy, noisy.astype(np.int64))
        ]
        assert ledgers[0] == ledgers[1]
    assert set(corrupt_labels(np.int8([0] * 9 + [127]), num_classes=128, rate=1.0, seed=0)[:9]) == {127}


def test_another_seed_draws_other_records_and_labels():
    clean = draw_labels(1000, 10)
    drawn = [corrupt_labels(clean, num_classes=10, rate=0.5, seed=seed) for seed in (0, 1)]
    both = (drawn[0] != clean) & (drawn[1] != clean)
    assert 200 < both.sum() < 300  # other records
    assert (drawn[0] == drawn[1])[both].mean() < 0.2  # and other labels


def test_labels_need_no_memory_besides_their_own():
    clean = draw_labels(1_000_000, 10).astype(np.uint8)
    for arguments in (
        {"rate": 0.5},
        {"kind": "asymmetric", "rate": 0.2, "classes": (1, 2, 3)},
        {"kind": "matrix", "matrix": np.full((10, 10), 0.1)},
    ):
        tracemalloc.start()
        noisy = corrupt_labels(clean, num_classes=10, seed=0, **arguments)
        Ledger.from_labels(clean, noisy, num_classes=10, kind="symmetric", asked=0.5, seed=0)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < clean.nbytes + 3e6  # the output and blocks; one int64 array of ids would be 8e6


# These bytes are what published runs were trained on.
EVERY_KIND = {
    "symmetric": {"rate": 0.3},
    "asymmetric": {"rate": 0.1, "classes": (1, 4, 9)},
    "pair": {"rate": 0.3},
    "matrix": {"matrix": 0.6 * np.eye(10) + 0.04},
}
STABLE = {
    "symmetric": "079017d5515db41bbac604d675a76ad25a665d249eccdbf8ee5dc619020c56fb",
    "asymmetric": "467b198cd70ace439ca977ed0a8780cb6a49f14430c5ddfa2ced96b6a4fee1ba",
    "pair": "8cc0801e84fd46b85f6faa9df60ee43e23d636bfbd14b43a77b38af620c9e37d",
    "matrix": "85c2466de08e15d70d3820ddc8c2c3c71b66a0f3754007fceebbed29d21e2378",
}


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_labels_are_stable(kind: str, monkeypatch):
    clean = np.arange(50_000) % 10
    for block in (permutation.BLOCK, 1013):
        monkeypatch.setattr(permutation, "BLOCK", block)
        assert sha(corrupt_labels(clean, num_classes=10, kind=kind, seed=7, **EVERY_KIND[kind])) == STABLE[kind]


BAD = [
    ({"rate": 1.5}, r"noise rate 1.5 must be in \[0, 1\]"),
    ({"rate": -0.1}, "noise rate -0.1"),
    ({"rate": float("nan")}, "noise rate nan"),
    ({}, "'symmetric' needs rate"),
    ({"rate": 0.1, "matrix": np.eye(5)}, "'symmetric' takes no matrix"),
    ({"rate": 0.1, "classes": (1, 2)}, "'symmetric' takes no classes"),
    ({"rate": 0.1, "kind": "symetric"}, "unknown noise kind 'symetric'"),
    ({"rate": 0.1, "kind": "asymmetric"}, "'asymmetric' needs classes"),
    ({"rate": 0.1, "kind": "asymmetric", "classes": (1, 5)}, r"classes \(1, 5\) are not ids in 0..4"),
    ({"rate": 0.1, "kind": "asymmetric", "classes": (0.5, 1)}, "are not ids"),
    ({"rate": 0.1, "kind": "asymmetric", "classes": (2, 2)}, "needs another class"),
    ({"rate": 0.5, "kind": "asymmetric", "classes": (1, 2)}, "is 50, but classes .* have 40"),
    ({"rate": 0.1, "kind": "asymmetric", "classes": (1, 2), "rate_of": "some"}, "unknown rate_of 'some'"),
    ({"rate": 0.1, "num_classes": 4}, "label 4 of record 4 is outside 0..3"),
    ({"rate": 0.1, "num_classes": 0}, "num_classes=0"),
    ({"rate": 0.1, "labels": [0, 1, -1, 9]}, "label -1 of record 2 is outside 0..4"),
    ({"rate": 0.1, "labels": [0.0, 1.0]}, "float64"),
    ({"rate": 0.1, "labels": [[0, 1]]}, r"shape \(1, 2\)"),
    ({"rate": 0.1, "labels": np.zeros(3, np.uint8), "num_classes": 300}, "300 classes do not fit uint8"),
    ({"rate": 0.1, "labels": np.zeros(3, int), "num_classes": 1}, "needs another class"),
    ({"rate": 0.1, "labels": np.zeros(3, int), "num_classes": 1, "kind": "pair"}, "needs another class"),
    ({"kind": "matrix"}, "'matrix' needs matrix"),
    ({"kind": "matrix", "matrix": np.eye(5), "rate": 0.1}, "'matrix' takes no rate"),
    ({"kind": "matrix", "matrix": np.eye(4)}, r"shape \(4, 4\); there are 5"),
    ({"kind": "matrix", "matrix": np.full((5, 5), b"0.2")}, r"the noise matrix has dtype \|S3; it must be numbers"),
    ({"kind": "matrix", "matrix": np.full((5, 5), 0.3)}, "row 0 of the noise matrix sums to 1.5"),
    ({"kind": "matrix", "matrix": np.eye(5) * 2 - 0.2}, r"has -0.2 at \(0, 1\)"),
    ({"kind": "matrix", "matrix": np.full((5, 5), np.nan)}, r"has nan at \(0, 0\)"),
    ({"kind": "labels"}, "'labels' needs noisy"),
    ({"kind": "labels", "noisy": [1, 2, 3]}, "3 noisy labels for 100 records"),
    ({"kind": "labels", "noisy": [7] * 100}, "noisy label 7 of record 0 is outside 0..4"),
    ({"kind": "labels", "noisy": [1] * 100, "rate": 0.0}, "'labels' takes no rate"),
]


@pytest.mark.parametrize(("change", "cause"), BAD, ids=[cause for _, cause in BAD])
def test_bad_labels(change: dict, cause: str):
    arguments = {"labels": np.arange(100) % 5, "num_classes": 5, "seed": 0} | change
    with pytest.raises(UserError, match=cause) as e:
        corrupt_labels(arguments.pop("labels"), **arguments)
    assert "\n" not in e.value.cause + e.value.cure
    if "unknown noise kind" in cause:
        assert e.value.cure == "choose one of symmetric, asymmetric, pair, matrix, labels, matched"


def test_first_bad_label_is_found_far_in():
    clean = np.zeros(100_000, np.uint8)
    clean[[70_000, 90_000]] = 3
    with pytest.raises(UserError, match="label 3 of record 70000 is outside"):
        corrupt_labels(clean, num_classes=3, rate=0.1, seed=0)


def test_no_noise_needs_no_other_class():
    assert corrupt_labels([0, 0], num_classes=1, rate=0.0, seed=0).tolist() == [0, 0]
    assert corrupt_labels([0, 0], num_classes=1, kind="matrix", matrix=[[1.0]], seed=0).tolist() == [0, 0]


def test_noise_is_public_and_needs_numpy_only():
    assert nml_jax.corrupt_labels is corrupt_labels
    assert nml_jax.swap_captions is swap_captions
    assert nml_jax.Ledger is Ledger
    code = "import sys, nml_jax; nml_jax.corrupt_labels; assert not {'jax', 'flax', 'scipy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=nml_jax.__path__[0] + "/..")


def test_matched_noise_has_exactly_as_many_wrong_labels_as_the_others():
    clean = draw_labels(997, 7)
    human = np.where(np.arange(997) % 9 == 0, (clean + 1) % 7, clean)
    drawn = corrupt_labels(clean, num_classes=7, kind="matched", noisy=human, seed=3)
    wrong = int((human != clean).sum())
    assert (drawn != clean).sum() == wrong > 100
    np.testing.assert_array_equal(drawn, corrupt_labels(clean, num_classes=7, rate=wrong / 997, seed=3))
    np.testing.assert_array_equal(clean, corrupt_labels(clean, num_classes=7, kind="matched", noisy=clean, seed=3))
    with pytest.raises(UserError, match="needs noisy"):
        corrupt_labels(clean, num_classes=7, kind="matched", seed=3)
    with pytest.raises(UserError, match="only 1 of 2 has a record"):
        corrupt_labels(np.zeros(4, int), num_classes=2, kind="matched", noisy=np.ones(4, int), seed=3)
