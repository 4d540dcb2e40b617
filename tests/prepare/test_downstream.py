"""Test the builders of downstream sets on tiny archives in the distributors' layouts."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from configs import common
from nml_jax.data.images import codec
from nml_jax.errors import UserError
from nml_jax.prepare import archives
from nml_jax.prepare.__main__ import main
from nml_jax.prepare.downstream import BUILDERS
from nml_jax.tasks import catalogue, class_maps
from nml_jax.tasks.catalogue_tasks import _load_partner, _open_split
from nml_jax.tasks.classification import load_task
from tests.scenes.tiny_archives import LAYOUTS, VARIANTS, VID, cifar, clip_set, npy, objectnet, pack, vid
from tests.scenes.tiny_sets import image


def build_set(tmp_path: Path, builder: str, kind: str = "tgz") -> Path:
    src, out = pack(tmp_path / f"src.{kind}", LAYOUTS[builder](), kind), tmp_path / "catalogue" / builder
    assert main([builder, str(src), str(out), "--workers=2"]) == 0
    return out


@pytest.mark.parametrize("builder", sorted(LAYOUTS.keys() - {"cifar100_corrupted"}))
@pytest.mark.parametrize("kind", ["tar", "folder"])
def test_files_of_an_archive_are_accounted_for(tmp_path: Path, builder: str, kind: str):
    files = LAYOUTS[builder]()
    top = next(iter(files)).rpartition("/")[0]
    more = {
        f"{top}/{name}": b"x" for name in ("Thumbs.db", ".DS_Store", "@eaDir/x.png", "__MACOSX/train/y.png", "z.txt")
    }
    src = pack(tmp_path / f"src.{kind}", files | more, kind)
    assert main([builder, str(src), str(tmp_path / "out"), "--workers=2"]) == 0
    manifest = json.loads((tmp_path / "out/manifest.json").read_text("utf-8"))
    accepted = sum(split["records"] for split in manifest["splits"].values())
    left_out = sum(entry["files"] for entry in manifest["files_left_out"])
    assert accepted + len(manifest["refused"]) + left_out == manifest["seen"]
    assert manifest["seen"] == len(files) + len(more)
    counts = {entry["reason"]: entry["files"] for entry in manifest["files_left_out"]}
    assert counts["belongs to the system, not to the data"] == 3
    assert counts["hidden"] == 1 + sum("/." in name for name in files)


def config(tmp_path: Path, **downstream: Any):
    out = common.get_config()
    keys = {"catalogue": str(tmp_path / "catalogue"), **downstream}
    out.update_from_flattened_dict({f"downstream.{k}": v for k, v in keys.items()})
    return out


@pytest.mark.parametrize("kind", ["tgz", "tar", "zip", "folder"])
def test_rendered_sst2_from_any_kind_of_archive(tmp_path: Path, kind: str, capsys):
    build_set(tmp_path, "rendered_sst2", kind)
    assert "train: 4 images of 2 classes" in capsys.readouterr().out
    task = load_task("rendered_sst2", config(tmp_path))
    assert task.train.class_names == ("negative", "positive")
    order = ["positive/10", "positive/9", "negative/10", "negative/9"]  # as in the archive
    if kind == "folder":
        order = sorted(order)
    assert list(task.train.keys) == [f"train/{key}.png" for key in order]
    files = clip_set("rendered-sst2", ("negative", "positive"))
    for key, record in zip(task.train.keys, task.train, strict=True):
        assert record["image"] == files[f"rendered-sst2/{key}"]
        assert task.train.class_names[record["label"]] == key.split("/")[1]
    assert len(load_task("rendered_sst2", config(tmp_path, with_validation=True)).train) == 8
    assert not list(tmp_path.rglob("*.part*"))


def test_country211(tmp_path: Path):
    out = build_set(tmp_path, "country211")
    assert json.loads((out / "manifest.json").read_text())["classes"] == ["C000", "C070", "C140", "C210"]
    with pytest.raises(UserError, match="has 4 classes, not 211"):
        load_task("country211", config(tmp_path))


def test_aircraft(tmp_path: Path, monkeypatch):
    out = build_set(tmp_path, "fgvc_aircraft")
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["classes"] == VARIANTS
    assert {split: about["records"] for split, about in manifest["splits"].items()} == {
        "train": 2, "validation": 1, "test": 2,
    }  # fmt: skip
    monkeypatch.setitem(
        catalogue.TRAINED, "aircraft", catalogue.Entry(folder="fgvc_aircraft", num_classes=3, n_test=2, url="")
    )
    task = load_task("aircraft", config(tmp_path))
    assert list(task.train.keys) == ["images/0000001.jpg", "images/0000003.jpg"]  # in the order of the images
    assert task.train.labels.tolist() == [1, 0]


def test_objectnet_keeps_the_overlapping_classes_and_cuts_the_border(tmp_path: Path):
    out = build_set(tmp_path, "objectnet")
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["classes"] == list(class_maps.load("objectnet"))
    source = _open_split(config(tmp_path), catalogue.PARTNERS["objectnet"], "test", 3)
    assert list(source.keys) == ["wok/b.png", "alarm_clock/a.png", "wok/a.PNG"]
    assert [source.class_names[label] for label in source.labels] == ["wok", "alarm_clock", "wok"]
    assert class_maps.load_ids("objectnet")[source.labels[1]] == (409, 530)
    whole = codec.decode(image(0))
    np.testing.assert_array_equal(codec.decode(source.image(0)), whole[2:-2, 2:-2])


def test_vid_robust_keeps_frames_and_their_groups(tmp_path: Path):
    build_set(tmp_path, "imagenet_vid_robust")
    found = _load_partner(config(tmp_path), "imagenet_vid_robust", train=None)[0]
    assert (found.domain, found.source.num_classes, found.class_map) == ("ood", 30, class_maps.load_ids(found.split))
    assert found.source.keys[1] == "val/ILSVRC2015_val_00000001/000001.JPEG"
    assert found.source.labels.tolist() == [9] * 4 + [8] * 4
    assert found.frames.labels == ((9, 17),) * 4 + ((8,),) * 4
    assert found.frames.groups == ((1, 0, 2), (6,))
    path = next(tmp_path.rglob("test.frames.json"))
    path.write_text(path.read_text()[:40])
    with pytest.raises(UserError, match="missing or damaged"):
        _load_partner(config(tmp_path), "imagenet_vid_robust", train=None)


def test_a_refused_frame_leaves_its_group(tmp_path: Path):
    files = vid()
    frame = f"{VID}/val/ILSVRC2015_val_00000001/000000.JPEG"
    pack(tmp_path / "src.tar", files | {frame: b"no image"}, "tar")
    manifest = json.loads(
        json.dumps(run_builder("imagenet_vid_robust", tmp_path / "src.tar", tmp_path / "catalogue/imagenet_vid_robust"))
    )
    assert [r["file"] for r in manifest["refused"]] == ["val/ILSVRC2015_val_00000001/000000.JPEG"]
    assert (manifest["anchors"], manifest["left_out"]) == (2, 1)
    found = _load_partner(config(tmp_path), "imagenet_vid_robust", train=None)[0]
    assert found.frames.groups == ((0, 1), (5,))


def run_builder(builder: str, src: Path, out: Path) -> dict[str, Any]:
    return BUILDERS[builder][0](src, out)


def test_cifar100_c(tmp_path: Path):
    out = build_set(tmp_path, "cifar100_corrupted", "tar")
    manifest = json.loads((out / "manifest.json").read_text())
    assert len(manifest["splits"]) == 19 * 5
    assert sum(entry["records"] for entry in manifest["splits"].values()) == manifest["seen"]  # images
    entry = catalogue.PARTNERS["cifar100_c"]
    pixels = np.load(io.BytesIO(cifar()["CIFAR-100-C/glass_blur.npy"]))
    for severity in (1, 5):
        source = _open_split(config(tmp_path), entry, f"frosted_glass_blur_{severity}", 2)
        assert source.labels.tolist() == [99, 3]
        for i in range(2):
            np.testing.assert_array_equal(codec.decode(source.image(i)), pixels[2 * (severity - 1) + i])


@pytest.mark.parametrize("builder", LAYOUTS)
def test_missing_damaged_and_wrong_archives_are_refused(tmp_path: Path, builder: str, capsys):
    out = tmp_path / "out"
    (tmp_path / "text.tgz").write_bytes(b"I am no archive")
    whole = pack(tmp_path / "whole.tgz", LAYOUTS[builder](), "tgz").read_bytes()
    (tmp_path / "cut.tgz").write_bytes(whole[: len(whole) // 2])
    pack(tmp_path / "other.tar", {"a/b/c.txt": b"?"}, "tar")
    for name, cause in (("gone", "No such file"), ("text.tgz", "cannot be read"), ("cut.tgz", ""), ("other.tar", "")):
        assert main([builder, str(tmp_path / name), str(out)]) == 2
        said = capsys.readouterr().err
        assert cause in said
        assert "Traceback" not in said
        assert not out.exists()
    assert {p.name for p in tmp_path.iterdir()} == {"text.tgz", "whole.tgz", "cut.tgz", "other.tar"}


@pytest.mark.parametrize(
    ("builder", "change", "cause"),
    [
        (
            "fgvc_aircraft",
            {"fgvc-aircraft-2013b/data/images_variant_val.txt": b"1 MD-11\n"},
            r"does not contain 1\.jpg",
        ),
        (
            "imagenet_vid_robust",
            {f"{VID}/metadata/labels.json": b'{"val/a/b.JPEG": [1]}'},
            r"does not contain val/a/b\.JPEG",
        ),
        ("fgvc_aircraft", {"fgvc-aircraft-2013b/data/images_variant_val.txt": b"0000007 Zeppelin\n"}, "Zeppelin"),
        ("imagenet_vid_robust", {f"{VID}/metadata/labels.json": b"{"}, "is not JSON"),
        ("cifar100_corrupted", {"CIFAR-100-C/labels.npy": npy([1, 2, 3])}, "does not label five severities"),
        ("cifar100_corrupted", {"CIFAR-100-C/fog.npy": npy(np.zeros((5, 2)))}, "fog.npy"),
        ("cifar100_corrupted", {"CIFAR-100-C/fog.npy": b"?"}, "fog.npy"),
    ],
)
def test_damaged_contents(tmp_path: Path, builder: str, change: dict, cause: str):
    src = pack(tmp_path / "src.tar", LAYOUTS[builder]() | change, "tar")
    with pytest.raises(UserError, match=cause) as error:
        run_builder(builder, src, tmp_path / "out")
    assert "\n" not in error.value.cause + error.value.cure
    assert not (tmp_path / "out").exists()


def test_files_of_an_archive(tmp_path: Path, monkeypatch):
    files = {"b/2.txt": b"two", "a/1.txt": b"one", ".hidden/3.txt": b"", "b/.4.txt": b""}
    for kind in ("tar", "tgz", "zip", "folder"):
        src = pack(tmp_path / kind, files, kind)
        names = ["a/1.txt", "b/2.txt"] if kind == "folder" else ["b/2.txt", "a/1.txt"]
        assert archives.list_names(src) == names
        assert list(archives.read(src, {"a/1.txt"})) == [("a/1.txt", b"one", "")]
        with pytest.raises(UserError, match=r"does not contain c/3\.txt"):
            archives.read_one(src, "c/3.txt")
    monkeypatch.setattr(archives, "MAX_BYTES", 2)
    for kind in ("tar", "zip"):
        assert {reason for *_, reason in archives.read(tmp_path / kind, names)} == {archives.TOO_LARGE}


def test_links_in_a_tar_are_ignored(tmp_path: Path):
    with tarfile.open(tmp_path / "src.tar", "w") as archive:
        for name, link in (("rendered-sst2/train/negative/1.png", "/etc/passwd"), ("../../out.png", "")):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = (tarfile.SYMTYPE if link else tarfile.REGTYPE), link
            archive.addfile(member)
    assert archives.list_names(tmp_path / "src.tar") == []  # a link is not a file, and ".." counts as hidden


def test_an_encrypted_zip(tmp_path: Path):
    src = pack(tmp_path / "src.zip", {"a.png": b"x"}, "zip")
    content = bytearray(src.read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1  # the flag in the directory
    src.write_bytes(content)
    with pytest.raises(UserError, match="encrypted"):
        archives.list_names(src)


def test_an_image_that_is_all_border(tmp_path: Path):
    files = objectnet()
    out = io.BytesIO()
    Image.new("RGB", (4, 9)).save(out, "PNG")
    src = pack(tmp_path / "src.tar", files | {"objectnet-1.0/images/wok/b.png": out.getvalue()}, "tar")
    manifest = run_builder("objectnet", src, tmp_path / "out")
    assert manifest["refused"] == [{"file": "wok/b.png", "reason": "nothing within its border"}]
