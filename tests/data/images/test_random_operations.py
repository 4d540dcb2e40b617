import numpy as np
import pytest
from PIL import Image

from nml_jax.data.images import randaugment, transforms
from tests.data.images.test_transforms import MEAN, STD, photo

HOW = {"resample": Image.Resampling.BILINEAR, "fillcolor": (10, 20, 30)}


def apply(op, image, v, s=1):
    return np.asarray(randaugment.OPS[op](Image.fromarray(image), v, s, HOW))


def test_point_operations_by_hand():
    image = np.array([[[0, 100, 127], [128, 200, 255]]], np.uint8)
    np.testing.assert_array_equal(apply("invert", image, 0.7), 255 - image)
    # v = 0.7: 4 - int(2.8) = 2 bits are kept; the threshold is 256 - int(179.2) = 77; int(77.0) is added below 128
    np.testing.assert_array_equal(apply("posterize", image, 0.7), image // 64 * 64)
    np.testing.assert_array_equal(apply("posterize", image, 1.0), image // 128 * 128)
    np.testing.assert_array_equal(apply("solarize", image, 0.7), np.where(image < 77, image, 255 - image))
    np.testing.assert_array_equal(
        apply("solarize_add", image, 0.7), np.where(image < 128, np.minimum(image.astype(int) + 77, 255), image)
    )
    for s in (1, -1):  # the factor 1 + 0.63 s scales the brightness
        expected = (image * (1 + 0.63 * s)).clip(0, 255)
        assert np.abs(apply("brightness", image, 0.7, s) - expected).max() <= 1
    np.testing.assert_array_equal(apply("brightness", image, 0.0), image)


def test_moved_images_are_filled_with_the_given_colour():
    image = photo(40, 40)
    for op, axis in (("translate_x", 1), ("translate_y", 0)):
        right = np.moveaxis(apply(op, image, 1.0, 1), axis, 0)  # by 0.45 * 40 = 18 pixels
        left = np.moveaxis(apply(op, image, 1.0, -1), axis, 0)
        original = np.moveaxis(image, axis, 0)
        np.testing.assert_array_equal(right[:22], original[18:])
        np.testing.assert_array_equal(left[18:], original[:22])
        assert (right[22:] == (10, 20, 30)).all()
        assert (left[:18] == (10, 20, 30)).all()
    assert (apply("rotate", image, 1.0)[0, 0] == (10, 20, 30)).all()
    np.testing.assert_array_equal(apply("rotate", image, 0.0), image)


@pytest.mark.parametrize("op", randaugment.NAMES)
@pytest.mark.parametrize("v", [0.0, 0.35, 1.0])
def test_every_operation_takes_every_magnitude_on_small_images(op, v):
    for s in (1, -1):
        out = apply(op, photo(8, 8), v, s)
        assert (out.shape, out.dtype) == ((8, 8, 3), np.uint8)


def test_severity_grows_with_the_magnitude():
    image = photo(64, 64).astype(int)
    for op in ("solarize", "solarize_add", "posterize", "color", "contrast", "brightness", "sharpness", "shear_x"):
        change = [np.abs(apply(op, image.astype(np.uint8), v).astype(int) - image).mean() for v in (0.2, 0.6, 0.99)]
        assert change[0] < change[1] < change[2], op


def test_rand_augment_draws_as_asked():
    image = photo()
    how = {"magnitude": 7.0, "std": 0.5, "mean": MEAN}
    for nothing in ({"count": 0, "probability": 1.0}, {"count": 2, "probability": 0.0}):
        out = transforms.rand_augment(image, np.random.default_rng(0), **how, **nothing)
        np.testing.assert_array_equal(out, image)
    changed = sum(
        not np.array_equal(
            transforms.rand_augment(image, np.random.default_rng(i), count=1, probability=0.5, **how), image
        )
        for i in range(300)
    )
    assert abs(changed - 150) < 40


def test_rand_augment_uses_all_operations_and_both_signs(monkeypatch):
    seen = []
    for name in randaugment.NAMES:
        monkeypatch.setitem(
            randaugment.OPS, name, lambda image, v, s, how, name=name: seen.append((name, v, s, how)) or image
        )
    rng = np.random.default_rng(0)
    for _ in range(500):
        transforms.rand_augment(photo(8, 8), rng, count=2, magnitude=7.0, std=2.0, probability=1.0, mean=MEAN)
    assert len(seen) == 1000
    assert {name for name, *_ in seen} == set(randaugment.NAMES)
    magnitudes = np.array([v for _, v, _, _ in seen])
    assert abs(np.mean(magnitudes) - 0.7) < 0.03
    assert magnitudes.max() == 1.0  # clipped
    assert abs(np.mean([s for *_, s, _ in seen])) < 0.13
    assert seen[0][3]["fillcolor"] == (124, 116, 104)


def test_random_erasing_writes_noise_of_the_models_mean_and_deviation():
    image = np.zeros((100, 100, 3), np.uint8)
    rng = np.random.default_rng(0)
    shares, pixels = [], []
    for _ in range(200):
        out = transforms.random_erasing(image, rng, probability=1.0, mean=(0.5, 0.4, 0.6), std=(0.1, 0.1, 0.05))
        rows, columns = np.flatnonzero(out.any((1, 2))), np.flatnonzero(out.any((0, 2)))
        box = out[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        shares.append(box.shape[0] * box.shape[1] / 10000)
        assert np.count_nonzero(out.any(2)) == box.shape[0] * box.shape[1]
        pixels.append(box.reshape(-1, 3) / 255)
    assert not image.any()
    assert 0.015 < min(shares) < 0.05
    assert 0.28 < max(shares) < 0.345
    pixels = np.concatenate(pixels)
    np.testing.assert_allclose(pixels.mean(0), (0.5, 0.4, 0.6), atol=2e-3)
    np.testing.assert_allclose(pixels.std(0), (0.1, 0.1, 0.05), atol=2e-3)
    assert transforms.random_erasing(image, rng, probability=0.0, mean=MEAN, std=STD) is image
