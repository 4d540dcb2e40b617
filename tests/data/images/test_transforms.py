import io
import json
import runpy
import struct
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image, ImageOps

from nml_jax.data.images import codec, randaugment, transforms
from nml_jax.data.images.codec import ImageError, decode
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


# Decoding


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_jpeg_pixels_are_those_of_pillow(mode, subsampling):
    data = encode(Image.fromarray(photo(37, 53)).convert(mode), "JPEG", quality=80, subsampling=subsampling)
    np.testing.assert_array_equal(decode(data), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_turns_the_image_upright(kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(photo(20, 30), kind, exif=exif.tobytes(), **({"lossless": True} if kind == "WEBP" else {}))
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    np.testing.assert_array_equal(decode(data), np.asarray(expected))
    assert decode(data).shape == ((20, 30, 3) if orientation < 5 else (30, 20, 3))


def add_exif(tiff: bytes) -> bytes:
    """Return a JPEG whose first segment is the EXIF block `tiff`."""
    block = b"Exif\0\0" + tiff
    return b"\xff\xd8\xff\xe1" + struct.pack(">H", len(block) + 2) + block + encode(photo(20, 30), "JPEG")[2:]


def test_exif_is_read_in_both_byte_orders():
    for mark, order in ((b"II", "<"), (b"MM", ">")):
        entries = struct.pack(order + "HHIHH", 0x010F, 3, 1, 7, 0) + struct.pack(order + "HHIHH", 0x0112, 3, 1, 6, 0)
        tiff = mark + struct.pack(order + "HIH", 42, 8, 2) + entries + struct.pack(order + "I", 0)
        assert decode(add_exif(tiff)).shape == (30, 20, 3), order


@pytest.mark.parametrize(
    "tiff",
    [
        b"",
        b"??*\0\x08\0\0\0",
        b"II*\0\xff\xff\xff\x7f",  # the directory lies outside
        b"II*\0\x08\0\0\0\xff\xff",  # more entries than bytes
        b"II*\0\x08\0\0\0\x01\0" + struct.pack("<HHIHH", 0x0112, 3, 1, 9, 0),  # an orientation above 8
    ],
)
def test_a_damaged_exif_block_leaves_the_pixels(tiff):
    assert decode(add_exif(tiff)).shape == (20, 30, 3)


def test_transparency_is_composited_over_white():
    rgba = np.zeros((4, 4, 4), np.uint8)
    rgba[..., 0], rgba[..., 3] = 200, [0, 51, 128, 255]
    # 200 a + 255 (1 - a), and 0 a + 255 (1 - a)
    expected = np.zeros((4, 4, 3), np.uint8)
    expected[..., 0] = [255, 244, 227, 200]
    expected[..., 1:] = np.array([255, 204, 127, 0])[:, None]
    for image in (rgba, encode(rgba, "PNG")):
        np.testing.assert_array_equal(decode(image), expected)
    grey = encode(Image.fromarray(rgba[..., [0, 3]], "LA"), "PNG")
    np.testing.assert_array_equal(decode(grey), np.repeat(expected[..., :1], 3, -1))


def test_palette_grey_bilevel_and_16_bit_become_rgb():
    image = Image.fromarray(photo())
    palette = image.quantize(16)
    np.testing.assert_array_equal(decode(encode(palette, "PNG")), np.asarray(palette.convert("RGB")))
    clear = encode(palette, "PNG", transparency=0)
    np.testing.assert_array_equal(decode(clear)[np.asarray(palette) == 0], 255)
    np.testing.assert_array_equal(
        decode(encode(image.convert("1"), "PNG")), np.asarray(image.convert("1").convert("RGB"))
    )
    deep = np.array([[0, 255, 256, 65535]], np.uint16)
    np.testing.assert_array_equal(decode(encode(deep, "PNG"))[0, :, 0], [0, 0, 1, 255])
    np.testing.assert_array_equal(decode(encode(deep, "TIFF")), decode(encode(deep, "PNG")))


def test_cmyk_jpeg_becomes_rgb():
    data = encode(Image.fromarray(photo()).convert("CMYK"), "JPEG", quality=95)
    assert Image.open(io.BytesIO(data)).mode == "CMYK"
    assert np.abs(decode(data).astype(int) - photo()).mean() < 4


def test_first_frame_of_an_animation():
    frames = [Image.new("RGB", (5, 5), c) for c in ((255, 0, 0), (0, 255, 0))]
    assert decode(encode(frames[0], "GIF", save_all=True, append_images=frames[1:]))[0, 0].tolist() == [255, 0, 0]


def test_arrays():
    image = photo()
    assert decode(image) is image
    np.testing.assert_array_equal(decode(image[..., :1]), np.repeat(image[..., :1], 3, -1))
    for wrong in (image / 255, image[..., 0], image[..., :2]):
        with pytest.raises(ImageError, match="is not uint8"):
            decode(wrong)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_a_truncated_file_is_an_error(kind):
    data = encode(photo(), kind)
    with pytest.raises(ImageError, match="truncated or damaged"):
        decode(data[: len(data) // 2])
    with pytest.raises(ImageError, match="truncated or damaged"):
        codec.check(data[:-20], 10**6)  # a PNG still has all its pixels


@pytest.mark.parametrize("data", [b"", b"hello, I am text", b"\xff\xd8\xff", b"%PDF-1.4", b"\x89PNG\r\n\x1a\n"])
def test_other_bytes_are_an_error(data):
    with pytest.raises(ImageError):
        decode(data)


def test_float_pixels_are_refused():
    with pytest.raises(ImageError, match="floating-point"):
        decode(encode(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"))


def test_check_counts_pixels_and_verifies_checksums():
    data = encode(photo(48, 64), "PNG")
    codec.check(data, 48 * 64)
    with pytest.raises(ImageError, match=r"more than 0\.003071 megapixels: 64 x 48"):
        codec.check(data, 48 * 64 - 1)
    with pytest.raises(ImageError, match="truncated or damaged"):
        codec.check(data[:-5] + b"?" + data[-4:], 10**6)  # changes the name of the last chunk


# Resizing


def test_shrunk_images():
    image = np.repeat(photo(90, 120)[..., :1], 3, axis=2)  # grey, because 4:2:0 halves the resolution of colours
    small = codec.decode(codec.shrink(image, 30))
    assert small.shape == (30, 40, 3)
    area = image.reshape(30, 3, 40, 3, 3).mean((1, 3))
    assert np.abs(small - area).mean() < 4
    assert codec.shrink(image, 30) == codec.shrink(np.asfortranarray(image), 30)
    assert codec.shrink(image, 90) == codec.shrink(image, 200) == b""
    assert codec.shrink(np.zeros((131_002, 2, 3), np.uint8), 1) == b""  # longer than a JPEG can be
    assert codec.decode(codec.shrink(np.zeros((131_000, 2, 3), np.uint8), 1)).shape == (65_500, 1, 3)


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


# Random crops


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


# RandAugment


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


# Random erasing


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


# From the config


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


# Shifts


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
