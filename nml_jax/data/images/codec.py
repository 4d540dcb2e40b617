"""Decode stored bytes to upright RGB pixels. This module alone decides which bytes are an image."""

import contextlib
import io
import struct
from collections.abc import Callable, Iterator
from typing import Any

import cv2
import numpy as np
import simplejpeg
from PIL import Image, Jpeg2KImagePlugin, TiffImagePlugin, WebPImagePlugin  # noqa: F401 (they register)

from nml_jax.data.images import damage

FORMATS = ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")

# How `shrink` resizes and encodes.
SHRUNK: dict[str, Any] = {"format": "JPEG", "quality": 95, "subsampling": "4:2:0", "interpolation": "area"}
MAX_SIDE = 65_500  # pixels of a JPEG
MAX_CLAIM = 178_956_970  # pixels at most: Pillow's own limit, for all formats
LARGE, DENSEST = 50_000_000, 1000  # an image of more pixels than LARGE has a byte for DENSEST of them
FRAMES = bytes(m for m in range(0xC0, 0xD0) if m not in (0xC4, 0xC8, 0xCC))  # markers of frames of a JPEG

# EXIF orientation (tag 0x0112) -> function that turns the pixels upright.
UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a),
}

# EXIF orientation -> the same turn of a Pillow image.
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class Undecodable(ValueError):
    """Error of a record without a usable image. It depends on the data alone, so every process raises the same."""


class ImageError(Undecodable):
    """Error of bytes that cannot be decoded to a whole image."""


def decode(image: bytes | np.ndarray) -> np.ndarray:
    """Decode an encoded image or an array to upright RGB pixels.

    EXIF orientation is applied. Transparency is composited over white. Grey, palette and CMYK become RGB. 16-bit values
    keep their high byte. An animation yields its first frame.

    Args:
        image: an encoded file of one of FORMATS, or uint8 [H, W, 1 | 3 | 4].

    Returns:
        uint8 [H, W, 3].

    Raises:
        ImageError: not an image, truncated or damaged, or of a kind with no defined RGB.
    """
    if isinstance(image, np.ndarray):
        return _convert_array(image)
    _check_claim(image)
    if image[:3] == damage.JPEG and (pixels := _decode_jpeg(image)) is not None:
        return pixels
    if found := damage.find_png_damage(image):
        raise ImageError(f"truncated or damaged: {found}")
    try:
        return np.asarray(_convert_to_rgb(_open(image)))
    except ImageError:
        if (stripped := damage.strip_metadata(image)) == image:
            raise
    pixels = np.asarray(_convert_to_rgb(_open(stripped)))
    return UPRIGHT[_read_orientation(image)](pixels) if image[:3] == damage.JPEG else pixels


def _decode_jpeg(image: bytes) -> np.ndarray | None:
    """Decode a JPEG to upright RGB pixels; None if it is unusual, so that Pillow must decide.

    Raises:
        ImageError: a part of the pixels is missing or damaged.
    """
    try:
        stored = simplejpeg.decode_jpeg_header(image)[2]
    except ValueError:
        return None
    space = "RGB" if stored in ("YCbCr", "RGB", "Gray") else "CMYK"
    try:
        pixels = simplejpeg.decode_jpeg(image, space)
    except ValueError as e:
        if found := damage.find_damage(image, str(e), space):
            raise ImageError(f"truncated or damaged: {found}") from e
        return None
    return UPRIGHT[_read_orientation(image)](pixels) if space == "RGB" else None


def _convert_array(image: np.ndarray) -> np.ndarray:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (1, 3, 4):
        raise ImageError(f"an array of {image.dtype} {image.shape} is not uint8 [H, W, 1 | 3 | 4]")
    match image.shape[2]:
        case 3:
            return image
        case 1:
            return np.repeat(image, 3, axis=2)
        case _:
            return np.asarray(_convert_to_rgb(Image.fromarray(image)))


def _read_orientation(data: bytes) -> int:
    """Read the EXIF orientation of a JPEG, 1 to 8. Return 1 if it is absent or its block is damaged."""
    exif = data.find(b"Exif\0\0", 0, data.find(b"\xff\xda"))  # the header ends where the scan starts
    if exif < 0:
        return 1
    tiff = exif + 6
    order = {b"II\x2a\0": "<", b"MM\0\x2a": ">"}.get(data[tiff : tiff + 4])
    if order is None:
        return 1
    try:
        directory = tiff + struct.unpack_from(order + "I", data, tiff + 4)[0]
        for n in range(struct.unpack_from(order + "H", data, directory)[0]):
            tag, _, _, value = struct.unpack_from(order + "HHIH", data, directory + 2 + 12 * n)
            if tag == 0x0112:
                return value if value in UPRIGHT else 1
    except struct.error:
        return 1  # the pixels are still good
    return 1


def is_turned(data: bytes) -> bool:
    """Return whether the EXIF orientation of an image exchanges its height and width."""
    with _raise_image_error(), Image.open(io.BytesIO(data), formats=FORMATS) as image:
        return _find_orientation(image) in (5, 6, 7, 8)


def _check_claim(data: bytes) -> None:
    """Raise ImageError if a JPEG or PNG is too small to hold the pixels that its header claims, or claims too many.

    So a forged header costs nothing: decoders reserve the memory of all pixels first.
    """
    if found := _measure_jpeg(data) or _measure_png(data):
        width, height, least = found
        _check_size(data, width, height, least)
        if width * height > MAX_CLAIM:
            raise ImageError(f"too many megapixels: {width} x {height}")


def _check_size(data: bytes, width: int, height: int, least: int = 0) -> None:
    """Raise ImageError if an image has fewer bytes than `least`, or next to none for more pixels than LARGE.

    GIF, WebP, TIFF and JPEG 2000 have no least size: some write an image of one colour in 34 bytes, however large.
    """
    if len(data) < least or width * height > max(LARGE, DENSEST * len(data)):
        raise ImageError(f"truncated or damaged: it claims {width} x {height} pixels in {len(data):,} bytes")


def _measure_jpeg(data: bytes) -> tuple[int, int, int] | None:
    """Return width, height and the least bytes of a JPEG; None for anything else. With other codes the least is 0.

    With Huffman codes every block of 8 x 8 values of a component takes a bit for its first value and, unless the JPEG
    is progressive, one for its end.
    """
    at = 2 if data[:3] == b"\xff\xd8\xff" else len(data)
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker in FRAMES:
            with contextlib.suppress(struct.error, ZeroDivisionError, IndexError):
                height, width, count = struct.unpack_from(">HHB", data, at + 5)
                sides = [divmod(data[at + 11 + 3 * i], 16) for i in range(count)]
                most = [max(side) for side in zip(*sides, strict=True)]
                blocks = sum(-(-width * x // (8 * most[0])) * -(-height * y // (8 * most[1])) for x, y in sides)
                bits = {0xC0: 2, 0xC1: 2, 0xC2: 1}.get(marker, 0)  # baseline, extended, progressive
                return width, height, blocks * bits // 8
            return None
        if marker in (0xDA, 0xD9):
            return None
        at += 1 if marker == 0xFF else 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return None


def _measure_png(data: bytes) -> tuple[int, int, int] | None:
    """Return width, height and the least bytes of a PNG; None for anything else. Deflate packs 1032 bytes in one."""
    if data[:8] != b"\x89PNG\r\n\x1a\n" or data[12:16] != b"IHDR" or len(data) < 26:
        return None
    width, height, depth, colour = struct.unpack_from(">IIBB", data, 16)
    values = {2: 3, 4: 2, 6: 4}.get(colour, 1)
    return width, height, height * (1 + width * depth * values // 8) // 1032


def check(data: bytes, max_pixels: int) -> np.ndarray:
    """Verify and decode an image. Raise ImageError unless it is intact and has at most `max_pixels` pixels.

    Metadata, such as profiles, texts and EXIF, may be large or broken.
    """
    try:
        _verify(data, max_pixels)
    except ImageError:
        if (stripped := damage.strip_metadata(data)) == data:
            raise
        _verify(stripped, max_pixels)
    return decode(data)


def _verify(data: bytes, max_pixels: int) -> None:
    """Compare the checksums of an image, if its format has them, and check its size."""
    with _raise_image_error(), Image.open(io.BytesIO(data), formats=FORMATS) as image:
        if image.width * image.height > max_pixels:
            raise ImageError(f"more than {max_pixels / 1e6:g} megapixels: {image.width} x {image.height}")
        image.verify()


def shrink(image: np.ndarray, side: int) -> bytes:
    """Shrink uint8 [H, W, 3] to a JPEG whose shorter side is `side`, as SHRUNK says. Keep the aspect ratio.

    Returns:
        The encoded JPEG, or b"" if the image is not larger or its longer side would be too long for a JPEG.
    """
    height, width = image.shape[:2]
    short = min(height, width)
    if short <= side or max(height, width) * side > short * MAX_SIDE:
        return b""
    size = round(width * side / short), round(height * side / short)
    small = cv2.resize(np.ascontiguousarray(image), size, interpolation=cv2.INTER_AREA)
    return simplejpeg.encode_jpeg(small, SHRUNK["quality"], "RGB", SHRUNK["subsampling"].replace(":", ""))


def _open(data: bytes) -> Image.Image:
    """Decode the whole first frame with Pillow and turn it upright."""
    with _raise_image_error(), Image.open(io.BytesIO(data), formats=FORMATS) as image:
        _check_size(data, *image.size)
        image.load()
        turn = TURNS.get(_find_orientation(image))
        return image.transpose(turn) if turn is not None else image


def _find_orientation(image: Image.Image) -> int:
    """Return the EXIF orientation of an open image, 1 to 8. Return 1 if it is absent or the block is damaged."""
    try:
        return image.getexif().get(0x0112, 1)
    except Exception:  # its parsers raise errors of many kinds; the pixels are still good
        return 1


@contextlib.contextmanager
def _raise_image_error() -> Iterator[None]:
    """Convert Pillow's errors to ImageError."""
    try:
        yield
    except ImageError:
        raise
    except Image.UnidentifiedImageError as e:
        raise ImageError("not an image") from e
    except Image.DecompressionBombError as e:
        raise ImageError(f"too many megapixels: {e}") from e
    except Exception as e:  # its parsers raise errors of many kinds: OSError, SyntaxError, struct.error, ...
        raise ImageError(f"truncated or damaged: {e}") from e


def _convert_to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ImageError("floating-point pixels have no defined range")
    if image.mode.startswith("I"):
        return Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == "RGB" else image.convert("RGB")
