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
import re
import shutil
import sys
import threading
from concurrent import futures
from concurrent.futures import Future
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from nml_jax import errors, log, models, processes, runtime, settings
from nml_jax.models import convert
from nml_jax.training.state import TrainState

SUMS = "SHA256SUMS"
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
        with errors.storage(folder):
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
        if cause := processes.agree(self._refused()):
            return self._lost(step, cause, must)
        self.pending = step, self._begin(step, _parts(state) | {"meta": {"json": self.meta, "schema": SCHEMA}})
        if must:
            self._settle(wait=True, must=True)

    def _for_good(self, step: int) -> bool:
        return self.keep_every > 0 and step % self.keep_every == 0

    def _saving(self) -> str:
        return f"the checkpoint of step {self.pending[0] if self.pending else 0}"

    def _refused(self) -> str:
        """Why the disk takes no more folders and files, or ""; asked by the first process."""
        probe = self.folder / f"probe{TEMPORARY}"
        try:
            if jax.process_index() == 0:
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
            with ocp.Context(async_options=_OPTIONS):
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
            said = processes.gather(self._outcome(save), f"the save of step {step}", slack=PATIENCE)
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
            log.say(message)

    def restore(self, shapes: TrainState) -> TrainState | None:
        """The latest state, placed as `shapes` says (any mesh), or None if there is no checkpoint yet.

        Raises:
            UserError: the latest folder is no checkpoint, is damaged, or holds another model.
        """
        step = runtime.agree(latest_step(self.folder))
        if step is None:
            return None
        verify(self.folder / str(step))
        runtime.agree(step)  # the first process verifies, the others wait for it
        loaded = _load(self.folder / str(step), _parts(shapes))
        return TrainState(**loaded["model"], **loaded["train"])

    def close(self) -> None:
        """Wait for the save in flight; if it failed here, say so. Of several processes one alone may come here."""
        if self.pending is not None:
            step, save = self.pending
            futures.wait([save])
            if cause := self._outcome(save):
                self._lost(step, cause, must=False)
        if any(not save.done() for save in self.abandoned):
            log.say(f"waiting until the storage library gives up a failed save, {LIMIT} s at most")
            futures.wait(self.abandoned)


def _parts(state: TrainState) -> dict[str, Any]:
    """The checkpointables of a state, or of its shapes."""
    model = {"params": state.params, "model_state": state.model_state, "ema": state.ema}
    train = {"opt_state": state.opt_state, "step": state.step, "key": state.key, "skipped": state.skipped}
    return {"model": model, "train": train}


# Folders that the library cannot make in the background are waited for in the background, long after it is known.
_OPTIONS = ocp.options.AsyncOptions(timeout_secs=LIMIT, create_directories_asynchronously=False)

# What a save may fail of: the disk, as Python or the library puts it; a process that does not write its part in time.
_FAULTS = (OSError, ValueError, jax.errors.JaxRuntimeError)


def _cause(error: Exception, folder: Path) -> str:
    """One line.

    Raises:
        ValueError: `error`, if it is no fault of storage.
    """
    if isinstance(error, (jax.errors.JaxRuntimeError, TimeoutError)):
        return f"{WAITED} {LIMIT} s: {processes.first_line(error)}"
    if told := errors.of_storage(error, folder):
        return told.cause
    raise error


def _unraisable(unraisable: Any) -> None:
    """The interpreter's hook, but for the callbacks of a failed write into an event loop that its library has closed:
    hundreds of tracebacks about a fault that is told in a line."""
    if not (isinstance(unraisable.exc_value, RuntimeError) and "Event loop is closed" in str(unraisable.exc_value)):
        sys.__unraisablehook__(unraisable)


def steps(folder: Path) -> list[int]:
    """The steps saved in a `checkpoints` folder, ascending."""
    return sorted(int(p.name) for p in folder.iterdir() if p.name.isdecimal()) if folder.is_dir() else []


def latest_step(folder: Path) -> int | None:
    return max(steps(folder), default=None)


def write_sums(folder: Path) -> None:
    """Write the SHA-256 of every file below `folder` in the format of sha256sum."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != SUMS)
    log.atomic_write(folder / SUMS, "".join(f"{_sha(p)}  {p.relative_to(folder)}\n" for p in files))


def verify(folder: Path) -> None:
    """Prove that a checkpoint is as it was written.

    A folder that Orbax has committed but that has no hashes yet comes from a run killed in between: it gets them now.

    Raises:
        UserError: the folder is no checkpoint, or a file is missing or differs from what was written.
    """
    if jax.process_index() > 0:
        return
    cure = f"delete {folder}; the run continues from the checkpoint before it, to the same result"
    if not (folder / SUMS).exists():
        if not ((folder / "_CHECKPOINT_METADATA").exists() and (folder / "model").is_dir()):
            raise errors.UserError(f"{folder} is no checkpoint", cure)
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


def _load(folder: Path, abstract: dict[str, Any]) -> dict[str, Any]:
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
    return {(jax.tree_util.keystr(path), tuple(x.shape)) for path, x in jax.tree_util.tree_leaves_with_path(tree)}


def digest(tree: Any) -> str:
    """SHA-256 over the names, dtypes, shapes and bytes of all (host) arrays of a tree: equal iff bit-equal."""
    sha = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.ascontiguousarray(leaf)
        sha.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}\n".encode())
        sha.update(array.tobytes())
    return sha.hexdigest()


class Loaded(NamedTuple):
    """A model out of a checkpoint. `model.apply(params, model_state, batch, train=False, key=None)` runs it."""

    model: models.Model
    params: Any
    model_state: Any
    step: int
    meta: dict[str, Any]  # config, ledger, num_classes, versions


def read_meta(folder: Path) -> dict[str, Any]:
    """What was stored beside the arrays of checkpoint `folder`: config, ledger, num_classes, versions."""
    return json.loads(ocp.load_checkpointables(str(folder.resolve()), {"meta": None})["meta"]["json"])


def load_model(run: str | Path, *, step: int | None = None, weights: str = "raw") -> Loaded:
    """Load the model of a finished or interrupted run, on one device.

    Args:
        run: the folder of a run (a cell of a sweep), or one checkpoint's folder.
        step: which checkpoint; None: the last.
        weights: "raw" or "ema".

    Raises:
        UserError: nothing there, damaged, or without the moving average asked for.
    """
    folder = _find(Path(run), step)
    verify(folder)
    meta = read_meta(folder)
    config = settings.from_json(meta["config"])
    if weights not in ("raw", "ema") or (weights == "ema" and not config.train.ema):
        raise errors.UserError(
            f"{folder} holds no {weights!r} weights", "use weights='raw', or train with train.ema > 0"
        )
    model = models.build(config.model, num_classes=meta["num_classes"], image_size=config.data.image_size)
    params, model_state = jax.eval_shape(lambda key: model.init(key, model.spec), jax.random.key(0))
    shapes = {"params": params, "model_state": model_state, "ema": params if config.train.ema else None}
    one = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=one), shapes)
    loaded = _load(folder, {"model": shapes})["model"]
    params = loaded["params"] if weights == "raw" else loaded["ema"]
    return Loaded(model, params, loaded["model_state"], int(folder.name), meta)


def _find(path: Path, step: int | None) -> Path:
    """The checkpoint's folder below `path`."""
    if path.name.isdecimal() and step is None:
        parent, step = path.parent, int(path.name)
    else:
        parent = path / "checkpoints"
    there = steps(parent)
    if not there or (step is not None and step not in there):
        what = f"checkpoint {step}" if there else "checkpoint"
        has = f"it has {', '.join(map(str, there))}" if there else "a run's folder holds checkpoints/<step>"
        raise errors.UserError(f"{path} holds no {what}", f"name the folder of a run; {has}")
    return parent / str(step if step is not None else there[-1])


def warm_start(init_from: str, config: Any, params: Any, model_state: Any) -> tuple[Any, Any]:
    """Weights from elsewhere in place of fresh ones: a .safetensors file with timm's names, or a run's folder.

    A head for another number of classes is left as it is, and this is said.

    Args:
        init_from: `config.init_from`.
        config: the whole config.
        params, model_state: fresh ones; they give the shapes.

    Raises:
        UserError: no such file, or weights of another model.
    """
    path = Path(init_from)
    if not path.exists():
        raise errors.UserError(f"init_from={init_from} does not exist", "give a .safetensors file or a run's folder")
    if path.is_dir():
        loaded = load_model(path)
        given = {"params": loaded.params, "model_state": loaded.model_state}
    else:
        given = dict(zip(("params", "model_state"), convert.load(path, (params, model_state)), strict=True))
    fresh = {"params": params, "model_state": model_state}
    theirs = {jax.tree_util.keystr(p): x for p, x in jax.tree_util.tree_leaves_with_path(given)}
    ours = {jax.tree_util.keystr(p): x for p, x in jax.tree_util.tree_leaves_with_path(fresh)}
    head = [name for name in ours if name.startswith("['params']['head']")]
    kept = {n for n in head if any(m not in theirs or theirs[m].shape != ours[m].shape for m in head)}
    wrong = [n for n in ours if n not in kept and (n not in theirs or theirs[n].shape != ours[n].shape)]
    if wrong := [*wrong, *(theirs.keys() - ours.keys() - kept)]:
        name = min(wrong)
        raise errors.UserError(
            f"{init_from} holds another model than model.name={config.model.name}: {name} does not fit",
            "set the model's keys to those of the weights",
        )
    if kept:
        log.say(f"{init_from}: its head is for another number of classes; the head starts fresh")
    merged = jax.tree_util.tree_map_with_path(
        lambda p, x: x if jax.tree_util.keystr(p) in kept else np.asarray(theirs[jax.tree_util.keystr(p)], x.dtype),
        fresh,
    )
    return merged["params"], merged["model_state"]
