"""Write files whole or not at all, and where they may go."""

import contextlib
import json
import os
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from nml_jax.errors import UserError

QUARANTINE = "quarantine.jsonl"  # in a run's folder: its undecodable records
OWNER = ".owner"  # in a run's folder: the job that works there; see owner.py


def refuse_links(folder: Path) -> None:
    """Raise UserError if a link below `folder` leads out of it: writing through it would change other files.

    The folder itself may be a link.
    """
    home = folder.resolve()
    for parent, folders, names in os.walk(home):
        for path in (Path(parent, name) for name in (*folders, *names)):
            if path.is_symlink() and not path.resolve().is_relative_to(home):
                raise UserError(
                    f"{path} is a link that leads out of {folder}", "replace it by what it leads to, or remove it"
                )


@contextlib.contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write to. It is renamed to `path` at the end, or deleted after an error.

    So a reader, or a restart after a kill, finds the old content or the new, never half of it.
    """
    # Several hosts may write one file, and processes in different containers may have the same process id.
    short = os.fsencode(path.name)[:200].decode("utf-8", "ignore")  # a name can have 255 bytes
    part = path.with_name(f".{short}.{uuid.uuid4().hex}.part")
    try:
        yield part
        part.replace(path)
    finally:
        with contextlib.suppress(OSError):  # the first error is the one to raise
            part.unlink(missing_ok=True)


def write_atomic(path: Path, text: str) -> None:
    """Write a text file, whole or not at all, and flush it to disk."""
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
    """Write `value` as indented JSON, whole or not at all."""
    write_atomic(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def check_output(out: Path, inputs: Sequence[Path]) -> None:
    """Raise UserError if a command's output, `--out`, would replace an input, or its folder does not exist."""
    if out.is_dir():
        raise UserError(f"--out={out} is a folder", "give the name of a file")
    if not out.parent.is_dir():
        raise UserError(f"--out={out}: there is no folder {out.parent}", f"create it with mkdir -p {out.parent}")
    if replaced := [path for path in inputs if out.exists() and path.exists() and out.samefile(path)]:
        raise UserError(f"--out={out} would replace the input {replaced[0]}", "give --out the name of another file")
