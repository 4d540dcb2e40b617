"""Files that are written whole or not at all."""

import contextlib
import json
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

QUARANTINE = "quarantine.jsonl"  # of a run: its undecodable records


@contextlib.contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """Yield the path of a part to write. It becomes `path` at the end, or goes if that is not reached.

    So a reader, or a restart after a kill, sees the old content or the new, never half.
    """
    # Several hosts may write one file, and in containers every process has the same number.
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        yield part
        part.replace(path)
    finally:
        with contextlib.suppress(OSError):  # what went wrong with it is about to be told
            part.unlink(missing_ok=True)


def write_atomic(path: Path, text: str) -> None:
    """Write a text file, whole or not at all, and see that it is on the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replace_file(path) as part, part.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replace_file(path) as part:
        part.write_bytes(data)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    write_atomic(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
