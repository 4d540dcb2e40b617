"""Splits are named, and the files of images found, whatever the folders around them and the way names are written."""

import json
import os
import unicodedata
import zipfile

import pytest

from nml_jax.data.sources import annotated
from nml_jax.prepare import __main__ as command
from nml_jax.prepare.coco.build import build_coco_folder
from tests.prepare.coco.folders import build, encode, image, note, write

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


@pytest.mark.parametrize(
    ("paths", "splits"),
    [
        (["mydata/instances.json", "mydata/images/1.jpg"], ["train"]),
        (["README.txt", "mydata/v2/annotations/instances.json", "mydata/v2/images/1.jpg"], ["train"]),
        (["d/instances.json", "d/instances_val.json", "d/images/1.jpg"], ["train", "val"]),
        (["d/train/instances.json", "d/val/instances.json", "d/train/1.jpg", "d/val/1.jpg"], ["train", "val"]),
        (["train/instances.json", "val/instances.json", "train/1.jpg", "val/1.jpg"], ["train", "val"]),
        (["d/test/_annotations.coco.json", "d/valid/_annotations.coco.json", "d/1.jpg"], ["test", "valid"]),
        (["d/my.json", "d/1.jpg"], ["my"]),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_a_folder_that_holds_every_json_names_no_split(tmp_path, paths, splits, packed):
    src = fill(tmp_path / "src", paths)
    if packed:
        src = tmp_path / "src.zip"
        with zipfile.ZipFile(src, "w") as archive:
            for path in paths:
                archive.write(tmp_path / "src" / path, path)
    manifest = build_coco_folder(src, tmp_path / "out", workers=1)
    assert sorted(manifest["splits"]) == splits
    assert all(entry["records"] == 1 for entry in manifest["splits"].values())


def test_a_json_that_does_not_name_its_split_takes_the_images_beside_it(tmp_path):
    src = fill(tmp_path / "src", ["val/instances.json", "train/images/1.jpg", "val/images/1.jpg"])
    build_coco_folder(src, tmp_path / "out", workers=1)
    assert annotated.load(str(tmp_path / "out"), "train").image(0) == (src / "val/images/1.jpg").read_bytes()


@pytest.mark.parametrize(("name", "file"), [(COMPOSED, DECOMPOSED), (DECOMPOSED, COMPOSED)])
def test_a_name_may_be_composed_in_another_way(tmp_path, name, file):
    folder = os.path.splitext(file)[0]
    assert name != file
    images = [image(1, name), image(2, f"{os.path.splitext(name)[0]}/2.jpg")]
    manifest, source = build(tmp_path, [note(5)], images=images, files={file: encode(), f"{folder}/2.jpg": encode()})
    assert manifest["refused"] == manifest["files_left_out"] == []
    assert list(source.keys) == [name, images[1]["file_name"]]


def test_a_zip_need_not_say_that_its_names_are_utf_8(tmp_path):
    src = write(tmp_path / "src", [note(5)], [image(1, COMPOSED), image(2, "\u00fc.png")], files={})
    with zipfile.ZipFile(src / "images.zip", "w") as archive:
        archive.writestr(DECOMPOSED, encode())
        archive.writestr("\u00fc.png", encode())
    content = (src / "images.zip").read_bytes()
    for mark, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):  # clear the flag of UTF-8 in every header
        parts = content.split(mark)
        content = mark.join([parts[0], *(p[: flags - 4] + b"\0\0" + p[flags - 2 :] for p in parts[1:])])
    (src / "images.zip").write_bytes(content)
    build_coco_folder(src, tmp_path / "out", workers=1)
    assert list(annotated.load(str(tmp_path / "out"), "train").keys) == [COMPOSED, "\u00fc.png"]


def test_a_name_that_is_composed_alike_comes_first(tmp_path):
    files = {COMPOSED: encode(quality=30), DECOMPOSED: encode(quality=60)}
    _, source = build(tmp_path / "a", [note(5)], images=[image(1, DECOMPOSED), image(2, COMPOSED)], files=files)
    assert [source.image(i) for i in range(2)] == [files[DECOMPOSED], files[COMPOSED]]
    manifest, source = build(
        tmp_path / "b", [note(5)], images=[image(1, DECOMPOSED), image(2, COMPOSED)], files={COMPOSED: encode()}
    )
    assert list(source.keys) == [COMPOSED]
    assert "may be the file of image 2" in manifest["refused"][0]["reason"]
    twice = {f"{folder}/{DECOMPOSED}": encode() for folder in "ab"}
    manifest, _ = build(
        tmp_path / "c", [note(5)], images=[image(1, COMPOSED), image(2)], files=twice | {"2.jpg": encode()}
    )
    assert "it may be images/a/" in manifest["refused"][0]["reason"]


def test_the_folders_of_a_name_count_before_how_it_is_composed(tmp_path):
    files = {f"a/{DECOMPOSED}": encode(quality=30), f"b/{COMPOSED}": encode(quality=60)}
    _, source = build(tmp_path, [note(5)], images=[image(1, f"a/{COMPOSED}")], files=files)
    assert source.image(0) == files[f"a/{DECOMPOSED}"]


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
