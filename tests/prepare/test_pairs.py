import csv
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from nml_jax.data.class_names import clean_name, simplify_group
from nml_jax.data.sources import texts
from nml_jax.errors import UserError
from nml_jax.prepare import image_files
from nml_jax.prepare.__main__ import main
from nml_jax.prepare.pairs import assemble, shards, tables, tars
from nml_jax.prepare.pairs import build as image_text
from nml_jax.prepare.pairs.read import cut, read
from nml_jax.prepare.pairs.types import Columns, Refusal, Tally

ROOT = Path(__file__).parents[2]


def picture(seed, kind="PNG", size=(6, 5)):
    pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(out := io.BytesIO(), kind)
    return out.getvalue()


def tar(path, members, cut=0):
    """Write a tar of (name, content) members. Content None makes a symbolic link."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(fileobj=(out := io.BytesIO()), mode="w") as file:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if content is None:
                info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
                file.addfile(info)
            else:
                content = content if isinstance(content, bytes) else json.dumps(content).encode()
                info.size = len(content)
                file.addfile(info, io.BytesIO(content))
    path.write_bytes(out.getvalue()[:cut] if cut else out.getvalue())
    return path


def pair(key, seed, caption="a caption", **fields):
    """Return the members that img2dataset writes for a pair."""
    about = {"caption": caption, "url": "http://x", "key": key, "status": "success", **fields}
    return [(f"{key}.jpg", picture(seed, "JPEG")), (f"{key}.json", about), (f"{key}.txt", caption.encode())]


def build(src, out, **options):
    """Build with one worker. Return the manifest and the refusals: [(file, key, reason)]."""
    options = {"workers": 1} | options
    manifest = image_text.build_image_text([src] if isinstance(src, Path) else src, out, **options)
    assert json.loads((out / "manifest.json").read_text("utf-8")) == manifest
    lines = [json.loads(line) for line in (out / "refused.jsonl").read_text("utf-8").splitlines()]
    for kind, what in (("refused", "pair"), ("refused_captions", "caption"), ("refused_files", "file")):
        assert sum(manifest[kind].values()) == sum(line["what"] == what for line in lines)
    check_sums(manifest)
    return manifest, [(line["file"], line["key"], line["reason"]) for line in lines]


def check_sums(manifest):
    """Check that accepted, refused and left-out pairs, captions and lines are all that there are."""
    seen, splits = manifest["seen"], manifest["splits"].values()
    assert sum(split["records"] for split in splits) + sum(manifest["refused"].values()) == seen["pairs"]
    kept = sum(split["captions"] for split in splits) + sum(manifest["refused_captions"].values())
    assert kept + seen["captions_of_refused"] == seen["captions"]
    if lines := seen.get("lines"):
        kinds = ("rows", "refused", "continued", "blank", "header")
        assert sum(lines[kind] for kind in kinds) == lines["lines"]


def keys(out, split="train"):
    return list(texts.Texts(out / "supervision" / f"{split}.keys"))


def captions(out, split="train"):
    return [texts.split(text) for text in texts.Texts(out / "supervision" / f"{split}.captions")]


def stored(out, split="train"):
    builder = tfds.builder_from_directory(out)
    return list(builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()}))


def contents(out):
    return {p.relative_to(out): p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()}


def test_tars_of_img2dataset(tmp_path):
    src = tmp_path / "src"
    tar(src / "00000.tar", pair("000000001", 1, "one") + pair("000000000", 0, " zero\n"))
    tar(src / "00001.tar", pair("000010000", 2, "two", captions=["first", "second"]))
    pq.write_table(pa.table({"url": ["x"]}), src / "00000.parquet")  # what img2dataset writes beside the tars
    (src / "00000_stats.json").write_text("{}")
    manifest, refused = build(src, tmp_path / "new" / "out")
    out = tmp_path / "new" / "out"
    assert refused == []
    assert [p.name for p in out.parent.iterdir()] == ["out"]
    assert keys(out) == ["00000.tar/000000001", "00000.tar/000000000", "00001.tar/000010000"]  # the source's order
    assert captions(out) == [["one"], ["zero"], ["first", "second"]]
    assert manifest["splits"]["train"] == {"records": 3, "captions": 4, "sha256": manifest["splits"]["train"]["sha256"]}
    read = stored(out)
    assert [r["image"] for r in read] == [picture(i, "JPEG") for i in (1, 0, 2)]
    assert [r["key"].decode() for r in read] == keys(out)
    assert "label" not in read[0]
    info = tfds.builder_from_directory(out).info
    assert info.disable_shuffling
    assert info.splits["train"].shard_lengths == [2, 1]
    assert "tensorflow" not in sys.modules


def test_every_suffix_and_any_order_of_members(tmp_path):
    """Check members of a key that are not neighbours, lie in folders, or have further dots in their names."""
    images = {"a/1.JPEG": picture(1, "JPEG"), "b.v2.png": picture(2), "c.webp": picture(3, "WEBP")}
    names = [("a/1.txt", b"x"), ("./b.v2.txt", "\ufeffé".encode()), ("c.txt", b"z")]
    extra = [("d.cls", b"3"), (".hidden.png", b"?"), ("__MACOSX/._c.png", b"?"), ("readme", b"hello")]
    tar(tmp_path / "x.tar", [*images.items(), *extra, *names])
    _, refused = build(tmp_path / "x.tar", tmp_path / "out")
    assert refused == []
    assert keys(tmp_path / "out") == ["x.tar/a/1", "x.tar/b.v2", "x.tar/c"]
    assert captions(tmp_path / "out") == [["x"], ["é"], ["z"]]


def test_bad_pairs_of_a_tar_are_refused_with_reasons(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(image_files, "MAX_PIXELS", 100)
    image = picture(0)
    members = [
        *pair("good", 0, "good"),
        ("no caption.png", image),
        ("no image.txt", b"x"),
        *[("empty.png", image), ("empty.txt", b" \n")],
        *[("long.png", image), ("long.txt", b"x" * 10_000)],
        *[("longest.png", image), ("longest.txt", b"x" * 5000)],
        *[("latin.png", image), ("latin.txt", b"caf\xe9")],
        *[("nul.png", image), ("nul.txt", b"a\0b")],
        *[("bomb.png", picture(0, size=(11, 10))), ("bomb.txt", b"x")],
        *[("text.png", b"no image"), ("text.txt", b"x")],
        *[("half.png", image[:-20]), ("half.txt", b"x")],
        *[("nothing.png", b""), ("nothing.txt", b"x")],
        *[("link.png", None), ("link.txt", b"x")],
        *[("json.png", image), ("json.json", b"{"), ("json.txt", b"x")],
        *[("list.png", image), ("list.json", b"[]"), ("list.txt", b"x")],
        *[("null.png", image), ("null.json", {"caption": None})],
        *[("number.png", image), ("number.json", {"captions": [3]}), ("number.txt", b"x")],
        *[("half a pair.png", image), ("half a pair.json", {"captions": ["\ud800", "good", ""]})],
        *[("\udcff.png", image), ("\udcff.txt", b"x")],
        *pair("good", 1, "again"),
        ("good.png", image),
    ]
    src = tar(tmp_path / "x.tar", members)
    assert main(["image_text", str(src), str(tmp_path / "out"), "--workers=1"]) == 0
    said = capsys.readouterr().out
    assert "train: 3 images with 3 captions" in said
    assert "refused pairs: 18, listed in" in said
    assert "refused captions of pairs that were kept: 2, listed in" in said
    assert said.count("  1 x caption is not UTF-8") == 2  # of a pair, and of one that was kept
    assert keys(tmp_path / "out") == [f"x.tar/{key}" for key in ("good", "longest", "half a pair")]
    assert captions(tmp_path / "out") == [["good"], ["x" * 5000], ["good"]]
    lines = [json.loads(line) for line in (tmp_path / "out" / "refused.jsonl").read_text("utf-8").splitlines()]
    assert {line["file"] for line in lines} == {"x.tar"}
    refused = [(line["key"], line["reason"].split(":")[0]) for line in lines]
    assert sorted(refused) == sorted(
        [
            ("no caption", "no caption"),
            ("no image", "no image with this key"),
            ("empty", "empty caption"),
            ("long", "caption longer than 5000 characters"),
            ("latin", "caption is not UTF-8"),
            ("nul", "caption with a NUL character"),
            ("bomb", "more than 0.0001 megapixels"),
            ("text", "not an image"),
            ("half", "truncated or damaged"),
            ("nothing", "empty"),
            ("link", "a link or device, no file"),
            ("json", "KEY.json is not JSON"),
            ("list", "KEY.json is not a JSON object"),
            ("null", "no caption"),
            ("number", "caption is not text"),
            ("half a pair", "caption is not UTF-8"),
            ("half a pair", "empty caption"),
            ("\\xff", "the key is not UTF-8"),
            ("good", "another member with this key came before"),
            ("good", "another member with this key came before"),
        ]
    )
    assert [line["reason"] for line in lines if line["what"] == "caption"] == ["caption is not UTF-8", "empty caption"]
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["refused_captions"] == {"caption is not UTF-8": 1, "empty caption": 1}
    assert manifest["refused"]["empty caption"] == 1
    assert sum(manifest["refused"].values()) + 3 == PAIRS


PAIRS = 19 + 2  # keys, and two members whose key came before


def test_a_pair_is_refused_for_one_reason(tmp_path):
    """Count bad captions and a bad image of one pair once: records and refused pairs sum to all pairs."""
    bad = [("0.png", b"no image"), ("0.json", {"captions": ["", "\ud800", "fine"]})]
    worse = [("1.png", b"no image"), ("1.json", {"captions": ["", "\ud800"]})]
    manifest, refused = build(tar(tmp_path / "x.tar", [*bad, *worse, *pair("2", 2)]), tmp_path / "out")
    assert [(key, reason) for _, key, reason in refused] == [("0", "not an image"), ("1", "empty caption")]
    assert manifest["refused_captions"] == {}


def test_a_tar_cut_anywhere_keeps_what_came_before(tmp_path):
    members = pair("0", 0, "zero") + pair("1", 1, "one")
    first, both = (
        len(tar(tmp_path / "x.tar", some).read_bytes().rstrip(b"\0")) // 512 * 512 + 512
        for some in (members[:3], members)
    )
    for i, end in enumerate(at + extra for at in range(512, both + 1, 512) for extra in (0, 100)):
        src = tar(tmp_path / f"{i}" / "x.tar", members, cut=end)
        try:
            _, refused = build(src, tmp_path / f"{i}" / "out")
            kept = captions(tmp_path / f"{i}" / "out")
        except UserError as e:
            refused, kept = [("x.tar", "", e.cause)], []
        whole = (end >= first) + (end >= both)
        assert kept in (WHOLE[:whole], WHOLE[: whole + 1])  # the JSON alone may hold the caption
        assert any(word in reason for _, _, reason in refused for word in ("cut", "no tar file", "no image")), refused


WHOLE = [["zero"], ["one"]]


def test_data_after_the_end_of_a_tar_is_reported(tmp_path):
    src = tar(tmp_path / "x.tar", pair("0", 0))
    src.write_bytes(src.read_bytes() + tar(tmp_path / "y.tar", pair("1", 1)).read_bytes())
    assert build(src, tmp_path / "out")[1] == [("x.tar", "", "more data behind the end of the tar is not read")]
    src.write_bytes(src.read_bytes()[:5000].rstrip(b"\0") + b"\0" * 512)
    assert len(build(src, tmp_path / "out2")[1]) == 1


@pytest.mark.parametrize("kind", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_long_names_links_and_sparse_members(tmp_path, kind):
    long = "é" * 90 + "/" + "x" * 150
    with tarfile.open(tmp_path / "x.tar", "w", format=kind, pax_headers={"comment": "ü"}) as file:
        for name, content in ((f"{long}.png", picture(0)), (f"{long}.txt", b"x"), ("h.png", None), ("h.txt", b"x")):
            info = tarfile.TarInfo(name)
            info.mtime = 1.5  # a fraction does not fit into the plain header
            info.size = len(content or b"")
            if content is None:
                info.type, info.linkname = tarfile.LNKTYPE, f"{long}.png"
            file.addfile(info, io.BytesIO(content) if content else None)
    assert build(tmp_path / "x.tar", tmp_path / "out")[1] == [("x.tar", "h", "a link or device, no file")]
    assert keys(tmp_path / "out") == [f"x.tar/{long}"]


def test_large_members_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(tars, "MAX_BYTES", 1000)
    large = b"x" * 1001
    members = [*pair("0", 0), ("1.png", large), ("1.txt", b"x"), ("2.png", picture(2)), ("2.txt", large)]
    _, refused = build(tar(tmp_path / "x.tar", members), tmp_path / "out")
    assert refused == [("x.tar", key, "more than 512 MiB") for key in "12"]


def test_names_of_sources(tmp_path):
    """Check that keys distinguish the sources, whatever their folder, and escape names that are not UTF-8."""
    latin = os.fsdecode(b"caf\xe9.tar")
    for folder, name in (("a", "0.tar"), ("b", "0.tar"), ("c/sub", latin)):
        tar(tmp_path / "src" / folder / name, pair("k", 0))
    sources = [tmp_path / "src" / name for name in ("a", "b", f"c/sub/{latin}")]
    build(sources, tmp_path / "out")
    found = [key for split in ("a", "b", "train") for key in keys(tmp_path / "out", split)]
    assert found == ["a/0.tar/k", "b/0.tar/k", "c/sub/caf\\xe9.tar/k"]
    (tmp_path / "src").rename(tmp_path / "moved")
    build([tmp_path / "moved" / path.relative_to(tmp_path / "src") for path in sources], tmp_path / "out2")
    assert contents(tmp_path / "out") == contents(tmp_path / "out2")


def test_folders_of_files_are_splits_of_their_names(tmp_path, capsys):
    for place in ("src/train", "src/val", "other/train"):
        tar(tmp_path / place / "0.tar", pair("k", 0))
    src = tmp_path / "src"
    splits = [
        ([src / "train", src / "val"], {"train": 1, "val": 1}, True),
        ([src / "train", src / "val", tmp_path / "other" / "train"], {"train": 2, "val": 1}, True),
        ([src / "train", tmp_path / "other" / "train"], {"train": 2}, False),
        ([src / "val"], {"train": 1}, False),
        ([src], {"train": 1, "val": 1}, False),
    ]
    for i, (sources, expected, noticed) in enumerate(splits):
        manifest, _ = build(sources, tmp_path / f"out{i}")
        assert {split: about["records"] for split, about in manifest["splits"].items()} == expected
        assert ("each folder is one split: train, val" in capsys.readouterr().err) == noticed


def test_stray_files_in_a_folder_are_listed(tmp_path):
    src = tmp_path / "src"
    tar(src / "tars" / "0.TAR", pair("k", 0))
    tar(src / "tars" / "deep" / "1.tar", pair("k", 0))
    for name in ("1.tar.gz", "2.zip", "notes.txt", "0_stats.json", ".hidden"):
        (src / "tars" / name).write_bytes(b"")
    (src / "tables" / "images" / "a").mkdir(parents=True)
    (src / "tables" / "images" / "a" / "0.JPG").write_bytes(picture(0))
    tar(src / "tables" / "images" / "a" / "lost.tar", [])
    write_csv(src / "tables" / "0.CSV", [["image", "caption"], ["images/a/0.JPG", "x"]])
    for name in ("photo.jpg", "notes.txt", "labels.db"):
        (src / "tables" / name).write_bytes(b"")
    (src / "readme.md").write_bytes(b"")
    manifest, refused = build(src, tmp_path / "out")
    assert (keys(tmp_path / "out", "tars"), keys(tmp_path / "out", "tables")) == (["tars/0.TAR/k"], ["tables/0.CSV/0"])
    no = "neither a tar nor a table"
    assert refused == [
        ("readme.md", "", no),
        ("tables/images/a/lost.tar", "", no),
        ("tables/labels.db", "", no),
        ("tars/1.tar.gz", "", f"{no}: decompress it first"),
        ("tars/2.zip", "", f"{no}: decompress it first"),
        ("tars/deep", "", no),
        ("tars/notes.txt", "", no),
    ]
    assert manifest["refused_files"] == {no: 7}


def write_csv(path, rows, delimiter=","):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as f:
        csv.writer(f, delimiter=delimiter).writerows(rows)
    return path


def test_tables_of_paths(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "RECORDS_PER_SHARD", 3)
    src = tmp_path / "src"
    (src / "images").mkdir(parents=True)
    for i in range(8):
        (src / "images" / f"{i}.png").write_bytes(picture(i))
    os.mkfifo(src / "images" / "pipe.png")
    rows = [[f"images/{i}.png", f"line {i}\nof, several"] for i in range(7)]
    absolute = [str(src / "images" / "7.png"), "absolute"]
    bad = [
        ["../x.png", "x"],
        ["/etc/passwd", "x"],
        ["images/9.png", "x"],
        ["", "x"],
        ["images/10.png", ""],
        ["images/0"],
    ]
    bad += [["images/pipe.png", "x"], ["images/a\0b.png", "x"], ["images/11.png", "caf\udce9"]]
    write_csv(src / "a.csv", [["\ufeffimage", "caption"], *rows[:4], [], *bad, *rows[4:], absolute])
    write_csv(src / "b.tsv", [["filepath", "title"], *rows[:1]], "\t")
    _, refused = build(src, tmp_path / "out")
    good = [0, 1, 2, 3, 13, 14, 15, 16]
    assert keys(tmp_path / "out") == [*(f"a.csv/{i}" for i in good), "b.tsv/0"]
    assert captions(tmp_path / "out") == [*([row[1]] for row in rows), ["absolute"], [rows[0][1]]]
    assert [r["image"] for r in stored(tmp_path / "out")] == [picture(i) for i in (*range(8), 0)]
    assert sorted(((key, reason) for file, key, reason in refused if file == "a.csv"), key=lambda r: int(r[0])) == [
        ("4", "the image's path leads out of the table's folder: '../x.png'"),
        ("5", "the image's path leads out of the table's folder: '/etc/passwd'"),
        ("6", "unreadable: No such file or directory"),
        ("7", "no image"),
        ("8", "empty caption"),
        ("9", "the row does not fit its header: line 16: 1 of 2 fields"),
        ("10", "not a regular file"),
        ("11", "the image's path leads out of the table's folder: 'images/a\\x00b.png'"),
        ("12", "caption is not UTF-8"),
    ]
    assert len(tfds.builder_from_directory(tmp_path / "out").info.splits["train"].shard_lengths) == 6 - 1


@pytest.mark.parametrize("per_shard", [1, 2, 4, 100])
def test_several_rows_of_one_image_are_its_captions(tmp_path, monkeypatch, per_shard):
    """Check a table as Flickr8k's: rows of one image stay in one shard, and an image that comes back is refused."""
    monkeypatch.setattr(tables, "RECORDS_PER_SHARD", per_shard)
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(picture(i))
    rows = [[f"{i}.png", f"{i} {j}"] for i in (0, 1) for j in range(3)] + [["bad"], ["1.png", "1 3"]]
    write_csv(tmp_path / "x.csv", [["image", "caption"], *rows, ["2.png", "2"], ["0.png", "0 3"], ["0.png", "0 4"]])
    manifest, refused = build(tmp_path / "x.csv", tmp_path / "out")
    assert keys(tmp_path / "out") == ["x.csv/0", "x.csv/3", "x.csv/8"]
    assert captions(tmp_path / "out") == [["0 0", "0 1", "0 2"], ["1 0", "1 1", "1 2", "1 3"], ["2"]]
    assert manifest["splits"]["train"]["captions"] == 8
    assert [(key, reason) for _, key, reason in refused] == [
        ("6", "the row does not fit its header: line 8: 1 of 2 fields"),
        ("9", "another row with this image came before"),
    ]
    shards_written = tfds.builder_from_directory(tmp_path / "out").info.splits["train"].shard_lengths
    assert len(shards_written) == {1: 3, 2: 3, 4: 2, 100: 1}[per_shard]


@pytest.mark.parametrize("per_shard", [1, 100])
def test_an_unclosed_quote_costs_its_own_line_only(tmp_path, monkeypatch, per_shard):
    monkeypatch.setattr(tables, "RECORDS_PER_SHARD", per_shard)
    for i in range(6):
        (tmp_path / f"{i}.png").write_bytes(picture(i))
    lines = [
        "image\tcaption",
        "0.png\t0",
        "",
        '1.png\t"one inch',
        "2.png\t2",
        '3.png\t"a "b" c',
        '4.png\t"four\nlines"',
    ]
    (tmp_path / "x.tsv").write_text("\n".join([*lines, '5.png\t"', ""]))
    _, refused = build(tmp_path / "x.tsv", tmp_path / "out")
    assert captions(tmp_path / "out") == [["0"], ["2"], ["four\nlines"]]
    assert [(key, reason.split(": ")[:2]) for _, key, reason in refused] == [
        ("1", ["no row of a table", "line 4"]),
        ("3", ["no row of a table", "line 6"]),
        ("5", ["no row of a table", "line 9"]),
    ]


SWALLOWED = [  # header, lines, captions that are right, lines that are refused
    ("image,caption", ['0.png,"one inch', "1.png,two", '2.png,three"', "3.png,four"], ["two", 'three"', "four"], [2]),
    ("image\tcaption", ['0.png\t"one', "1.png\ttwo", '2.png\t3"'], ["two", '3"'], [2]),
    ("caption,image", ['"one,0.png', "two,1.png", 'three",2.png'], ["two", 'three"'], [2]),
    ("image,caption", ['0.png,"a', "", "nonsense", '1.png,b"'], ['b"'], [2, 4]),
    ("image,caption", ['0.png,"line', "of, two", 'lines, three"', "1.png,x"], ["line\nof, two\nlines, three", "x"], []),
    ("caption,image", ['"of, several', 'lines",0.png', "x,1.png"], ["of, several\nlines", "x"], []),
    ("image,caption,n", ['0.png,"a,1', '1.png,b",2,3', "2.png,c,3"], ["c"], [2]),  # two lines, neither a row
    ("image,caption", ['0,"a', "1,b", '2,c"'], [], [2, 3, 4]),
    ("image,caption", ['0.png,"a""', "b"], [], [2, 3]),
]


@pytest.mark.parametrize(("header", "lines", "right", "refused_lines"), SWALLOWED)
@pytest.mark.parametrize("per_shard", [1, 100])
def test_a_quote_swallows_no_rows(tmp_path, monkeypatch, header, lines, right, refused_lines, per_shard):
    monkeypatch.setattr(tables, "RECORDS_PER_SHARD", per_shard)
    for i in range(4):
        (tmp_path / f"{i}.png").write_bytes(picture(i))
    path = tmp_path / ("x.tsv" if "\t" in header else "x.csv")
    path.write_bytes("\r\n".join([header, *lines, "3.png,last,4" if header.endswith(",n") else ""]).encode())
    if not right:
        with pytest.raises(UserError, match="no usable pair"):
            build(path, tmp_path / "out")
        return
    manifest, refused = build(path, tmp_path / "out")
    found = [caption for some in captions(tmp_path / "out") for caption in some]
    assert [text.replace("\r", "") for text in found if text != "last"] == right
    assert [int(reason.split("line ")[1].split(":")[0]) for _, _, reason in refused] == refused_lines
    assert manifest["seen"]["lines"]["lines"] == path.read_bytes().count(b"\n") + (path.read_bytes()[-1:] != b"\n")


def test_all_lines_of_mischievous_tables_are_accounted_for(tmp_path, monkeypatch):
    """Rows, refused lines, lines that continue a cell, blank lines and the header are all lines, whatever they hold."""
    monkeypatch.setattr(tables, "RECORDS_PER_SHARD", 3)
    rng = np.random.default_rng(0)
    pieces = [
        '"',
        '""',
        ",",
        "\t",
        "\n",
        "\r\n",
        "\n\n",
        "a",
        "1.png",
        "x,y",
        "\u00e9",
        " ",
        "\0",
        "1.png,x\n",
        '"b\nc"',
    ]
    for i in range(300):
        path = tmp_path / f"x{i}.{'tsv' if i % 2 else 'csv'}"
        between = "\t" if i % 2 else ","
        body = "".join(rng.choice(pieces, rng.integers(0, 40)))
        path.write_bytes(f"image{between}caption\n{body}".encode())
        columns = Columns()
        found = [item for shard in cut("train", path, path.name, columns) for item in read(shard, columns)]
        lines = Counter()
        for item in found:
            if isinstance(item, Tally):
                lines.update(item.counts)
        n = path.read_bytes().count(b"\n") + (not path.read_bytes().endswith(b"\n"))
        kinds = ("rows", "refused", "continued", "blank", "header")
        assert sum(lines[kind] for kind in kinds) == lines["lines"] == n, body
        refused = [item for item in found if isinstance(item, Refusal) and "line " in item.reason]
        assert len(refused) == lines["refused"], body


def test_no_usable_pair_names_the_suffixes(tmp_path):
    members = [("a.left.gif", picture(0)), ("a.txt", b"x"), ("b.GIF", picture(0)), ("readme", b"x")]
    with pytest.raises(UserError) as e:
        build(tar(tmp_path / "x.tar", members), tmp_path / "out")
    assert e.value.cause == (
        "the sources have no usable pair (x.tar); the first of 1 refused is x.tar a: no image with this key; "
        "suffixes in x.tar: .gif (2), .txt (1), no suffix (1)"
    )
    assert e.value.cure == (
        "give images (.jpg, .jpeg, .png, .webp) and captions (.txt, .json) under the same key; "
        "a key is the member's name up to its last dot, as in KEY.jpg and KEY.txt"
    )


def test_parquet_is_cut_between_its_row_groups(tmp_path, monkeypatch):
    """Check that tables with images are cut between row groups, and tables with paths between rows."""
    monkeypatch.setattr(tables, "RECORDS_PER_SHARD", 4)
    (tmp_path / "1.png").write_bytes(picture(1))
    inside = picture(1)
    cases = [(inside, 10, [10]), (inside, 3, [3, 6, 10]), (inside, 2, [4, 8, 10]), ("1.png", 10, [4, 8, 10])]
    for image, group, ends in cases:
        pq.write_table(pa.table({"image": [image] * 10, "caption": ["x"] * 10}), tmp_path / "x.parquet", group)
        found = image_text.cut("train", tmp_path / "x.parquet", "x", image_text.Columns())
        assert [shard.stop for shard in found] == ends
        assert [shard.start for shard in found] == [0, *ends[:-1]]


def test_labels_are_read_without_the_images(tmp_path, monkeypatch):
    table = {"image": [picture(0), picture(1)], "caption": ["x", "y"], "label": ["a", "b"]}
    pq.write_table(pa.table(table), tmp_path / "x.parquet")
    seen, real = [], tables._read_parquet_rows
    monkeypatch.setattr(tables, "_read_parquet_rows", lambda *args: seen.append(args[2]) or real(*args))
    assert build(tmp_path / "x.parquet", tmp_path / "out", label="label")[0]["classes"] == ["a", "b"]
    assert seen == [("label",), ("image", "caption", "label")]


@pytest.mark.parametrize("group", [1, 4, 100])
def test_parquet_of_bytes_and_several_captions(tmp_path, monkeypatch, group):
    monkeypatch.setattr(tables, "RECORDS_PER_SHARD", 3)
    n = 10
    table = {
        "jpg": [picture(i) if i != 4 else None for i in range(n)],
        "text": pa.array([f"a {i}" for i in range(n)]).dictionary_encode(),
        "more": [[f"b {i}", None, f"c {i}"] if i else None for i in range(n)],
        "unused": range(n),
    }
    pq.write_table(pa.table(table), tmp_path / "x.parquet", row_group_size=group)
    manifest, refused = build(tmp_path / "x.parquet", tmp_path / "out", captions=["text", "more"])
    good = [i for i in range(n) if i != 4]
    assert refused == [("x.parquet", "4", "no image")]
    assert keys(tmp_path / "out") == [f"x.parquet/{i}" for i in good]
    assert captions(tmp_path / "out") == [[f"a {i}", f"b {i}", f"c {i}"] if i else ["a 0"] for i in good]
    assert [r["image"] for r in stored(tmp_path / "out")] == [picture(i) for i in good]
    assert manifest["splits"]["train"]["captions"] == 25


def test_parquet_of_paths_structs_and_text_that_is_not_utf8(tmp_path):
    (tmp_path / "1.png").write_bytes(picture(1))
    latin = pa.Array.from_buffers(
        pa.string(), 2, [None, pa.py_buffer(np.array([0, 1, 2], np.int32)), pa.py_buffer(b"x\xe9")]
    )
    pq.write_table(pa.table({"image": ["1.png", "1.png"], "caption": latin}), tmp_path / "a.parquet")
    struct = [{"bytes": picture(2), "path": None}, {"bytes": None, "path": "1.png"}]
    pq.write_table(pa.table({"image": struct, "caption": ["two", "one"]}), tmp_path / "b.parquet")
    _, refused = build([tmp_path / "a.parquet", tmp_path / "b.parquet"], tmp_path / "out")
    assert refused == [("a.parquet", "1", "caption is not UTF-8")]
    assert captions(tmp_path / "out") == [["x"], ["two"], ["one"]]
    assert [r["image"] for r in stored(tmp_path / "out")] == [picture(1), picture(2), picture(1)]


def test_splits_labels_and_groups(tmp_path):
    src = tmp_path / "src"
    for split in ("noto", "twemoji"):
        for shard in range(2):
            pairs = [pair(f"{i}", i, f"{split} {i}", concept=i, n=i % 11) for i in range(20 * shard, 20 * shard + 20)]
            tar(src / split / f"{shard}.tar", [member for members in pairs for member in members])
    tar(src / "noto" / "2.tar", pair("a", 0, "no concept", n=0) + pair("b", 0, "no n", concept=0))
    options = {"label": "n", "group": "concept", "parts": {"train": 0.7, "new": 0.3}}
    manifest, refused = build(src, tmp_path / "out", **options)
    assert refused == [("noto/2.tar", "a", "no field 'concept'"), ("noto/2.tar", "b", "no field 'n'")]
    assert manifest["classes"] == [str(i) for i in range(11)]  # by value: "10" comes last
    parts = {split: keys(tmp_path / "out", split) for split in manifest["splits"]}
    assert list(parts) == ["noto_train", "noto_new", "twemoji_train", "twemoji_new"]
    train, new = ({int(key.split("/")[-1]) for key in parts[f"noto_{part}"]} for part in ("train", "new"))
    assert train | new == set(range(40))
    assert not train & new
    assert 20 <= len(train) <= 36
    assert [key.replace("noto", "twemoji") for key in parts["noto_new"]] == parts["twemoji_new"]
    labels = np.load(tmp_path / "out" / "supervision" / "noto_new.npy")
    assert labels.dtype == np.int32
    assert labels.tolist() == [i % 11 for i in sorted(new)]
    assert [r["label"] for r in stored(tmp_path / "out", "noto_new")] == labels.tolist()
    assert sum(manifest["splits"]["noto_new"]["per_class"].values()) == len(new)
    assert tfds.builder_from_directory(tmp_path / "out").info.supervised_keys == ("image", "label")


def test_shares_of_the_parts_and_stability():
    parts = (("a", 0.7), ("b", 0.2), ("c", 0.1))
    found = [shards.choose_part(str(i), parts) for i in range(20_000)]
    for name, share in parts:
        assert abs(found.count(name) / 20_000 - share) < 0.015  # over four standard deviations
    assert "".join(found[:16]) == PARTS


PARTS = "cacaaaacaaaccaba"


def test_label_column_of_a_table(tmp_path):
    for i in "123":
        (tmp_path / f"{i}.png").write_bytes(picture(1))
    rows = [
        ["1.png", "x", "zebra"],
        ["1.png", "y", "cat"],
        ["2.png", "x", "cat"],
        ["3.png", "x", " "],
        ["4.png", "x", "dog"],
    ]
    write_csv(tmp_path / "x.csv", [["image", "caption", "class"], *rows])
    manifest, _ = build(tmp_path / "x.csv", tmp_path / "out", label="class")
    assert (manifest["classes"], manifest["dropped_classes"]) == (["cat", "zebra"], ["dog"])
    assert manifest["splits"]["train"]["per_class"] == {"cat": 1, "zebra": 1}
    assert [r["label"] for r in stored(tmp_path / "out")] == [1, 0]
    again = "another row with this image came before"  # with another class: it is not known which one holds
    assert manifest["refused"] == {again: 1, "no field 'class'": 1, "unreadable": 1}


def write_table(folder, rows, header=("image", "caption", "label")):
    """Write a table, and the images that it names."""
    for row in rows:
        (folder / row[0]).write_bytes(picture(1))
    return write_csv(folder / "x.csv", [header, *rows])


def test_spellings_of_a_label_are_one_class(tmp_path, capsys):
    labels = ["caf\u00e9", "cafe\u0301", "caf\u00e9\u00a0", "ant", " ant ", "Ant", "ice cream", "ice  cream"]
    src = write_table(tmp_path, [[f"{i}.png", "x", label] for i, label in enumerate(labels)])
    assert main(["image_text", str(src), str(tmp_path / "out"), "--label=label", "--workers=1"]) == 0
    manifest = json.loads((tmp_path / "out/manifest.json").read_text("utf-8"))
    assert manifest["splits"]["train"]["per_class"] == {"Ant": 1, "ant": 2, "café": 3, "ice  cream": 1, "ice cream": 1}
    said = capsys.readouterr()
    assert "field 'label', classes: names that look alike stay apart: 'Ant' and 'ant', 'ice  cream'" in said.err
    assert "  5 classes: 'Ant' 1, 'ant' 2, 'café' 3, 'ice  cream' 1, 'ice cream' 1\n" in said.out


@pytest.mark.parametrize(
    ("labels", "per_class"),
    [
        (["2", "2.0", "02", "10"], {"2": 3, "10": 1}),
        (["2", "2.0", "02", "x"], {"02": 1, "2": 1, "2.0": 1, "x": 1}),
        (["007", "010", "007"], {"007": 2, "010": 1}),
    ],
)
def test_numbers_are_one_class_if_all_are_numbers(tmp_path, capsys, labels, per_class):
    src = write_table(tmp_path, [[f"{i}.png", "x", label] for i, label in enumerate(labels)])
    assert build(src, tmp_path / "out", label="label")[0]["splits"]["train"]["per_class"] == per_class
    assert ("'02' and '2', '02' and '2.0'" in capsys.readouterr().err) == ("x" in per_class)


def test_spellings_of_a_group_fall_into_one_part(tmp_path, capsys):
    groups = [group for i in range(20) for group in (f"caf\u00e9{i}", f"cafe\u0301{i}", f" caf\u00e9{i}\u00a0")]
    groups += [group for i in range(20) for group in (f"{i}", f"0{i}.0")] + ["Ant", "ant"]
    src = write_table(tmp_path, [[f"{i}.png", "x", group] for i, group in enumerate(groups)])
    build(src, tmp_path / "out", group="label", parts={"a": 0.5, "b": 0.5})
    parts = [{clean_name(groups[int(key.split("/")[1])]) for key in keys(tmp_path / "out", f"train_{p}")} for p in "ab"]
    values = [{simplify_group(name) for name in part} for part in parts]
    assert not values[0] & values[1]
    assert len(values[0] | values[1]) == 42
    assert "field 'label', groups: names that look alike stay apart: 'Ant' and 'ant';" in capsys.readouterr().err


def test_spellings_of_a_split_are_one(tmp_path):
    for i, name in enumerate(("caf\u00e9", "cafe\u0301")):
        tar(tmp_path / "src" / name / f"{i}.tar", pair("k", i))
    assert {s: e["records"] for s, e in build(tmp_path / "src", tmp_path / "out")[0]["splits"].items()} == {"café": 2}


def test_classes_without_a_training_pair_are_dropped(tmp_path, capsys):
    for split, labels in (("train", "ab"), ("test", "abcc")):
        (tmp_path / "src" / split).mkdir(parents=True)
        write_table(tmp_path / "src" / split, [[f"{i}.png", f"{split} {i}", c] for i, c in enumerate(labels)])
    (tmp_path / "src" / "train" / "1.png").write_bytes(b"broken")  # the only b
    manifest, refused = build(tmp_path / "src", tmp_path / "out", label="label")
    assert (manifest["classes"], manifest["dropped_classes"]) == (["a"], ["b", "c"])
    reason = "its class has no usable image in the training split"
    assert manifest["refused"] == {"not an image": 1, reason: 3}
    assert ("test/x.csv", "3", f"{reason}: c") in refused
    assert {split: entry["per_class"] for split, entry in manifest["splits"].items()} == {
        "test": {"a": 1},
        "train": {"a": 1},
    }
    assert "building again without classes that have no training image: 'b', 'c'" in capsys.readouterr().err
    write_table(tmp_path / "src" / "train", [["0.png", "x", "a"], ["1.png", "x", "b"], ["2.png", "x", "c"]])
    write_table(tmp_path / "src" / "test", [["0.png", "x", "a"]])
    manifest, _ = build(tmp_path / "src", tmp_path / "out2", label="label")
    assert (manifest["dropped_classes"], manifest["missing_classes"]) == ([], {"test": ["b", "c"]})


def test_equal_texts_of_two_splits_are_counted(tmp_path, capsys):
    a = [("0", ["same", "own"]), ("1", ["same", "other", "same"]), ("2", ["alone"])]
    b = [("0", ["other", "same"]), ("1", ["b"]), ("2", ["Same"])]
    for split, pairs in (("a", a), ("b", b), ("c", [("0", ["c"])])):
        tar(tmp_path / "src" / split / "0.tar", [m for key, some in pairs for m in pair(key, 0, captions=some)])
    assert main(["image_text", str(tmp_path / "src"), str(tmp_path / "out"), "--workers=1"]) == 0
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    counts = {"texts": 2, "captions": {"a": 4, "b": 2}, "pairs": {"a": 2, "b": 1}}
    assert manifest["equal_texts"] == [{"splits": ["a", "b"], **counts}]
    said = "equal texts in a and b: 2; pairs with them: 2 of 3 in a, 1 of 3 in b\n"
    assert said in capsys.readouterr().out


def test_folders_of_systems_are_no_splits(tmp_path):
    src = tmp_path / "src"
    tar(src / "train" / "0.tar", [*pair("k", 0), ("__MACOSX/k.jpg", b"?"), ("@eaDir/k.txt", b"?"), ("k.cls", b"1")])
    for name in ("@eaDir", "__MACOSX", "lost+found", "train/@eaDir", "train/$RECYCLE.BIN"):
        tar(src / name / "1.tar", pair("k", 1))
    for name in ("Thumbs.db", "train/desktop.ini", "train/.DS_Store", "train/0_stats.json"):
        (src / name).write_bytes(b"x")
    manifest, refused = build(src, tmp_path / "out")
    assert refused == []
    assert list(manifest["splits"]) == ["train"]
    system = "belongs to the system, not to the data"
    left_out = {system: 7, "hidden": 1, "beside a source: images of a table, or metadata": 1}
    assert manifest["seen"]["files"] == {"sources": 1, "refused": 0, "left_out": left_out}
    assert sum(left_out.values()) + 1 == sum(len(files) for _, _, files in os.walk(src))
    assert manifest["seen"]["members"] == {".cls": 1, ".jpg": 1, ".json": 1, ".txt": 1, system: 2}


@pytest.mark.parametrize(
    "caption",
    ["&nbsp;", "&amp;nbsp; ", "\ufeff", "\x07\x1f", "\u200b\u2060", "\u00ad", "&shy;&#8203;", "\u2800", "\0"],
)
def test_captions_that_show_nothing_are_empty(caption):
    assert shards.check_caption(caption) == ("", "empty caption")
    assert shards.check_caption(caption.encode()) == ("", "empty caption")
    assert shards.check_caption("\u200ba&nbsp;b") == ("\u200ba&nbsp;b", "")


def test_labels_are_sorted_by_value(tmp_path):
    """Check integers in a column with missing values: Arrow returns them as floats."""
    table = {"image": [picture(i) for i in range(5)], "caption": ["x"] * 5, "n": [10.0, 2.0, 1.0, float("nan"), 2.5]}
    for end, numbers in ((4, ["1", "2", "10"]), (5, ["1", "2", "2.5", "10"])):
        pq.write_table(pa.table(table).slice(0, end), tmp_path / "x.parquet")
        manifest, refused = build(tmp_path / "x.parquet", tmp_path / f"out{end}", label="n")
        assert manifest["classes"] == numbers
        assert refused == [("x.parquet", "3", "no field 'n'")]


def many(src, n=6, large=b""):
    """Write tars with three good pairs each, one that is good or large, and one that is refused."""
    for i in range(n):
        members = [m for j in range(3) for m in pair(f"{i}{j}", 10 * i + j, f"{i} {j}")]
        tar(src / f"{i}.tar", [*members, (f"{i}x.png", large or picture(i)), (f"{i}x.txt", b"x"), ("y.png", b"")])
    return src


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
