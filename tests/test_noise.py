"""Label noise, caption swaps and the ledger: what METHOD §2 promises, on every size from nothing to 2**62."""

import hashlib
import json
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
from scipy import stats

import nml_jax
from nml_jax import noise
from nml_jax.errors import UserError
from nml_jax.noise import CaptionSwap, Ledger, Permutation, corrupt_labels, swap_captions

SIZES = [0, 1, 2, 3, 4, 5, 7, 10, 64, 100, 999, 1000, 1001, 5003]
RATES = [0.0, 0.01, 0.05, 0.1, 0.25, 0.3, 0.5, 0.999, 1.0]


def labels_of(n: int, num_classes: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, num_classes, n)


def sha(array: np.ndarray) -> str:
    return hashlib.sha256(array.astype("<i8").tobytes()).hexdigest()


def even(counts: np.ndarray) -> bool:
    """Can these be counts of equally likely cells? Chi-square at 0.1 %; the seeds are fixed, so is the answer."""
    return bool(stats.chisquare(counts.ravel()).pvalue > 0.001)


# ---- the permutation
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
    assert even(np.histogram(ranks[:1000], bins=10, range=(0, n))[0])
    assert even(np.histogram(ranks[-1000:], bins=10, range=(0, n))[0])
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
    assert even(counts[~np.eye(10, dtype=bool)])


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


# ---- captions
@pytest.mark.parametrize("n", SIZES)
def test_swap_is_a_derangement_of_exactly_the_corrupted(n: int):
    ids, before = np.arange(n), np.zeros(0, np.int64)
    for rate in RATES:
        count = round(rate * n)
        if count == 1:
            with pytest.raises(UserError, match=f"swaps 1 caption of {n}"):
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


# ---- labels
@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("kind", ["symmetric", "pair"])
def test_exact_count_never_the_own_class_and_nested(n: int, kind: str):
    for num_classes in (2, 3, 10):
        clean = labels_of(n, num_classes)
        before, ranks = clean, Permutation(n, 5)(np.arange(n))
        for rate in RATES:
            noisy = corrupt_labels(clean, num_classes=num_classes, kind=kind, rate=rate, seed=5)
            moved = noisy != clean
            np.testing.assert_array_equal(moved, ranks < round(rate * n))  # 0: identity, 1: everything
            assert noisy.size == 0 or (noisy.min() >= 0 and noisy.max() < num_classes)
            kept = before != clean
            np.testing.assert_array_equal(noisy[kept], before[kept])  # the same wrong label at the higher rate
            if kind == "pair":
                np.testing.assert_array_equal(noisy[moved], (clean[moved] + 1) % num_classes)
            before = noisy


@pytest.mark.parametrize(
    ("n", "rate", "count"), [(10, 0.05, 0), (10, 0.15, 2), (10, 0.25, 2), (10, 0.35, 4), (3, 0.5, 2)]
)
def test_counts_round_half_to_even(n: int, rate: float, count: int):
    clean = np.zeros(n, np.int64)
    assert (corrupt_labels(clean, num_classes=4, rate=rate, seed=0) != clean).sum() == count


@pytest.mark.parametrize("num_classes", [2, 3, 10, 100])
def test_realised_rate_is_the_asked_one(num_classes: int):
    # drawing the new label over all K classes would realise γ(1 - 1/K)
    clean = labels_of(10_000, num_classes)
    for seed in range(5):
        assert (corrupt_labels(clean, num_classes=num_classes, rate=0.3, seed=seed) != clean).mean() == 0.3


@pytest.mark.parametrize("seed", range(3))
def test_new_labels_are_uniform_over_the_other_classes(seed: int):
    clean = labels_of(200_000, 7)
    noisy = corrupt_labels(clean, num_classes=7, rate=0.5, seed=seed)
    counts = np.bincount(clean * 7 + noisy, minlength=49).reshape(7, 7)
    for c in range(7):
        assert even(np.delete(counts[c], c))
    moved = noisy[clean != noisy] - clean[clean != noisy]
    steps = moved % 7 - 1
    assert even(np.bincount(steps[:-1] * 6 + steps[1:], minlength=36))  # neighbours are independent
    assert even(np.bincount(np.flatnonzero(clean != noisy) * 10 // 200_000))  # and lie all over the split


def test_new_labels_are_uniform_over_many_classes():
    noisy = corrupt_labels(np.full(300_000, 17), num_classes=1000, rate=1.0, seed=0)
    assert even(np.delete(np.bincount(noisy, minlength=1000), 17))


@pytest.mark.parametrize("rate_of", ["all", "classes"])
def test_asymmetric_stays_within_its_classes(rate_of: str):
    clean, inside = labels_of(6000, 10), (7, 2, 5, 3)
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
        assert even(np.bincount(before[(clean == c) & (before != c)], minlength=10)[[k for k in inside if k != c]])
    again = corrupt_labels(
        clean, num_classes=10, kind="asymmetric", rate=0.3, classes=sorted(inside), rate_of=rate_of, seed=8
    )
    np.testing.assert_array_equal(again, before)  # a set has no order


def test_matrix_by_hand():
    # class 0: 10 records × (.72, .17, .11) = 7.2, 1.7, 1.1 -> 7, 2, 1; class 1: 4 × (.4, .3, .3) -> 2, 1, 1
    clean = np.array([0, 1, 0, 0, 1, 0, 0, 1, 0, 0, 0, 2, 0, 1, 0, 2])
    matrix = [[0.72, 0.17, 0.11], [0.4, 0.3, 0.3], [0.0, 0.0, 1.0]]
    noisy = corrupt_labels(clean, num_classes=3, kind="matrix", matrix=matrix, seed=2)
    ledger = Ledger.of_labels(clean, noisy, num_classes=3, kind="matrix", asked=None, seed=2)
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
    assert even(received.reshape(10, 20).sum(1))


def test_matrix_extremes():
    clean = labels_of(5000, 6)
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
    clean = labels_of(3000, 100)
    given = clean.astype(dtype)
    given.setflags(write=False)
    matrix = np.full((100, 100), 0.01)
    for arguments in ({"rate": 0.4}, {"kind": "matrix", "matrix": matrix}):
        noisy = corrupt_labels(given, num_classes=100, seed=0, **arguments)
        assert noisy.dtype == given.dtype
        np.testing.assert_array_equal(given, clean)
        np.testing.assert_array_equal(noisy, corrupt_labels(clean, num_classes=100, seed=0, **arguments))
        ledgers = [
            Ledger.of_labels(given, y, num_classes=100, kind="k", asked=None, seed=0)
            for y in (noisy, noisy.astype(np.int64))
        ]
        assert ledgers[0] == ledgers[1]
    assert corrupt_labels(np.zeros(9, np.int8), num_classes=128, rate=1.0, seed=0).min() > 0


def test_seeds_draw_anew():
    clean = labels_of(1000, 10)
    drawn = [corrupt_labels(clean, num_classes=10, rate=0.5, seed=seed) for seed in (0, 1)]
    both = (drawn[0] != clean) & (drawn[1] != clean)
    assert 200 < both.sum() < 300  # other records
    assert (drawn[0] == drawn[1])[both].mean() < 0.2  # and other labels


def test_labels_need_no_memory_besides_their_own():
    clean = labels_of(1_000_000, 10).astype(np.uint8)
    for arguments in (
        {"rate": 0.5},
        {"kind": "asymmetric", "rate": 0.2, "classes": (1, 2, 3)},
        {"kind": "matrix", "matrix": np.full((10, 10), 0.1)},
    ):
        tracemalloc.start()
        noisy = corrupt_labels(clean, num_classes=10, seed=0, **arguments)
        Ledger.of_labels(clean, noisy, num_classes=10, kind="symmetric", asked=0.5, seed=0)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < clean.nbytes + 3e6  # the output and blocks; one int64 array of ids would be 8e6


# ---- stability: these bytes are what published runs were trained on
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
    10: "c063becae85459bc036984ae257158781611e847b0f18996271fcdd2eb203432",
    50_000: "ebb418ed762be70af2467fefa00e9f681e8963e21bb10c44f1e3f5c0a95868a3",
    2**40: "8ba9f6b12385e93cb05ae62c1d783b466432c2e8da0c77816f1a425ac2ce6698",
}


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_labels_are_stable(kind: str, monkeypatch):
    clean = np.arange(50_000) % 10
    for block in (noise._BLOCK, 1013):
        monkeypatch.setattr(noise, "_BLOCK", block)
        assert sha(corrupt_labels(clean, num_classes=10, kind=kind, seed=7, **EVERY_KIND[kind])) == STABLE[kind]


@pytest.mark.parametrize("n", [10, 50_000, 2**40])
def test_swaps_are_stable(n: int, monkeypatch):
    for block in (noise._BLOCK, 1013):
        monkeypatch.setattr(noise, "_BLOCK", block)
        assert sha(swap_captions(np.arange(min(n, 50_000)), n=n, rate=0.3, seed=7)) == STABLE[n]


# ---- the ledger
def test_ledger_by_hand():
    ledger = Ledger.of_labels([0, 0, 1, 1, 2], [0, 1, 1, 1, 0], num_classes=3, kind="symmetric", asked=0.3, seed=4)
    assert ledger == Ledger(
        kind="symmetric",
        seed=4,
        asked=0.3,
        realised=0.4,
        n=5,
        count=2,
        noisy_sha256=sha(np.array([0, 1, 1, 1, 0])),
        clean_sha256=sha(np.array([0, 0, 1, 1, 2])),
        corrupted=(1, 0, 1),
        transitions=((1, 1, 0), (0, 2, 0), (1, 0, 0)),
    )


def test_ledger_of_many_classes_keeps_a_summary(monkeypatch):
    clean = labels_of(40_000, 101)
    noisy = corrupt_labels(clean, num_classes=101, rate=0.1, seed=0)
    ledger = Ledger.of_labels(clean, noisy, num_classes=101, kind="symmetric", asked=0.1, seed=0)
    assert ledger.transitions is None
    assert ledger.corrupted == tuple(np.bincount(clean[clean != noisy], minlength=101))
    assert (ledger.count, ledger.realised) == (4000, 0.1)
    assert ledger.noisy_sha256 == sha(noisy)


def test_ledger_of_nothing():
    ledger = Ledger.of_labels(np.zeros(0, int), np.zeros(0, int), num_classes=2, kind="pair", asked=0.5, seed=0)
    assert (ledger.n, ledger.count, ledger.realised, ledger.transitions) == (0, 0, 0.0, ((0, 0), (0, 0)))


def test_ledger_of_captions():
    swap, captions = CaptionSwap(n=20_000, rate=0.3, seed=1), [f"a photo of {i} ä" for i in range(20_000)]
    ledger = Ledger.of_captions(swap, iter(captions), unchanged=3)
    texts = [caption.encode() for caption in captions]
    assert ledger == Ledger(
        kind="caption_swap",
        seed=1,
        asked=0.3,
        realised=0.3,
        n=20_000,
        count=6000,
        noisy_sha256=sha(swap_captions(np.arange(20_000), n=20_000, rate=0.3, seed=1)),
        clean_sha256=hashlib.sha256(b"".join(len(t).to_bytes(8, "little") + t for t in texts)).hexdigest(),
        unchanged=3,
    )
    assert Ledger.of_captions(swap, texts, unchanged=3) == ledger
    with pytest.raises(UserError, match="19999 captions for 20000 records"):
        Ledger.of_captions(swap, captions[1:])


@pytest.mark.parametrize("kind", ["labels", "captions"])
def test_ledger_goes_through_json(kind: str, tmp_path):
    if kind == "labels":
        ledger = Ledger.of_labels(
            [0, 1], [1, 1], num_classes=np.int64(2), kind="labels", asked=np.float32(0.1), seed=np.int64(3)
        )
    else:
        ledger = Ledger.of_captions(CaptionSwap(n=np.int64(2), rate=1, seed=np.int32(0)), ["a", b"b"])
    path = tmp_path / "noise.json"
    path.write_text(json.dumps(ledger.to_dict()))
    assert Ledger.read(path) == ledger
    assert Ledger.from_dict(ledger.to_dict()) == ledger
    Ledger.read(path).check_same(ledger, "here")


def test_a_ledger_that_differs_is_refused():
    clean = labels_of(100, 3)
    make = {"num_classes": 3, "kind": "symmetric", "asked": 0.1}
    mine, theirs = (
        Ledger.of_labels(clean, corrupt_labels(clean, num_classes=3, rate=0.1, seed=seed), seed=seed, **make)
        for seed in (0, 1)
    )
    with pytest.raises(UserError) as e:
        mine.check_same(theirs, "runs/x/noise.json")
    assert e.value.cause.startswith("runs/x/noise.json has another noise ledger: seed 1 there, 0 here; noisy_sha256 ")
    assert "clean_sha256" not in e.value.cause
    assert "\n" not in e.value.cause


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"kind": "pair", "colour": 1}', ""])
def test_no_ledger(text: str, tmp_path):
    (tmp_path / "noise.json").write_text(text)
    with pytest.raises(UserError, match="is no"):
        Ledger.read(tmp_path / "noise.json")


# ---- bad input: one line of cause, one of cure
BAD = [
    ({"rate": 1.5}, "noise rate 1.5 is no share"),
    ({"rate": -0.1}, "noise rate -0.1"),
    ({"rate": float("nan")}, "noise rate nan"),
    ({"rate": "0.1"}, "noise rate '0.1'"),
    ({}, "'symmetric' needs rate"),
    ({"rate": 0.1, "matrix": np.eye(5)}, "'symmetric' takes no matrix"),
    ({"rate": 0.1, "classes": (1, 2)}, "'symmetric' takes no classes"),
    ({"rate": 0.1, "kind": "symetric"}, "unknown noise kind 'symetric'"),
    ({"rate": 0.1, "kind": "asymmetric"}, "'asymmetric' needs classes"),
    ({"rate": 0.1, "kind": "asymmetric", "classes": (1, 5)}, r"classes \(1, 5\) are not ids in 0..4"),
    ({"rate": 0.1, "kind": "asymmetric", "classes": (0.5, 1)}, "are not ids"),
    ({"rate": 0.1, "kind": "asymmetric", "classes": (2, 2)}, "needs another class to go to"),
    ({"rate": 0.5, "kind": "asymmetric", "classes": (1, 2)}, "is 50, but classes .* have 40"),
    ({"rate": 0.1, "kind": "asymmetric", "classes": (1, 2), "rate_of": "some"}, "unknown rate_of 'some'"),
    ({"rate": 0.1, "num_classes": 4}, "label 4 of record 4 is outside 0..3"),
    ({"rate": 0.1, "num_classes": 0}, "num_classes=0"),
    ({"rate": 0.1, "num_classes": 2.0}, "num_classes=2.0"),
    ({"rate": 0.1, "labels": [0, 1, -1, 9]}, "label -1 of record 2 is outside 0..4"),
    ({"rate": 0.1, "labels": [0.0, 1.0]}, "float64"),
    ({"rate": 0.1, "labels": [[0, 1]]}, r"shape \(1, 2\)"),
    ({"rate": 0.1, "labels": np.zeros(3, np.uint8), "num_classes": 300}, "300 classes do not fit uint8"),
    ({"rate": 0.1, "labels": np.zeros(3, int), "num_classes": 1}, "another class to go to"),
    ({"rate": 0.1, "labels": np.zeros(3, int), "num_classes": 1, "kind": "pair"}, "another class to go to"),
    ({"rate": 0.1, "seed": 0.5}, "noise seed 0.5 is no integer"),
    ({"rate": 0.1, "seed": None}, "noise seed None is no integer"),
    ({"kind": "matrix"}, "'matrix' needs matrix"),
    ({"kind": "matrix", "matrix": np.eye(5), "rate": 0.1}, "'matrix' takes no rate"),
    ({"kind": "matrix", "matrix": np.eye(4)}, r"shape \(4, 4\); there are 5"),
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
        assert e.value.cure == "choose one of symmetric, asymmetric, pair, matrix, labels"


def test_first_bad_label_is_found_far_in():
    clean = np.zeros(100_000, np.uint8)
    clean[[70_000, 90_000]] = 3
    with pytest.raises(UserError, match="label 3 of record 70000 is outside"):
        corrupt_labels(clean, num_classes=3, rate=0.1, seed=0)


def test_no_noise_needs_no_other_class():
    assert corrupt_labels([0, 0], num_classes=1, rate=0.0, seed=0).tolist() == [0, 0]
    assert corrupt_labels([0, 0], num_classes=1, kind="matrix", matrix=[[1.0]], seed=0).tolist() == [0, 0]


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        ({"rate": 2}, "noise rate 2"),
        ({"rate": None}, "noise rate None"),
        ({"n": -1}, "-1 is no number of records"),
        ({"n": 2**62 + 1}, "is no number of records"),
        ({"n": 10.0}, "10.0 is no number of records"),
        ({"seed": "a"}, "noise seed 'a'"),
        ({"ids": [3, 10]}, "id 10 is outside 0..9"),
        ({"ids": [-1]}, "id -1 is outside 0..9"),
        ({"ids": 10}, "id 10 is outside 0..9"),
        ({"ids": [0.5]}, "ids are float64"),
        ({"rate": 0.1}, "swaps 1 caption of 10"),
    ],
)
def test_bad_captions(change: dict, cause: str):
    arguments = {"ids": [1, 2], "n": 10, "rate": 0.3, "seed": 0} | change
    with pytest.raises(UserError, match=cause) as e:
        swap_captions(arguments.pop("ids"), **arguments)
    assert "\n" not in e.value.cause + e.value.cure
    with pytest.raises(UserError, match="id 10 is outside"):
        CaptionSwap(n=10, rate=0.3, seed=0)(10)


def test_noise_is_public_and_needs_numpy_only():
    assert nml_jax.corrupt_labels is corrupt_labels
    assert nml_jax.swap_captions is swap_captions
    assert nml_jax.Ledger is Ledger
    code = "import sys, nml_jax; nml_jax.corrupt_labels; assert not {'jax', 'flax', 'scipy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=nml_jax.__path__[0] + "/..")


@pytest.mark.parametrize("rate", [0.0, 0.1, 1.0])
def test_swapped_names_the_records_that_get_another_caption(rate):
    swap = noise.CaptionSwap(n=200, rate=rate, seed=3)
    partners = swap(np.arange(200))
    assert sorted(swap.swapped()) == np.flatnonzero(partners != np.arange(200)).tolist()
