"""Test that forged headers of images are refused before their pixels take memory, and small true images are not."""

import io
import struct
import tracemalloc
import warnings

import numpy as np
import pytest
from PIL import Image

from nml_jax.data.images import codec


def encode(size: tuple[int, int], kind: str, mode: str = "RGB", **how) -> bytes:
    out = io.BytesIO()
    Image.new(mode, size, 0).save(out, kind, **how)
    return out.getvalue()


def forge_jpeg(data: bytes, side: int) -> bytes:
    """Return a JPEG whose frame claims `side` × `side` pixels."""
    at = min(i for i in (data.find(b"\xff\xc0"), data.find(b"\xff\xc2")) if i > 0)
    return data[: at + 5] + struct.pack(">HH", side, side) + data[at + 9 :]


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("progressive", [False, True])
def test_a_small_jpeg_that_claims_many_pixels(mode: str, progressive: bool):
    data = forge_jpeg(encode((16, 16), "JPEG", mode, progressive=progressive), 7000)
    assert len(data) < 1500
    tracemalloc.start()
    try:
        for read in (codec.decode, lambda data: codec.check(data, 10**9)):
            with pytest.raises(codec.ImageError, match=r"claims 7000 x 7000 pixels in [\d,]+ bytes"):
                read(data)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_a_small_png_that_claims_many_pixels():
    data = encode((16, 16), "PNG")
    data = data[:16] + struct.pack(">II", 7000, 7000) + data[24:]
    with pytest.raises(codec.ImageError, match="claims 7000 x 7000 pixels"):
        codec.decode(data)


def forge_size(kind: str, side: int) -> bytes:
    """Return a file of a few hundred bytes whose header claims `side` × `side` pixels."""
    data = bytearray(encode((16, 16), kind, **{"lossless": True} if kind == "WEBP" else {}))
    if kind == "GIF":
        data[6:10] = struct.pack("<HH", side, side)
    elif kind == "WEBP":
        at = data.index(b"VP8L") + 9
        bits = struct.unpack_from("<I", data, at)[0] & 0xF0000000
        struct.pack_into("<I", data, at, bits | (side - 1) | (side - 1) << 14)
    elif kind == "JPEG2000":
        struct.pack_into(">II", data, data.index(b"ihdr") + 4, side, side)
        for offset in (6, 22):  # of the image, and of its tile
            struct.pack_into(">II", data, data.index(b"\xff\x51") + offset, side, side)
    elif kind == "TIFF":
        first, count = struct.unpack_from("<I", data, 4)[0] + 2, 10
        for at in range(first, first + 12 * count, 12):
            if (tag := struct.unpack_from("<H", data, at)[0]) in (256, 257, 278):
                struct.pack_into("<HHII", data, at, tag, 4, 1, side)
    return bytes(data)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "JPEG2000", "TIFF"])
def test_a_few_bytes_that_claim_a_hundred_megapixels(kind: str):
    data = forge_size(kind, 10_400)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with pytest.raises(codec.ImageError, match=r"claims 10400 x 10400 pixels in [\d,]+ bytes|truncated"):
            codec.decode(data)
        with pytest.raises(codec.ImageError, match="more than 50 megapixels: 10400 x 10400"):
            codec.check(data, 50_000_000)


def test_a_jpeg_of_any_code_has_a_largest_size():
    """Arithmetic codes have no least size, and a file may be padded."""
    data = forge_jpeg(encode((16, 16), "JPEG"), 60_000)
    for large in (data.replace(b"\xff\xc0", b"\xff\xc9"), data + bytes(60_000 * 60_000 // 64)):
        with pytest.raises(codec.ImageError, match=r"claims 60000 x 60000|too many megapixels: 60000 x 60000"):
            codec.decode(large)


@pytest.mark.parametrize(
    ("kind", "mode", "how"),
    [
        *(("JPEG", "RGB", {"quality": 1, "optimize": True, "subsampling": s, "progressive": p}) for s in (0, 1, 2)
          for p in (False, True)),
        *(("JPEG", "L", {"quality": 1, "optimize": True, "progressive": p}) for p in (False, True)),
        *(("PNG", mode, {"compress_level": 9}) for mode in ("1", "L", "RGB", "RGBA", "P")),
    ],
)  # fmt: skip
def test_an_image_of_one_colour_may_be_as_small_as_its_format_allows(kind: str, mode: str, how: dict):
    for size in ((3001, 1999), (1, 1), (17, 2)):
        data = encode(size, kind, mode, **how)
        assert codec.decode(data).shape == (size[1], size[0], 3)
        least = (codec._measure_jpeg(data) or codec._measure_png(data) or (0, 0, 0))[2]
        assert least > 0.2 * len(data) or size[0] < 3000  # so the bound is one
    assert codec._measure_jpeg(np.zeros(9, np.uint8).tobytes()) is None
