"""Tell damaged JPEGs from harmless ones, and remove metadata that keeps a decoder from sound pixels."""

import itertools
import re
import zlib
from collections.abc import Iterator

import simplejpeg

JPEG, PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"

# libjpeg's warnings after which pixels are wrong. Others are about metadata, or about the end, which Pillow needs, too.
DAMAGE = (
    "premature end of data",
    "bad huffman code",
    "bad arithmetic code",
    "instead of rst",
    "inconsistent progression",
)
EXTRANEOUS = re.compile(r"(\d+) extraneous bytes before marker 0x([0-9a-f]{2})")
NO_END = "premature end of jpeg file"
SOS, APP0, APP14, COM = 0xDA, 0xE0, 0xEE, 0xFE
PLACES = 16  # of a marker that are tried
PREFETCHED = 16  # bytes that the decoder may hold when the scan is complete
JUNK_BYTES, JUNK_VALUES = 64, 16  # a longer and more varied rest of a scan is image data
PIXEL_CHUNKS = (b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"acTL", b"fcTL", b"fdAT")


def find_damage(data: bytes, warning: str, space: str, depth: int = 4) -> str:
    """Return what is wrong with the pixels of a JPEG, or "".

    libjpeg fills what is missing with grey and goes on, and reports only its last warning. So superfluous bytes, which
    are harmless, are removed, to see whether a warning came before.

    Args:
        warning: the error that `simplejpeg.decode_jpeg` raised for `data`.
        space: the colour space to decode to.
        depth: number of places with superfluous bytes that may be removed.
    """
    if NO_END in warning.lower() and depth and (closed := _close(data)):
        return find_damage(closed, find_warning(closed, space), space, depth - 1)
    if not (found := EXTRANEOUS.search(warning)):
        return warning if any(word in warning.lower() for word in DAMAGE) else ""
    count, marker = int(found[1]), int(found[2], 16)
    if (count, marker) in list(_list_header_junk(data)):
        return ""  # the last warning came before the pixels
    ends = (end for end in _find_markers(data, marker) if _is_padding(data, end, count))
    for end in itertools.islice(ends, PLACES if depth else 0):
        cleaned = data[: end - count] + data[end:]
        if not find_damage(cleaned, find_warning(cleaned, space), space, depth - 1):
            return ""
    return warning


def _close(data: bytes) -> bytes:
    """Return a JPEG that lacks its end with one, in place of its padding; b"" if it has no padding.

    If the scan is not complete without the padding, this overwrote image data: zeros are valid image data, too, so a
    decoder alone does not notice.
    """
    rest = data.rstrip(data[-1:])
    return rest + b"\xff\xd9" if len(data) - len(rest) >= PREFETCHED else b""


def find_warning(data: bytes, space: str) -> str:
    """Return the error that decoding a JPEG to a colour space raises, or ""."""
    try:
        simplejpeg.decode_jpeg(data, space)
    except ValueError as e:
        return str(e)
    return ""


def _list_header_junk(data: bytes) -> Iterator[tuple[int, int]]:
    """Yield the number of superfluous bytes before each marker up to the first scan, and the marker."""
    at, junk = 2, 0
    while (begin := data.find(b"\xff", at)) >= 0:
        junk += begin - at
        at = begin
        while data[at : at + 1] == b"\xff":
            at += 1
        if at >= len(data):
            return
        marker, at = data[at], at + 1
        if not marker:
            junk += 2
            continue
        yield junk, marker
        if marker == SOS:
            return
        junk, at = 0, at + int.from_bytes(data[at : at + 2], "big")


def _find_markers(data: bytes, marker: int) -> Iterator[int]:
    """Yield where a marker lies behind the begin of the first scan."""
    at = data.find(bytes((0xFF, SOS)))
    while at >= 0 and (at := data.find(bytes((0xFF, marker)), at + 2)) >= 0:
        yield at


def _is_padding(data: bytes, end: int, count: int) -> bool:
    """Return whether the `count` bytes before `end` are padding, and not image data that came after a damaged place."""
    rest = data[end - count : end] if count <= end else b""
    values = set(rest)
    if len(values) == 1:  # if the scan ran into it, it is not padding: it overwrote image data
        return len(data[:end]) - len(data[:end].rstrip(rest[:1])) <= count + PREFETCHED
    return bool(rest) and (count <= JUNK_BYTES or len(values) <= JUNK_VALUES)


def strip_metadata(data: bytes) -> bytes:
    """Return a JPEG or PNG without texts, profiles and the like. Other formats are returned as they are."""
    if data.startswith(PNG):
        return PNG + b"".join(_list_pixel_chunks(data))
    return b"\xff\xd8" + b"".join(_list_pixel_segments(data)) if data.startswith(JPEG) else data


def find_png_damage(data: bytes) -> str:
    """Return which part of a PNG that its pixels depend on does not match its checksum, or "" (also for other formats).

    Pillow does not compare them on decoding, and leaves what it lacks black.
    """
    chunks = _list_chunks(data) if data.startswith(PNG) else ()
    wrong = (chunk for chunk in chunks if chunk[4:8] in PIXEL_CHUNKS and not _matches_checksum(chunk))
    return next((f"the checksum of a chunk {chunk[4:8].decode()} is wrong" for chunk in wrong), "")


def _list_pixel_chunks(data: bytes) -> Iterator[bytes]:
    """Yield the chunks of a PNG that its pixels depend on, and sound EXIF, which says which side is up."""
    for chunk in _list_chunks(data):
        if chunk[4:8] in PIXEL_CHUNKS or (chunk[4:8] == b"eXIf" and _matches_checksum(chunk)):
            yield chunk


def _list_chunks(data: bytes) -> Iterator[bytes]:
    """Yield the chunks of a PNG with length, kind and checksum. The last may be cut."""
    at = len(PNG)
    while at + 8 <= len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        yield data[at:end]
        at = end


def _matches_checksum(chunk: bytes) -> bool:
    return zlib.crc32(chunk[4:-4]) == int.from_bytes(chunk[-4:], "big")


def _list_pixel_segments(data: bytes) -> Iterator[bytes]:
    """Yield the segments of a JPEG that its pixels depend on, and from the first scan on all that follows."""
    at = 2
    while data[at : at + 1] == b"\xff" and at + 4 <= len(data):
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == SOS or marker == 0xFF or length < 2:
            break
        if not (APP0 < marker < APP14 or marker in (0xEF, COM)):
            yield data[at : at + 2 + length]
        at += 2 + length
    yield data[at:]
