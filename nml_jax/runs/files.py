"""Files that are written whole or not at all."""

import contextlib
import json
import os
import uuid
from pathlib import Path
from typing import Any

QUARANTINE = "quarantine.jsonl"  # of a run: its undecodable records


def write_atomic(path: Path, text: str) -> None:
    """Write a file so that a reader, or a restart after a kill, sees the old content or the new, never half."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Several hosts may write one file, and in containers every process has the same number.
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        with part.open("w", encoding="utf-8") as f:
            f.write(text)
            f.flush()
            os.fsync(f.fileno())
        part.replace(path)
    except OSError:
        with contextlib.suppress(OSError):  # what went wrong with it is about to be told
            part.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    write_atomic(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
