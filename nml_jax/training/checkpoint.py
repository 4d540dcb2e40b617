"""Orbax checkpoints: when to save, which to keep, how to prove that what is read is what was written.

A step's folder holds three checkpointables and the hashes of their files:

    checkpoints/<step>/model       params, model_state (BatchNorm statistics), ema or nothing
                       train       opt_state, step, key, skipped
                       meta        config, noise ledger, versions, as one JSON text
                       SHA256SUMS  `sha256sum -c` proves the folder; written after Orbax has committed it

Extraction and notebooks read `model` alone.
"""

import hashlib
import json
import shutil
import sys
import threading
from concurrent import futures
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from nml_jax import console, errors
from nml_jax.processes import job, peers
from nml_jax.training.checksums import SUMS, latest_step, steps, verify, write_sums
from nml_jax.training.leaves import name_leaves
from nml_jax.training.state import TrainState

SCHEMA = 2  # of the parts

# Seconds that training waits for a save that is still being written when the next is due.
PATIENCE = 10.0

# Seconds that a save may take. Also, nobody waits longer than this for a part that another process does not write.
LIMIT = 300

BUSY = "busy"
WAITED = "not every part was written within"

# Of the folders of the library that are no checkpoint yet.
TEMPORARY = ".orbax-checkpoint-tmp"


class Checkpoints:
    """The checkpoints of one run: saved asynchronously, at most one in flight.

    Every process calls `save` at the same steps. What has become of a save they tell each other, so that all of them go
    on alike, and no one waits in the storage library for a process that has left it.

    Args:
        folder: `<run>/checkpoints`; created.
        every: steps between saves.
        keep: how many of the latest to keep.
        keep_every: steps between those that are kept for good; 0: none.
        meta: stored with each, JSON.
    """

    def __init__(self, folder: Path, *, every: int, keep: int, keep_every: int, meta: dict[str, Any]):
        self.folder, self.every, self.keep, self.keep_every = folder, every, max(keep, 1), keep_every
        self.meta = json.dumps(meta)
        self.pending: tuple[int, Future] | None = None
        self.abandoned: list[Future] = []
        if sys.unraisablehook is not _unraisable:
            sys.unraisablehook = _unraisable
        with errors.storing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        self._clean()

    def _clean(self) -> None:
        """Remove what a killed or failed save has left; it takes space."""
        if jax.process_index() == 0:
            for left in self.folder.glob(f"*{TEMPORARY}*"):
                shutil.rmtree(left, ignore_errors=True)

    def due(self, step: int) -> bool:
        return step % self.every == 0

    def save(self, state: TrainState, *, must: bool = False) -> None:
        """Begin to save; returns when the state has been copied, so that its buffers may be donated.

        A save that fails on any process, or that storage has no time for as it still writes the one before, is told and
        left out: training is worth more than one of its checkpoints, and the last good one stays.

        Args:
            must: wait until it is on the disk, hashed, on all processes, and fail if it cannot be.

        Raises:
            UserError: with `must`, that the disk takes no more.
            PeerLost: some process does not come here.
        """
        step = int(state.step)
        if not self._settle(wait=must or self._for_good(step)):
            return self._tell(f"{self._saving()} is still being written; that of step {step} is left out")
        # A process that fails in the library at once leaves the others alone in it. So what it begins with is tried.
        if cause := peers.agree(self._refused()):
            return self._lost(step, cause, must)
        self.pending = step, self._begin(step, _parts(state) | {"meta": {"json": self.meta, "schema": SCHEMA}})
        if must:
            self._settle(wait=True, must=True)

    def _for_good(self, step: int) -> bool:
        return self.keep_every > 0 and step % self.keep_every == 0

    def _saving(self) -> str:
        return f"the checkpoint of step {self.pending[0] if self.pending else 0}"

    def _refused(self) -> str:
        """Why the disk takes no more folders and files, or ""; looked into by the first process alone."""
        if jax.process_index() > 0:
            return ""
        probe = self.folder / f"probe{TEMPORARY}"
        try:
            probe.mkdir()
            (probe / "file").write_bytes(bytes(4096))
        except OSError as e:
            return _cause(e, self.folder)
        finally:
            shutil.rmtree(probe, ignore_errors=True)
        return ""

    def _begin(self, step: int, parts: dict[str, Any]) -> Future:
        """Of the save, its hashes and the removal of older ones."""
        ended: Future[None] = Future()

        def finish(response: Any) -> None:
            try:
                ended.set_result(self._finish(response, step))
            except BaseException as e:
                ended.set_exception(e)

        try:
            with _context():
                response = ocp.save_checkpointables_async(str(self.folder.resolve() / str(step)), parts)
        except _FAULTS as e:
            ended.set_exception(e)
        else:
            threading.Thread(target=finish, args=[response], daemon=True, name="checkpoint").start()
        return ended

    def _finish(self, response: Any, step: int) -> None:
        response.result()
        if jax.process_index() > 0:
            return
        write_sums(self.folder / str(step))
        self._clean()  # a save that had failed may have gone on for a while
        for old in steps(self.folder)[: -self.keep]:
            if not self._for_good(old):
                shutil.rmtree(self.folder / str(old))

    def _settle(self, *, wait: bool, must: bool = False) -> bool:
        """Whether no save is in flight any more, on all processes; if it has failed on one of them, that is told.

        Args:
            wait: until there is none.
            must: raise if it has failed.
        """
        waited = False
        while self.pending is not None:
            step, save = self.pending
            futures.wait([save], timeout=PATIENCE)
            said = peers.gather(self._outcome(save), f"the save of step {step}", slack=PATIENCE)
            if causes := [(i, cause) for i, cause in enumerate(said) if cause not in ("", BUSY)]:
                # Who has waited in vain does not know why; others may, of a save that has failed, wait yet.
                who, cause = min(causes, key=lambda found: found[1].startswith(WAITED))
                self.pending = None
                self.abandoned = [s for s in (*self.abandoned, save) if not s.done()]
                self._clean()
                self._lost(step, f"process {who}: {cause}" if len(said) > 1 else cause, must)
            elif BUSY not in said:
                self.pending = None
            elif not wait:
                return False
            elif not waited:
                waited = True
                self._tell(f"{self._saving()} is still being written; waiting for it, {LIMIT} s at most")
        return True

    def _outcome(self, save: Future) -> str:
        """What has become of a save here: "" if it is written, BUSY, or why it cannot be.

        Raises:
            Exception: what is no fault of storage or of other processes.
        """
        if not save.done():
            return BUSY
        try:
            save.result()
        except _FAULTS as e:
            return _cause(e, self.folder)
        return ""

    def _lost(self, step: int, cause: str, must: bool) -> None:
        if must:
            raise errors.UserError(cause, errors.FREE)
        good = [k for k in steps(self.folder) if k != step or (self.folder / str(k) / SUMS).exists()]
        last = f"the last good checkpoint is that of step {good[-1]}" if good else "there is no good checkpoint yet"
        self._tell(f"the checkpoint of step {step} is lost: {cause}; training goes on, {last}")

    def _tell(self, message: str) -> None:
        if jax.process_index() == 0:
            console.notice(message)

    def restore(self, shapes: TrainState) -> TrainState | None:
        """The latest state, placed as `shapes` says (any mesh), or None if there is no checkpoint yet.

        Raises:
            UserError: the latest folder is no checkpoint, is damaged, or holds another model.
        """
        step = peers.agree(latest_step(self.folder))
        if step is None:
            return None
        verify(self.folder / str(step))
        peers.agree(step)  # the first process verifies, the others wait for it
        loaded = load(self.folder / str(step), _parts(shapes))
        return TrainState(**loaded["model"], **loaded["train"])

    def close(self) -> None:
        """Wait for the save in flight; if it failed here, say so. Of several processes one alone may come here."""
        if self.pending is not None:
            step, save = self.pending
            futures.wait([save])
            if cause := self._outcome(save):
                self._lost(step, cause, must=False)
        if any(not save.done() for save in self.abandoned):
            console.notice(f"waiting until the storage library gives up a failed save, {LIMIT} s at most")
            futures.wait(self.abandoned)


def _parts(state: TrainState) -> dict[str, Any]:
    """The checkpointables of a state, or of its shapes."""
    model = {"params": state.params, "model_state": state.model_state, "ema": state.ema}
    train = {"opt_state": state.opt_state, "step": state.step, "key": state.key, "skipped": state.skipped}
    return {"model": model, "train": train}


# What a save may fail of: the disk, as Python or the library puts it; a process that does not write its part in time.
_FAULTS = (OSError, ValueError, jax.errors.JaxRuntimeError)


def _cause(error: Exception, folder: Path) -> str:
    """One line.

    Raises:
        ValueError: `error`, if it is no fault of storage.
    """
    if isinstance(error, (jax.errors.JaxRuntimeError, TimeoutError)):
        return f"{WAITED} {LIMIT} s: {job.first_line(error)}"
    if told := errors.as_disk_error(error, folder):
        return told.cause
    raise error


def _context() -> ocp.Context:
    """How the library saves."""
    context = ocp.Context()
    context.async_options.timeout_secs = LIMIT
    # Folders that it cannot make in the background it waits for in the background, long after that is known.
    context.async_options.create_directories_asynchronously = False
    return context


def _unraisable(unraisable: Any) -> None:
    """The interpreter's hook, but for the callbacks of a failed write into an event loop that its library has closed:
    hundreds of tracebacks about a fault that is told in a line."""
    if not (isinstance(unraisable.exc_value, RuntimeError) and "Event loop is closed" in str(unraisable.exc_value)):
        sys.__unraisablehook__(unraisable)


def load(folder: Path, abstract: dict[str, Any]) -> dict[str, Any]:
    """Read checkpointables into the given shapes and shardings."""
    cure = "use the config that wrote it, or another --workdir"
    saved = _shapes(ocp.checkpointables_metadata(str(folder.resolve())).metadata["model"])
    # Asked before the load, as the library's own check comes when parts of it are under way already.
    if differ := sorted(saved ^ _shapes(abstract["model"])):
        name, shape = differ[0]
        raise errors.UserError(f"{folder} does not fit this config's model: {name} {shape}", cure)
    try:
        return ocp.load_checkpointables(str(folder.resolve()), abstract)
    except (ValueError, KeyError, TypeError, FileNotFoundError) as e:
        line = next((line for line in str(e).splitlines() if line.strip()), type(e).__name__)
        raise errors.UserError(f"{folder} does not fit this config's model: {line}", cure) from e


def _shapes(tree: Any) -> set[tuple[str, tuple[int, ...]]]:
    """Name and shape of every array of a tree of dicts."""
    return {(name, tuple(x.shape)) for name, x in name_leaves(tree).items()}


def hash_tree(tree: Any) -> str:
    """SHA-256 over the names, dtypes, shapes and bytes of all (host) arrays of a tree: equal iff bit-equal."""
    sha = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.ascontiguousarray(leaf)
        sha.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}\n".encode())
        sha.update(array.tobytes())
    return sha.hexdigest()


def read_meta(folder: Path) -> dict[str, Any]:
    """What was stored beside the arrays of checkpoint `folder`: config, ledger, num_classes, versions."""
    return json.loads(ocp.load_checkpointables(str(folder.resolve()), {"meta": None})["meta"]["json"])
