"""List the folders of checkpoints, and verify them by their hashes."""

import hashlib
import re
from pathlib import Path

import jax

from nml_jax import errors
from nml_jax.runs.files import write_atomic

SUMS = "SHA256SUMS"


def list_steps(folder: Path) -> list[int]:
    """List the steps saved in a `checkpoints` folder, in ascending order."""
    return sorted(int(p.name) for p in folder.iterdir() if p.name.isdecimal()) if folder.is_dir() else []


def find_latest_step(folder: Path) -> int | None:
    return max(list_steps(folder), default=None)


def write_sums(folder: Path) -> None:
    """Write the SHA-256 of every file below `folder` in the format of sha256sum."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != SUMS)
    write_atomic(folder / SUMS, "".join(f"{_sha(p)}  {p.relative_to(folder)}\n" for p in files))


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
        if not ((folder / "_CHECKPOINT_METADATA").exists() and (folder / "model").is_dir()):
            raise errors.UserError(f"{folder} is not a checkpoint", cure)
        write_sums(folder)
    sums = re.findall(r"^([0-9a-f]{64})  (.+)$", (folder / SUMS).read_text("utf-8", "replace"), re.MULTILINE)
    present = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() and p.name != SUMS)
    if present != sorted(name for _, name in sums):
        raise errors.UserError(f"{folder} does not hold the files that its {SUMS} lists: it is truncated", cure)
    for expected, name in sums:
        if _sha(folder / name) != expected:
            raise errors.UserError(f"{folder / name} has changed since it was written (SHA-256 differs)", cure)


def _sha(path: Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()
