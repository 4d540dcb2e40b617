import io
import json
import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from nml_jax.data.images import transforms
from nml_jax.errors import UserError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def config(**values):
    plain = {
        "crop": "random_resized", "scale": (0.08, 1.0), "ratio": (3 / 4, 4 / 3), "pad": 4, "flip": 0.5,
        "randaugment": 0, "randaugment_magnitude": 7.0, "randaugment_std": 0.5, "randaugment_prob": 0.5, "erase": 0.0,
        "repeats": 1, "interpolation": "bicubic", "antialias": True, "resize": "shortest", "test_size": None,
        "test_crop": 0.875,
    }  # fmt: skip
    return SimpleNamespace(**plain | values)


def photo(height=48, width=64, seed=0):
    """Return smooth colours with some detail, uint8 [height, width, 3]."""
    small = np.random.default_rng(seed).integers(0, 256, (height // 6 + 2, width // 6 + 2, 3), dtype=np.uint8)
    return np.array(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def encode(image, kind, **how):
    out = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(out, kind, **how)
    return out.getvalue()


def triangle(n_in, n_out):
    """Return bilinear antialiasing as a float64 matrix [n_out, n_in]: a tent as wide as the output's pixels."""
    scale = max(1.0, n_in / n_out)
    centre = (np.arange(n_out) + 0.5) * n_in / n_out
    weight = np.maximum(0, 1 - np.abs(np.arange(n_in) + 0.5 - centre[:, None]) / scale)
    return weight / weight.sum(1, keepdims=True)


@pytest.mark.parametrize("size", [(20, 31), (96, 100)])
def test_antialiased_resize_is_pillows_and_a_tent_filter(size):
    image = photo(48, 64)
    result = transforms.resize(image, *size, interpolation="bilinear", antialias=True)
    exact = np.einsum("yh,xw,hwc->yxc", triangle(48, size[0]), triangle(64, size[1]), image.astype(float))
    assert np.abs(result - exact).max() <= 1  # Pillow rounds after each of the two passes
    for name, kind in (("bilinear", Image.Resampling.BILINEAR), ("bicubic", Image.Resampling.BICUBIC)):
        theirs = np.asarray(Image.fromarray(image).resize(size[::-1], kind))
        np.testing.assert_array_equal(transforms.resize(image, *size, interpolation=name, antialias=True), theirs)


def test_plain_bilinear_resize_samples_two_by_two_pixels():
    image = photo(48, 64)
    y, x = ((np.arange(n) + 0.5) * m / n - 0.5 for n, m in ((20, 48), (31, 64)))
    y0, x0 = np.floor(y).astype(int), np.floor(x).astype(int)
    fy, fx = (y - y0)[:, None, None], (x - x0)[None, :, None]
    at = lambda i, j: image[i][:, j].astype(float)  # noqa: E731
    exact = (1 - fy) * ((1 - fx) * at(y0, x0) + fx * at(y0, x0 + 1))
    exact += fy * ((1 - fx) * at(y0 + 1, x0) + fx * at(y0 + 1, x0 + 1))
    result = transforms.resize(image, 20, 31, interpolation="bilinear", antialias=False)
    assert np.abs(result - exact).max() <= 1


def test_antialiasing_keeps_stripes_from_becoming_a_pattern():
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    smooth = transforms.resize(stripes, 20, 20, interpolation="bilinear", antialias=True)
    raw = transforms.resize(stripes, 20, 20, interpolation="bilinear", antialias=False)
    assert np.ptp(smooth.astype(int)) < 60 < np.ptp(raw.astype(int))


def test_the_same_size_is_left_alone():
    image = photo()
    assert transforms.resize(image, 48, 64) is image


def coordinates(height, width):
    """Return an image whose channel 0 is the row and channel 1 the column."""
    y, x = np.mgrid[:height, :width]
    return np.stack([y, x, 0 * y], -1).astype(np.uint8)


def test_centre_crop_and_fit():
    crop = transforms.centre_crop(coordinates(9, 14), 5)
    assert (crop[0, 0, 0], crop[-1, -1, 0]) == (2, 6)
    assert (crop[0, 0, 1], crop[-1, -1, 1]) == (4, 8)  # round(4.5) = 4
    assert transforms.fit(photo(48, 64), 32).shape == (32, 32, 3)
    image = photo(40, 90)
    whole = Image.fromarray(image).resize((81, 36), Image.Resampling.BICUBIC)
    expected = np.asarray(whole)[2:34, 24:56]  # round(49 / 2) = 24
    np.testing.assert_array_equal(transforms.fit(image, 32, crop=0.875), expected)


def test_random_resized_crop_takes_windows_of_the_asked_area_and_ratio(monkeypatch):
    monkeypatch.setattr(transforms, "resize", lambda window, *size, **how: window)
    image, rng = coordinates(100, 120), np.random.default_rng(0)
    tops, areas, ratios = [], [], []
    for _ in range(400):
        window = transforms.random_resized_crop(image, rng, size=32, scale=(0.2, 0.6), ratio=(0.5, 2.0))
        (top, left, _), (h, w, _) = window[0, 0], window.shape
        np.testing.assert_array_equal(window, image[top : top + h, left : left + w])
        tops.append(int(top))
        areas.append(h * w / (100 * 120))
        ratios.append(w / h)
    assert 0.19 < min(areas) < 0.23
    assert 0.55 < max(areas) < 0.61
    assert 0.48 < min(ratios) < 0.55
    assert 1.8 < max(ratios) < 2.05
    assert abs(np.mean(np.log(ratios))) < 0.1  # log-uniform, so symmetric about 1
    assert len(set(tops)) > 40


def test_random_resized_crop_of_the_whole_image_and_without_a_fitting_box():
    image, rng = photo(40, 40), np.random.default_rng(0)
    out = transforms.random_resized_crop(image, rng, size=40, scale=(1, 1), ratio=(1, 1))
    np.testing.assert_array_equal(out, image)
    # 4 x 100 with ratios up to 4/3: no box of half the area fits, so the central 4 x 5 is taken
    strip = coordinates(4, 100)
    out = transforms.random_resized_crop(
        strip, rng, size=5, scale=(0.5, 0.5), ratio=(3 / 4, 4 / 3), interpolation="bilinear", antialias=False
    )
    assert 47 <= out[..., 1].min() <= out[..., 1].max() <= 51


def test_pad_crop_is_a_window_of_the_padded_image():
    image, rng = coordinates(8, 8) + 1, np.random.default_rng(0)
    padded = np.zeros((12, 12, 3), np.uint8)
    padded[2:10, 2:10] = image
    windows = {(y, x): padded[y : y + 8, x : x + 8] for y in range(5) for x in range(5)}
    seen = set()
    for _ in range(300):
        out = transforms.pad_crop(image, rng, pad=2)
        seen |= {place for place, window in windows.items() if np.array_equal(out, window)}
    assert len(seen) == 25


def test_flip():
    image, rng = photo(), np.random.default_rng(0)
    assert transforms.flip(image, rng, probability=0.0) is image
    np.testing.assert_array_equal(transforms.flip(image, rng, probability=1.0), image[:, ::-1])
    flipped = sum(transforms.flip(image, rng, probability=0.25) is not image for _ in range(2000))
    assert abs(flipped - 500) < 80  # four standard deviations


def test_train_transform_is_a_function_of_the_record_and_the_draws():
    augment = config(randaugment=2, erase=0.5)
    transform = transforms.train_transform(augment, 32, MEAN, STD)
    record = {"image": encode(photo(90, 120), "JPEG"), "label": 3, "id": 7}
    first, again, other = (transform(record, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert (first["image"].shape, first["image"].dtype) == ((32, 32, 3), np.uint8)
    np.testing.assert_array_equal(first["image"], again["image"])
    assert not np.array_equal(first["image"], other["image"])
    assert (first["label"], first["id"]) == (3, 7)
    assert isinstance(record["image"], bytes)


def test_nothing_is_resampled_without_need():
    image = photo(8, 8)
    augment = config(crop="none", flip=0.0)
    for out in (
        transforms.train_transform(augment, 8, MEAN, STD)({"image": image}, np.random.default_rng(0)),
        transforms.eval_transform(augment, 8)({"image": image}),
        transforms.eval_transform(config(crop="pad"), 8)({"image": image}),
    ):
        np.testing.assert_array_equal(out["image"], image)


def test_pad_crops_the_fitted_image():
    transform = transforms.train_transform(config(crop="pad", pad=4, flip=0.0), 32, MEAN, STD)
    assert transform({"image": photo(50, 70)}, np.random.default_rng(0))["image"].shape == (32, 32, 3)


def test_eval_transform_is_the_published_one():
    data = encode(photo(300, 400), "JPEG", quality=95)
    out = transforms.eval_transform(config(test_crop=0.95), 224)({"image": data})["image"]
    whole = Image.open(io.BytesIO(data)).resize((313, 235), Image.Resampling.BICUBIC)  # 235 = int(224 / 0.95)
    np.testing.assert_array_equal(out, np.asarray(whole.crop((44, 6, 268, 230))))  # round(5.5) = 6, round(44.5) = 44
    assert transforms.eval_transform(config(test_size=64), 32)({"image": data})["image"].shape == (64, 64, 3)


@pytest.mark.parametrize(
    ("wrong", "listed"),
    [({"crop": "centre"}, "random_resized, pad, none"), ({"interpolation": "cubic"}, "bilinear, bicubic")],
)
def test_bad_choices_list_the_good_ones(wrong, listed):
    for build in (
        lambda augment: transforms.train_transform(augment, 32, MEAN, STD),
        lambda augment: transforms.eval_transform(augment, 32),
    ):
        with pytest.raises(UserError) as e:
            build(config(**wrong))
        assert listed in e.value.cure
        assert repr(next(iter(wrong.values()))) in e.value.cause
    with pytest.raises(UserError, match=r"test_crop must be above 0 .* got 0\.0"):
        transforms.eval_transform(config(test_crop=0.0), 32)


@pytest.mark.parametrize("name", transforms.SHIFTS)
@pytest.mark.parametrize("size", [8, 64])
def test_every_shift_changes_the_image_and_depends_on_the_draws_alone(name, size):
    image = photo(size, size)
    before = image.copy()
    out, again = (transforms.SHIFTS[name](image, np.random.default_rng(3)) for _ in range(2))
    assert (out.shape, out.dtype) == (image.shape, np.uint8)
    np.testing.assert_array_equal(out, again)
    np.testing.assert_array_equal(image, before)
    assert np.abs(out.astype(int) - image).mean() > 2
    np.testing.assert_array_equal(transforms.SHIFTS[name](image[:, ::-1], np.random.default_rng(3)).shape, image.shape)


@pytest.mark.parametrize(("size", "step"), [(8, 1), (64, 8), (28, 4)])
def test_shifted_moves_by_an_eighth_in_eight_directions(size, step):
    image = photo(size, size)
    padded = np.pad(image, ((step, step), (step, step), (0, 0)))
    moved = {
        (y, x): padded[y : y + size, x : x + size]
        for y in (0, step, 2 * step)
        for x in (0, step, 2 * step)
        if (y, x) != (step, step)
    }
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(100):
        out = transforms.SHIFTS["shifted"](image, rng)
        seen.add(next(place for place, window in moved.items() if np.array_equal(out, window)))
    assert len(seen) == 8


def test_noise_inversion_rotation_and_blur():
    rng = np.random.default_rng(0)
    grey = np.full((64, 64, 3), 128, np.uint8)
    noisy = transforms.SHIFTS["gaussian_noise"](grey, rng).astype(float)
    assert abs(noisy.mean() - 128) < 2
    assert abs(noisy.std() - 51) < 1.5  # 0.2 * 255, the tails clipped
    image = photo(64, 64)
    np.testing.assert_array_equal(transforms.SHIFTS["inverted"](image, rng), 255 - image)
    ring = np.zeros((65, 65, 3), np.uint8)
    ring[30:35, 45:60] = 255  # a bar to the right of the centre
    angles = []
    for _ in range(60):
        y, x = np.nonzero(transforms.SHIFTS["rotated"](ring, rng)[..., 0] > 127)
        angles.append(np.degrees(np.arctan2(32 - y.mean(), x.mean() - 32)))
    assert 19 < np.abs(angles).min() < np.abs(angles).max() < 41
    assert 10 < np.sum(np.array(angles) > 0) < 50
    dot = np.zeros((64, 64, 3), np.uint8)
    dot[32, 32] = 255
    blurred = transforms.SHIFTS["blurred"](dot, rng)[..., 0].astype(float)
    y, _ = np.mgrid[:64, :64] - 32
    assert abs(np.sqrt((blurred * y**2).sum() / blurred.sum()) - 1.5) < 0.1


def test_bytes_of_the_libraries_that_publish_weights():
    """Test every combination of size, crop, filter, resize mode and shape against timm and open_clip."""
    golden = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("golden_transforms.py"))))
    assert len(golden.CASES) >= 100
    for (_, size, crop, name, mode, shape), want in zip(golden.CASES, json.loads(golden.FILE.read_text()), strict=True):
        augment = config(crop="random_resized", interpolation=name, resize=mode, test_crop=crop)
        out = transforms.eval_transform(augment, size)({"image": encode(golden.image(shape), "PNG")})["image"]
        assert golden.hash_image(out) == want, (size, crop, name, mode, shape)
