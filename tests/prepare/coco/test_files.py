"""Splits are named, and the files of images found, whatever the folders around them and the way names are written."""

import json
import os
import unicodedata
import zipfile

import pytest

from nml_jax.data.sources import annotated
from nml_jax.prepare import __main__ as command
from nml_jax.prepare.coco.build import build_coco_folder
from tests.prepare.coco.folders import encode, image, note, write

COMPOSED = "caf\u00e9.png"
DECOMPOSED = unicodedata.normalize("NFD", COMPOSED)


def fill(src, paths):
    """Write a json of one image, 1.jpg, or a picture to every path."""
    for number, path in enumerate(paths):
        if path.endswith(".json"):
            write((src / path).parent, [note(5)], [image(1)], files={}, name=path.rpartition("/")[2])
        else:
            (src / path).parent.mkdir(parents=True, exist_ok=True)
            (src / path).write_bytes(encode(quality=30 + number))
    return src


def test_names_that_are_not_utf_8_are_escaped(tmp_path, capsys):
    src = write(tmp_path / os.fsdecode(b"src\xff"), [note(5)])
    for name in (b"\xff.txt", b"\xff.jpg", b".\xff"):
        (src / "images" / os.fsdecode(name)).write_bytes(encode())
    with zipfile.ZipFile(src / os.fsdecode(b"\xff.zip"), "w") as archive:
        archive.writestr("3.jpg", encode())
    assert command.main(["coco_folder", str(src), str(tmp_path / "out")]) == 0
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text("utf-8"))
    left_out = sorted(entry["file"] for entry in manifest["files_left_out"])
    assert left_out == ["\\xff.zip/3.jpg", "images/\\xff.jpg", "images/\\xff.txt", "src\\xff"]
    assert manifest["seen"] == 7
    (src / "instances.json").rename(src / os.fsdecode(b"instances_\xff.json"))
    assert command.main(["coco_folder", str(src), str(tmp_path / "other")]) == 2
    assert "rename instances_\\xff.json" in capsys.readouterr().err


def test_of_two_files_of_one_name_in_a_zip_the_first_counts(tmp_path):
    src = write(tmp_path / "src", [note(5)], [image(1)], files={})
    with zipfile.ZipFile(src / "images.zip", "w") as archive:
        archive.writestr("1.jpg", encode(quality=30))
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("1.jpg", encode(quality=60))
    manifest = build_coco_folder(src, tmp_path / "out", workers=1)
    assert annotated.load(str(tmp_path / "out"), "train").image(0) == encode(quality=30)
    assert manifest["files_left_out"] == [
        {"file": "src", "reason": "another file with this name came before", "files": 1}
    ]
    assert manifest["seen"] == 3


def test_a_line_feed_in_a_name_begins_no_line(tmp_path, capsys):
    images = [image(1), image(2, "2.jpg: empty\nrefused files: 0")]
    notes = [note(5), note("6\nannotations left out: 0", iscrowd=2)]
    src = write(tmp_path / "src", notes, images, files={"1.jpg": encode()})
    assert command.main(["coco_folder", str(src), str(tmp_path / "out")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if "efused files" in line] == [
        "refused files: 1",
        "  2.jpg: empty\\nrefused files: 0: there is no such file; it is image 2 of the json",
    ]
    assert [line for line in lines if line.startswith("annotations left out")] == ["annotations left out: 1"]
