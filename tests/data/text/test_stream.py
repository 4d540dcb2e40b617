"""Test the batches of texts: a function of (seed, step) for any number of processes, and all texts, once each."""

import itertools

import numpy as np
import pytest

from nml_jax.data.sources.noisy import NoisyLabels
from nml_jax.data.sources.sentences import Sentences
from nml_jax.data.sources.source import Mixture, Subset
from nml_jax.data.text import stream
from nml_jax.data.text.batches import encode_texts
from nml_jax.data.text.folders import TokenTable
from nml_jax.errors import UserError

N, BATCH, BUCKETS = 200, 8, (4, 8, 16)
rng = np.random.default_rng(0)
LENGTHS = rng.integers(1, 17, N)
LABELS = rng.integers(0, 3, N).astype(np.int32)


def make_table(lengths: np.ndarray) -> TokenTable:
    """Make texts whose tokens all are the number of the text, and 1 more."""
    starts = np.concatenate([[0], np.cumsum(lengths)])
    ids = np.repeat(np.arange(len(lengths)) + 1, lengths).astype(np.int32)
    return TokenTable(ids, starts, lengths.astype(np.int32), 0, 0)


TABLE = make_table(LENGTHS)
SOURCE = Sentences([(str(i),) for i in range(N)], LABELS, ("a", "b", "c"))


def take(steps: int, start: int = 0, *, block: int = 0, blocks: int = 1, seed: int = 0, weights=(), source=SOURCE):
    found = stream.train(
        source, TABLE, stream.Layout(BUCKETS, block, blocks), batch=BATCH, seed=seed, start_step=start, weights=weights
    )
    return list(itertools.islice(found, steps))


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("blocks", [2, 4])
def test_a_batch_is_that_of_one_process_whatever_their_number(blocks: int):
    whole, parts = take(30), [take(30, block=block, blocks=blocks) for block in range(blocks)]
    for step, (batch, quarantined) in enumerate(whole):
        own = [part[step].batch for part in parts]
        joined = {name: np.concatenate([x[name] for x in own]) for name in batch}
        assert same(batch, joined)  # above all of one length, though a part alone may be shorter
        assert (quarantined == -1).all()


def test_a_run_that_starts_later_gets_the_same_batches():
    whole = take(40)
    for start in (1, 7, 8, 29):
        assert all(same(a.batch, b.batch) for a, b in zip(whole[start:], take(40 - start, start), strict=True))
    assert not same(whole[0].batch, take(1, seed=1)[0].batch)


def test_an_epoch_has_every_text_once_with_its_label_and_tokens_and_little_padding():
    windows = N // (BATCH * stream.WINDOW)
    batches = [portion.batch for portion in take(windows * stream.WINDOW)]
    ids = np.concatenate([batch["id"] for batch in batches])
    assert len(set(ids.tolist())) == len(ids)
    for batch in batches:
        np.testing.assert_array_equal(batch["label"], LABELS[batch["id"]])
        np.testing.assert_array_equal(batch["length"], LENGTHS[batch["id"]])
        width = batch["tokens"].shape[1]
        own = np.arange(width) < batch["length"][:, None]
        np.testing.assert_array_equal(batch["tokens"], np.where(own, batch["id"][:, None] + 1, 0))
        assert width == next(size for size in BUCKETS if size >= batch["length"].max())
        assert batch["mask"].all()
    padded = sum(batch["tokens"].size for batch in batches)
    assert padded / LENGTHS[ids].sum() < 1.5
    widths = [batch["tokens"].shape[1] for batch in batches[: stream.WINDOW]]
    assert widths != sorted(widths)  # the batches of a window come in an order of their own
    two = np.concatenate([portion.batch["id"] for portion in take(2 * N // BATCH)])
    assert np.bincount(two[: windows * stream.WINDOW * BATCH]).max() == 1


def test_evaluation_shows_every_text_once_in_every_split_of_the_rows():
    layouts = [stream.Layout(BUCKETS, block, 2, devices=2) for block in range(2)]
    found = [list(stream.evaluate(SOURCE, TABLE, layout, batch=BATCH)) for layout in layouts]
    assert len(found[0]) == len(found[1])
    assert {batch["tokens"].shape for batch in found[0]} == {(4, 4), (2, 8), (1, 16)}
    seen = np.concatenate([batch["id"][batch["mask"] > 0] for part in found for batch in part])
    assert sorted(seen.tolist()) == list(range(N))
    for one, two in zip(*found, strict=True):
        assert one["tokens"].shape == two["tokens"].shape
    short = TABLE.take(np.flatnonzero(LENGTHS <= 4)[:5])
    (last,) = stream.evaluate(Subset(SOURCE, range(5)), short, stream.Layout(BUCKETS), batch=BATCH)
    assert last["mask"].tolist() == [1] * 5 + [0] * 3
    assert last["length"][5:].tolist() == [0] * 3


class Letters:
    """A tokenizer whose tokens are the digits of a text."""

    fingerprint, length = "letters", 16

    def __init__(self):
        self.calls = 0

    def __call__(self, texts):
        self.calls += 1
        lengths = np.array([len(text[0]) for text in texts])
        ids = np.array([int(letter) for text in texts for letter in text[0]], np.int32)
        return TokenTable(ids, np.concatenate([[0], np.cumsum(lengths)]), lengths.astype(np.int32), 0, 0)


def read(table: TokenTable) -> list[str]:
    ends = zip(table.starts[:-1], table.starts[1:], strict=True)
    return ["".join(map(str, table.ids[a:b])) for a, b in ends]


def test_tokens_follow_the_views_of_a_source_and_are_made_once():
    tokenize = Letters()
    part = Subset(NoisyLabels(SOURCE, (LABELS + 1) % 3), [7, 130, 7, 12])
    assert read(encode_texts(part, tokenize)) == ["7", "130", "7", "12"]
    mixed = Mixture([part, Subset(SOURCE, [3])])
    assert read(encode_texts(mixed, tokenize)) == ["7", "130", "7", "12", "3"]
    assert tokenize.calls == 1


def test_a_mixture_has_the_shares_that_are_asked_for_and_bad_ones_are_refused():
    source = Mixture([Subset(SOURCE, range(50)), Subset(SOURCE, range(50, N))])
    ids = np.concatenate([p.batch["id"] for p in take(100, weights=(1.0, 1.0), source=source)])
    assert 0.4 < (ids < 50).mean() < 0.6
    with pytest.raises(UserError, match="cannot be divided"):
        next(stream.train(SOURCE, TABLE, stream.Layout(BUCKETS, 0, 3), batch=BATCH, seed=0))
    with pytest.raises(UserError, match="no records"):
        next(stream.train(Subset(SOURCE, []), TABLE, stream.Layout(BUCKETS), batch=BATCH, seed=0))
