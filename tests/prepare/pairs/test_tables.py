import os
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow_datasets as tfds

from nml_jax.errors import UserError
from nml_jax.prepare.pairs import build as image_text
from nml_jax.prepare.pairs import tables
from nml_jax.prepare.pairs.read import cut, read
from nml_jax.prepare.pairs.types import Columns, Refusal, Tally
from tests.prepare.pairs.sources import build, captions, keys, picture, stored, write_csv


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
