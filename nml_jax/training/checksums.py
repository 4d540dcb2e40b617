"""List the folders of checkpoints, and verify them by their hashes."""

import os
import re
from pathlib import Path
from typing import Any

import jax

from nml_jax import console, errors
from nml_jax.hashes import hash_file
from nml_jax.runs.files import replace_file
from nml_jax.stored import read_json

SUMS = "SHA256SUMS"
JSONS = ("_CHECKPOINT_METADATA", "_METADATA", "_sharding", "_strings.json")  # Orbax's descriptions
METADATA = "_CHECKPOINT_METADATA"  # in the folder of every checkpoint of Orbax


def list_steps(folder: Path) -> list[int]:
    """List the steps saved in a `checkpoints` folder, in ascending order."""
    return sorted(int(p.name) for p in folder.iterdir() if p.name.isdecimal()) if folder.is_dir() else []


def find_latest_step(folder: Path) -> int | None:
    """Return the latest step saved in a `checkpoints` folder; None if there is none."""
    return max(list_steps(folder), default=None)


def write_sums(folder: Path) -> None:
    """Write the SHA-256 of every file below `folder` in the format of sha256sum."""
    text = "".join(f"{hash_file(folder / name)}  {name}\n" for name in _list_files(folder))
    # This does not make the folder: a run at work may be deleting it.
    with replace_file(folder / SUMS) as part, part.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _list_files(folder: Path) -> list[str]:
    """List the files below a folder, but for the hashes, which another process may be writing."""
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() and SUMS not in p.name)


def verify(folder: Path) -> None:
    """Verify that a checkpoint is as it was written.

    A run that is killed after Orbax's commit leaves a folder without hashes. They are written now.

    Raises:
        UserError: the folder is not a checkpoint, or a file is missing or has changed.
    """
    if jax.process_index() > 0:
        return
    cure = f"delete {folder}; the run continues from the checkpoint before it, to the same result"
    if not (folder / SUMS).exists():
        if not ((folder / METADATA).exists() and (folder / "model").is_dir()):
            raise errors.UserError(f"{folder} is not a checkpoint", cure)
        for path in (path for path in folder.rglob("*") if path.name in JSONS):
            read_json(path, cure, dict[str, Any])
        if not os.access(folder, os.W_OK):
            console.notice(f"{folder} has no {SUMS}, and none can be written: whether it has changed cannot be told")
            return
        write_sums(folder)
    sums = re.findall(r"^([0-9a-f]{64})  (.+)$", (folder / SUMS).read_text("utf-8", "replace"), re.MULTILINE)
    if _list_files(folder) != sorted(name for _, name in sums):
        raise errors.UserError(f"{folder} does not hold the files that its {SUMS} lists: it is truncated", cure)
    for expected, name in sums:
        if hash_file(folder / name) != expected:
            raise errors.UserError(f"{folder / name} has changed since it was written (SHA-256 differs)", cure)
