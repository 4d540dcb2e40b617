import itertools
from collections import Counter

import numpy as np
import pytest

from nml_jax.data.images.codec import Undecodable
from nml_jax.data.images.scenes import SceneTransform
from nml_jax.data.sources.objects import ObjectSource, make_objects
from nml_jax.data.stream import order, pipeline
from nml_jax.data.stream.reading import SceneReading


class Pictures(ObjectSource):
    """Pictures of 30 by 50 pixels, or turned, with an object each, or none; those in `broken` cannot be decoded."""

    def __init__(self, portrait, broken=()):
        self.broken = broken
        sizes = [(50, 30) if tall else (30, 50) for tall in portrait]
        super().__init__(np.array(sizes), class_names=["a", "b"], fingerprint="")

    def image(self, i):
        if i in self.broken:
            raise Undecodable("broken")
        return np.full((*self.sizes[i], 3), i, np.uint8)

    def objects(self, i):
        n = i % 3
        return make_objects([[1, 2, 10, 20]] * n, [1] * n, [False] * n, [162.0] * n, [None] * n)


def reading(**how):
    return SceneReading(SceneTransform((32, 64), 32, 64, flip=0.5, most=2), **{"threads": 0, **how})


def take(source, steps, *, batch=4, start=0, seed=0, **how):
    stream = pipeline.train(source, reading(**how), batch=batch, seed=seed, start_step=start)
    with_stream = list(itertools.islice(stream, steps))
    stream.close()
    return with_stream


PORTRAIT = [False] * 13 + [True] * 6


def test_a_batch_has_one_canvas_and_everything_comes_equally_often():
    source = Pictures(PORTRAIT)
    counts: Counter[int] = Counter()
    shapes = set()
    epochs = 40
    for batch, _ in take(source, round(epochs * 19 / 4)):
        tall = {PORTRAIT[i] for i in batch["id"]}
        assert len(tall) == 1
        assert batch["image"].shape == ((4, 64, 32, 3) if tall.pop() else (4, 32, 64, 3))
        shapes.add(batch["image"].shape)
        counts.update(batch["id"].tolist())
        assert batch["boxes"].shape == (4, 2, 4)
        assert ((batch["labels"] == 1).sum(1) == batch["id"] % 3).all()
    assert len(shapes) == 2
    assert set(counts) == set(range(19))
    assert max(counts.values()) - min(counts.values()) <= 2
    assert epochs - 2 <= min(counts.values()) <= epochs


@pytest.mark.parametrize("portrait", [[True], [False] * 3 + [True], [True] * 9])
def test_groups_that_fill_no_batch_still_come(portrait):
    groups = np.array(portrait, np.int8)
    at = order.deal_batches(0, groups, 8)
    counts = Counter(at(p) for p in range(8 * 200))
    expected = 8 * 200 / len(portrait)
    assert set(counts) == set(range(len(portrait)))
    assert all(abs(n - expected) <= 10 for n in counts.values())


def test_batch_k_is_the_same_for_any_number_of_processes_and_any_start():
    source = Pictures(PORTRAIT)
    whole = take(source, 8, batch=4)
    for blocks, threads in ((2, 0), (4, 3)):
        parts = [take(source, 8, batch=4, block=b, blocks=blocks, threads=threads) for b in range(blocks)]
        for k, (batch, _) in enumerate(whole):
            for key, value in batch.items():
                np.testing.assert_array_equal(np.concatenate([part[k].batch[key] for part in parts]), value, key)
    later = take(source, 3, batch=4, start=5)
    for (a, _), (b, _) in zip(whole[5:], later, strict=True):
        assert all((a[key] == b[key]).all() for key in a)
    other = take(source, 8, batch=4, seed=1)
    assert any((a["id"] != b["id"]).any() for (a, _), (b, _) in zip(whole, other, strict=True))


def test_a_broken_picture_is_replaced_by_one_with_the_same_canvas():
    source = Pictures(PORTRAIT, broken={14, 3})
    seen = take(source, 40)
    replaced = {int(q) for _, quarantined in seen for q in quarantined} - {-1}
    assert replaced == {14, 3}
    for batch, _ in seen:
        assert len({PORTRAIT[i] for i in batch["id"]}) == 1
        assert not {14, 3} & set(batch["id"].tolist())


@pytest.mark.parametrize("blocks", [1, 2])
def test_evaluation_shows_every_picture_once(blocks):
    source = Pictures(PORTRAIT)
    parts = [list(pipeline.evaluate(source, reading(block=b, blocks=blocks), batch=4)) for b in range(blocks)]
    assert len({len(part) for part in parts}) == 1
    ids = [i for part in parts for batch in part for i, there in zip(batch["id"], batch["mask"], strict=True) if there]
    assert sorted(ids) == list(range(19))
    for batch in itertools.chain(*parts):
        assert set(batch) == {"image", "size", "id", "mask"}
        assert (batch["size"][batch["mask"] == 0] == 1).all(), "a picture of padding has a size"
        assert batch["image"].shape[1:3] in ((32, 64), (64, 32))
