import io
import struct

import numpy as np
import pytest
from PIL import Image, ImageOps

from nml_jax.data.images import codec
from nml_jax.data.images.codec import ImageError, decode
from tests.data.images.test_transforms import encode, photo


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
