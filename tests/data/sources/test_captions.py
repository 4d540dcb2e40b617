"""Test sources of captions, whole, swapped, join_parts and cut, and the batches made from them."""

import pickle

import numpy as np
import pytest

from nml_jax.data.sources.captions import Joined, Slice, Stored, Swapped, Taken
from nml_jax.data.sources.noisy import NoisyLabels, SwappedCaptions
from nml_jax.data.sources.source import Mixture, Source, Subset
from nml_jax.data.sources.texts import SEPARATOR, Texts, write
from nml_jax.data.stratify import split_validation
from nml_jax.data.stream import order, pipeline
from nml_jax.errors import UserError
from nml_jax.noise import CaptionSwap
from tests.data.stream.test_pipeline import assert_same, join_parts, source, train


class Pairs(Source):
    """A source of n images with captions in memory. Record i has i % 3 + 1 captions."""

    def __init__(self, n: int, name: str = ""):
        super().__init__(captions=[[f"{name}{i} {c}" for c in range(i % 3 + 1)] for i in range(n)], fingerprint=name)
        self.pixels = source(n).images  # type: ignore[attr-defined]

    def image(self, i: int) -> np.ndarray:
        return self.pixels[i]


def tokenize(texts):
    """Return the numbers in each text, plus one, padded with zeros."""
    out = np.zeros((len(texts), 4), np.int32)
    for row, text in zip(out, texts, strict=True):
        numbers = [int(word) + 1 for word in text.split()]
        row[: len(numbers)] = numbers
    return out


def test_sequences_read_captions_on_access(tmp_path):
    path = tmp_path / "train.captions"
    write(path, ["a", f"b{SEPARATOR}ü", "", "d"])
    stored = Stored(Texts(path))
    assert list(stored) == [["a"], ["b", "ü"], [""], ["d"]]
    assert list(Slice(stored, 1, 3)) == [["b", "ü"], [""]]
    assert list(Taken(stored, np.array([3, 0]))) == [["d"], ["a"]]
    both = Joined([Slice(stored, 2, 4), stored, Slice(stored, 1, 1)])
    assert [both[i] for i in range(len(both))] == [[""], ["d"], ["a"], ["b", "ü"], [""], ["d"]]
    assert both[-1] == ["d"]
    for items in (stored, Slice(stored, 1, 3), both):
        with pytest.raises(IndexError):
            items[len(items)]
        assert list(pickle.loads(pickle.dumps(items))) == list(items)


def test_a_swap_gives_every_swapped_record_its_partners_captions_and_keeps_its_own_clean():
    clean, swap = Pairs(50), CaptionSwap(n=50, rate=0.3, seed=1)
    noisy = SwappedCaptions(clean, swap)
    partners = swap(np.arange(50))
    assert [noisy[i]["captions"] for i in range(50)] == [clean.captions[j] for j in partners]
    assert list(noisy.captions_clean) == list(clean.captions)
    assert set(noisy[0]) == {"image", "id", "captions"}
    moved = {i for i in range(50) if noisy.captions[i] != noisy.captions_clean[i]}
    assert moved == set(swap.list_swapped().tolist())
    assert len(moved) == 15
    assert noisy.fingerprint != clean.fingerprint
    np.testing.assert_array_equal(noisy[7]["image"], clean[7]["image"])
    assert isinstance(noisy.captions, Swapped)
    with pytest.raises(UserError, match="swap of 49 records for 50"):
        SwappedCaptions(clean, CaptionSwap(n=49, rate=0.3, seed=1))


def test_a_subset_takes_captions_along():
    noisy = SwappedCaptions(Pairs(20), CaptionSwap(n=20, rate=0.5, seed=0))
    part = Subset(noisy, [3, 17, 4])
    assert [part.captions[i] for i in range(3)] == [noisy.captions[i] for i in (3, 17, 4)]
    assert [part.captions_clean[i] for i in range(3)] == [noisy.captions_clean[i] for i in (3, 17, 4)]
    assert part[1]["id"] == 1


def test_validation_is_cut_off_without_labels():
    rest, held = split_validation(Pairs(40), 0.25)
    assert (len(rest), len(held)) == (30, 10)
    assert {c[0] for c in rest.captions} | {c[0] for c in held.captions} == {c[0] for c in Pairs(40).captions}


def test_a_mixture_is_one_dataset_after_another():
    mixed = Mixture([Pairs(5, "1"), Pairs(3, "2")])
    assert len(mixed) == 8
    assert mixed.parts == (5, 3)
    assert mixed[5]["captions"] == ["20 0"]
    assert mixed[5]["id"] == 5
    np.testing.assert_array_equal(mixed[6]["image"], Pairs(3)[1]["image"])
    assert SwappedCaptions(mixed, CaptionSwap(n=8, rate=0.5, seed=0)).parts == (5, 3)
    with pytest.raises(UserError, match="differ in their classes"):
        Mixture([Pairs(5), source(3)])
    labelled = Mixture([source(4), source(2)])
    assert labelled.labels.tolist() == [0, 1, 2, 0, 0, 1]


def test_batches_hold_the_tokens_of_one_caption_of_each_image():
    data = Pairs(10)
    batches = train(data, 20, tokenize=tokenize)
    assert set(batches[0]) == {"image", "text", "id", "quarantined", "mask"}
    assert batches[0]["text"].dtype == np.int32
    drawn = {}
    for batch in batches:
        assert (batch["text"][:, 0] == batch["id"] + 1).all()
        for i, text in zip(batch["id"], batch["text"], strict=True):
            drawn.setdefault(int(i), set()).add(int(text[1]))
    assert drawn == {i: set(range(1, i % 3 + 2)) for i in range(10)}, "every caption is drawn"


def test_text_batches_do_not_depend_on_processes_threads_or_restarts():
    data = SwappedCaptions(Pairs(30), CaptionSwap(n=30, rate=0.4, seed=0))
    whole = train(data, 6, tokenize=tokenize, threads=0)
    parts = [train(data, 6, tokenize=tokenize, block=i, blocks=2, threads=3) for i in range(2)]
    assert_same(join_parts(parts), whole)
    assert_same(train(data, 2, tokenize=tokenize, start_step=4), whole[4:])


def test_evaluation_gives_the_first_caption_noisy_and_clean():
    noisy = SwappedCaptions(Pairs(10), CaptionSwap(n=10, rate=0.6, seed=0))
    from tests.data.stream.test_pipeline import evaluate

    batches = evaluate(noisy, batch=4, tokenize=tokenize)
    text, clean = (np.concatenate([b[key] for b in batches])[:10] for key in ("text", "text_clean"))
    np.testing.assert_array_equal(text, tokenize([c[0] for c in noisy.captions]))
    np.testing.assert_array_equal(clean, tokenize([c[0] for c in noisy.captions_clean]))
    assert not batches[-1]["text"][2:].any(), "padding"
    assert set(evaluate(noisy, batch=4)[0]) == {"image", "id", "mask"}


@pytest.mark.parametrize("processes", [1, 2])
def test_texts_gives_every_caption_once(processes):
    captions = Pairs(7).captions  # 1 + 2 + 3 + 1 + 2 + 3 + 1 of them
    parts = [
        list(pipeline.read_texts(captions, tokenize, batch=4, block=i, blocks=processes)) for i in range(processes)
    ]
    batches = join_parts(parts)
    assert [b["text"].shape for b in batches] == [(4, 4)] * 4
    present = np.concatenate([b["mask"] for b in batches]) > 0
    assert present.sum() == 13
    ids, text = (np.concatenate([b[key] for b in batches])[present] for key in ("id", "text"))
    assert ids.tolist() == [0, 1, 1, 2, 2, 2, 3, 4, 4, 5, 5, 5, 6]
    np.testing.assert_array_equal(text, tokenize([t for c in captions for t in c]))


# The order of a mixture


def mixture_ids(weights, steps, parts=(60, 20, 10), batch=10):
    data = Mixture([Pairs(n, str(i)) for i, n in enumerate(parts)])
    batches = train(data, steps, batch=batch, tokenize=tokenize, weights=weights)
    return np.concatenate([b["id"] for b in batches])


def test_every_epoch_has_the_stated_share_of_each_dataset():
    ids = mixture_ids((1, 1, 2), steps=27)
    part = np.searchsorted([60, 80, 90], ids, side="right").reshape(3, 90)
    for epoch in part:
        assert np.bincount(epoch, minlength=3).tolist() == [22, 23, 45]
    counts = np.bincount(ids, minlength=90)
    assert counts[:60].max() - counts[:60].min() <= 1, "a dataset is shown whole before it starts again"
    assert counts[80:].min() >= 13
    assert counts[80:].max() <= 14


def test_weights_as_large_as_the_datasets_show_every_record_once():
    assert sorted(mixture_ids((60, 20, 10), steps=9)) == list(range(90))


def test_no_weights_are_the_order_of_one_dataset():
    assert sorted(mixture_ids((), steps=9)) == list(range(90))


@pytest.mark.parametrize("weights", [(1, 2), (1, 0, 1), (1, -1, 1), (1, float("nan"), 1)])
def test_wrong_weights_are_refused(weights):
    with pytest.raises(UserError, match="one positive number for each"):
        mixture_ids(weights, steps=1)


def test_a_mixture_does_not_depend_on_processes_threads_or_restarts():
    def run(**how):
        data = Mixture([Pairs(12, "1"), Pairs(4, "2")])
        return train(data, 8, tokenize=tokenize, weights=(1.0, 2.0), **how)

    whole = run(threads=0)
    assert_same(join_parts([run(block=i, blocks=2, threads=3) for i in range(2)]), whole)
    data = Mixture([Pairs(12, "1"), Pairs(4, "2")])
    assert_same(train(data, 3, tokenize=tokenize, weights=(1.0, 2.0), start_step=5), whole[5:])


def test_a_dataset_shown_often_draws_each_permutation_once(monkeypatch):
    monkeypatch.setattr(order, "FEW", 0)  # as if there were millions of records
    drawn, real = [], np.random.default_rng
    monkeypatch.setattr(np.random, "default_rng", lambda seed: drawn.append(seed) or real(seed))
    record = order.mix_sources(0, (30, 300), (3.0, 1.0))
    for p in range(600, 720):  # across the end of an epoch of 330
        record(p)
    assert len(drawn) <= 24, "orders of two epochs, and the permutations of each part that two epochs need"


def test_a_mixture_of_noisy_labels_keeps_its_parts():
    mixed = Mixture([source(6), source(4)])
    noisy = NoisyLabels(mixed, mixed.labels)
    assert noisy.parts == (6, 4)
    assert len(train(noisy, 2, weights=(1.0, 1.0))) == 2


def test_captions_need_a_tokenizer():
    with pytest.raises(ValueError, match="tokenize"):
        train(Pairs(4), 1)


def test_raw_returns_the_bytes_on_disk(tmp_path):
    path = tmp_path / "train.captions"
    write(path, ["a", f"b{SEPARATOR}ü", "", "d"])
    stored = Stored(Texts(path))
    items = Joined([Taken(Slice(stored, 1, 4), np.array([2, 0])), stored])
    assert [items.raw(i) for i in range(len(items))] == [SEPARATOR.join(c).encode() for c in items]
