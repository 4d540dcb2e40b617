import itertools
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from nml_jax.data import sources
from nml_jax.data.images import codec, transforms
from nml_jax.data.sources.noisy import NoisyLabels
from nml_jax.data.sources.source import Arrays, Subset, in_memory
from nml_jax.data.stratify import split_validation
from nml_jax.data.stream import pipeline
from nml_jax.data.stream.reading import Reading
from nml_jax.errors import UserError
from nml_jax.prepare import image_folder

MEAN = STD = (0.5, 0.5, 0.5)


def config(**values):
    plain = {
        "crop": "none", "scale": (0.08, 1.0), "ratio": (3 / 4, 4 / 3), "pad": 2, "flip": 0.5, "randaugment": 0,
        "randaugment_magnitude": 7.0, "randaugment_std": 0.5, "randaugment_prob": 0.5, "erase": 0.25, "repeats": 1,
        "interpolation": "bilinear", "antialias": True, "resize": "shortest", "test_size": None, "test_crop": 0.875,
    }  # fmt: skip
    return SimpleNamespace(**plain | values)


def source(n, size=8):
    pixels = np.random.default_rng(0).integers(0, 256, (n, size, size, 3), dtype=np.uint8)
    return in_memory(pixels, np.arange(n) % 3, num_classes=3, name="toy")


def reading(augment=None, size=8, **how):
    return Reading(augment or config(), size, MEAN, STD, **how)


def train(data, steps, batch=8, seed=0, tokenize=None, weights=(), start_step=0, **how):
    """Return the first batches, with `quarantined` as one more key."""
    drawn = {"seed": seed, "tokenize": tokenize, "weights": weights, "start_step": start_step}
    stream = pipeline.train(data, reading(**how), batch=batch, **drawn)
    batches = [portion.batch | {"quarantined": portion.quarantined} for portion in itertools.islice(stream, steps)]
    stream.close()
    return batches


def evaluate(data, batch=8, tokenize=None, shift=None, view=None, seed=0, **how):
    drawn = {"tokenize": tokenize, "shift": shift, "view": view, "seed": seed}
    return list(pipeline.evaluate(data, reading(**how), batch=batch, **drawn))


def assert_same(left, right):
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            np.testing.assert_array_equal(a[key], b[key], err_msg=key)


def join_parts(parts):
    """Return global batches, concatenated from those of all processes."""
    return [{key: np.concatenate([p[key] for p in step]) for key in step[0]} for step in zip(*parts, strict=True)]


def ids(batches):
    return np.concatenate([b["id"] for b in batches]).tolist()


# Training


def test_batches_have_the_documented_shapes_and_values():
    data = NoisyLabels(source(20), (source(20).labels + 1) % 3)
    (batch,) = train(data, 1, augment=config(flip=0.0, erase=0.0))
    assert {k: (v.shape, v.dtype.name) for k, v in batch.items()} == {
        "image": ((8, 8, 8, 3), "uint8"),
        "label": ((8,), "int32"),
        "label_clean": ((8,), "int32"),
        "id": ((8,), "int32"),
        "quarantined": ((8,), "int32"),
        "mask": ((8,), "float32"),
    }
    assert (batch["quarantined"] == -1).all()
    np.testing.assert_array_equal(batch["image"], data.source.images[batch["id"]])
    np.testing.assert_array_equal(batch["label_clean"], batch["id"] % 3)
    np.testing.assert_array_equal(batch["label"], (batch["id"] + 1) % 3)
    assert batch["mask"].all()


@pytest.mark.parametrize("repeats", [1, 3])
@pytest.mark.parametrize("processes", [2, 4])
def test_global_batch_k_is_the_same_for_any_number_of_processes(processes, repeats):
    augment = config(repeats=repeats, crop="random_resized", randaugment=1)
    whole = train(source(21), 7, augment=augment)
    parts = [train(source(21), 7, augment=augment, block=i, blocks=processes) for i in range(processes)]
    assert_same(join_parts(parts), whole)


@pytest.mark.parametrize(("threads", "prefetch"), [(0, 4), (1, 1), (8, 2), (3, 8)])
def test_threads_change_nothing(threads, prefetch):
    assert_same(train(source(21), 9, threads=threads, prefetch=prefetch), train(source(21), 9))


@pytest.mark.parametrize("start", [1, 2, 5, 8])
def test_a_run_resumes_by_starting_at_its_step(start):
    augment = config(repeats=2)
    whole = train(source(21), 9, augment=augment)
    assert_same(train(source(21), 9 - start, augment=augment, start_step=start), whole[start:])
    far = 10**9  # no matter how far
    assert_same(train(source(21), 1, start_step=far + 1), train(source(21), 2, start_step=far)[1:])


def test_every_epoch_shows_every_record_once_in_another_order():
    stream = ids(train(source(20), 15))  # 120 = six epochs of 20, which 8 does not divide
    epochs = [stream[i : i + 20] for i in range(0, 120, 20)]
    assert all(sorted(epoch) == list(range(20)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 6


def test_orders_are_uniform_and_seeds_are_independent():
    """Neighbouring seeds are independent too: epoch 1 of seed 0 is not epoch 0 of seed 1."""
    counts = np.zeros((5, 5), int)
    seen = set()
    for seed in range(-100, 100):
        stream = ids(train(source(5), 2, batch=10, seed=seed, threads=0))
        for epoch in range(4):
            order = stream[5 * epoch : 5 * epoch + 5]
            counts[np.arange(5), order] += 1
        seen.add(tuple(stream))
    assert len(seen) == 200
    assert abs(counts - 160).max() < 4.5 * np.sqrt(800 * 0.2 * 0.8)


def test_fewer_records_than_a_batch():
    assert sorted(ids(train(source(3), 3, batch=8))) == sorted([0, 1, 2] * 8)
    assert ids(train(source(1), 2, batch=4)) == [0] * 8


def test_repeated_augmentation():
    """Copies follow each other, each with its own draws. N samples show N / r records; r epochs show each r times."""
    augment = config(repeats=3, crop="pad", flip=0.5, erase=0.0)
    batches = train(source(12), 6, batch=6, augment=augment)
    stream = ids(batches)
    assert stream[::3] == stream[1::3] == stream[2::3]
    assert len(set(stream[:12])) == 4
    assert sorted(stream) == sorted(list(range(12)) * 3)
    assert all(len(set(b["id"].tolist())) == 2 for b in batches)
    assert stream[::3] == ids(train(source(12), 2, batch=6))
    images = np.concatenate([b["image"] for b in batches])
    different = [not np.array_equal(images[i], images[i + 1]) for i in range(0, 36, 3)]
    assert sum(different) > 8


def test_every_epoch_and_every_seed_has_its_own_augmentation():
    crop = config(crop="pad", pad=4, flip=0.5, erase=0.0)
    seen = {seed: {} for seed in (0, 1)}
    for seed, images in seen.items():
        for batch in train(source(4), 10, batch=4, seed=seed, augment=crop):
            for i, image in zip(batch["id"], batch["image"], strict=True):
                images.setdefault(int(i), []).append(image.tobytes())
    for i in range(4):
        assert len(set(seen[0][i])) > 6
        assert seen[0][i] != seen[1][i]


@pytest.mark.parametrize(("batch", "processes"), [(6, 4), (0, 1), (-4, 2)])
def test_a_batch_that_cannot_be_divided(batch, processes):
    for start in (train, lambda data, steps, **how: evaluate(data, **how)):
        with pytest.raises(UserError, match=f"a batch of {batch} cannot be divided among {processes} processes"):
            start(source(5), 1, batch=batch, blocks=processes)


def test_nothing_to_train_on():
    with pytest.raises(UserError, match="has no record"):
        train(Subset(source(5), []), 1)


# Evaluation


@pytest.mark.parametrize("n", [1, 7, 8, 9, 16, 21])
@pytest.mark.parametrize("processes", [1, 2, 4])
def test_every_record_once_in_source_order(n, processes):
    data = source(n)
    parts = [evaluate(data, block=i, blocks=processes) for i in range(processes)]
    assert len({len(part) for part in parts}) == 1
    batches = join_parts(parts)
    assert_same(batches, evaluate(data, threads=0))
    mask = np.concatenate([b["mask"] for b in batches])
    assert mask.tolist() == [1.0] * n + [0.0] * (len(batches) * 8 - n)
    assert len(mask) == -(-n // 8) * 8
    whole = {key: np.concatenate([b[key] for b in batches]) for key in batches[0]}
    assert whole["id"][:n].tolist() == list(range(n))
    np.testing.assert_array_equal(whole["image"][:n], data.images)
    np.testing.assert_array_equal(whole["label"][:n], data.labels)
    for key in ("image", "label", "label_clean", "id"):
        assert not whole[key][n:].any()
    assert {k: v.dtype.name for k, v in whole.items()} == {
        "image": "uint8", "label": "int32", "label_clean": "int32", "id": "int32", "mask": "float32"
    }  # fmt: skip


def test_an_empty_source_has_no_batches():
    assert evaluate(Subset(source(5), [])) == []


def test_evaluation_resizes():
    (batch,) = evaluate(source(3, size=20), size=12, augment=config(crop="random_resized"))
    expected = transforms.eval_transform(config(crop="random_resized"), 12)(source(3, size=20)[2])["image"]
    np.testing.assert_array_equal(batch["image"][2], expected)
    (batch,) = evaluate(source(3, size=20), size=12, augment=config(test_size=10))
    assert batch["image"].shape == (8, 10, 10, 3)


@pytest.mark.parametrize("shift", transforms.SHIFTS)
def test_shifts_are_fixed_by_seed_and_id(shift):
    data = source(21, size=16)
    shifted = evaluate(data, size=16, shift=shift)
    parts = [evaluate(data, size=16, shift=shift, block=i, blocks=2, threads=i) for i in range(2)]
    assert_same(join_parts(parts), shifted)
    images = np.concatenate([b["image"] for b in shifted])[:21]
    assert all((images != data.images).any((1, 2, 3)))
    if shift in ("shifted", "gaussian_noise", "rotated"):
        other = np.concatenate([b["image"] for b in evaluate(data, size=16, shift=shift, seed=1)])[:21]
        assert (images != other).any()


def test_an_unknown_shift():
    with pytest.raises(UserError, match="no shift 'snow'") as e:
        evaluate(source(5), shift="snow")
    assert "gaussian_noise" in e.value.cure


def test_views_are_augmented_and_fixed_by_seed_id_and_number():
    augment = config(crop="pad", pad=4)
    data = source(21)
    views = {k: evaluate(data, augment=augment, view=k) for k in (1, 2)}
    assert_same(evaluate(data, augment=augment, view=1, threads=0, batch=8), views[1])
    parts = [evaluate(data, augment=augment, view=1, block=i, blocks=4) for i in range(4)]
    assert_same(join_parts(parts), views[1])
    images = {k: np.concatenate([b["image"] for b in v])[:21] for k, v in views.items()}
    images["seed 1"] = np.concatenate([b["image"] for b in evaluate(data, augment=augment, view=1, seed=1)])[:21]
    images["plain"] = data.images
    for a, b in itertools.combinations(images.values(), 2):
        assert (a != b).any((1, 2, 3)).mean() > 0.9
    again = np.concatenate([b["image"] for b in evaluate(data, augment=augment, view=1, batch=4)])[:21]
    np.testing.assert_array_equal(again, images[1])  # whatever the batch


# From a prepared directory


def test_photos_on_disk(tmp_path):
    """Test all steps together: files, ArrayRecord, selected classes, validation, noise, crops, over processes."""
    for i in range(30):
        path = tmp_path / "src" / "train" / "abc"[i % 3] / f"{i:02}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(i).integers(0, 256, (20 + i, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path, quality=90)
    image_folder.build_image_folder(tmp_path / "src", tmp_path / "out")
    chosen = sources.load("directory", str(tmp_path / "out"), "train", classes=(2, 0), num_classes=2)
    clean, validation = split_validation(chosen, 0.2)
    noisy = NoisyLabels(clean, 1 - clean.labels)
    augment = config(crop="random_resized", randaugment=2)
    whole = train(noisy, 5, size=16, augment=augment)
    assert_same(join_parts([train(noisy, 5, size=16, augment=augment, block=i, blocks=2) for i in (0, 1)]), whole)
    assert sorted(ids(whole)[:16]) == list(range(16))
    for batch in whole:
        np.testing.assert_array_equal(batch["label_clean"], clean.labels[batch["id"]])
        np.testing.assert_array_equal(batch["label"], 1 - batch["label_clean"])
    (batch,) = evaluate(validation, size=16, augment=config(crop="random_resized"))
    assert batch["mask"].sum() == 4
    for i, key in enumerate(validation.keys):
        image = transforms.fit(
            codec.decode((tmp_path / "src" / key).read_bytes()), 16, crop=0.875, interpolation="bilinear"
        )
        np.testing.assert_array_equal(batch["image"][i], image)
        assert validation.class_names[batch["label"][i]] == key.split("/")[1]


# Threads


def test_closing_ends_the_threads():
    before = set(threading.enumerate())
    data = source(50)
    stream = pipeline.train(data, reading(threads=4), batch=8, seed=0)
    next(stream)
    assert set(threading.enumerate()) - before
    stream.close()
    with pytest.raises(StopIteration):
        next(stream)
    unused = pipeline.train(data, reading(threads=4), batch=8, seed=0)
    del unused
    abandoned = pipeline.train(data, reading(threads=4), batch=8, seed=0)
    next(abandoned)
    del abandoned
    evaluate(data, threads=4)
    deadline = time.monotonic() + 10
    while set(threading.enumerate()) - before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not set(threading.enumerate()) - before


def test_no_more_is_read_ahead_than_asked():
    class Counting(Arrays):
        read = 0

        def image(self, i):
            Counting.read += 1
            return super().image(i)

    toy = source(64)
    data = Counting(toy.images, toy.labels, num_classes=3, class_names=None, fingerprint="")
    stream = pipeline.train(data, reading(threads=2, prefetch=3), batch=8, seed=0)
    next(stream)
    time.sleep(0.3)
    assert Counting.read <= 8 * (1 + 3)
    stream.close()
