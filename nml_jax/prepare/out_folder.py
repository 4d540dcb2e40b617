"""Check, own and name the folder that a builder writes, so that it appears whole or not at all."""

import contextlib
import glob
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from nml_jax.data.class_names import escape_name
from nml_jax.errors import UserError
from nml_jax.runs import owner


def check_out(src: Path, out: Path) -> None:
    """Raise UserError if `out` exists already, lies inside the folder `src`, or has a path that is not UTF-8."""
    target = out.resolve()
    if escape_name(str(target)) != str(target):  # the library of the records cannot open it
        raise UserError(f"the path {escape_name(str(target))} is not UTF-8", "choose an OUT whose path is")
    if target.is_relative_to(src.resolve()):
        raise UserError(f"{out} lies inside {src}", "choose an OUT outside SRC, or it would look like a split")
    if target.is_file() or (target.is_dir() and any(target.iterdir())):
        raise UserError(f"{out} exists already", "choose another OUT, or delete it first")


@contextlib.contextmanager
def own_out(out: Path) -> Iterator[None]:
    """Own `out`, so that no other build writes it at the same time. The folder around it is created.

    Raises:
        UserError: another build owns it, or it cannot be written.
    """
    target = out.resolve()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError as e:
        raise UserError(
            f"cannot write {out}: Not a directory: {e.filename}", "choose an OUT in a writable folder"
        ) from e
    except OSError as e:
        raise UserError(f"cannot write {out}: {e}", "choose an OUT in a writable folder") from e
    with owner.hold(target.with_name(f".{target.name}.owner"), str(out), "wait until it ends, or choose another OUT"):
        yield


@contextlib.contextmanager
def make_partial(out: Path) -> Iterator[Path]:
    """Make a folder to build `out` in, on the same disk, and remove it at the end. Its name cannot be foreseen.

    Raises:
        UserError: the disk fails.
    """
    target = out.resolve()
    partial = target.with_name(f".{target.name}.{uuid.uuid4().hex}.partial")
    try:
        for left in target.parent.glob(f".{glob.escape(target.name)}.*.partial"):  # by a killed build
            shutil.rmtree(left, ignore_errors=True)
        partial.mkdir()
        yield partial
    except OSError as e:
        raise UserError(f"cannot write {out}: {e}", "free or remount the disk, or choose another OUT") from e
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def find_partial(out: Path) -> Path:
    """Return the folder where a build of `out` that can be continued keeps its parts. It is on the same disk.

    Raises:
        UserError: something else has its name, such as a link to another folder.
    """
    partial = out.resolve().with_name(f".{out.resolve().name}.partial")
    if partial.is_symlink() or (partial.exists() and not partial.is_dir()):
        raise UserError(f"{partial} is a link or a file, not the folder of a build", "remove it, or choose another OUT")
    return partial
