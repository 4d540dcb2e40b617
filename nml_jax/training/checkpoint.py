"""Save, keep, verify and load Orbax checkpoints.

A step's folder holds three checkpointables and the hashes of their files:

    checkpoints/<step>/model       params, model_state (BatchNorm statistics), ema or nothing
                       train       opt_state, step, key, skipped
                       meta        config, noise ledger, versions, as one JSON text
                       SHA256SUMS  for `sha256sum -c`; written after Orbax has committed the folder

Extraction and notebooks read only `model`.
"""

import hashlib
import json
import shutil
import sys
import threading
import uuid
from concurrent import futures
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from nml_jax import console, errors
from nml_jax.processes import job, peers
from nml_jax.stored import parse_json
from nml_jax.training.checksums import SUMS, find_latest_step, list_steps, verify, write_sums
from nml_jax.training.leaves import name_leaves
from nml_jax.training.state import TrainState

SCHEMA = 2  # version of the folder's layout

PATIENCE = 10.0  # seconds that training waits for a save that is still being written when the next is due

# Seconds that a save may take, and that a process waits for a part that another one does not write.
LIMIT = 300

BUSY = "busy"
WAITED = "not every part was written within"

TEMPORARY = ".orbax-checkpoint-tmp"  # in the names of Orbax's unfinished folders


class Checkpoints:
    """The checkpoints of one run, saved asynchronously, at most one at a time.

    Every process calls `save` at the same steps. The processes exchange the outcome of every save. So all of them
    continue in the same way, and none waits in the storage library for a process that has left it.

    Args:
        folder: `<run>/checkpoints`; created.
        every: steps between saves.
        keep: how many of the latest to keep.
        keep_every: steps between checkpoints that are never deleted; 0: none.
        meta: JSON that is stored with each.
    """

    def __init__(self, folder: Path, *, every: int, keep: int, keep_every: int, meta: dict[str, Any]):
        self.folder, self.every, self.keep, self.keep_every = folder, every, max(keep, 1), keep_every
        self.meta = json.dumps(meta)
        self.pending: tuple[int, Future] | None = None
        self.abandoned: list[Future] = []
        if sys.unraisablehook is not _hide_closed_loop:
            sys.unraisablehook = _hide_closed_loop
        with errors.report_disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        self._clean()

    def _clean(self) -> None:
        """Remove unfinished folders that a killed or failed save has left."""
        if jax.process_index() == 0:
            for folder in self.folder.glob(f"*{TEMPORARY}*"):
                shutil.rmtree(folder, ignore_errors=True)

    def is_due(self, step: int) -> bool:
        return step % self.every == 0

    def save(self, state: TrainState, *, must: bool = False) -> None:
        """Begin to save. Return when the state has been copied, so that its buffers may be donated.

        If a save fails on any process, or the one before is still being written, log it and go on without: the last
        good checkpoint stays.

        Args:
            must: wait until the checkpoint is on the disk, with hashes, and raise if it cannot be written.

        Raises:
            UserError: with `must`, if the disk fails.
            PeerLost: some process does not call this.
        """
        step = int(state.step)
        if not self._settle(wait=must or self._is_permanent(step)):
            return self._notice(f"{self._describe_pending()} is still being written; that of step {step} is left out")
        # A process that fails at once would leave the others waiting in the library. Therefore try the disk first.
        if cause := peers.agree(self._try_disk()):
            return self._report_lost(step, cause, must)
        self.pending = step, self._begin(step, _split_state(state) | {"meta": {"json": self.meta, "schema": SCHEMA}})
        if must:
            self._settle(wait=True, must=True)

    def _is_permanent(self, step: int) -> bool:
        return self.keep_every > 0 and step % self.keep_every == 0

    def _describe_pending(self) -> str:
        return f"the checkpoint of step {self.pending[0] if self.pending else 0}"

    def _try_disk(self) -> str:
        """Return why no folder and file can be written, or "". Only process 0 tries."""
        if jax.process_index() > 0:
            return ""
        probe = self.folder / f"probe{uuid.uuid4().hex}{TEMPORARY}"
        try:
            probe.mkdir()
            (probe / "file").write_bytes(bytes(4096))
        except OSError as e:
            return _explain(e, self.folder)
        finally:
            shutil.rmtree(probe, ignore_errors=True)
        return ""

    def _begin(self, step: int, parts: dict[str, Any]) -> Future:
        """Begin the save, its hashes and the removal of older checkpoints."""
        future: Future[None] = Future()

        def finish(response: Any) -> None:
            try:
                future.set_result(self._finish(response, step))
            except BaseException as e:
                future.set_exception(e)

        try:
            with _make_context():
                response = ocp.save_checkpointables_async(str(self.folder.resolve() / str(step)), parts)
        except _FAULTS as e:
            future.set_exception(e)
        else:
            threading.Thread(target=finish, args=[response], daemon=True, name="checkpoint").start()
        return future

    def _finish(self, response: Any, step: int) -> None:
        response.result()
        if jax.process_index() > 0:
            return
        write_sums(self.folder / str(step))
        self._clean()  # a failed save may have gone on writing for a while
        for old in list_steps(self.folder)[: -self.keep]:
            if not self._is_permanent(old):
                # Whoever reads it finds it whole or gone, never half of it.
                gone = self.folder / f"{old}.gone{TEMPORARY}"
                (self.folder / str(old)).rename(gone)
                shutil.rmtree(gone)

    def _settle(self, *, wait: bool, must: bool = False) -> bool:
        """Return true once no process has a save in flight. Log a line if one failed.

        Args:
            wait: wait until none is in flight.
            must: raise if one failed.
        """
        waited = False
        while self.pending is not None:
            step, save = self.pending
            futures.wait([save], timeout=PATIENCE)
            outcomes = peers.gather(self._get_outcome(save), f"the save of step {step}", slack=PATIENCE)
            if causes := [(i, cause) for i, cause in enumerate(outcomes) if cause not in ("", BUSY)]:
                # A process that waited in vain does not know the cause. Prefer that of another.
                who, cause = min(causes, key=lambda item: item[1].startswith(WAITED))
                self.pending = None
                self.abandoned = [s for s in (*self.abandoned, save) if not s.done()]
                self._clean()
                self._report_lost(step, f"process {who}: {cause}" if len(outcomes) > 1 else cause, must)
            elif BUSY not in outcomes:
                self.pending = None
            elif not wait:
                return False
            elif not waited:
                waited = True
                self._notice(f"{self._describe_pending()} is still being written; waiting for it, {LIMIT} s at most")
        return True

    def _get_outcome(self, save: Future) -> str:
        """Return the outcome of a save on this process: "" if it is written, BUSY, or why it cannot be.

        Raises:
            Exception: an error that is neither storage's nor another process's.
        """
        if not save.done():
            return BUSY
        try:
            save.result()
        except _FAULTS as e:
            return _explain(e, self.folder)
        return ""

    def _report_lost(self, step: int, cause: str, must: bool) -> None:
        if must:
            raise errors.UserError(cause, errors.FREE)
        good = [k for k in list_steps(self.folder) if k != step or (self.folder / str(k) / SUMS).exists()]
        last = f"the last good checkpoint is that of step {good[-1]}" if good else "there is no good checkpoint yet"
        self._notice(f"the checkpoint of step {step} is lost: {cause}; training goes on, {last}")

    def _notice(self, message: str) -> None:
        if jax.process_index() == 0:
            console.notice(message)

    def restore(self, shapes: TrainState) -> TrainState | None:
        """Restore the latest state onto the shardings of `shapes` (any mesh); None if there is no checkpoint yet.

        Raises:
            UserError: the latest folder is not a checkpoint, is damaged, or holds another model.
        """
        step = peers.agree(find_latest_step(self.folder))
        if step is None:
            return None
        verify(self.folder / str(step))
        peers.agree(step)  # the first process verifies, the others wait for it
        loaded = load(self.folder / str(step), _split_state(shapes))
        return TrainState(**loaded["model"], **loaded["train"])

    def close(self) -> None:
        """Wait for the save in flight, and log if it failed on this process. Does not wait for other processes."""
        if self.pending is not None:
            step, save = self.pending
            futures.wait([save])
            if cause := self._get_outcome(save):
                self._report_lost(step, cause, must=False)
        if any(not save.done() for save in self.abandoned):
            console.notice(f"waiting until the storage library gives up a failed save, {LIMIT} s at most")
            futures.wait(self.abandoned)


def _split_state(state: TrainState) -> dict[str, Any]:
    """Return the checkpointables of a state, or of its shapes."""
    model = {"params": state.params, "model_state": state.model_state, "ema": state.ema}
    train = {"opt_state": state.opt_state, "step": state.step, "key": state.key, "skipped": state.skipped}
    return {"model": model, "train": train}


# What a failed save raises: errors of the disk, from Python or Orbax; an error if a process is late with its part.
_FAULTS = (OSError, ValueError, jax.errors.JaxRuntimeError)


def _explain(error: Exception, folder: Path) -> str:
    """Return the cause of a failed save in one line. Raise `error` if it is not a fault of storage."""
    if isinstance(error, (jax.errors.JaxRuntimeError, TimeoutError)):
        return f"{WAITED} {LIMIT} s: {job.first_line(error)}"
    if disk_error := errors.as_disk_error(error, folder):
        return disk_error.cause
    raise error


def _make_context() -> ocp.Context:
    """Make the options of Orbax."""
    context = ocp.Context()
    context.async_options.timeout_secs = LIMIT
    # In the background, Orbax goes on waiting for a folder long after it has failed to create it.
    context.async_options.create_directories_asynchronously = False
    return context


def _hide_closed_loop(unraisable: Any) -> None:
    """Pass on to the interpreter's hook all but "Event loop is closed".

    After a failed write Orbax calls back into a closed event loop, with hundreds of tracebacks.
    """
    if not (isinstance(unraisable.exc_value, RuntimeError) and "Event loop is closed" in str(unraisable.exc_value)):
        sys.__unraisablehook__(unraisable)


def load(folder: Path, abstract: dict[str, Any]) -> dict[str, Any]:
    """Load checkpointables into the given shapes and shardings.

    Raises:
        UserError: the checkpoint holds another model.
    """
    cure = "use the config that wrote it, or another --workdir"
    saved = _list_shapes(_describe(folder))
    # Checked before the load, as Orbax's own check comes when parts are being loaded already.
    if differ := sorted(saved ^ _list_shapes(abstract["model"])):
        name, shape = differ[0]
        raise errors.UserError(f"{folder} does not fit this config's model: {name} {shape}", cure)
    try:
        return ocp.load_checkpointables(str(folder.resolve()), abstract)
    except (ValueError, KeyError, TypeError, FileNotFoundError) as e:
        line = next((line for line in str(e).splitlines() if line.strip()), type(e).__name__)
        fault = "does not fit this config's model" if len(abstract) > 1 else "is damaged"
        raise errors.UserError(f"{folder} {fault}: {line}", cure) from e


def describe_model(folder: Path) -> Any:
    """Return the shapes of a checkpoint's model on one device, for `load`, whatever config wrote it.

    Raises:
        UserError: it is damaged.
    """
    one = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=one), _describe(folder))


def _describe(folder: Path) -> Any:
    found = ocp.checkpointables_metadata(str(folder.resolve())).metadata["model"]
    if found is None:
        lost = f"delete {folder}; the run continues from the checkpoint before it, to the same result"
        raise errors.UserError(f"{folder / 'model'} is damaged: it cannot be read", lost)
    return found


def _list_shapes(tree: Any) -> set[tuple[str, tuple[int, ...]]]:
    """Return name and shape of every array of a tree of dicts."""
    return {(name, tuple(x.shape)) for name, x in name_leaves(tree).items()}


def hash_tree(tree: Any) -> str:
    """Return the SHA-256 of the names, dtypes, shapes and bytes of all (host) arrays of a tree."""
    sha = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.ascontiguousarray(leaf)
        sha.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}\n".encode())
        sha.update(array.reshape(-1).view(np.uint8).data)  # no copy
    return sha.hexdigest()


def read_meta(folder: Path) -> dict[str, Any]:
    """Read what is stored beside the arrays of checkpoint `folder`: config, ledger, num_classes, versions."""
    return parse_json(ocp.load_checkpointables(str(folder.resolve()), {"meta": None})["meta"]["json"])
