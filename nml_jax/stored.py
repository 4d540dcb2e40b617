"""Read JSON that the program has stored, and check its types. Whatever is wrong with a file becomes one UserError.

A stored file may be cut, flipped, edited or not ours. So nothing that is read back is used before its types are known.
"""

import functools
import json
import math
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn, Union, get_args, get_origin

from nml_jax.errors import UserError

FAULTS = (ValueError, KeyError, TypeError, AttributeError)  # what reading a damaged value raises


def parse_json(text: str | bytes) -> Any:
    """Parse JSON as we write it: UTF-8, without NaN and infinities.

    Raises:
        ValueError: the text is something else, or is nested too deeply.
    """
    try:
        return json.loads(text.decode() if isinstance(text, bytes) else text, parse_constant=_refuse_constant)
    except RecursionError as e:
        raise ValueError("it is nested too deeply") from e


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number of JSON")


def read_json(path: Path, cure: str, kind: Any = Any) -> Any:
    """Read a JSON file whose value has the type `kind`, see `fits`.

    Raises:
        UserError: the file cannot be read, is not JSON, or holds something else. The message names it.
    """
    try:
        return require_type(parse_json(read_bytes(path, cure)), kind)
    except FAULTS as e:
        raise make_damage(path, e, cure) from e


def read_lines(path: Path, cure: str) -> list[str]:
    """Read the lines of a UTF-8 text file.

    Raises:
        UserError: the file cannot be read, or is not UTF-8.
    """
    try:
        return read_bytes(path, cure).decode().splitlines()
    except ValueError as e:
        raise make_damage(path, e, cure) from e


def read_bytes(path: Path, cure: str) -> bytes:
    """Read a file. Raise UserError if the system cannot."""
    try:
        return path.read_bytes()
    except OSError as e:
        raise UserError(f"cannot read {path}: {e.strerror or e}", cure) from e


def make_damage(path: object, error: Exception, cure: str) -> UserError:
    """Return the UserError for a damaged file, with the error in one line."""
    what = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) and error.args else str(error)
    return UserError(f"{path} is damaged: {' '.join(what.split())[:200]}", cure)


def require_type(value: Any, kind: Any) -> Any:
    """Return a value of the type `kind`. Raise TypeError if it has another."""
    if not fits(value, kind):
        shown = json.dumps(value, default=str)[:40] if not isinstance(value, (Mapping, list)) else type(value).__name__
        raise TypeError(f"{shown} is not of the type {getattr(kind, '__name__', kind)}")
    return value


def require_fields(fields: Mapping[str, Any], kinds: Mapping[str, Any]) -> None:
    """Raise TypeError that names the first field whose value is not of its type. Fields may be missing."""
    for name in (name for name in kinds if name in fields):
        if not fits(fields[name], kinds[name]):
            raise TypeError(f"{name} is {str(fields[name])[:40]!r}")


def fits(value: Any, kind: Any) -> bool:
    """Return whether a value from JSON has a type: a class, a union, or a list, tuple or mapping of types.

    A float is any finite number, an integer is not a bool, and lists stand for tuples.
    """
    return _make_check(kind)(value)


@functools.cache
def _make_check(kind: Any) -> Callable[[Any], bool]:
    """Return the function that checks values for a type. A file of rows has the same few types a million times."""
    origin, inner = get_origin(kind), [_make_check(one) for one in get_args(kind)]
    if kind is Any:
        return lambda value: True
    if origin in (Union, types.UnionType):
        return lambda value: any(check(value) for check in inner)
    if origin in (list, tuple):
        return lambda value: isinstance(value, (list, tuple)) and all(map(inner[0], value))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        keys, values = inner
        return lambda value: isinstance(value, Mapping) and all(map(keys, value)) and all(map(values, value.values()))
    if kind in (int, float):
        classes = int if kind is int else (int, float)
        return lambda value: isinstance(value, classes) and not isinstance(value, bool) and abs(value) < math.inf
    if kind is None:
        return lambda value: value is None
    return lambda value: isinstance(value, kind)
