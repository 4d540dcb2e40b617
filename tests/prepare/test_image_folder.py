import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from nml_jax.data import sources
from nml_jax.data.images import codec
from nml_jax.errors import UserError
from nml_jax.prepare import image_files, image_folder, records
from nml_jax.prepare.__main__ import main


def image(seed, kind="JPEG", size=(16, 12)):
    out = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(out, kind)
    return out.getvalue()


def fill(src, files):
    for name, content in files.items():
        path = src / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return src


def open_split(out, split):
    return sources.load("directory", str(out), split)


GOOD = {
    "train/cat/2.jpg": image(0),
    "train/cat/10.PNG": image(1, "PNG"),
    "train/café/deep/er/x y.webp": image(2, "WEBP"),
    "train/café/a.jpeg": image(3),
    "train/zebra/0.jpg": image(7),
    "test/zebra/1.bmp": image(4, "BMP"),
    "test/cat/no_suffix": image(5),
    "train/.hidden/1.jpg": b"",
    "train/cat/.DS_Store": b"x",
    ".cache/cat/1.jpg": b"",
}


def test_records_keep_bytes_order_and_keys(tmp_path):
    src, out = fill(tmp_path / "src", GOOD), tmp_path / "new" / "out"
    manifest = image_folder.build_image_folder(src, out)
    train = ["train/café/a.jpeg", "train/café/deep/er/x y.webp", "train/cat/10.PNG", "train/cat/2.jpg"]
    train += ["train/zebra/0.jpg"]
    source = open_split(out, "train")
    assert source.class_names == ("café", "cat", "zebra")  # the union over the splits
    assert list(source.keys) == train
    assert source.labels.tolist() == [0, 0, 1, 1, 2]
    assert [r["image"] for r in source] == [GOOD[key] for key in train]
    assert open_split(out, "test").labels.tolist() == [1, 2]

    assert manifest["classes"] == ["café", "cat", "zebra"]
    assert manifest["splits"]["train"]["records"] == 5
    assert manifest["splits"]["train"]["per_class"] == {"café": 2, "cat": 2, "zebra": 1}
    assert manifest["missing_classes"] == {"test": ["café"]}
    assert manifest["refused"] == []
    assert [(e["file"], e["reason"], e["files"]) for e in manifest["files_left_out"]] == [
        (".cache", "hidden", 1),
        ("train/.hidden", "hidden", 1),
        ("train/cat/.DS_Store", "hidden", 1),
    ]
    assert json.loads((out / "manifest.json").read_text("utf-8")) == manifest
    assert np.load(out / "supervision" / "train.npy").dtype == np.int32
    assert [p.name for p in out.parent.iterdir()] == ["out"]


def test_tfds_reads_it(tmp_path):
    image_folder.build_image_folder(fill(tmp_path / "src", GOOD), tmp_path / "out")
    builder = tfds.builder_from_directory(tmp_path / "out")
    assert builder.info.features["label"].names == ["café", "cat", "zebra"]
    assert builder.info.disable_shuffling
    assert {name: split.num_examples for name, split in builder.info.splits.items()} == {"train": 5, "test": 2}
    records = builder.as_data_source("train", decoders={"image": tfds.decode.SkipDecoding()})
    assert records[3] == {"image": GOOD["train/cat/2.jpg"], "label": 1, "key": b"train/cat/2.jpg"}
    decoded = builder.as_data_source("test")[0]
    np.testing.assert_array_equal(decoded["image"], codec.decode(GOOD["test/cat/no_suffix"]))
    assert "tensorflow" not in sys.modules


def test_order_holds_over_many_shards_and_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "RECORDS_PER_SHARD", 4)
    monkeypatch.setattr(records, "CHUNK", 3)
    files = {f"train/{c}/{i:02}.png": image(100 * c + i, "PNG") for c in range(3) for i in range(11)}
    image_folder.build_image_folder(fill(tmp_path / "src", files), tmp_path / "out", workers=4)
    assert len(list((tmp_path / "out").glob("*.array_record-*"))) == 9
    source = open_split(tmp_path / "out", "train")
    assert list(source.keys) == sorted(files)
    assert [r["image"] for r in source] == [files[key] for key in sorted(files)]


def test_the_same_files_give_the_same_dataset(tmp_path):
    for n, order in enumerate((sorted(GOOD), sorted(GOOD, reverse=True))):
        image_folder.build_image_folder(
            fill(tmp_path / f"src{n}", {key: GOOD[key] for key in order}), tmp_path / f"out{n}"
        )
    contents = [{p.relative_to(o): p.read_bytes() for p in o.rglob("*") if p.is_file()} for o in tmp_path.glob("out*")]
    assert contents[0] == contents[1]
    changed = GOOD | {"train/cat/2.jpg": image(9)}
    manifest = image_folder.build_image_folder(fill(tmp_path / "src2", changed), tmp_path / "out2")
    before = json.loads((tmp_path / "out0" / "manifest.json").read_text("utf-8"))
    assert manifest["splits"]["train"]["sha256"] != before["splits"]["train"]["sha256"]
    assert manifest["splits"]["test"] == before["splits"]["test"]
    assert open_split(tmp_path / "out2", "train").fingerprint != open_split(tmp_path / "out0", "train").fingerprint


def test_every_refused_file_is_reported_with_its_reason(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(image_files, "MAX_PIXELS", 200)
    good = {"train/cat/good.jpg": image(0), "test/cat/good.png": image(1, "PNG")}
    src = fill(
        tmp_path / "src",
        good
        | {
            "train/cat/cut.jpg": image(2)[:-50],
            "train/cat/cut.png": image(3, "PNG")[:-20],
            "train/cat/empty.jpg": b"",
            "train/cat/large.jpg": image(4, size=(20, 11)),
            "train/cat/text.jpg": b"I am no image",
            "train/loose.jpg": image(5),
            "labels.txt": b"cat",
        },
    )
    os.mkfifo(src / "train/cat/pipe.jpg")
    (src / "train/cat/loop.jpg").symlink_to("loop.jpg")
    (src / "train/cat/gone.jpg").symlink_to("nowhere.jpg")
    (src / "train/cat/again").symlink_to(src / "train")
    (src / "train/cat/alias.jpg").symlink_to("good.jpg")  # a link to a file counts as the file
    (src / os.fsdecode(b"train/cat/latin\xe9.jpg")).write_bytes(image(6))
    assert main(["image_folder", str(src), str(tmp_path / "out"), "--workers=2"]) == 0
    refused = {r["file"]: r["reason"] for r in json.loads((tmp_path / "out/manifest.json").read_text())["refused"]}
    said = capsys.readouterr().out
    for name, reason in refused.items():
        assert f"{name}: {reason}" in said
    assert "refused files: 12" in said
    assert "train: 2 images of 1 classes" in said
    assert refused.pop("train/cat/cut.jpg").startswith("truncated or damaged: image file is truncated")
    assert refused.pop("train/cat/cut.png").startswith("truncated or damaged: ")
    assert refused == {
        "labels.txt": "not in a <split>/<class> folder",
        "train/loose.jpg": "not in a <split>/<class> folder",
        "train/cat/again": "symbolic link to a folder",
        "train/cat/empty.jpg": "empty",
        "train/cat/gone.jpg": "unreadable: No such file or directory",
        "train/cat/large.jpg": "more than 0.0002 megapixels: 20 x 11",
        "train/cat/latin\\xe9.jpg": "the file name is not UTF-8",
        "train/cat/loop.jpg": "unreadable: Too many levels of symbolic links",
        "train/cat/pipe.jpg": "not a regular file",
        "train/cat/text.jpg": "not an image",
    }
    assert list(open_split(tmp_path / "out", "train").keys) == ["train/cat/alias.jpg", "train/cat/good.jpg"]
    check_sums(json.loads((tmp_path / "out/manifest.json").read_text()), src)


def count_files(folder):
    return sum(
        len(files) + sum(os.path.islink(f"{root}/{f}") for f in folders) for root, folders, files in os.walk(folder)
    )


def check_sums(manifest, src):
    """Check that accepted, refused and left-out files are all files that there are."""
    accepted = sum(split["records"] for split in manifest["splits"].values())
    left_out = sum(entry["files"] for entry in manifest["files_left_out"])
    assert accepted + len(manifest["refused"]) + left_out == manifest["seen"] == count_files(src)


SYSTEM = ["@eaDir", "__MACOSX", "lost+found", "$RECYCLE.BIN", ".thumbnails", "System Volume Information", "#recycle"]


def test_folders_of_systems_are_no_classes(tmp_path, capsys):
    files = {f"train/{c}/{i}.jpg": image(i) for c in ("ant", "bee") for i in range(2)} | {"test/ant/0.jpg": image(0)}
    for name in SYSTEM:
        for place in ("", "train/", "train/ant/", "test/ant/deep/"):
            files[f"{place}{name}/x.jpg"] = image(9)
            files[f"{place}{name}/y/z.jpg"] = image(9)
    for name in ("Thumbs.db", "desktop.ini", "ehthumbs.db", "._0.jpg", "0.jpg:Zone.Identifier"):
        files |= {f"{place}{name}": b"x" for place in ("", "train/", "train/ant/")}
    src = fill(tmp_path / "src", files)
    assert main(["image_folder", str(src), str(tmp_path / "out")]) == 0
    manifest = json.loads((tmp_path / "out/manifest.json").read_text("utf-8"))
    assert manifest["classes"] == ["ant", "bee"]
    assert {split: entry["per_class"] for split, entry in manifest["splits"].items()} == {
        "test": {"ant": 1, "bee": 0},
        "train": {"ant": 2, "bee": 2},
    }
    check_sums(manifest, src)
    said = capsys.readouterr().out
    assert "train: 4 images of 2 classes: 'ant' 2, 'bee' 2\n" in said
    assert "test: no image of 'bee'\n" in said
    assert "files left out: 71\n  60 x belongs to the system, not to the data\n  11 x hidden\n" in said
    assert "refused files: 0\n" in said


def test_classes_without_a_training_image_are_dropped(tmp_path, capsys):
    files = {
        "train/ant/0.jpg": b"broken",
        "train/ant/1.jpg": image(1),
        "train/bee/0.jpg": image(2)[:-40],
        "train/bee/1.jpg": b"",
        "test/ant/0.jpg": image(3),
        "test/bee/0.jpg": image(4),
        "test/cow/0.jpg": image(5),
    }
    src = fill(tmp_path / "src", files)
    (src / "train" / "dog").mkdir()
    assert main(["image_folder", str(src), str(tmp_path / "out")]) == 0
    manifest = json.loads((tmp_path / "out/manifest.json").read_text("utf-8"))
    assert (manifest["classes"], manifest["dropped_classes"]) == (["ant"], ["bee", "cow", "dog"])
    assert [r["file"] for r in manifest["refused"]] == ["train/bee/0.jpg", "train/bee/1.jpg", "train/ant/0.jpg"]
    reasons = [f"class {name!r} has no usable image in split 'train'" for name in ("bee", "cow")]
    assert [entry["reason"] for entry in manifest["files_left_out"]] == reasons
    check_sums(manifest, src)
    assert open_split(tmp_path / "out", "test").class_names == ("ant",)
    said = capsys.readouterr().out
    assert "dropped, without a usable image in the training split: 'bee', 'cow', 'dog'\n" in said


def test_spellings_of_a_class_and_of_a_split_are_one(tmp_path, capsys):
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    files = {f"train/{composed}/0.jpg": image(0), f"train/{decomposed}/1.jpg": image(1), "train/Ant/0.jpg": image(2)}
    files |= {"train/ant/0.jpg": image(3), "train/02/0.jpg": image(3), "train/2/0.jpg": image(3)}
    files |= {f"t{composed}st/{decomposed}/0.jpg": image(4), f"t{decomposed}st/ant/1.jpg": image(5)}
    src = fill(tmp_path / "src", files)
    manifest = image_folder.build_image_folder(src, tmp_path / "out")
    assert manifest["classes"] == ["02", "2", "Ant", "ant", "café"]
    assert manifest["splits"]["train"]["per_class"] == {"02": 1, "2": 1, "Ant": 1, "ant": 1, "café": 2}
    assert {split: entry["records"] for split, entry in manifest["splits"].items()} == {"tcaf\u00e9st": 2, "train": 6}
    assert open_split(tmp_path / "out", f"t{composed}st").labels.tolist() == [3, 4]
    assert open_split(tmp_path / "out", f"t{decomposed}st").labels.tolist() == [3, 4]
    check_sums(manifest, src)
    assert "classes: names that look alike stay apart: '02' and '2', 'Ant' and 'ant'" in capsys.readouterr().err


def test_more_than_50_megapixels(tmp_path):
    """Refuse a PNG of 7100 x 7100 pixels, and one so large that Pillow itself refuses it."""
    assert image_files.MAX_PIXELS == 50_000_000
    for side, reason in ((7100, "more than 50 megapixels: 7100 x 7100"), (19000, "too many megapixels")):
        path = tmp_path / f"{side}.png"
        out = io.BytesIO()
        Image.new("1", (side, side)).save(out, "PNG", compress_level=1)
        path.write_bytes(out.getvalue())
        src = fill(tmp_path / f"src{side}", {"train/a/1.jpg": image(0), "train/a/2.png": out.getvalue()})
        manifest = image_folder.build_image_folder(src, tmp_path / f"out{side}")
        assert [r["file"] for r in manifest["refused"]] == ["train/a/2.png"]
        assert manifest["refused"][0]["reason"].startswith(reason)


def test_a_long_list_of_refused_files_is_printed_in_part(tmp_path, capsys):
    src = fill(tmp_path / "src", {"train/a/1.jpg": image(0)} | {f"train/a/{i}.txt": b"?" for i in range(30)})
    assert main(["image_folder", str(src), str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert said.count("not an image") == 20
    assert "... and 10 more in" in said


@pytest.mark.parametrize(
    ("files", "cause", "cure"),
    [
        ({"cat/1.jpg": image(0), "dog/1.jpg": image(1)}, "files lie directly in cat/", "SRC/train/cat/1.jpg"),
        ({"1.jpg": image(0)}, "has no <split>/<class> folders", "SRC/train/cat/1.jpg"),
        ({}, "has no <split>/<class> folders", "SRC/train/cat/1.jpg"),
        ({"train/cat/1.jpg": b"?", "train/cat/2.jpg": b""}, "split 'train' has no usable image", "put class folders"),
        (
            {"train/cat/1.jpg": image(0), "val/dog/1.jpg": image(1)},
            "split 'val' has no usable image but of classes without one in the training split: 'dog'",
            "put class folders",
        ),
        ({"train/cat/1.jpg": image(0), "val/readme.txt": b"?"}, "split 'val' has no usable image", "put class folders"),
        ({"all/cat/1.jpg": image(0)}, "'all' cannot name a split", "rename"),
        ({"my photos/cat/1.jpg": image(0)}, "'my photos' cannot name a split", "rename"),
        ({"train/cat /1.jpg": image(0)}, "'cat ' cannot name a class", "rename"),
        ({"train/c\nat/1.jpg": image(0)}, r"'c\\nat' cannot name a class", "rename"),
    ],
)
def test_wrong_folders_are_refused(tmp_path, capsys, files, cause, cure):
    src = fill(tmp_path / "src", files)
    src.mkdir(exist_ok=True)
    with pytest.raises(UserError, match=cause) as e:
        image_folder.build_image_folder(src, tmp_path / "out")
    assert cure in e.value.cure
    assert "\n" not in e.value.cause + e.value.cure
    assert main(["image_folder", str(src), str(tmp_path / "out")]) == 2
    assert e.value.cause in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["src"]


def test_command_line(tmp_path, capsys):
    with pytest.raises(SystemExit) as e:
        main(["--help"])
    assert e.value.code == 0
    assert "image_folder" in capsys.readouterr().out
    for wrong in ([], ["image_folder"], ["nothing"], ["image_folder", "a", "b", "--workers=x"]):
        with pytest.raises(SystemExit) as e:
            main(wrong)
        assert e.value.code == 2
    slow = ("numpy", "jax", "tensorflow_datasets")
    code = f"import sys, nml_jax.prepare.image_folder; print([m for m in {slow} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert out.stdout.strip() == "[]"


def test_names_do_not_depend_on_the_locale(tmp_path, monkeypatch):
    fill(tmp_path / "src", {f"train/Brötchen/süß{i}.png": image(i, "PNG") for i in range(2)})
    out = tmp_path / "out"
    code = (
        "import sys; from pathlib import Path; from nml_jax.prepare.image_folder import build_image_folder as build;"
        f"assert sys.getfilesystemencoding() == 'ascii'; print(build(Path({str(tmp_path / 'src')!r}), "
        f"Path({str(out)!r}))['classes'] == ['Br\\xf6tchen'])"
    )
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"
    assert open_split(out, "train").class_names == ("Brötchen",)
