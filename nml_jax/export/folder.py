"""Write a folder that appears under its name once it is complete."""

import contextlib
import fcntl
import glob
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError
from safetensors.numpy import save_file

from nml_jax import console
from nml_jax.errors import UserError
from nml_jax.export.facts import collect_facts
from nml_jax.export.formats import Package
from nml_jax.export.origin import Origin
from nml_jax.hashes import hash_file
from nml_jax.runs.files import write_atomic, write_json

CARD, LEDGER = "README.md", "noise.json"


def check_out(out: Path) -> None:
    """Raise UserError if the folder exists already, or the one that it is to be in does not."""
    if out.exists() or out.is_symlink():
        raise UserError(f"{out} exists already", "choose another OUT, or delete it first")
    if not out.absolute().parent.is_dir():
        raise UserError(f"{out}: there is no folder {out.parent}", f"create it with mkdir -p {out.parent}")


def write_folder(out: Path, origin: Origin, package: Package) -> None:
    """Write weights, config, ledger and card. Nothing is left of a folder that cannot be completed.

    The same weights give the same bytes.

    Args:
        out: a path that does not exist.

    Raises:
        UserError: `out` exists, or cannot be written.
    """
    from nml_jax.reporting.card import write_card  # imports Jinja2 and pandas

    check_out(out)
    with _make_partial(out) as partial:
        weights = partial / package.weights_name
        save_file(dict(package.tensors), weights, metadata=package.metadata)
        for name, content in {package.config_name: package.config, **package.files}.items():
            (partial / name).parent.mkdir(exist_ok=True)
            write_json(partial / name, content)
        if origin.ledger:
            write_json(partial / LEDGER, origin.ledger.to_dict())
        files = sorted(path for path in partial.rglob("*") if path.is_file())
        sums = {path.relative_to(partial).as_posix(): hash_file(path) for path in files}
        write_atomic(partial / CARD, write_card(collect_facts(origin, package, sums)))
        _flush(weights)
        check_out(out)  # another export may have ended meanwhile
        partial.rename(out)


@contextlib.contextmanager
def _make_partial(out: Path) -> Iterator[Path]:
    """Make a folder beside `out` whose name cannot be foreseen. Delete it unless it has been renamed.

    The process holds a lock on it, which also a kill releases: so the next export finds what a killed one left.

    Raises:
        UserError: it cannot be written.
    """
    _delete_abandoned(out)
    partial = out.with_name(f".{out.name}.{uuid.uuid4().hex}.part")
    try:
        partial.mkdir()
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(OSError):  # some file systems have no locks
                stack.enter_context(_lock(partial))
            yield partial
    except (OSError, SafetensorError) as e:
        why = getattr(e, "strerror", None) or " ".join(str(e).split())
        raise UserError(f"cannot write {out}: {why}", "give OUT a place on a disk with room; nothing was left") from e
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _delete_abandoned(out: Path) -> None:
    """Delete the unfinished folders of exports to `out` that were killed; name those that cannot be deleted."""
    for partial in out.parent.glob(f".{glob.escape(out.name)}.{'[0-9a-f]' * 32}.part"):
        try:
            with _lock(partial):
                shutil.rmtree(partial)
        except BlockingIOError:  # another export is at work in it
            continue
        except OSError as e:
            console.notice(f"{partial} is left of an export that was killed, and cannot be deleted: {e.strerror}")


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Hold the lock on a folder. Raise BlockingIOError if another process holds it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def _flush(path: Path) -> None:
    """Wait until a file is on the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
