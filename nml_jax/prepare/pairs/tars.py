"""Read WebDataset tars as img2dataset writes them: KEY.jpg|jpeg|png|webp, KEY.txt, KEY.json. Nothing is extracted."""

import functools
import json
import os
import tarfile
from collections import Counter
from collections.abc import Iterator
from typing import Any, BinaryIO

from nml_jax.data.class_names import escape_name
from nml_jax.prepare.clutter import HIDDEN, find_clutter_in_path
from nml_jax.prepare.image_files import MAX_BYTES, TOO_LARGE
from nml_jax.prepare.pairs.types import Columns, Pair, Refusal, Shard, Tally, flatten_captions

# Suffix of a member -> its role. Other suffixes are ignored.
SLOTS = dict.fromkeys(("jpg", "jpeg", "png", "webp"), "image") | {"txt": "txt", "json": "json"}
NO_SUFFIX = "no suffix"
LINK = "a link or device, no file"
CUT = "the tar is cut here; what would follow is lost"


def read(shard: Shard, columns: Columns) -> Iterator[Pair | Refusal | Tally]:
    """Yield the pairs of a tar, and the count of its members by suffix.

    The members of a key may lie anywhere in it, so all are located first.
    """
    with open(shard.path, "rb") as file:
        found, refused, suffixes = _locate_members(file)
        yield Tally("members", suffixes)
        yield from refused
        for key, members in found.items():
            wrong = next((m for m in members.values() if isinstance(m, str)), None)
            if wrong is not None:
                yield Refusal(key, wrong)
            elif "image" not in members:
                yield Refusal(key, "no image with this key")
            else:
                yield _read_pair(file, key, members, columns)


def _locate_members(file: BinaryIO) -> tuple[dict[str, dict[str, Any]], list[Refusal], Counter[str]]:
    """Locate the members of a tar.

    Returns:
        Key -> role -> (offset, size) of the member or the reason why it cannot be read; what is wrong with the tar; and
        the number of members by suffix, or by the reason why they are left out whatever their suffix.
    """
    suffixes: Counter[str] = Counter()
    found: dict[str, dict[str, Any]] = {}
    copies: dict[str, Counter[str]] = {}
    refused, last, size = [], -1, os.fstat(file.fileno()).st_size
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # pyright: ignore[reportAttributeAccessIssue]  (it would keep them all)
                last = member.offset_data
                if member.isdir():
                    continue
                name = member.name.removeprefix("./")
                stem, suffix = _split_name(name)
                clutter = _find_clutter(name)
                suffixes[clutter or suffix or NO_SUFFIX] += 1
                slot = SLOTS.get(suffix[1:])
                if slot is None or clutter:
                    continue
                key = escape_name(stem)
                place: Any = (member.offset_data, member.size)
                if not member.isreg() or member.issparse():
                    place = LINK
                elif last + member.size > size:
                    place = CUT
                elif key != stem:
                    place = "the key is not UTF-8"
                if slot in found.setdefault(key, {}):
                    copies.setdefault(key, Counter())[slot] += 1
                else:
                    found[key][slot] = place
            refused += _check_end(file, tar.offset)
    except (tarfile.TarError, ValueError) as e:
        if last < 0:
            raise ValueError(f"no tar file: {e}") from e
        if not any(CUT in members.values() for members in found.values()):
            refused.append(Refusal("", f"the tar is damaged or cut; what would follow is lost: {e}"))
    for key, slots in copies.items():
        refused += [Refusal(key, "another member with this key came before")] * max(slots.values())
    return found, refused, suffixes


def _split_name(name: str) -> tuple[str, str]:
    """Return the key and the suffix of a member, in lower case with its dot; "" if it has none."""
    stem, dot, suffix = name.rpartition(".")
    if not dot or "/" in suffix:
        return name, ""
    return stem, f".{suffix.lower()}".encode("utf-8", "backslashreplace").decode()


def _find_clutter(name: str) -> str:
    """Return why a member is left out, or "". A hidden folder hides no member, only a hidden name does."""
    reason = find_clutter_in_path(name)
    return "" if reason == HIDDEN and not name.rsplit("/", 1)[-1].startswith(".") else reason


def _check_end(file: BinaryIO, offset: int) -> list[Refusal]:
    """Check what follows the last member, because tarfile stops silently at a missing or damaged header."""
    file.seek(offset)
    block = file.read(tarfile.BLOCKSIZE)
    if not block:
        return [Refusal("", "the tar has no end: it may be cut")]
    if any(block) or len(block) < tarfile.BLOCKSIZE:
        return [Refusal("", "the tar is damaged or cut; what would follow is lost")]
    while block := file.read(1 << 20):
        if any(block):
            return [Refusal("", "more data behind the end of the tar is not read")]
    return []


def _read_pair(file: BinaryIO, key: str, members: dict[str, tuple[int, int]], columns: Columns) -> Pair | Refusal:
    def read_member(slot: str) -> tuple[bytes, str]:
        offset, size = members[slot]
        if size > MAX_BYTES:
            return b"", TOO_LARGE
        file.seek(offset)
        return file.read(size), ""

    fields: Any = {}
    if "json" in members:
        text, reason = read_member("json")
        if reason:
            return Refusal(key, reason)
        try:
            fields = json.loads(text)
        except (ValueError, RecursionError) as e:
            return Refusal(key, f"KEY.json is not JSON: {e}")
        if not isinstance(fields, dict):
            return Refusal(key, "KEY.json is not a JSON object")
    if columns.captions is not None:
        captions = flatten_captions(fields.get(name) for name in columns.captions)
    elif fields.get("captions"):
        captions = flatten_captions([fields["captions"]])
    elif "txt" in members:
        text, reason = read_member("txt")
        if reason:
            return Refusal(key, reason)
        captions = [text]
    else:
        captions = flatten_captions([fields.get("caption")])
    return Pair(key, functools.partial(read_member, "image"), captions, fields)
