"""Test the cache of an embeddings service: what is stored stays, whatever happens to the end of its file."""

import os
from pathlib import Path

import numpy as np
import pytest

from nml_jax.data.embeddings.cache import Cache, find_folder
from nml_jax.data.embeddings.service import Service
from nml_jax.errors import UserError

SERVICE = Service("http://localhost/embeddings", "small")
TEXTS = [f"text {i}" for i in range(6)]
KEYS = SERVICE.hash_texts(TEXTS)
VECTORS = np.arange(30, dtype=np.float32).reshape(6, 5) / 7


def write(folder: Path, rows: slice = slice(None)) -> Cache:
    cache = Cache(folder, SERVICE)
    with cache.writing():
        cache.append(KEYS[rows], VECTORS[rows])
    return Cache(folder, SERVICE)


def test_vectors_come_back_bit_by_bit(tmp_path: Path):
    cache = write(tmp_path / "new" / "folder", slice(4))
    assert (cache.width, len(cache)) == (5, 4)
    rows = cache.find(KEYS[::-1])
    assert rows.tolist() == [-1, -1, 3, 2, 1, 0]
    np.testing.assert_array_equal(cache.read(rows[2:]), VECTORS[3::-1])
    with cache.writing():
        cache.append(KEYS[4:], VECTORS[4:])
    cache.refresh()
    np.testing.assert_array_equal(cache.read(cache.find(KEYS)), VECTORS)


def test_a_name_depends_on_all_that_a_vector_does():
    others = [Service("http://localhost/e", "small"), Service(SERVICE.url, "large"), Service(SERVICE.url, "small", 5)]
    names = {service.hash_texts(["a"])[0] for service in (SERVICE, *others)} | set(SERVICE.hash_texts(["b", "a "]))
    assert len(names) == 6
    assert len({service.digest for service in (SERVICE, *others)}) == 4
    assert SERVICE.hash_texts(["a", "\ud800"])[0] == SERVICE.hash_texts(["a"])[0]


def test_a_file_that_is_cut_at_any_byte(tmp_path: Path):
    """As after a kill: whole records count, and the next ones are written behind them."""
    path = write(tmp_path).path
    content = path.read_bytes()
    record = 32 + 5 * 4 + 4
    for size in range(len(content) - 2 * record, len(content)):
        path.write_bytes(content[:size])
        cache = Cache(tmp_path, SERVICE)
        whole = 4 + (size - (len(content) - 2 * record)) // record
        assert (cache.find(KEYS) >= 0).sum() == len(cache) == whole
        with cache.writing():
            cache.append(KEYS[whole:], VECTORS[whole:])
        assert path.read_bytes() == content


def test_a_damaged_vector_is_asked_for_again(tmp_path: Path, capsys):
    path = write(tmp_path).path
    content = bytearray(path.read_bytes())
    content[-10] ^= 1
    path.write_bytes(content)
    cache = Cache(tmp_path, SERVICE)
    assert cache.find(KEYS).tolist() == [0, 1, 2, 3, 4, -1]
    assert "1 vectors are damaged" in capsys.readouterr().err
    write(tmp_path, slice(5, 6))
    cache = Cache(tmp_path, SERVICE)
    np.testing.assert_array_equal(cache.read(cache.find(KEYS)), VECTORS)


def test_a_full_disk_keeps_what_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = write(tmp_path, slice(3)).path
    content, cache = path.read_bytes(), Cache(tmp_path, SERVICE)

    class Full:
        """A file on a disk with room for a record and a half."""

        def __init__(self, file):
            self._file, self.left = file, 84

        def write(self, data):
            if not self.left:
                raise OSError(28, os.strerror(28))
            n, self.left = self._file.write(data[: self.left]), 0
            return n

        def __getattr__(self, name):
            return getattr(self._file, name)

    with cache.writing():
        cache.append(KEYS[3:4], VECTORS[3:4])
        cache._file = Full(cache._file)  # type: ignore[assignment]
        with pytest.raises(UserError, match="No space left"):
            cache.append(KEYS[4:], VECTORS[4:])
    assert len(path.read_bytes()) == len(content) + 2 * 56
    assert Cache(tmp_path, SERVICE).find(KEYS).tolist() == [0, 1, 2, 3, 4, -1]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "does not hold vectors"),
        (b"{}\n", "does not hold vectors"),
        (b'{"version": 2, "url": "u", "model": "m", "dimensions": 0, "width": 5}\n', "is of version 2"),
        (b'{"version": 1, "url": "u", "model": "m", "dimensions": 0, "width": 5}\n', "holds vectors of m at u"),
        (None, "Is a directory"),
    ],
)
def test_other_files(tmp_path: Path, content: bytes | None, words: str):
    path = Cache(tmp_path, SERVICE).path
    path.write_bytes(content) if content is not None else path.mkdir()
    with pytest.raises(UserError, match=words):
        Cache(tmp_path, SERVICE)


def test_a_folder_that_cannot_be_made(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot"), Cache(tmp_path / "file" / "x", SERVICE).writing():
        pass


def test_where_the_caches_are(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert find_folder("") == Path("/caches/nml_jax/embeddings")
    assert find_folder("mine") == Path("mine")
