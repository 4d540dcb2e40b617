"""Read and write many short texts on disk: the captions and keys that builders write beside the images.

`NAME` holds all texts as UTF-8, one after another. `NAME.npy` holds where each begins, int64 [n + 1]. Both are
memory-mapped. Reading a text takes about two microseconds, however many there are.
"""

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from nml_jax.data import npy
from nml_jax.errors import UserError

# Separates the captions of one record. Builders reject captions that contain it.
SEPARATOR = "\0"


class Texts(Sequence[str]):
    """The texts in `path` and `path`.npy. They can be pickled, and reading is thread-safe.

    Raises:
        UserError: the files are missing, or do not belong together.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            starts = npy.load_mapped(path.with_name(f"{path.name}.npy"))
            content = np.memmap(path, np.uint8, "r") if path.stat().st_size else np.zeros(0, np.uint8)
        except (OSError, ValueError, EOFError) as e:
            raise UserError(f"{path} is missing or damaged: {e}", "prepare the dataset again") from e
        fits = starts.dtype == np.int64 and starts.ndim == 1 and len(starts) and starts[-1] == len(content)
        if not fits or starts[0] or (starts[1:] < starts[:-1]).any():
            raise UserError(f"{path} and {path}.npy do not belong together", "prepare the dataset again")
        # memoryviews: slices of a memory map take three times as long
        self._starts, self._bytes = starts.data, content.data

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, i: int) -> str:  # type: ignore[override]
        return self.raw(i).decode("utf-8")

    def raw(self, i: int) -> bytes:
        """Return text i as UTF-8."""
        if not -len(self) <= i < len(self):
            raise IndexError(i)
        i %= len(self)
        return bytes(self._bytes[self._starts[i] : self._starts[i + 1]])

    def __reduce__(self):
        return Texts, (self.path,)


def write(path: Path, texts: Iterable[str]) -> int:
    """Write `texts` to `path` and `path`.npy. Return their number."""
    starts = [0]
    with path.open("wb") as f:
        for text in texts:
            starts.append(starts[-1] + f.write(text.encode("utf-8")))
    np.save(f"{path}.npy", np.array(starts, np.int64))
    return len(starts) - 1


def concatenate(path: Path, parts: Sequence[Path]) -> int:
    """Write the texts of the files `parts`, in that order, to `path` and `path`.npy. Return their number."""
    n = sum(len(np.load(f"{part}.npy", mmap_mode="r", allow_pickle=False)) - 1 for part in parts)
    starts = np.lib.format.open_memmap(f"{path}.npy", "w+", np.int64, (n + 1,))
    starts[0] = i = 0
    with path.open("wb") as f:
        for part in parts:  # one at a time, as each may hold a file open
            begin = np.load(f"{part}.npy", allow_pickle=False)
            starts[i : i + len(begin)] = begin + f.tell()
            i += len(begin) - 1
            with part.open("rb") as source:
                shutil.copyfileobj(source, f)
    starts.flush()
    return n


def split(text: str) -> list[str]:
    """Split a stored text into the captions of one record."""
    return text.split(SEPARATOR)


def join(captions: Iterable[str]) -> str:
    """Join the captions of one record into a text for `split`."""
    return SEPARATOR.join(captions)
