"""Keep the vectors of texts that a service has answered: one file for each service, which only grows.

A file is a line of JSON that names the service, and records of one size: the SHA-256 of (service, text), the vector as
little-endian float32, and the CRC-32 of both. It may be cut at any byte, as by a kill: a record that is not whole, or
whose sum is wrong, does not count. Only who holds the lock writes, so that two programs do not ask for the same text.
"""

import contextlib
import fcntl
import json
import os
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

import numpy as np

from nml_jax.console import notice, notice_once
from nml_jax.data.embeddings.service import Service
from nml_jax.errors import UserError, report_disk_errors

VERSION = 1
HASH = 32  # bytes of a SHA-256
LONGEST = 2**16  # bytes of the first line


def find_folder(folder: str) -> Path:
    """Return the folder of the caches: the given one, or nml_jax/embeddings among the user's caches."""
    if folder:
        return Path(folder).expanduser()
    caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(caches).expanduser() / "nml_jax" / "embeddings"


class Cache:
    """The vectors of one service.

    Args:
        folder: of the caches; it need not exist.
        service: whose vectors they are.

    Attributes:
        width: numbers per vector; 0 as long as there is none.

    Raises:
        UserError: the file is of another service or another program, or cannot be read.
    """

    def __init__(self, folder: Path, service: Service):
        self.path, self.service = folder / f"{service.digest[:24]}.vectors", service
        self.width = self._start = self._known = 0
        self._rows: dict[bytes, int] = {}
        self._records: np.ndarray | None = None
        self._file: IO[bytes] | None = None
        self.refresh()

    def refresh(self) -> None:
        """Read the file again, as another program may have added to it."""
        try:
            with self.path.open("rb") as file:
                first = file.readline(LONGEST)
                self._read_header(first)
                self._start = len(first)
                whole = (os.fstat(file.fileno()).st_size - self._start) // self._type.itemsize
            if whole:
                self._records = np.memmap(self.path, self._type, "r", self._start, (whole,))
                keys = self._records["key"][self._known :].tolist()
                self._rows.update(zip(keys, range(self._known, whole), strict=True))
                self._known = whole
        except FileNotFoundError:
            self._rows.clear()
        except OSError as e:
            raise UserError(f"cannot read {self.path}: {e.strerror}", "give another --config.runtime.api.cache") from e

    def _read_header(self, line: bytes) -> None:
        cure = "move it away, or give another --config.runtime.api.cache"
        try:
            about = json.loads(line)
            version, width = about["version"], about["width"]
            theirs = Service(about["url"], about["model"], about["dimensions"])
        except (ValueError, KeyError, TypeError) as e:
            raise UserError(f"{self.path} does not hold vectors of a service", cure) from e
        if version != VERSION or not isinstance(width, int) or width < 1:
            raise UserError(f"{self.path} is of version {version!r}, with vectors of {width!r} numbers", cure)
        if theirs != self.service:
            raise UserError(f"{self.path} holds vectors of {theirs.model} at {theirs.url}, not of this model", cure)
        self.width = width

    @property
    def _type(self) -> np.dtype:
        return np.dtype([("key", f"V{HASH}"), ("vector", "<f4", (self.width,)), ("sum", "<u4")])

    def __len__(self) -> int:
        return len(self._rows)

    def find(self, keys: Sequence[bytes], *, verify: bool = True) -> np.ndarray:
        """Return where the vectors of these keys are, int64 [N]; -1 for those that are not there, or damaged.

        Args:
            verify: compare their sums. Do this once.
        """
        rows = np.array([self._rows.get(key, -1) for key in keys], np.int64)
        wanted = np.unique(rows[rows >= 0]) if verify else ()
        damaged = {int(row) for row in wanted if not self._is_whole(int(row))}
        if damaged:
            notice_once(f"{self.path}: {len(damaged):,} vectors are damaged, and are asked for again")
            rows[np.isin(rows, list(damaged))] = -1
        return rows

    def _is_whole(self, row: int) -> bool:
        assert self._records is not None
        record = self._records[row : row + 1].view(np.uint8)
        return zlib.crc32(record[:-4].data) == int.from_bytes(record[-4:].tobytes(), "little")

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Return the vectors in these rows of `find`, float32 [N, width]."""
        assert self._records is not None
        return np.asarray(self._records["vector"][rows], np.float32)

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the lock, so that `append` may be called. Wait for another program that has it.

        Raises:
            UserError: the folder cannot be written or locked.
        """
        with report_disk_errors(self.path.parent):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            lock = self.path.with_suffix(".lock").open("ab")
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                notice(f"another program asks {self.service.model} and writes {self.path}; waiting until it ends")
                fcntl.flock(lock, fcntl.LOCK_EX)
            except OSError as e:
                cause = f"cannot lock {self.path.parent}: {e.strerror}"
                raise UserError(cause, "give --config.runtime.api.cache a folder on another disk") from e
            self.refresh()
            try:
                yield
            finally:
                if self._file:
                    self._file.close()
                    self._file = None

    def append(self, keys: Sequence[bytes], vectors: np.ndarray) -> None:
        """Add vectors, float32 [N, width], under their keys. What was written before stays as it is.

        Raises:
            UserError: the disk is full, or cannot be written.
        """
        with report_disk_errors(self.path):
            if not self.width:
                self._create(vectors.shape[1])
            if self._file is None:
                self._file = self.path.open("r+b", buffering=0)
                self._cut()
            records = np.zeros(len(keys), self._type)
            records["key"] = np.frombuffer(b"".join(keys), f"V{HASH}")
            records["vector"] = vectors
            raw = records.view(np.uint8).reshape(len(keys), -1)
            records["sum"] = [zlib.crc32(row[:-4].data) for row in raw]
            left = memoryview(raw.reshape(-1))  # type: ignore[arg-type]
            try:
                while left:
                    left = left[self._file.write(left) :]
            finally:
                if left:
                    self._cut()

    def _create(self, width: int) -> None:
        """Write the file with its first line alone. It appears whole."""
        about = {"version": VERSION, **self.service._asdict(), "width": width}
        part = self.path.with_suffix(".part")  # under the lock there is no other writer
        part.write_bytes(json.dumps(about).encode() + b"\n")
        part.replace(self.path)
        self.refresh()

    def _cut(self) -> None:
        """Cut off what is not a whole record, and go to the end."""
        assert self._file is not None
        size = os.fstat(self._file.fileno()).st_size
        whole = size - (size - self._start) % self._type.itemsize
        if whole < size:
            self._file.truncate(whole)
        self._file.seek(whole)
