"""Read `.npy` arrays of users and of our own. A damaged one is a ValueError, before memory is taken for it.

NumPy reads the header as Python, so a damaged one may raise almost anything, and claim any size.
"""

import io
import math
import os
import tokenize
import warnings
from pathlib import Path
from typing import IO

import numpy as np

HEADER_BYTES = 1 << 14  # bytes of the header at most; NumPy itself accepts 10,000


def read_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype, int]:
    """Read the header of an array: shape, True for Fortran order, dtype, and its own length in bytes.

    No more than HEADER_BYTES are read, because a header may claim a length of 4 GB.

    Raises:
        ValueError: it is damaged.
    """
    head = io.BytesIO(file.read(HEADER_BYTES))
    version = np.lib.format.read_magic(head)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    try:
        with warnings.catch_warnings():  # of a header that Python 2 wrote, which is sound
            warnings.simplefilter("ignore")
            shape, fortran, dtype = read(head)
    except (SyntaxError, tokenize.TokenError, TypeError, OverflowError, RecursionError, MemoryError) as e:
        raise ValueError(f"its header is damaged: {' '.join(map(str, e.args))}") from e
    if min(shape, default=0) < 0:
        raise ValueError(f"its header claims the shape {list(shape)}")
    return shape, fortran, dtype, head.tell()


def load(source: Path | bytes) -> np.ndarray:
    """Load the array in a file, or in the bytes of one. It is writable.

    Raises:
        ValueError: it is damaged or cut, or holds Python objects.
        OSError: the system cannot read the file.
    """
    with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as file:
        shape, fortran, dtype, length = _read_whole_header(file)
        file.seek(length)
        flat = np.frombuffer(bytearray(math.prod(shape) * dtype.itemsize), np.uint8)
        file.readinto(flat.data)  # type: ignore[attr-defined]
    return np.ndarray(shape, dtype, flat.data, order="F" if fortran else "C")


def load_mapped(path: Path) -> np.ndarray:
    """Map the array in a file into memory, read-only. Raise what `load` raises."""
    with path.open("rb") as file:
        shape, fortran, dtype, length = _read_whole_header(file)
    if not math.prod(shape) * dtype.itemsize:
        return np.empty(shape, dtype)
    return np.memmap(path, dtype, "r", length, shape, "F" if fortran else "C")


def _read_whole_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype, int]:
    """Read the header of an array that is all of a file. Raise ValueError if the file cannot hold what it claims."""
    shape, fortran, dtype, length = read_header(file)
    if dtype.hasobject:
        raise ValueError("it holds Python objects, which need pickle to read")
    missing = length + math.prod(shape) * dtype.itemsize - file.seek(0, os.SEEK_END)
    if missing > 0:
        raise ValueError(f"it is cut short by {missing} bytes")
    return shape, fortran, dtype, length
