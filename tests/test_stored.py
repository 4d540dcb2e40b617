"""Stored JSON is read with its types, or refused in one line that names the file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from nml_jax.errors import UserError
from nml_jax.stored import fits, parse_json, read_json, read_lines


@pytest.mark.parametrize(
    ("value", "kind", "right"),
    [
        (1, int, True), (True, int, False), (1.0, int, False), ("1", int, False), (10**30, int, True),
        (1, float, True), (0.5, float, True), (False, float, False), (float("inf"), float, False),
        (None, str | None, True), (None, str, False), ("a", int | str, True), ([], list[int], True),
        ([1, 2], tuple[int, ...], True), ([1, "2"], list[int], False), ("ab", list[str], False),
        ({"a": [1.5]}, dict[str, list[float]], True), ({"a": 1.5}, dict[str, list[float]], False),
        ({"lr": 1}, Mapping[str, float] | None, True), ([], dict[str, Any], False), (object(), Any, True),
    ],
)  # fmt: skip
def test_types_of_values(value: Any, kind: Any, right: bool):
    assert fits(value, kind) is right


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a": NaN}', "[Infinity]", "", "{", "1" * 5000, b"\xff\xfe"])
def test_what_is_not_our_json_is_a_value_error(text: str | bytes):
    with pytest.raises(ValueError, match=r"."):
        parse_json(text)
    assert parse_json('{"a": [1, 2.5, "ü"]}'.encode()) == {"a": [1, 2.5, "ü"]}


@pytest.mark.parametrize("data", [b"[1]", b"\xff", b"[" * 100_000, None])
def test_a_file_that_cannot_be_read_is_one_line(data: bytes | None, tmp_path: Path):
    path = tmp_path / "run.json"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(UserError) as e:
        read_json(path, "delete it", dict[str, Any])
    assert str(path) in e.value.cause
    assert "\n" not in e.value.cause
    assert e.value.cure == "delete it"


def test_lines_that_are_not_utf_8(tmp_path: Path):
    (tmp_path / "rows.jsonl").write_bytes("{}\n{}ü\n".encode())
    assert read_lines(tmp_path / "rows.jsonl", "") == ["{}", "{}ü"]
    (tmp_path / "rows.jsonl").write_bytes(b"{}\n\xff\n")
    with pytest.raises(UserError, match=r"rows\.jsonl is damaged: 'utf-8' codec"):
        read_lines(tmp_path / "rows.jsonl", "")
