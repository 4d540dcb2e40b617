import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nml_jax import runtime
from nml_jax.errors import NonFinite, UserError
from nml_jax.evals import retrieval as retrieval_module
from nml_jax.evals.retrieval import CaptionFit, Retrieval, _rank_block, measure_recalls, rank_pairs

NAMES = [f"{way}_recall@{k}" for way in ("i2t", "t2i") for k in (1, 5, 10)]


def measure_by_sorting(image, text, owner):
    """Apply the definition in float64: sort the gallery and find the first right item."""
    scores = np.asarray(image, np.float64) @ np.asarray(text, np.float64).T
    captions, images = (np.argsort(-s, axis=1, kind="stable") for s in (scores, scores.T))
    first = {
        "i2t": [(owner[captions[i]] == i).argmax() for i in np.unique(owner)],
        "t2i": [(images[j] == owner[j]).argmax() for j in range(len(text))],
    }
    size = {"i2t": len(text), "t2i": len(image)}
    return {f"{w}_recall@{k}": np.mean(np.array(first[w]) < k) for w in first for k in (1, 5, 10) if k <= size[w]}


def pairs(seed, n=30, per=3, dim=6, noise=1.2, ties=False):
    """Draw captions near their image, shuffled. With `ties`, scores are small whole numbers, and most are repeated."""
    rng = np.random.default_rng(seed)
    owner = rng.permutation(np.repeat(np.arange(n), per))
    image = rng.integers(-1, 2, (n, dim)) if ties else rng.normal(size=(n, dim))
    text = image[owner] + (rng.integers(0, 2, (n * per, dim)) if ties else noise * rng.normal(size=(n * per, dim)))
    return image.astype(np.float32), text.astype(np.float32), owner


def test_by_hand():
    image = np.float32([[1, 0], [0, 1], [1, 1]])
    text = np.float32([[2, 0], [0, 3], [1, 2], [0, 1]])  # of images 0, 1, 0, 2
    owner = np.array([0, 1, 0, 2])
    # Scores of the captions, image by image: 2 0 1 0; 0 3 2 1; 2 3 3 1. Ranks 0, 0, 3 of the best own caption.
    np.testing.assert_array_equal(rank_pairs(image, np.arange(3), text, owner), [0, 0, 3])
    # Scores of the images, caption by caption: 2 0 2; 0 3 3; 1 2 3; 0 1 1. Ranks 0, 0, 2, 2: ties go to the first.
    np.testing.assert_array_equal(rank_pairs(text, owner, image, np.arange(3)), [0, 0, 2, 1])
    assert measure_recalls(image, text, owner) == {"i2t_recall@1": pytest.approx(2 / 3), "t2i_recall@1": 1 / 2}


@pytest.mark.parametrize("per", [1, 2, 5])
@pytest.mark.parametrize("ties", [False, True])
def test_equals_sorting_in_float64(per, ties):
    for seed in range(3):
        data = pairs(seed, per=per, ties=ties)
        got = measure_recalls(*data, chunk=7)  # the last block is not full
        assert list(got) == NAMES
        assert got == pytest.approx(measure_by_sorting(*data))
        assert 0 < got["t2i_recall@1"] < got["t2i_recall@5"]


def test_duplicates_are_told_apart_by_their_place_only():
    image, text, owner = pairs(0, n=10, per=1)
    image, text, owner = np.r_[image, image], np.r_[text, text], np.r_[owner, owner + 10]  # everything stands twice
    got, single = measure_recalls(image, text, owner), measure_recalls(image[:10], text[:10], owner[:10])
    assert got == pytest.approx(measure_by_sorting(image, text, owner))
    assert got["i2t_recall@1"] == single["i2t_recall@1"] / 2  # the copy that comes later is never first


@pytest.mark.parametrize("per", [1, 3])
def test_a_collapsed_encoder_is_no_better_than_chance(per):
    _, _, owner = pairs(0, n=20, per=per)
    got = measure_recalls(np.ones((20, 4), np.float32), np.ones((20 * per, 4), np.float32), owner)
    assert got["t2i_recall@1"] == pytest.approx(1 / 20)
    assert got["i2t_recall@1"] == pytest.approx(1 / 20)
    assert got["t2i_recall@10"] == pytest.approx(10 / 20)


def test_other_right_captions_do_not_stand_in_the_way():
    image, text = np.float32([[1, 0], [0, 1]]), np.float32([[1, 0]] * 6 + [[0, 1]])
    got = measure_recalls(image, text, np.array([0] * 6 + [1]))
    assert got == {"i2t_recall@1": 1, "i2t_recall@5": 1, "t2i_recall@1": 1}


def test_images_without_a_caption_are_no_queries():
    image, text = np.float32([[1, 0], [0, 1], [0, 2]]), np.float32([[1, 0], [0, 1]])
    got = measure_recalls(image, text, np.array([0, 1]))
    assert got == {"i2t_recall@1": 1, "t2i_recall@1": 1 / 2}  # but image 2 is in the way of caption 1


def test_one_image():
    assert measure_recalls(np.ones((1, 2)), np.ones((5, 2)), np.zeros(5, int)) == {
        "i2t_recall@1": 1, "i2t_recall@5": 1, "t2i_recall@1": 1,
    }  # fmt: skip


@pytest.mark.parametrize("ties", [False, True])
def test_eight_devices_count_as_one(mesh, ties):
    image, text, owner = pairs(1, n=41, per=2, ties=ties)
    find = partial(rank_pairs, text, owner, image, np.arange(41), chunk=3)
    np.testing.assert_array_equal(find(mesh=mesh), find())
    np.testing.assert_array_equal(find(mesh=mesh), partial(find, chunk=82)())
    assert measure_recalls(image, text, owner, mesh=mesh, chunk=3) == measure_recalls(image, text, owner)


def test_no_device_holds_more_scores_than_its_chunk(mesh, monkeypatch):
    """In the program of one device nothing is larger than chunk × M, whatever the number of queries and devices."""
    chunk, n, size, dim = 4, 70, 50, 3
    programs = []

    def spy(*args):
        programs.append(_rank_block.lower(*args).compile())
        return _rank_block(*args)

    monkeypatch.setattr(retrieval_module, "_rank_block", spy)
    rng = np.random.default_rng(0)
    queries, gallery = rng.normal(size=(n, dim)), rng.normal(size=(size, dim))
    rank_pairs(queries, np.arange(n) % size, gallery, np.arange(size), mesh=mesh, chunk=chunk)
    assert len(programs) == 3  # of 32 queries each
    for program in programs:
        shapes = re.findall(r"\b(?:f32|s32|pred)\[([\d,]+)\]", program.as_text())
        assert max(np.prod([int(n) for n in shape.split(",")]) for shape in shapes) == chunk * size
        assert not re.search(r"all-(gather|reduce)|all-to-all", program.as_text())
        assert program.memory_analysis().temp_size_in_bytes <= 4 * chunk * size * 4


def test_scores_are_not_of_default_precision():
    traced = str(jax.make_jaxpr(_rank_block)(jnp.ones((2, 3)), jnp.arange(2), jnp.ones((4, 3)), jnp.arange(4)))
    assert traced.count("dot_general[") == traced.count("precision=(Precision.HIGHEST") == 1


@pytest.mark.parametrize(("n", "m"), [(0, 0), (0, 3), (3, 0)])
def test_nothing_to_retrieve(n, m):
    with pytest.raises(UserError, match="nothing to retrieve"):
        measure_recalls(np.ones((n, 2)), np.ones((m, 2)), np.zeros(m, int))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_embeddings_that_are_not_finite_are_no_result(bad):
    image, text, owner = pairs(0)
    image[4, 1] = bad
    with pytest.raises(NonFinite, match=r"1 image"):
        measure_recalls(image, text, owner)
    with pytest.raises(NonFinite, match=r"1 caption"):
        measure_recalls(text, image[:1] * 0 + image[4], np.array([0]))


# The evaluators, on a model that looks its embeddings up by the first pixel and the first token. Row 0 belongs to
# padding.


def lookup(params, model_state, batch, *, train, key):
    assert not train
    assert key is None
    outputs = {}
    if "image" in batch:
        outputs["embedding"] = params["image"][batch["image"][:, 0, 0, 0]]
    if "text" in batch:
        outputs["text_embedding"] = params["text"][batch["text"][:, 0]]
    return outputs, model_state


def tables(image, text):
    filler = np.full((1, image.shape[1]), np.nan, np.float32)
    return {"image": np.r_[filler, image], "text": np.r_[filler, text]}


def pad(rows, size):
    n = len(next(iter(rows.values())))
    rows = rows | {"mask": np.ones(n, np.float32)}
    for start in range(0, n, size):
        part = {k: v[start : start + size] for k, v in rows.items()}
        fill = size - len(part["mask"])
        yield {k: np.concatenate([v, np.zeros((fill, *v.shape[1:]), v.dtype)]) for k, v in part.items()}


def images(ids):
    return (1 + np.uint8(ids))[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8)


def tokens(ids):
    return np.stack([1 + np.int32(ids), np.zeros(len(ids), np.int32)], 1)


def retrieval(data, size=8, apply=lookup, **kwargs):
    image, text, owner = data
    return Retrieval(
        apply,
        lambda: pad({"image": images(np.arange(len(image))), "id": np.arange(len(image)) + 100}, size),
        lambda: pad({"text": tokens(np.arange(len(text))), "id": owner.astype(np.int32)}, size),
        **kwargs,
    )


@pytest.mark.parametrize("size", [1, 8, 200])
def test_the_evaluator_embeds_every_image_and_caption_once(size):
    data = pairs(2)
    got = dict(retrieval(data, size).run(tables(*data[:2]), {}))
    assert list(got) == NAMES
    assert got == measure_recalls(*data)


def test_the_evaluator_on_eight_devices(mesh):
    data = pairs(2)
    placed = {"mesh": mesh, "put": runtime.put_batch(mesh), "fetch": partial(runtime.fetch, mesh=mesh), "chunk": 2}
    assert dict(retrieval(data, **placed).run(tables(*data[:2]), {})) == measure_recalls(*data)


def test_evaluators_of_one_model_share_what_is_compiled():
    traces, data = [], pairs(2)

    def apply(*args, **kwargs):
        traces.append(1)
        return lookup(*args, **kwargs)

    first, second = retrieval(data, apply=apply), retrieval(data, apply=apply)
    params = tables(*data[:2])
    assert dict(first.run(params, {})) == dict(first.run(params, {})) == dict(second.run(params, {}))
    assert len(traces) == 2  # images, captions


def test_an_empty_split_is_refused():
    with pytest.raises(UserError, match="0 images, 0 captions"):
        list(Retrieval(lookup, lambda: iter(()), lambda: iter(())).run({}, {}))


# Image i has the noisy caption i and the clean caption clean[i]; record 3 is not noisy.
IMAGE = np.float32([[1, 0], [0, 1], [1, 0], [0, 1], [1, 0]])
TEXT = np.float32([[1, 0], [0.6, 0.8], [0, 1], [0, 1], [1, 0]])
CLEAN = [2, 0, 4, 3, 0]  # noisy against clean: 1 > 0, .8 > 0, 0 < 1, the same, 1 = 1


def fit(clean=CLEAN, size=2, image=IMAGE, text=TEXT, **kwargs):
    rows = {"image": images(np.arange(5)), "text": tokens(np.arange(5)), "text_clean": tokens(clean)}
    return dict(CaptionFit(lookup, lambda: pad(rows, size), **kwargs).run(tables(image, text), {}))


@pytest.mark.parametrize("size", [1, 2, 8])
def test_noisy_nearer_by_hand(size):
    assert fit(size=size) == {"noisy_nearer": 2 / 4}


def test_noisy_nearer_on_eight_devices(mesh):
    assert fit(size=8, put=runtime.put_batch(mesh), fetch=partial(runtime.fetch, mesh=mesh)) == {"noisy_nearer": 2 / 4}


def test_without_noise_there_is_no_noisy_nearer():
    assert fit(clean=np.arange(5)) == {}


def test_noisy_nearer_of_nothing():
    with pytest.raises(UserError, match="empty"):
        list(CaptionFit(lookup, lambda: iter(())).run({}, {}))
    with pytest.raises(NonFinite, match="1 record"):
        fit(image=np.r_[IMAGE[:4], [[np.nan, 0]]].astype(np.float32))
