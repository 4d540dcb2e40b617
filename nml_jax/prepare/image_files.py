"""Read the image files that become records, and check and shrink them."""

import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nml_jax.errors import UserError

MAX_PIXELS = 50_000_000
MAX_BYTES = 1 << 29  # of a file; a record may hold twice that
TOO_LARGE = f"more than {MAX_BYTES >> 20} MiB"

RESIZE = (
    "shrink images whose shorter side is larger than SIDE, such as 256, to JPEG of quality 95 with that shorter side. "
    "Gains: images of 500 x 375 pixels need little more than half of the bytes and of the decoding time. Costs: random "
    "crops come from fewer pixels and are enlarged more (a crop of 8 %% of 500 x 375 is 122 pixels wide, of 341 x 256 "
    "84, before either becomes 224), and pixels are compressed twice. Do not shrink test sets: scores would differ"
)


def check_resize(side: int | None) -> None:
    """Raise UserError if images cannot have this shorter side."""
    if side is not None and side < 1:
        raise UserError(
            f"--resize must be at least 1, got {side}", "give the shorter side in pixels, as in --resize=256"
        )


def describe_resized(side: int, images: Mapping[str, int]) -> dict[str, Any]:
    """Return the manifest's entry about shrunk images. `images` maps each split to the number of its shrunk images."""
    from nml_jax.data.images import codec

    return {"shorter_side": side, **codec.SHRUNK, "images": dict(images)}


def read_file(path: Path) -> tuple[bytes, str]:
    """Read a file. Return (bytes, "") or (b"", the reason why it cannot be read)."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            return b"", "not a regular file"
        if status.st_size > MAX_BYTES:
            return b"", TOO_LARGE
        return path.read_bytes(), ""
    except OSError as e:
        return b"", f"unreadable: {e.strerror}"


def check_image(
    content: bytes, resize: int | None = None, size: tuple[int, int] | None = None
) -> tuple[bytes, bool, str]:
    """Check an encoded image and shrink it if it is too large.

    Args:
        size: the height and width that the upright image must have; None: any.

    Returns:
        The bytes to store, True if it was shrunk, and the reason why it must be refused, or "".
    """
    from nml_jax.data.images import codec

    if not content:
        return b"", False, "empty"
    try:
        pixels = codec.check(content, MAX_PIXELS)
    except codec.ImageError as e:
        return b"", False, str(e)
    if size and pixels.shape[:2] != size:
        height, width = pixels.shape[:2]
        turned = (
            " (turned as its EXIF orientation says)" if (width, height) == size and codec.is_turned(content) else ""
        )
        return b"", False, f"it is {width} x {height} pixels{turned}, and its annotations are for {size[1]} x {size[0]}"
    small = codec.shrink(pixels, resize) if resize else b""
    return small or content, bool(small), ""
