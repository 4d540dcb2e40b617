import os
import signal
import subprocess
import sys
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow_datasets as tfds

from nml_jax.errors import UserError
from nml_jax.prepare.__main__ import main
from nml_jax.prepare.pairs import assemble, shards
from tests.prepare.pairs.sources import (
    ROOT,
    build,
    captions,
    contents,
    keys,
    many,
    pair,
    picture,
    tar,
    write_csv,
)


def test_the_number_of_processes_does_not_matter(tmp_path):
    src = many(tmp_path / "src")
    for workers in (1, 2):
        build(src, tmp_path / f"out{workers}", workers=workers)
    assert contents(tmp_path / "out1") == contents(tmp_path / "out2")
    assert len(keys(tmp_path / "out1")) == 24


def test_a_killed_build_resumes(tmp_path, capsys):
    src, done = many(tmp_path / "src", 8, picture(0, size=(900, 900))), tmp_path / ".out.partial" / "shards"
    command = [sys.executable, "-m", "nml_jax.prepare", "image_text", str(src), str(tmp_path / "out")]
    killed = subprocess.Popen([*command, "--workers=2"], stderr=subprocess.DEVNULL, cwd=ROOT)
    while killed.poll() is None and len(list(done.glob("*[0-9]"))) < 2:
        time.sleep(0.005)
    killed.kill()
    killed.wait()
    time.sleep(0.3)  # its workers need a moment to exit
    before = {p.parent.name: p.stat().st_ino for p in done.glob("*[0-9]/train.array_record")}
    assert 2 <= len(before) < 8
    assert not (tmp_path / "out").exists()
    build(src, tmp_path / "out")
    assert f"{len(before)} of 8 shards are finished already" in capsys.readouterr().err
    after = {f"{int(p.name[-14:-9]):06}": p.stat().st_ino for p in (tmp_path / "out").glob("*.array_record-*")}
    assert before.items() <= after.items()
    build(src, tmp_path / "fresh")
    assert contents(tmp_path / "fresh") == contents(tmp_path / "out")
    assert {p.name for p in tmp_path.iterdir()} == {"src", "out", "fresh"}


def test_the_keyboard_stops_a_build_in_one_line(tmp_path):
    src, done = many(tmp_path / "src", 8, picture(0, size=(900, 900))), tmp_path / ".out.partial" / "shards"
    command = [sys.executable, "-m", "nml_jax.prepare", "image_text", str(src), str(tmp_path / "out")]
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # a test run in the background ignores SIGINT
    stopped = subprocess.Popen(
        [*command, "--workers=2"], stderr=subprocess.PIPE, text=True, cwd=ROOT, start_new_session=True
    )
    signal.signal(signal.SIGINT, handler)
    while stopped.poll() is None and len(list(done.glob("*[0-9]"))) < 2:
        time.sleep(0.005)
    os.killpg(stopped.pid, signal.SIGINT)  # a terminal signals the workers, too
    said = stopped.communicate(timeout=30)[1]
    assert stopped.returncode == 130
    assert said.splitlines()[-1] == "interrupted; the same command continues"
    assert "Traceback" not in said
    build(src, tmp_path / "out")
    assert len(keys(tmp_path / "out")) == 32


def stop_at(monkeypatch, name, call):
    """Make call number `call` of a function of shards.py or assemble.py raise the error of a full disk."""
    module = shards if hasattr(shards, name) else assemble
    real, calls = getattr(module, name), []

    def fail(*args):
        calls.append(args)
        if len(calls) == call:
            raise OSError(28, "No space left on device")
        return real(*args)

    monkeypatch.setattr(module, name, fail)
    return calls


@pytest.mark.parametrize(
    ("name", "call", "left"), [("build", 4, 3), ("_gather_texts", 1, 0), ("_gather_records", 2, 0)]
)
def test_a_full_disk_keeps_what_is_finished(tmp_path, monkeypatch, capsys, name, call, left):
    src = tmp_path / "src"
    many(src / "a", 4)
    many(src / "b", 2)
    with monkeypatch.context() as patch:
        stop_at(patch, name, call)
        with pytest.raises(UserError, match=r"cannot write .*No space left") as e:
            build(src, tmp_path / "out")
    assert "run the same command again" in e.value.cure
    assert not (tmp_path / "out").exists()
    calls = stop_at(monkeypatch, "build", 0)
    build(src, tmp_path / "out")
    assert len(calls) == left
    build(src, tmp_path / "fresh")
    assert contents(tmp_path / "fresh") == contents(tmp_path / "out")


@pytest.mark.parametrize("change", ["options", "sources", "nothing"])
def test_a_build_of_other_sources_or_options_starts_over(tmp_path, monkeypatch, capsys, change):
    src = many(tmp_path / "src", 3)
    with monkeypatch.context() as patch:
        stop_at(patch, "build", 3)
        with pytest.raises(UserError):
            build(src, tmp_path / "out")
    if change == "sources":
        tar(src / "0.tar", pair("new", 9, "new"))
    calls = stop_at(monkeypatch, "build", 0)
    build(src, tmp_path / "out", captions=["url"] if change == "options" else None)
    assert len(calls) == (1 if change == "nothing" else 3)
    assert ("starting over" in capsys.readouterr().err) == (change != "nothing")
    if change == "sources":
        assert keys(tmp_path / "out")[0] == "0.tar/new"


def test_bad_options_and_sources_are_refused_before_anything_runs(tmp_path):
    good = tar(tmp_path / "src" / "x.tar", pair("0", 0))
    pq.write_table(pa.table({"img": [b"x"], "words": ["x"]}), tmp_path / "x.parquet")
    table = write_csv(tmp_path / "x.csv", [["image", "words"], ["1.png", "x"]])
    (tmp_path / "mac.csv").write_bytes(b"image,caption\rx.jpg,a\r")
    (tmp_path / "wide.csv").write_bytes("image,caption\n1.png,x\n".encode("utf-16"))
    (tmp_path / "nothing.csv").write_bytes(b"")
    (tmp_path / "twice.csv").write_bytes(b"image,caption,caption\n1.png,x,y\n")
    twice = pa.Table.from_arrays([pa.array(["x"])] * 3, ["image", "caption", "caption"])
    pq.write_table(twice, tmp_path / "twice.parquet")
    (tmp_path / "empty").mkdir()
    (tmp_path / "x.tar.gz").write_bytes(b"")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious").write_bytes(b"")
    tar(tmp_path / "lacking" / "train" / "x.tar", [])
    (tmp_path / "lacking" / "val").mkdir()
    tar(tmp_path / "mixed" / "x.tar", [])
    tar(tmp_path / "mixed" / "val" / "y.tar", [])
    tar(tmp_path / "named" / "my photos" / "y.tar", [])
    out = tmp_path / "out"
    for sources, options, cause in [
        ([tmp_path / "x.parquet"], {}, r"x.parquet has no column 'image'; its columns are 'img', 'words'"),
        ([tmp_path / "x.parquet"], {"image": "img"}, r"no column 'caption'; its columns are 'img', 'words'"),
        ([table], {}, r"x.csv has no column 'caption'; its columns are 'image', 'words'"),
        ([table], {"captions": ["words"], "label": "class"}, r"no column 'class'; its columns are"),
        ([tmp_path / "wide.csv"], {}, "wide.csv is UTF-16"),
        ([tmp_path / "mac.csv"], {}, "mac.csv: unreadable: its lines end with CR alone, so save it with LF or CRLF"),
        ([tmp_path / "nothing.csv"], {}, "nothing.csv is empty"),
        ([tmp_path / "twice.csv"], {}, "twice.csv has 2 columns 'caption'"),
        ([tmp_path / "twice.parquet"], {}, "twice.parquet has 2 columns 'caption'"),
        ([tmp_path / "gone"], {}, "gone does not exist"),
        ([tmp_path / "empty"], {}, "empty contains none of .tar, .parquet, .csv, .tsv"),
        ([tmp_path / "lacking"], {}, "lacking/val contains none of .tar"),
        ([tmp_path / "x.tar.gz"], {}, "is none of .tar"),
        ([tmp_path / "mixed"], {}, "mixed contains x.tar and also val/y.tar"),
        ([tmp_path / "named"], {}, "'my photos' cannot name a split"),
        ([good, tmp_path / "src"], {}, "x.tar is given twice"),
        ([good], {"group": "concept"}, "--group=concept and --parts must be given together"),
        ([good], {"parts": {"a": 1.0}}, "must be given together"),
        ([good], {"group": "concept", "parts": {"a": 0.7, "b": 0.4}}, "--parts=a=0.7,b=0.4 must be positive and sum"),
        ([good], {"group": "concept", "parts": {"a b": 1.0}}, "'train_a b' cannot name a split"),
        ([good], {"label": "nothing"}, "no pair has a field 'nothing'"),
        ([good], {"workers": 0}, "--workers must be at least 1, got 0"),
    ]:
        with pytest.raises(UserError, match=cause) as e:
            build(sources, out, **options)
        assert "\n" not in e.value.cause + e.value.cure
        assert not list(tmp_path.glob(".out*"))
        assert not out.exists()
    with pytest.raises(UserError, match="Not a directory") as e:
        build(good, table / "out")
    assert e.value.cure == "choose an OUT in a writable folder"
    for where, cause in ((tmp_path / "full", "exists already"), (tmp_path / "src" / "out", "lies inside")):
        with pytest.raises(UserError, match=cause):
            build(tmp_path / "src", where)
    assert (tmp_path / "full" / "precious").exists()


def test_no_usable_pair(tmp_path, capsys):
    (tmp_path / "x.parquet").write_bytes(b"PAR1 is no table")
    (tmp_path / "x.csv").write_bytes(b"image,caption\n")
    (tmp_path / "y.tar").write_bytes(b"no tar at all")
    (tmp_path / "z.tar").write_bytes(b"")
    for name in ("x.parquet", "x.csv", "y.tar", "z.tar"):
        assert main(["image_text", str(tmp_path / name), str(tmp_path / "out"), "--workers=1"]) == 2
        said = capsys.readouterr().err
        assert f"the sources have no usable pair ({name})" in said
        if name != "x.csv":
            assert f"the first of 1 refused is {name}: unreadable: " in said
    assert not list(tmp_path.glob("*out*"))


def test_an_unreadable_file_beside_good_ones(tmp_path):
    src = many(tmp_path / "src", 1)
    (src / "1.tar").write_bytes(b"no tar at all" * 100)
    (src / "2.parquet").write_bytes(b"PAR1 is no table")
    tar(src / "3.tar", [])
    _, refused = build(src, tmp_path / "out")
    assert [file for file, _, _ in refused] == ["0.tar", "1.tar", "2.parquet"]
    assert len(keys(tmp_path / "out")) == 4


def test_a_split_without_usable_pairs_is_reported(tmp_path, capsys):
    src = tmp_path / "src"
    tar(src / "train" / "0.tar", pair("0", 0))
    tar(src / "val" / "0.tar", [("0.png", b"")])
    assert main(["image_text", str(src), str(tmp_path / "out"), "--workers=1"]) == 0
    assert "val: 0 images" in capsys.readouterr().out
    assert list(tfds.builder_from_directory(tmp_path / "out").info.splits) == ["train"]


def test_command_line(tmp_path, capsys):
    src = many(tmp_path / "src", 1)
    for wrong in ([], ["--parts=a"], ["--parts=a=x"], ["--parts=a=0.5,a=0.5"], ["--parts==1"], ["--workers=x"]):
        with pytest.raises(SystemExit) as e:
            main(["image_text", *([str(src), "out"] if wrong else []), *wrong])
        assert e.value.code == 2
        said = capsys.readouterr().err
        assert ("as in train=0.7,new=0.3" in said) == ("--parts" in str(wrong))
        assert "_shares" not in said
    for share in ("nan", "inf", "0", "-1"):
        assert main(["image_text", str(src), str(tmp_path / "x"), f"--parts=a={share},b=1", "--group=key"]) == 2
        assert "must be positive and sum to 1" in capsys.readouterr().err
    options = ["--caption=caption,url", "--label=status", "--group=key", "--parts=a=0.5,b=0.5", "--workers=1"]
    assert main(["image_text", str(src), str(tmp_path / "out"), *options]) == 0
    said = capsys.readouterr().out
    assert "refused pairs: 2, listed in" in said
    assert {c for part in read_all_captions(tmp_path / "out") for c in part} >= {"http://x"}


def read_all_captions(out):
    return [row for path in (out / "supervision").glob("*.captions") for row in captions(out, path.stem)]


def test_missing_beam_is_a_user_error(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    src = many(tmp_path / "src", 1)
    assert main(["image_text", str(src), str(tmp_path / "out"), "--beam=--runner=DirectRunner"]) == 2
    said = capsys.readouterr().err
    assert "--beam needs Apache Beam" in said
    assert "without -c constraints.txt" in said


NO_BEAM = "Apache Beam is not installed; it needs an environment of its own"


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(
    ("options", "cause"),
    [
        ("--runner=Nope", "Unexpected pipeline runner: Nope"),
        ('--runner="Direct', "No closing quotation"),
        ("--direct_num_workers=x", "invalid int value: 'x'"),
    ],
)
def test_options_that_beam_rejects(tmp_path, options, cause):
    pytest.importorskip("apache_beam", reason=NO_BEAM)
    with pytest.raises(UserError, match=cause) as e:
        build(many(tmp_path / "src", 1), tmp_path / "out", beam=options)
    assert "\n" not in e.value.cause
    assert not list(tmp_path.glob(".out*"))


@pytest.mark.filterwarnings("default")
def test_an_error_in_a_beam_worker_is_a_user_error(tmp_path, monkeypatch):
    pytest.importorskip("apache_beam", reason=NO_BEAM)
    monkeypatch.setattr(shards, "build", no_space)
    with pytest.raises(UserError, match=r"the pipeline failed: OSError: \[Errno 28\] No space left\n"):
        build(many(tmp_path / "src", 1), tmp_path / "out", beam="--runner=DirectRunner")


def no_space(*args):
    raise OSError(28, "No space left")


@pytest.mark.filterwarnings("default")
def test_beam_builds_the_same(tmp_path):
    pytest.importorskip("apache_beam", reason=NO_BEAM)
    src = many(tmp_path / "src", 3)
    build(src, tmp_path / "out", label="status")
    build(src, tmp_path / "beam", label="status", beam="--runner=DirectRunner")
    assert contents(tmp_path / "out") == contents(tmp_path / "beam")
