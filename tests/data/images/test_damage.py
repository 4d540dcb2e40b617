"""Damaged pixels are refused, whatever the decoder makes of them; harmless faults and metadata never decide."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from nml_jax.data.images import codec

BIG = 1 << 40


def smooth(size=(160, 120), seed=0):
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    fine = np.asarray(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)).astype(int)
    return (fine + rng.integers(-12, 12, fine.shape)).clip(0, 255).astype(np.uint8)


def encode(mode="RGB", kind="JPEG", **options):
    Image.fromarray(smooth()).convert(mode).save(out := io.BytesIO(), kind, **options)
    return out.getvalue()


JPEGS = {
    "baseline": encode(quality=90),
    "progressive": encode(quality=90, progressive=True),
    "optimised": encode(quality=90, optimize=True),
    "restarts": encode(quality=90, restart_marker_rows=1),
    "grey": encode("L", quality=90),
    "cmyk": encode("CMYK", quality=90),
}
EOI = b"\xff\xd9"


def damage(data, way):
    n, part = len(data), len(data) // 8
    half = n // 2
    noise = np.random.default_rng(1).integers(0, 255, part, np.uint8).tobytes()
    return {
        "cut with an end": data[:half] + EOI,
        "cut": data[:half],
        "no end": data[:half] + b"\0" * half,
        "zeroed tail": data[:half] + b"\0" * (n - half - 2) + EOI,
        "zeroed middle": data[:half] + b"\0" * part + data[half + part :],
        "noise in the middle": data[:half] + noise + data[half + part :],
        "text in the middle": data[:half] + b"overwritten " * (part // 12) + data[half + part // 12 * 12 :],
        "a page lost": data[:half] + data[half + part :],
        "damaged and padded": data[:half] + b"\0" * 500 + EOI,
    }[way]


@pytest.mark.parametrize("options", [{"quality": 90}, {"quality": 90, "subsampling": 0}])
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_zeros_to_the_end_of_the_file_are_no_image(options, share):
    pixels = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(out := io.BytesIO(), "JPEG", **options)
    data = out.getvalue()
    kept = int(share * len(data))
    with pytest.raises(codec.ImageError, match="premature end of data segment"):
        codec.decode(data[:kept] + bytes(len(data) - kept))
    for sound in (data[:-2] + bytes(100), data[:-2] + b"\xff" * 5 + EOI, data + bytes(100)):
        np.testing.assert_array_equal(codec.decode(sound), codec.decode(data))


WAYS = ["cut with an end", "cut", "no end", "zeroed tail", "zeroed middle", "noise in the middle", "text in the middle"]


@pytest.mark.parametrize("way", [*WAYS, "a page lost", "damaged and padded"])
@pytest.mark.parametrize("kind", JPEGS)
def test_a_jpeg_whose_pixels_are_damaged_is_refused(kind, way):
    bad = damage(JPEGS[kind], way)
    for read in (codec.decode, lambda data: codec.check(data, BIG)):
        with pytest.raises(codec.ImageError, match="truncated or damaged: "):
            read(bad)


def insert(data, at, junk):
    return data[:at] + junk + data[at:]


@pytest.mark.parametrize("kind", JPEGS)
def test_harmless_faults_of_a_jpeg_stay_accepted(kind):
    data = JPEGS[kind]
    pixels = codec.check(data, BIG)
    scan = data.find(b"\xff\xda")
    table = data.find(b"\xff\xdb")
    harmless = [
        insert(data, len(data) - 2, b"\0" * 500),
        insert(data, len(data) - 2, b" " * 3),
        insert(data, len(data) - 2, b"\x01\x02\x03junk"),
        insert(data, scan, b"\0" * 7),
        insert(data, scan, bytes(range(1, 200))),
        insert(data, table, b"junk" * 30),
        insert(insert(data, len(data) - 2, b"\0" * 50), table, b"junk"),
        data + b"\0" * 1000,
        data + b"anything" * 99,
    ]
    if kind == "progressive":
        second = data.find(b"\xff\xda", data.find(b"\xff\xda", scan + 2) + 2)
        harmless.append(insert(data, second, b"\0" * 9))
    for other in harmless:
        np.testing.assert_allclose(codec.check(other, BIG).astype(int), pixels.astype(int), atol=2)


def segment(marker, content):
    return bytes((0xFF, marker)) + struct.pack(">H", len(content) + 2) + content


def chunk(kind, content, crc=None):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", crc or zlib.crc32(kind + content))


def test_metadata_never_decides_over_the_pixels_of_a_jpeg():
    broken = [
        segment(0xE1, b"Exif\0\0" + b"II*\0" + b"\xff" * 60_000),
        segment(0xE1, b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\xff\xff\xff\xff\0\x63\0\0\xff"),
        segment(0xE2, b"ICC_PROFILE\0\x01\x01" + b"x" * 60_000) * 20,
        segment(0xE2, b"ICC_PROFILE\0\x09\x02"),
        segment(0xE2, b"MPF\0II*\0\xff\xff"),
        segment(0xED, b"Photoshop 3.0\x008BIM\xff"),
        segment(0xFE, b"\xff" * 65_000),
        segment(0xEE, b"Ado"),
    ]
    for kind in ("baseline", "cmyk"):
        pixels = codec.check(JPEGS[kind], BIG)
        for content in broken:
            np.testing.assert_array_equal(codec.check(insert(JPEGS[kind], 2, content), BIG), pixels)


def test_metadata_never_decides_over_the_pixels_of_a_png():
    for mode in ("P", "RGBA"):
        data = encode(mode, "PNG")
        pixels = codec.check(data, BIG)
        packed = zlib.compress(b"\0" * (5 << 20))
        for content in (
            chunk(b"zTXt", b"key\0\0" + packed),
            chunk(b"iTXt", b"key\0\1\0\0\0" + packed),
            chunk(b"iCCP", b"name\0\0" + packed),
            chunk(b"iCCP", b"name\0\0broken"),
            chunk(b"tEXt", b"key\0value", crc=1),
            chunk(b"eXIf", b"II*\0broken"),
            chunk(b"eXIf", b"II*\0broken", crc=1),
            chunk(b"cHRM", b"x"),
            chunk(b"pHYs", b""),
            chunk(b"gAMA", b""),
        ):
            np.testing.assert_array_equal(codec.check(insert(data, 33, content), BIG), pixels)
            np.testing.assert_array_equal(codec.decode(insert(data, 33, content)), pixels)
    bad = bytearray(data)
    bad[len(data) // 2] ^= 1
    with pytest.raises(codec.ImageError):  # a checksum over pixels still decides
        codec.check(bytes(bad), BIG)


@pytest.mark.parametrize("way", [*WAYS, "a page lost"])
def test_a_png_whose_pixels_are_damaged_is_refused(way):
    data = encode(kind="PNG")
    for read in (codec.decode, lambda data: codec.check(data, BIG)):
        with pytest.raises(codec.ImageError, match="truncated or damaged: "):
            read(damage(data, way))


def test_profiles_and_orientation_are_kept_in_mind():
    """Check that EXIF turns an image as before, also in a PNG with a broken text, and beside a good profile."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = Image.Exif()
    exif[0x0112] = 6
    for kind in ("PNG", "JPEG", "WEBP"):
        options = {"lossless": True} if kind == "WEBP" else {}
        data = encode(kind=kind, exif=exif, icc_profile=profile, **options)
        turned = codec.check(data, BIG)
        upright = codec.check(encode(kind=kind, **options), BIG)
        np.testing.assert_array_equal(turned, np.rot90(upright, -1))
    png = encode(kind="PNG", exif=exif)
    broken = insert(png, 33, chunk(b"tEXt", b"key\0value", crc=1))
    np.testing.assert_array_equal(codec.check(broken, BIG), codec.check(png, BIG))
    cmyk = insert(encode("CMYK", exif=exif), 2, segment(0xE2, b"MPF\0II*\0\xff\xff"))
    assert codec.check(cmyk, BIG).shape == (160, 120, 3)
