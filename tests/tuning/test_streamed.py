"""Heads on features that are read shard by shard agree with heads on the same features in memory."""

import jax
import numpy as np
import pytest

from nml_jax.errors import UserError
from nml_jax.tuning import descent, select, streamed
from tests.scenes.head_config import make_tune

N, D, K = 600, 8, 3
SHARD = 256  # two whole shards and one of 88 rows


def config(**changes):
    small = {"epochs": 6, "batch": 32, "lrs": (0.03,), "weight_decays": (0.0,), "standardize": True, "cs": (0.1, 1.0),
             "alphas": (1.0,), "ks": (5,)}  # fmt: skip
    return make_tune(**{**small, **changes})


class Disk:
    """Rows as in data/features/files.py, which record what is read."""

    def __init__(self, features):
        self.features, self.asked = features, []
        self.views, self.dim = features.shape[1:]

    def __len__(self):
        return len(self.features)

    def rows(self, index):
        self.asked.append(len(index))
        return self.features[index]

    def blocks(self, size):
        for start in range(0, len(self), size):
            yield start, self.features[start : start + size]


def blobs(n=N, seed=0, distance=1.5, order="shuffled", views=1):
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % K
    labels = np.sort(labels) if order == "sorted" else rng.permutation(labels)
    features = rng.normal(size=(n, views, D)) + distance * np.eye(K, D)[labels][:, None]
    return (3 * features + np.arange(D) ** 2).astype(np.float32), labels.astype(np.int32)


TEST = blobs(1000, seed=9)


def fit(data, *, shard, method="mlp", preset=None, seeds=(0,), **changes):
    disk = Disk(data[0])
    results = streamed.fit_seeds(
        disk, data[1], shard=shard, method=method, preset=preset, num_classes=K, config=config(**changes), seeds=seeds
    )
    assert max(disk.asked) <= shard
    return results


def accuracy(result):
    return (result.outputs(TEST[0][:, 0])[1].argmax(1) == TEST[1]).mean()


@pytest.mark.parametrize(("n", "size"), [(1000, 300), (1000, 256), (100, 300), (257, 256), (512, 512)])
def test_every_epoch_has_every_row_once_in_its_own_order(n, size):
    found = list(streamed._draw_shards(n, size, 3, seed=5))
    per_epoch = -(-n // size)
    assert len(found) == 3 * per_epoch
    for epoch in range(3):
        shards = found[epoch * per_epoch : (epoch + 1) * per_epoch]
        assert [len(rows) for rows in shards[:-1]] == [size] * (per_epoch - 1)
        assert all((np.diff(rows) > 0).all() for rows in shards)
        np.testing.assert_array_equal(np.sort(np.concatenate(shards)), np.arange(n))
    if per_epoch > 1 and n > streamed.NEIGHBOURS:
        epochs = [np.concatenate(found[i * per_epoch : (i + 1) * per_epoch]) for i in range(3)]
        assert len({rows.tobytes() for rows in epochs}) > 1


def test_rows_are_read_in_runs_from_the_whole_file():
    (first, *_) = streamed._draw_shards(100_000, 10_240, 1, seed=0)
    runs = np.split(first, np.flatnonzero(np.diff(first) > 1) + 1)
    assert len(runs) <= 40  # not row by row
    assert first.min() < 20_000
    assert first.max() > 80_000


def test_a_shard_as_large_as_the_data_is_as_good_as_training_in_memory():
    data = blobs()
    for method, preset in (("linear", None), ("nmtune", "paper")):
        (got,) = fit(data, shard=N, method=method, preset=preset)
        (want,) = select.fit_seeds(*data, method=method, preset=preset, num_classes=K, config=config(), seeds=(0,))
        assert accuracy(want) > 0.7
        assert accuracy(got) == pytest.approx(accuracy(want), abs=0.02)
        assert (got.hyper, got.preset, got.validation, got.n_train) == (want.hyper, want.preset, [], N)


@pytest.mark.parametrize("order", [pytest.param("shuffled", marks=pytest.mark.slow), "sorted"])
def test_small_shards_learn_as_well_even_from_a_file_sorted_by_class(order, monkeypatch):
    monkeypatch.setattr(streamed, "NEIGHBOURS", 16)  # as small relative to a shard as 256 rows to a real one
    (whole,) = select.fit_seeds(*blobs(), method="mlp", num_classes=K, config=config(), seeds=(0,))
    (got,) = fit(blobs(order=order), shard=SHARD)
    assert accuracy(got) > accuracy(whole) - 0.02
    assert got.n_train == N


def test_the_last_and_smaller_shard_is_trained_on_but_not_its_padding(monkeypatch):
    """All rows of class 2 are in one place, so a head that has not seen them cannot know the class."""
    monkeypatch.setattr(streamed, "NEIGHBOURS", 8)
    features, labels = blobs(263, order="sorted")
    seen = []
    advance = descent.advance

    def watched(spec, carry, bank, setting, n, i, total):
        seen.append((int(n), bank.features.shape, int(i), int(total)))
        filled = bank._replace(features=bank.features.copy())
        filled.features[int(n) :] = 1e6  # padding may hold anything
        return advance(spec, carry, filled, setting, n, i, total)

    monkeypatch.setattr(descent, "advance", watched)
    (got,) = fit((features, labels), shard=SHARD, epochs=3)
    assert [n for n, *_ in seen] == [132, 131] * 3  # as even as can be
    assert {shape for _, shape, *_ in seen} == {(132, 1, D)}  # one shape, so that it is compiled once
    assert [i for *_, i, _ in seen] == list(range(6))
    assert {total for *_, total in seen} == {3 * (5 + 5)}  # the cosine ends with the last step
    assert accuracy(got) > 0.6


def test_standardisation_equals_that_of_features_in_memory():
    features, _ = blobs(700, views=2)
    features[..., 3] = 7.1  # constant
    features[..., 4] = 1e4 + features[..., 4]  # a large mean
    got, want = streamed._standard(Disk(features)), descent.get_standard(features)
    exact = features.reshape(-1, D).astype(np.float64)
    np.testing.assert_allclose(got["mean"], exact.mean(0), rtol=1e-6)
    np.testing.assert_allclose(got["scale"], np.where(np.arange(D) == 3, 1, exact.std(0)), rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), got, want)
    assert {x.dtype for x in got.values()} == {np.dtype(np.float32)}


def test_hyperparameters_are_chosen_on_a_stratified_sample_of_one_shard(monkeypatch):
    samples = []
    choose = select.choose

    def watched(trainer, features, labels, **how):
        samples.append((features.shape, np.bincount(labels)))
        return choose(trainer, features, labels, **how)

    monkeypatch.setattr(select, "choose", watched)
    results = fit(blobs(order="sorted"), shard=SHARD, lrs=(1e-6, 0.03), seeds=(1, 2))
    assert [result.hyper["lr"] for result in results] == [0.03, 0.03]
    assert [len(result.validation) for result in results] == [2, 2]
    ((shape, counts),) = samples
    assert shape == (SHARD, 1, D)
    assert counts.max() - counts.min() <= 1
    assert not np.array_equal(*(result.head.params["dense1"]["kernel"] for result in results))


def test_a_solved_probe_sees_one_shard_and_n_train_is_its_size():
    for method in ("lbfgs", "ridge", "knn"):
        (result,) = fit(blobs(), shard=SHARD, method=method)
        assert result.n_train == SHARD
        assert accuracy(result) > 0.6


def test_a_run_that_diverges_raises_an_error():
    with pytest.raises(UserError, match="diverged"):
        fit(blobs(), shard=SHARD, lrs=(1e38,))
