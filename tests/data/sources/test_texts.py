import pickle
import resource

import numpy as np
import pytest

from nml_jax.data.sources import texts
from nml_jax.errors import UserError

SOME = ["a cat", "", "café 🐈", "one\0two", "line\nbreak"]


def test_texts_come_back_one_by_one(tmp_path):
    assert texts.write(tmp_path / "t", iter(SOME)) == 5
    read = texts.Texts(tmp_path / "t")
    assert list(read) == SOME
    assert (len(read), read[-1], read.raw(2)) == (5, "line\nbreak", "café 🐈".encode())
    assert list(pickle.loads(pickle.dumps(read))) == SOME
    for i in (5, -6):
        with pytest.raises(IndexError):
            read[i]
    assert texts.split(texts.join(["a", "b c"])) == ["a", "b c"]


def test_concatenated_files_are_as_one(tmp_path):
    for i, part in enumerate((SOME[:2], [], SOME[2:], [""])):
        texts.write(tmp_path / f"p{i}", part)
    texts.write(tmp_path / "one", [*SOME, ""])
    assert texts.concatenate(tmp_path / "all", [tmp_path / f"p{i}" for i in range(4)]) == 6
    for suffix in ("", ".npy"):
        assert (tmp_path / f"all{suffix}").read_bytes() == (tmp_path / f"one{suffix}").read_bytes()
    assert texts.concatenate(tmp_path / "none", [tmp_path / "p1"]) == 0
    assert list(texts.Texts(tmp_path / "none")) == []


def test_more_parts_than_files_may_be_open(tmp_path):
    for i in range(300):
        texts.write(tmp_path / f"p{i}", [str(i)])
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        assert texts.concatenate(tmp_path / "all", [tmp_path / f"p{i}" for i in range(300)]) == 300
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert list(texts.Texts(tmp_path / "all")) == [str(i) for i in range(300)]


def test_files_that_do_not_belong_together(tmp_path):
    with pytest.raises(UserError, match="missing or damaged"):
        texts.Texts(tmp_path / "t")
    texts.write(tmp_path / "t", SOME)
    for wrong in (np.arange(3), np.array([0, 1, 30], np.int32), np.zeros((2, 2), np.int64), np.zeros(0, np.int64)):
        np.save(tmp_path / "t.npy", wrong)
        with pytest.raises(UserError, match="belong together"):
            texts.Texts(tmp_path / "t")
    (tmp_path / "t.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(UserError, match="missing or damaged"):
        texts.Texts(tmp_path / "t")


def test_an_index_that_goes_back_is_refused(tmp_path):
    texts.write(tmp_path / "t", ["one", "two", "three"])
    np.save(tmp_path / "t.npy", np.array([0, 6, 3, 11]))
    with pytest.raises(UserError, match="do not belong together"):
        texts.Texts(tmp_path / "t")
