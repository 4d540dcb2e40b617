"""What all commands that prepare data have in common: their options, and names that nobody foresaw."""

import json
import os
import re

import pytest

from nml_jax.prepare.__main__ import main
from nml_jax.prepare.downstream import BUILDERS
from tests.prepare.pairs.sources import pair, tar
from tests.scenes.tiny_archives import LAYOUTS, pack
from tests.scenes.tiny_sets import image

KINDS = ("image_folder", "coco_folder", "image_text", *BUILDERS)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("workers", ["-1", "0"])
def test_workers_are_one_or_more(tmp_path, capsys, kind, workers):
    assert main([kind, str(tmp_path / "none"), str(tmp_path / "out"), "--workers", workers]) == 2
    cause, cure = capsys.readouterr().err.splitlines()
    assert cause == f"--workers must be at least 1, got {workers}"
    assert cure == "  cure: leave it out for one per core"


@pytest.mark.parametrize("kind", KINDS)
def test_the_help_says_how_many_workers_there_may_be(capsys, kind):
    with pytest.raises(SystemExit):
        main([kind, "--help"])
    assert "1 or more (default: one per core)" in re.sub(r"\s+", " ", capsys.readouterr().out)


def test_a_path_of_out_must_be_utf_8(tmp_path, capsys):
    (tmp_path / "src" / "train" / "cat").mkdir(parents=True)
    (tmp_path / "src" / "train" / "cat" / "1.png").write_bytes(image(0))
    tar(tmp_path / "tars" / "0.tar", pair("1", 1, "one"))
    for kind, src in (("image_folder", "src"), ("image_text", "tars")):
        assert main([kind, str(tmp_path / src), str(tmp_path / os.fsdecode(b"out\xff"))]) == 2
        cause, cure = capsys.readouterr().err.splitlines()
        assert cause.endswith("out\\xff is not UTF-8")
        assert cure == "  cure: choose an OUT whose path is"


def test_an_archive_whose_name_is_not_utf_8_is_read(tmp_path):
    src = pack(tmp_path / os.fsdecode(b"\xff.tar"), LAYOUTS["rendered_sst2"]() | {"rendered-sst2/.x": b""}, "tar")
    assert main(["rendered_sst2", str(src), str(tmp_path / "out")]) == 0
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text("utf-8"))
    assert {entry["file"] for entry in manifest["files_left_out"]} == {"\\xff.tar"}


def test_a_folder_that_cannot_name_a_split_is_not_printed_as_one(tmp_path, capsys):
    folders = [tmp_path / "train", tmp_path / "v\nrefused pairs: 0"]
    for folder in folders:
        tar(folder / "0.tar", pair("1", 1, "one"))
    assert main(["image_text", *map(str, folders), str(tmp_path / "out")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 2
