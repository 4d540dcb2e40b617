"""Read the entries of images and categories in a json of COCO's format: the fields, and what each must be."""

import json
from collections.abc import Callable, Mapping
from typing import Any

from nml_jax import console
from nml_jax.errors import UserError

CURE = "give the json as its distributor wrote it"
LARGEST = 100_000  # pixels of a side of an image


def _is_int(value: Any) -> bool:
    return type(value) is int


def _is_text(value: Any) -> bool:
    """Return whether a value is a text that can be written: escapes of a json can make half of a character."""
    return isinstance(value, str) and not any(0xD800 <= ord(c) < 0xE000 for c in value)


def is_id(value: Any) -> bool:
    return _is_int(value) or _is_text(value)


def _is_side(value: Any) -> bool:
    return _is_int(value) and 0 < value <= LARGEST


# What the fields of an entry must be.
Field = tuple[Callable[[Any], bool], str]
SIDE: Field = _is_side, f"a whole number of pixels from 1 to {LARGEST}"
IMAGE: dict[str, Field] = {
    "id": (is_id, "a whole number or a text"), "file_name": (_is_text, "a text"), "height": SIDE, "width": SIDE,
}  # fmt: skip
CATEGORY: dict[str, Field] = {"id": (_is_int, "a whole number"), "name": (_is_text, "a text")}


def read_image(name: str, entry: Any) -> dict[str, Any]:
    """Return id, file, height and width of an image's entry."""
    read = read_entry(name, "an image", entry, IMAGE)
    return {**read, "file_name": read["file_name"].replace("\\", "/").removeprefix("./")}


def read_entry(name: str, what: str, entry: Any, fields: Mapping[str, Field]) -> dict[str, Any]:
    """Return the fields of an entry. Raise UserError if one is missing or of another kind."""
    read = {key: read_whole(entry.get(key)) if isinstance(entry, dict) else None for key in fields}
    shown = json.dumps(entry)[:80]
    if missing := [key for key in fields if read[key] is None]:
        raise UserError(f"{name}: {what} without {console.list_words(missing)}: {shown}", CURE)
    for key, (is_sound, kind) in fields.items():
        if not is_sound(read[key]):
            raise UserError(f"{name}: {what} whose {key} is {json.dumps(entry[key])[:80]}, not {kind}: {shown}", CURE)
    return read


def read_whole(value: Any) -> Any:
    """Return a whole number as an int, as 48 for 48.0, and anything else as it is."""
    return int(value) if isinstance(value, float) and value.is_integer() else value
