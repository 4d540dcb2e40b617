import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds

from nml_jax.errors import UserError
from nml_jax.prepare import image_folder, out_folder
from nml_jax.runs import owner
from tests.prepare.test_image_folder import GOOD, fill, image, open_split


def test_out_must_be_new(tmp_path):
    src = fill(tmp_path / "src", GOOD)
    for name, content in (("full/file", b"precious"), ("file", b"precious")):
        fill(tmp_path, {name: content})
        with pytest.raises(UserError, match="exists already"):
            image_folder.build_image_folder(src, tmp_path / name.split("/")[0])
        assert (tmp_path / name).read_bytes() == b"precious"
    with pytest.raises(UserError, match="lies inside"):
        image_folder.build_image_folder(src, src / "out")
    with pytest.raises(UserError, match="is not a folder"):
        image_folder.build_image_folder(tmp_path / "nothing", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    image_folder.build_image_folder(src, tmp_path / "empty")
    assert len(open_split(tmp_path / "empty", "train")) == 5


@pytest.mark.parametrize("where", ["begin", "records", "labels", "close", "rename"])
def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch, where):
    def full(kind):
        def fail(*args, **kwargs):
            raise kind

        return fail

    no_space = OSError(errno.ENOSPC, "No space left on device")
    writer = tfds.core.SequentialWriter
    if where == "records":
        monkeypatch.setattr(writer, "add_examples", full(RuntimeError("write() failed: No space left on device")))
    elif where == "close":
        monkeypatch.setattr(writer, "close_all", full(RuntimeError("write() failed: No space left on device")))
    elif where == "labels":
        monkeypatch.setattr(np, "save", full(no_space))
    elif where == "rename":
        monkeypatch.setattr(Path, "rename", full(no_space))
    else:
        monkeypatch.setattr(Path, "mkdir", full(no_space))
    src = fill_without_mkdir(tmp_path / "src") if where == "begin" else fill(tmp_path / "src", GOOD)
    with pytest.raises(UserError, match=r"cannot write .*out: .*No space left on device"):
        image_folder.build_image_folder(src, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["src"]


def fill_without_mkdir(src):
    os.makedirs(src / "train" / "cat")
    (src / "train" / "cat" / "1.jpg").write_bytes(image(0))
    return src


def test_out_below_a_file_cannot_be_written(tmp_path):
    src = fill(tmp_path / "src", GOOD)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match="cannot write"):
        image_folder.build_image_folder(src, tmp_path / "file" / "out")


def test_a_killed_build_leaves_nothing_under_its_name_and_can_be_repeated(tmp_path):
    photo = image(0, size=(600, 400))
    src = fill(tmp_path / "src", {f"train/{c}/{i}.jpg": photo for c in "ab" for i in range(60)})
    command = [sys.executable, "-m", "nml_jax.prepare", "image_folder", str(src), str(tmp_path / "out")]
    build = subprocess.Popen([*command, "--workers=1"], stderr=subprocess.DEVNULL, cwd=Path(__file__).parents[2])
    while build.poll() is None and not list(tmp_path.glob(".out.*.partial/*.array_record*")):
        time.sleep(0.005)
    build.kill()
    build.wait()
    assert not (tmp_path / "out").exists()
    image_folder.build_image_folder(src, tmp_path / "out")
    assert len(open_split(tmp_path / "out", "train")) == 120
    assert {p.name for p in tmp_path.iterdir()} == {"src", "out"}


def test_a_build_writes_through_no_link_and_beside_no_other_build(tmp_path, monkeypatch):
    monkeypatch.setattr(owner, "BEAT", 0.05)
    src = fill(tmp_path / "src", {"train/a/0.jpg": image(0), "train/b/0.jpg": image(1)})
    (tmp_path / "victim").mkdir()
    (tmp_path / ".out.partial").symlink_to(tmp_path / "victim")
    with out_folder.own_out(tmp_path / "out"):
        with pytest.raises(UserError, match="out belongs to another job"):
            image_folder.build_image_folder(src, tmp_path / "out")
        assert not (tmp_path / "out").exists()
    image_folder.build_image_folder(src, tmp_path / "out")
    assert list((tmp_path / "victim").iterdir()) == []
    assert {path.name for path in tmp_path.iterdir()} == {"src", "out", "victim", ".out.partial"}
    with pytest.raises(UserError, match="is a link or a file, not the folder of a build"):
        out_folder.find_partial(tmp_path / "out")
