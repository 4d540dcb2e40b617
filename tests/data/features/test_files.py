"""Test feature files of every format against the arrays they hold, and the errors of bad files."""

import csv
import gzip
import hashlib
import json
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.ipc
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import save_file

from nml_jax.data.features import arrays as feature_arrays
from nml_jax.data.features import files, opened, scans
from nml_jax.data.features.files import check_alike, encode, find_classes, open_features, translate_labels
from nml_jax.errors import UserError

N, D = 23, 5
VALUES = np.random.default_rng(0).normal(size=(N, D)).astype(np.float16).astype(np.float32)  # exact in every format
Y = np.arange(N) % 3 + 4
NAMES = np.array(["cat", "dog", "Maus ü"])[Y - 4]


def write(path: Path, x: np.ndarray = VALUES, y: np.ndarray = Y) -> str:
    """Write a feature file in the format of the suffix, as users do. Return its spec."""
    kind = "".join(path.suffixes)
    if kind == ".npy":
        np.save(path, x)
        np.save(path.with_name("y.npy"), y)
        return f"{path},{path.with_name('y.npy')}"
    if kind in (".npz", ".packed.npz"):
        (np.savez if kind == ".npz" else np.savez_compressed)(path, ids=np.arange(len(y)), features=x, labels=y)
    elif kind == ".safetensors":
        save_file({"ids": np.arange(len(y)), "features": x, "labels": y}, path)
    elif kind in (".csv", ".tsv", ".csv.gz"):
        with (gzip.open if kind == ".csv.gz" else open)(path, "wt", newline="", encoding="utf-8") as f:
            table = csv.writer(f, delimiter="\t" if kind == ".tsv" else ",")
            table.writerow(["id", *(f"f{i}" for i in range(x.shape[1])), "label"])
            table.writerows(
                [i, *map(repr, row.tolist()), label] for i, (row, label) in enumerate(zip(x, y.tolist(), strict=True))
            )
    elif kind == ".json.csv":
        with path.open("w", newline="", encoding="utf-8") as f:
            table = csv.writer(f)
            table.writerow(["text", "embedding", "label"])
            table.writerows(
                [f"[{i}, no\nlist", json.dumps(row.tolist()), label]
                for i, (row, label) in enumerate(zip(x, y, strict=True))
            )
    elif kind in (".jsonl", ".ndjson.gz", ".text.jsonl"):
        with (gzip.open if kind == ".ndjson.gz" else open)(path, "wt", encoding="utf-8") as f:
            for i, (row, label) in enumerate(zip(x.tolist(), y.tolist(), strict=True)):
                values = {".jsonl": {"embedding": row}, ".text.jsonl": {"embedding": str(row)}}
                own = values.get(kind, {f"f{j}": value for j, value in enumerate(row)})
                f.write(json.dumps({"id": f"no {i}", **own, "label": label}) + "\n")
    elif kind in (".arrow", ".stream.arrow", ".feather"):
        table = pa.table({"id": np.arange(len(y)), "embedding": pa.array(list(x)), "label": y})
        if kind == ".feather":
            pyarrow.feather.write_feather(table, str(path), chunksize=7)
        else:
            make = pa.ipc.new_file if kind == ".arrow" else pa.ipc.new_stream
            with make(path, table.schema) as out:
                out.write_table(table, max_chunksize=7)
    elif kind == ".columns.parquet":
        columns = {f"f{i}": x[:, i] for i in range(x.shape[1])}
        pq.write_table(pa.table({"id": np.arange(len(y)), **columns, "label": y}), path, row_group_size=7)
    else:
        flat = pa.array(x.reshape(-1))
        lists = pa.FixedSizeListArray.from_arrays(flat, x.shape[1]) if kind == ".parquet" else pa.array(list(x))
        pq.write_table(pa.table({"embedding": lists, "score": np.ones(len(y)), "label": y}), path, row_group_size=7)
    return str(path)


ARRAYS = ("x.npy", "x.npz", "x.packed.npz", "x.safetensors")
LINES = ("x.jsonl", "x.ndjson.gz", "x.text.jsonl")
ARROWS = ("x.arrow", "x.stream.arrow", "x.feather")
TABLES = ("x.csv", "x.tsv", "x.json.csv", "x.csv.gz", "x.parquet", "x.lists.parquet", "x.columns.parquet", *LINES,
          *ARROWS)  # fmt: skip


def check_refused(spec: object, *words: str, **options) -> None:
    """Check that reading `spec` raises UserError with one line of cause and one of cure, which hold all `words`."""
    with pytest.raises(UserError) as e:
        open_features(str(spec), **options).read()
    assert "\n" not in e.value.cause + e.value.cure
    for word in words:
        assert word in str(e.value)


@pytest.mark.parametrize("name", [*ARRAYS, *TABLES])
def test_every_format_gives_what_was_written(tmp_path: Path, name: str):
    found = open_features(write(tmp_path / name))
    assert (len(found), found.views, found.dim) == (N, 1, D)
    np.testing.assert_array_equal(found.labels, Y)
    assert found.labels.dtype.kind == "i"
    whole = found.read()
    assert whole.dtype == np.float32
    np.testing.assert_array_equal(whole[:, 0], VALUES)
    for size in (1, 7, 10, 100):
        blocks = list(found.blocks(size))
        assert [start for start, _ in blocks] == list(range(0, N, size))
        assert all(len(block) == size for _, block in blocks[:-1])
        np.testing.assert_array_equal(np.concatenate([block for _, block in blocks]), whole)
    index = np.array([22, 3, 3, 14, 0, 6, 7])
    np.testing.assert_array_equal(found.rows(index), whole[index])
    assert found.rows(index).dtype == np.float32
    assert found.rows(np.array([], int)).shape == (0, 1, D)
    for wrong in (-1, N):
        with pytest.raises(IndexError, match="22"):
            found.rows(np.array([wrong]))


@pytest.mark.parametrize("name", TABLES)
def test_tables_in_small_batches(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(scans, "BATCH_ROWS", 3)
    monkeypatch.setattr(scans, "TEXT_BYTES", 300)
    x = VALUES.copy()
    found = open_features(write(tmp_path / name))
    np.testing.assert_array_equal(found.read()[:, 0], VALUES)
    np.testing.assert_array_equal(found.rows(np.array([21, 2, 13, 3])), VALUES[[21, 2, 13, 3], None])
    x[[6, 20], 2] = np.nan
    check_refused(write(tmp_path / name, x), "rows 6, 20")


@pytest.mark.parametrize("name", [*ARRAYS[:3], *TABLES])  # .safetensors has no text
def test_labels_of_text(tmp_path: Path, name: str):
    found = open_features(write(tmp_path / name, y=NAMES))
    assert found.labels.dtype.kind == "U"
    assert found.labels.tolist() == NAMES.tolist()


EVERYWHERE = ("float16", "float32", "float64", "uint8", "int16", "int32", "int64")


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *((name, dtype) for name in (*ARRAYS, "x.parquet", "x.columns.parquet") for dtype in EVERYWHERE),
        ("x.safetensors", "bfloat16"),
        *((name, ">f4") for name in ("x.npy", "x.npz", "x.packed.npz")),
    ],
)
def test_every_dtype_with_a_scale(tmp_path: Path, name: str, dtype: str):
    x = np.random.default_rng(1).integers(0, 100, (N, D)).astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    found = open_features(write(tmp_path / name, x), scale=1 / 255)
    assert found.dtype == x.dtype
    np.testing.assert_allclose(found.read()[:, 0], x.astype(np.float64) / 255, rtol=2e-7)


@pytest.mark.parametrize("name", ARRAYS)
def test_views_and_fortran_order(tmp_path: Path, name: str):
    x = np.ascontiguousarray(VALUES[:, :4]).reshape(N, 2, 2)
    found = open_features(write(tmp_path / name, x if name == "x.safetensors" else np.asfortranarray(x)))
    assert (found.views, found.dim) == (2, 2)
    np.testing.assert_array_equal(found.rows(np.array([5, 1])), x[[5, 1]])
    np.testing.assert_array_equal(found.read(), x)


def test_a_compressed_array_is_read_block_by_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(feature_arrays, "PACKED_ROWS", 4)
    found = open_features(write(tmp_path / "x.packed.npz"))
    monkeypatch.setattr(np, "load", None)  # which would read all of it
    index = np.array([21, 3, 3, 0, 8])
    np.testing.assert_array_equal(found.rows(index)[:, 0], VALUES[index])
    assert found.rows(index[:0]).shape == (0, 1, D)
    assert [(start, len(block)) for start, block in found.blocks(10)] == [(0, 10), (10, 10), (20, 3)]
    np.testing.assert_array_equal(found.read()[:, 0], VALUES)


@pytest.mark.parametrize("name", ["x.npy", "x.npz", "x.safetensors"])
def test_what_can_be_mapped_is_mapped(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch):
    mapped, memmap = [], np.memmap
    monkeypatch.setattr(np, "memmap", lambda *args, **kw: mapped.append(args[4]) or memmap(*args, **kw))
    monkeypatch.setattr(np, "load", None)
    found = open_features(write(tmp_path / name))
    assert mapped == [(N,)]  # the labels
    found.rows(np.array([1]))
    assert mapped == [(N,), (N, D)]


def test_a_file_of_50_gb_is_not_loaded(tmp_path: Path):
    n, d = 190_000, 65_536
    array = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.float32, (n, d))  # a sparse file takes no space
    array[n - 1, 3] = 7
    array.flush()
    np.save(tmp_path / "y.npy", np.zeros(n, np.uint8))
    found = open_features(f"{tmp_path}/x.npy,{tmp_path}/y.npy")
    assert 4 * len(found) * found.dim > 49e9
    rows = found.rows(np.array([5, n - 1]))
    assert (rows[0] == 0).all()
    assert rows[1, 0, 3] == 7
    assert next(found.blocks(10))[1].shape == (10, 1, d)
    assert len(found.fingerprint) == 64


def test_a_fingerprint_is_of_the_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    spec = write(tmp_path / "x.npz")
    assert open_features(spec).fingerprint == hashlib.sha256(Path(spec).read_bytes()).hexdigest()
    pair = write(tmp_path / "x.npy")
    before = open_features(pair).fingerprint
    assert open_features(pair).fingerprint == before
    np.save(tmp_path / "y.npy", Y[::-1])
    assert open_features(pair).fingerprint != before
    monkeypatch.setattr(opened, "LARGE", 10)
    monkeypatch.setattr(opened, "ENDS", 16)
    large, content = open_features(spec).fingerprint, Path(spec).read_bytes()
    status = Path(spec).stat()
    ends = f"{status.st_size} {status.st_mtime_ns} ".encode() + content[:16] + content[-16:]
    assert large == hashlib.sha256(ends).hexdigest()


def test_names_of_arrays_and_columns(tmp_path: Path):
    np.savez(tmp_path / "a.npz", X=VALUES, Z=2 * VALUES, y=Y, label=Y + 1)
    check_refused(f"{tmp_path}/a.npz", "any of 'label', 'y' may be the labels", "features.label=label")
    plain = open_features(f"{tmp_path}/a.npz", label="label")
    np.testing.assert_array_equal(plain.read()[:, 0], VALUES)
    np.testing.assert_array_equal(plain.labels, Y + 1)
    named = open_features(f"{tmp_path}/a.npz", label="y", columns="Z")
    np.testing.assert_array_equal(named.read()[:, 0], 2 * VALUES)
    np.testing.assert_array_equal(named.labels, Y)
    table = pa.table({"a": VALUES[:, 0], "index": Y, "target": Y, "text": NAMES.tolist(), "b": VALUES[:, 1], "y": Y})
    pq.write_table(table, tmp_path / "t.parquet")
    check_refused(f"{tmp_path}/t.parquet", "any of 'y', 'target' may be the labels", "features.label=y")
    found = open_features(f"{tmp_path}/t.parquet", label="target")
    assert (found.label, found.columns, found.left_out) == ("target", ("a", "b", "y"), ("index", "text"))
    np.testing.assert_array_equal(found.read()[:, 0, :2], VALUES[:, :2])
    assert open_features(f"{tmp_path}/t.parquet", columns="b", label="y").columns == ("b",)
    assert open_features(f"{tmp_path}/t.parquet", label="text").labels.tolist() == NAMES.tolist()


def table(path: Path, text: str, **options) -> files.Features:
    path.write_text(text)
    return open_features(str(path), **options)


def test_no_column_of_a_table_vanishes(tmp_path: Path, capsys: pytest.CaptureFixture):
    """Columns with a label's name may be features. The columns left out are logged once."""
    path = tmp_path / "x.csv"
    found = table(path, "x,y,z,label\n1,2,3,0\n4,5,6,1\n", label="label")
    assert (found.columns, found.left_out) == (("x", "y", "z"), ())
    check_refused(path, "any of 'label', 'y' may be the labels")
    found = table(path, "id,x,empty,day,y\n7,1,,2020-01-02,0\n8,2,,2020-01-03,1\n")
    assert (found.label, found.columns, found.left_out) == ("y", ("x",), ("id", "empty", "day"))
    open_features(str(path))
    notice = f"{path}: label 'y', features 'x'; left out: 'id', 'empty', 'day'\n"
    assert capsys.readouterr().err.count(notice) == 1


def test_words_beside_a_label_that_was_not_named(tmp_path: Path):
    """A column of words may be the label too, so the user must name the label."""
    path = tmp_path / "iris.csv"
    path.write_text("x,y,species\n1,2,a\n3,4,b\n")
    check_refused(path, "words in column 'species' and a column 'y'", "features.label=y", "leaves 'species' out")
    assert open_features(str(path), label="y").columns == ("x",)
    found = open_features(str(path), label="species")
    assert (found.labels.tolist(), found.columns) == (["a", "b"], ("x", "y"))
    categories = pa.array(["a", "b"]).dictionary_encode()
    pq.write_table(pa.table({"x": [1.0, 2.0], "y": [0, 1], "species": categories}), tmp_path / "x.parquet")
    check_refused(tmp_path / "x.parquet", "words in column 'species'")
    assert table(path, "name,x\nann,1\nbob,2\n", labelled=False).columns == ("x",)  # no label is needed


def test_booleans_are_features_in_every_table(tmp_path: Path):
    found = table(tmp_path / "x.csv", "a,b,label\ntrue,1.5,0\nfalse,2,1\n")
    assert found.read()[:, 0].tolist() == [[1, 1.5], [0, 2]]
    assert found.rows(np.array([1, 0]))[:, 0, 0].tolist() == [0, 1]
    pq.write_table(pa.table({"a": [True, False], "label": [0, 1]}), tmp_path / "x.parquet")
    assert open_features(f"{tmp_path}/x.parquet").read().ravel().tolist() == [1, 0]


@pytest.mark.parametrize(
    ("texts", "labels"),
    [
        (["7", "-8", "10"], [7, -8, 10]),
        (["7.0", "8.0"], [7, 8]),
        (["007", "008"], ["007", "008"]),
        (["007", "7", "8"], [7, 7, 8]),
        (["2", "2.0", "02"], [2, 2, 2]),
        (["007", "7", "x"], ["007", "7", "x"]),
        (["+7", "8"], ["+7", "8"]),
        (["true", "false", "0"], ["true", "false", "0"]),
        (["true", "false"], ["true", "false"]),
        (["7", "x"], ["7", "x"]),
        (["123456789012345678901", "1"], ["123456789012345678901", "1"]),
        (["1e3", "1000"], ["1e3", "1000"]),
    ],
)
def test_labels_of_a_csv_become_numbers_together_or_not_at_all(tmp_path: Path, texts: list, labels: list):
    """Labels become numbers if printing the numbers gives the same texts, or a number has two spellings."""
    found = table(tmp_path / "x.csv", "a,label\n" + "".join(f"{i},{text}\n" for i, text in enumerate(texts)))
    assert found.labels.tolist() == labels
    assert found.labels.dtype.kind == ("i" if isinstance(labels[0], int) else "U")


def test_a_test_file_that_lacks_the_label_which_makes_others_text(tmp_path: Path):
    train = table(tmp_path / "train.csv", "a,label\n1,true\n2,false\n3,maybe\n4,007\n5,7\n")
    some = [table(tmp_path / f"{i}.csv", text) for i, text in enumerate(("a,label\n1,false\n", "a,label\n1,7\n"))]
    names = find_classes(train.labels)
    assert [names[encode(test.labels, names, "test")].tolist() for test in some] == [["false"], ["7"]]


@pytest.mark.parametrize("suffix", ["csv", "tsv", "parquet", "npz"])
def test_spellings_of_one_label_are_one_class(tmp_path: Path, suffix: str, capsys):
    texts = ["café", "cafe\u0301", "ant", " ant\u00a0", "Ant", "ice cream", "ice  cream", "\ufeffant"]
    path = tmp_path / f"x.{suffix}"
    if suffix == "npz":
        np.savez(path, features=np.ones((8, 2)), labels=np.array(texts))
    elif suffix == "parquet":
        pq.write_table(pa.table({"a": [0.5] * 8, "label": texts}), path)
    else:
        between = "\t" if suffix == "tsv" else ","
        lines = [f"a{between}label", *(f"0.5{between}{text}" for text in texts)]
        path.write_text("\n".join(lines), "utf-8")
    found = open_features(str(path))
    assert found.labels.tolist() == ["café", "café", "ant", "ant", "Ant", "ice cream", "ice  cream", "ant"]
    alike = "names that look alike stay apart: 'Ant' and 'ant', 'ice  cream' and 'ice cream'; if they are one"
    assert f"{path}, labels: {alike}" in capsys.readouterr().err


def test_a_test_file_may_spell_a_class_in_another_way(tmp_path: Path):
    train = table(tmp_path / "train.csv", "a,label\n1,01\n2,02\n")
    assert train.labels.tolist() == ["01", "02"]
    for text in ("2", "2.0", "02", " 2"):
        test = table(tmp_path / "test.csv", f"a,label\n1,{text}\n")
        assert encode(test.labels, find_classes(train.labels), "test").tolist() == [1]


def test_a_label_of_blanks_is_missing(tmp_path: Path):
    (tmp_path / "x.csv").write_text("a,label\n1,x\n2,\u00a0\n", "utf-8")
    check_refused(f"{tmp_path}/x.csv", "1 rows have no label in column 'label', such as row 1")


def test_wanted_columns_are_taken_by_name(tmp_path: Path):
    path = tmp_path / "x.csv"
    found = table(path, "y,word,b,extra,a\n1,u,2,3,4\n5,v,6,7,8\n", wanted=("a", "b", "y"), labelled=False)
    assert (found.label, found.columns, found.left_out) == ("", ("a", "b", "y"), ("word", "extra"))
    assert found.read()[:, 0].tolist() == [[4, 2, 1], [8, 6, 5]]
    assert found.rows(np.array([1]))[:, 0].tolist() == [[8, 6, 5]]
    check_refused(path, "lacks the feature columns 'c'", "under its name", wanted=("a", "c"), labelled=False)
    lists = open_features(write(tmp_path / "x.parquet"), wanted=("a", "b", "c", "d", "e"))
    assert (lists.columns, lists.names) == (("embedding",), ())  # without names of its own
    np.testing.assert_array_equal(open_features(write(tmp_path / "x.npz"), wanted=("a",)).read()[:, 0], VALUES)


def test_blocks_of_wide_rows_are_small():
    assert files.count_block_rows(1, 512) == 16_384
    assert files.count_block_rows(2, 200_000) * 2 * 200_000 * 4 <= 256 << 20
    assert files.count_block_rows(1, 1 << 40) == 1


def test_a_comma_in_a_path(tmp_path: Path):
    folder = tmp_path / "a,b"
    folder.mkdir()
    assert len(open_features(write(folder / "x,y.npz"))) == N
    assert len(open_features(write(folder / "x.npy"))) == N  # a pair, split at its second comma


def test_a_file_without_labels(tmp_path: Path):
    write(tmp_path / "x.npy")
    np.savez(tmp_path / "x.npz", features=VALUES)
    (tmp_path / "x.csv").write_text("f0,id,f1\n1,5,2\n3,6,4\n")
    for name in ("x.npy", "x.npz"):
        found = open_features(f"{tmp_path}/{name}", labelled=False)
        assert found.labels.shape == (0,)
        np.testing.assert_array_equal(found.read()[:, 0], VALUES)
    assert open_features(f"{tmp_path}/x.csv", labelled=False).read().tolist() == [[[1, 2]], [[3, 4]]]
    check_refused(f"{tmp_path}/x.npy", "has no labels", "LABELS.npy")
    check_refused(f"{tmp_path}/x.npz", "none of label, labels, y", "'features'", "label=NAME")
    check_refused(f"{tmp_path}/x.csv", "'f0', 'id', 'f1'")
    check_refused(f"{tmp_path}/x.npz", "'wrong'", label="wrong", labelled=False)


@pytest.mark.parametrize(
    ("stored", "read"),
    [
        (np.array([b"a", "ü".encode()]), ["a", "ü"]),
        (np.array([True, False]), [True, False]),
        (np.array([2.0, -3.0]), [2, -3]),
        (np.array([2, 300], np.uint16), [2, 300]),
    ],
)
def test_labels_keep_their_values(tmp_path: Path, stored: np.ndarray, read: list):
    np.savez(tmp_path / "x.npz", x=np.eye(2), y=stored)
    labels = open_features(f"{tmp_path}/x.npz").labels
    assert labels.tolist() == read
    assert labels.dtype.kind in "biuU"


def test_csv_types_are_those_of_the_whole_column(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(scans, "TEXT_BYTES", 200)
    rows = [f"{-i},{i if i < 90 else i + 0.5},{'7' if i < 90 else 'seven'}" for i in range(99)]
    (tmp_path / "x.csv").write_text("\ufeffa,b,label\n" + "\n".join(rows), "utf-8")
    found = open_features(f"{tmp_path}/x.csv")
    assert found.read()[-1].tolist() == [[-98, 98.5]]
    assert found.rows(np.array([95, 0])).tolist() == [[[-95, 95.5]], [[0, 0]]]
    assert found.labels.tolist() == ["7"] * 90 + ["seven"] * 9
    rows[95] = "1,oops,7"
    (tmp_path / "x.csv").write_text("a,b,label\n" + "\n".join(rows))
    check_refused(f"{tmp_path}/x.csv", "x.csv: column 'b' holds 'oops' in row 95, which is not a number", "1234.5")


def test_pandas_files(tmp_path: Path):
    import pandas as pd

    frame = pd.DataFrame({"f0": [0.5, 1.5, 2.5], "label": pd.Categorical(["b", "a", "b"])}, index=[9, 8, 7])
    frame.to_csv(tmp_path / "x.csv")
    frame.to_parquet(tmp_path / "x.parquet")
    for name in ("x.csv", "x.parquet"):
        found = open_features(f"{tmp_path}/{name}")
        assert found.read().ravel().tolist() == [0.5, 1.5, 2.5]
        assert found.labels.tolist() == ["b", "a", "b"]


@pytest.mark.parametrize("name", [*ARRAYS, *TABLES])
def test_values_that_are_not_finite_are_named(tmp_path: Path, name: str):
    x = VALUES.copy()
    x[[2, 4, 8, 10, 12, 14, 16], 1] = [np.nan, np.inf, -np.inf, np.nan, np.nan, np.nan, np.nan]
    spec = write(tmp_path / name, x)
    check_refused(spec, name, "7 of 23 rows", "rows 2, 4, 8, 10, 12, …")
    found = open_features(spec)
    assert found.rows(np.array([3, 1])).shape == (2, 1, D)
    with pytest.raises(UserError, match="1 of 2 rows") as e:
        found.rows(np.array([3, 8]))
    assert e.value.cause.endswith("rows 8")
    blocks = found.blocks(2)
    assert next(blocks)[0] == 0
    with pytest.raises(UserError, match=r"1 of 2 rows in this block \(of 23 in the file\) hold .*: rows 2\n"):
        next(blocks)


def test_float64_that_overflows_float32(tmp_path: Path):
    np.savez(tmp_path / "x.npz", x=np.array([[1e300], [1.0]]), y=[0, 1])
    check_refused(f"{tmp_path}/x.npz", "1 of 2 rows", "as float32")
    assert open_features(f"{tmp_path}/x.npz", scale=1e-300).read().ravel()[0] == 1


def test_missing_cells(tmp_path: Path):
    for kind in (pa.float32(), pa.float16(), pa.int8(), pa.bool_()):
        column = (
            pa.array([1, None, 0], pa.float64()).cast(kind) if kind != pa.bool_() else pa.array([True, None, False])
        )
        pq.write_table(pa.table({"a": column, "label": [0, 1, 2]}), tmp_path / "x.parquet")
        check_refused(f"{tmp_path}/x.parquet", "1 of 3 rows", "missing", "rows 1")
    for cell in ("", "NA", "nan"):
        (tmp_path / "x.csv").write_text(f"a,b,label\n1,2,3\n4,{cell},6\n")
        check_refused(f"{tmp_path}/x.csv", "1 of 2 rows", "rows 1")
    (tmp_path / "x.csv").write_text("a,label\n1,x\n2,\n")
    check_refused(f"{tmp_path}/x.csv", "1 rows have no label", "row 1")
    pq.write_table(pa.table({"a": [1.0, 2.0], "label": [None, 1]}), tmp_path / "x.parquet")
    check_refused(f"{tmp_path}/x.parquet", "1 rows have no label", "row 0")
    pq.write_table(pa.table({"a": [[1.0, 2.0], None], "label": [0, 1]}), tmp_path / "x.parquet")
    check_refused(f"{tmp_path}/x.parquet", "row 1", "0 values, not 2")
    pq.write_table(pa.table({"a": [None, [1.0, 2.0]], "label": [0, 1]}), tmp_path / "x.parquet")
    check_refused(f"{tmp_path}/x.parquet", "row 0 of 'a' has 0 values, not 2")


@pytest.mark.parametrize("name", [*ARRAYS, *TABLES])
def test_a_file_cut_short(tmp_path: Path, name: str):
    spec = write(tmp_path / name)
    path = tmp_path / name
    content = path.read_bytes()
    path.write_bytes(b"")
    check_refused(spec, name, "0 bytes")
    if not name.endswith(("csv", "tsv", "jsonl")):  # these may end anywhere
        for kept in (1, 9, 40, len(content) // 2, len(content) - 1):
            path.write_bytes(content[:kept])
            check_refused(spec, "cannot read", name, "write it again")
        path.write_bytes(b"x" * len(content))
        check_refused(spec, "cannot read", name)


def test_damage_within_a_compressed_member(tmp_path: Path):
    spec = write(tmp_path / "x.packed.npz")
    with zipfile.ZipFile(spec) as archive:
        member = archive.getinfo("features.npy")
    content = bytearray(Path(spec).read_bytes())
    middle = member.header_offset + 60 + member.compress_size // 2
    content[middle : middle + 20] = bytes(20)
    Path(spec).write_bytes(content)
    check_refused(spec, "cannot read", "x.packed.npz")


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"x": np.eye(3), "y": np.array([1, "a", None], object)}, ["pickle", "dtype=str"]),
        ({"x": np.eye(3).astype(object), "y": [0, 1, 2]}, ["dtype object", "float32"]),
        ({"x": np.eye(3) * 1j, "y": [0, 1, 2]}, ["complex128"]),
        ({"x": np.eye(3).astype(ml_dtypes.bfloat16), "y": [0, 1, 2]}, ["bfloat16 works only in .safetensors"]),
        ({"x": np.eye(3), "y": [0, 1]}, ["3 rows of features and 2 labels"]),
        ({"x": np.eye(3), "y": np.eye(3)}, ["labels have shape [3, 3]", "argmax(1)"]),
        ({"x": np.eye(3), "y": np.ones((3, 1))}, ["labels have shape [3, 1]", "reshape(-1)"]),
        ({"x": np.eye(3), "y": [0.0, 0.5, 1.0]}, ["1 labels", "row 1: 0.5"]),
        ({"x": np.eye(3), "y": [0.0, 1.0, np.nan]}, ["row 2: nan"]),
        ({"x": np.eye(3), "y": [0.0, np.inf, 1]}, ["row 1: inf"]),
        ({"x": np.eye(3), "y": [0.0, 1.0, 1e300]}, ["row 2: 1e+300"]),
        ({"x": np.eye(3), "y": [1j, 0, 0]}, ["labels have dtype complex128"]),
        ({"x": np.ones(3), "y": [0, 1, 2]}, ["no 2-D or 3-D array", "'x' [3]", "'y' [3]"]),
        ({"x": np.ones((3, 0)), "y": [0, 1, 2]}, ["shape [3, 0]"]),
        ({"x": np.ones((0, 3)), "y": np.ones(0, int)}, ["has no rows"]),
        ({"a": np.eye(3), "b": np.eye(3), "y": [0, 1, 2]}, ["any of 'a', 'b'", "columns=NAME"]),
        ({"x": np.eye(3), "z": [0, 1, 2]}, ["none of label, labels, y, target, class", "'x', 'z'"]),
    ],
)
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_bad_arrays(tmp_path: Path, arrays: dict, words: list[str], save):
    save(tmp_path / "bad.npz", **arrays)
    check_refused(tmp_path / "bad.npz", "bad.npz", *words)


def test_bad_npy_pairs(tmp_path: Path):
    np.save(tmp_path / "x.npy", VALUES)
    np.save(tmp_path / "flat.npy", Y)
    np.save(tmp_path / "objects.npy", np.array(["a", 1], object))
    x, flat, objects = (tmp_path / f"{name}.npy" for name in ("x", "flat", "objects"))
    check_refused(f"{flat},{flat}", "shape [23]")
    check_refused(f"{flat},{x}", "x.npy: the labels have shape [23, 5]")
    check_refused(f"{x},{objects}", "objects.npy: the labels are", "pickle")
    check_refused(f"{objects},{flat}", "shape [2]")
    np.save(tmp_path / "scalar.npy", np.float32(3))
    check_refused(f"{tmp_path}/scalar.npy,{flat}", "scalar.npy: the features have shape []")
    check_refused(f"{tmp_path}/scalar.npy", "scalar.npy: the features have shape []", labelled=False)
    check_refused(f"{x},{tmp_path}/scalar.npy", "scalar.npy: the labels have shape []")
    (tmp_path / "short.npy").write_bytes(flat.read_bytes()[:-1])
    check_refused(f"{x},{tmp_path}/short.npy", "cannot read", "short.npy: it is cut short by 1 bytes")
    check_refused(f"{x},", "x.npy,'", "lacks the name of a file")
    check_refused(f"{x},{tmp_path}/none.npy", "none.npy does not exist")
    np.savez(tmp_path / "x.npz", x=VALUES, y=Y)
    check_refused(f"{tmp_path}/x.npz,{flat}", "FEATURES.npy,LABELS.npy")


def test_bad_paths(tmp_path: Path):
    check_refused(tmp_path / "no.npz", "no.npz does not exist")
    check_refused(tmp_path, "is a folder")
    (tmp_path / "x.pt").write_bytes(b"1")
    check_refused(tmp_path / "x.pt", "x.pt", ".parquet", "export_features")
    check_refused(write(tmp_path / "x.npz"), "scale is 0", scale=0)
    check_refused(write(tmp_path / "x.npz"), "'W'", "'features' [23, 5]", columns="W")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a,label\n", ["no rows"]),
        ("a,a,label\n1,2,3\n", ["several columns 'a'"]),
        ("a,b,label\n1,2\n", ["Expected 3 columns, got 2"]),
        ("0.1,0.2\n1,2\n", ["'0.1', '0.2'", "first line must name the columns"]),
        ("text,label\nhello,3\n", ["no columns of numbers", "text (string)"]),
        ("a,label\n1,0.5\n2,0.25\n3,0.10\n", ["3 labels are not classes, as in row 0: 0.5"]),
        ("a,b,label\n1,2,0\n3,zwei,1\n4,5,2\n", ["column 'b'", "'zwei' in row 1"]),
        ("a,label\n1,0.5\n", ["0.5"]),
        ('e,label\n"[1, 2]",0\n"[1]",1\n', ["row 1 of 'e'", "1 values, not 2"]),
        ('e,label\n"[1, 2]",0\n"[1, ""a""]",1\n', ["column 'e' holds '[1, \"a\"]' in row 1, which is not a list of"]),
        ('e,label\n"[1, 2]",0\noops,1\n', ["column 'e' holds 'oops' in row 1, which is not a list of"]),
        ('e,label\n"[1, 2]",0\n"[1, 2",1\n', ["column 'e' holds '[1, 2' in row 1, which is not a list of"]),
        ('e,label\n,0\n"[1, 2]",1\n', ["row 0 of 'e' has 0 values, not 2"]),
        ('a,b,label\n"1,234.5",1,0\n"2,000",2,1\n', ["column 'a' holds '1,234.5' in row 0", "as 1234.5"]),
        ('a,b,label\n"0,5",1,0\n"2",2,1\n', ["column 'a' holds '0,5' in row 0", "as 1234.5"]),
        ("a,b,label\nNA,1,0\n1,2,1\n2,2,1\noops,1,1\n", ["column 'a' holds 'oops' in row 3"]),
        ('e,f,label\n"[1, 2]","[1, 2]",0\n', ["any of 'e', 'f'"]),
    ],
)
def test_bad_csv(tmp_path: Path, text: str, words: list[str]):
    (tmp_path / "bad.csv").write_text(text)
    check_refused(tmp_path / "bad.csv", "bad.csv", *words)


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"e": [[1.0, 2.0], [3.0]], "label": [0, 1]}, ["row 1 of 'e'", "1 values, not 2"]),
        ({"e": [["a"], ["b"]], "label": [0, 1]}, ["no columns of numbers", "e (list"]),
        ({"e": [[], []], "label": [0, 1]}, ["no columns of numbers"]),
        ({"e": ["1.5", "2.5"], "f": [1, 2], "label": [0, 1]}, ["column 'e' holds numbers as text"]),
        ({"e": [1.0, 2.0], "label": [[0], [1]]}, ["labels have dtype object"]),
        ({"e": pa.array([], pa.float32()), "label": pa.array([], pa.int8())}, ["no rows"]),
    ],
)
def test_bad_parquet(tmp_path: Path, columns: dict, words: list[str]):
    pq.write_table(pa.table(columns), tmp_path / "bad.parquet")
    check_refused(tmp_path / "bad.parquet", "bad.parquet", *words)


def test_ragged_lists_are_named_by_their_row_in_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(scans, "BATCH_ROWS", 3)
    table = pa.table({"f.0": [[1.0, 2.0]] * 5 + [[3.0]] + [[4.0, 5.0]] * 5, "f": [1] * 11, "label": list(range(11))})
    pq.write_table(table, tmp_path / "x.parquet", row_group_size=4)
    check_refused(tmp_path / "x.parquet", "row 5 of 'f.0'", "1 values, not 2")
    rows = open_features(f"{tmp_path}/x.parquet").rows(np.array([9, 0]))  # the row group between them is not read
    assert rows.tolist() == [[[4, 5]], [[1, 2]]]


def test_a_named_column_that_is_none_of_numbers(tmp_path: Path):
    pq.write_table(pa.table({"a": [1.0], "t": ["x"], "label": [0]}), tmp_path / "x.parquet")
    check_refused(tmp_path / "x.parquet", "'t' holds string", "'a'", columns="t")
    check_refused(tmp_path / "x.parquet", "no column 'u'", "'a'", columns="u")


def test_metadata_that_are_null_are_none(tmp_path: Path):
    save_file({"features": np.eye(3, dtype=np.float32), "labels": np.arange(3)}, tmp_path / "x.safetensors", {"a": "b"})
    data = (tmp_path / "x.safetensors").read_bytes()
    (tmp_path / "x.safetensors").write_bytes(data.replace(b'{"a":"b"}', b"null     "))
    assert open_features(str(tmp_path / "x.safetensors")).class_names == ()


def test_a_safetensors_dtype_that_is_not_known(tmp_path: Path):
    header = json.dumps({"x": {"dtype": "F8_E5M2", "shape": [1, 2], "data_offsets": [0, 2]}}).encode()
    (tmp_path / "x.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"ab")
    check_refused(tmp_path / "x.safetensors", "F8_E5M2", "BF16")


def test_features_that_are_not_alike(tmp_path: Path):
    def write_csv(name: str, text: str):
        (tmp_path / name).write_text(text)
        return open_features(f"{tmp_path}/{name}")

    train = write_csv("train.csv", "a,b,label\n1,2,0\n")
    check_alike(train, write_csv("same.csv", "label,a,b\n0,1,2\n"))
    with pytest.raises(UserError, match=r"wide\.csv has 3 features per row, .*train\.csv has 2"):
        check_alike(train, write_csv("wide.csv", "a,b,c,label\n1,2,3,0\n"))
    with pytest.raises(UserError, match=r"swapped\.csv has column 'b' where .*train\.csv has 'a'"):
        check_alike(train, write_csv("swapped.csv", "b,a,label\n1,2,0\n"))
    found = []
    for i, names in enumerate((["cat", "dog"], ["dog"], ["cat", "dog", "cow"])):
        file = tmp_path / f"{i}.safetensors"
        save_file({"features": VALUES, "labels": Y}, file, {"class_names": json.dumps(names)})
        found.append(open_features(str(file)))
    assert found[0].class_names == ("cat", "dog")
    assert translate_labels(found[0], found[2]).tolist() == Y.tolist()
    with pytest.raises(UserError, match=r"1\.safetensors calls class 0 'dog', .*0\.safetensors calls it 'cat'"):
        translate_labels(found[0], found[1])


def test_one_scale_is_not_for_whole_numbers_and_fractions(tmp_path: Path):
    for name, dtype in (("bytes", np.uint8), ("words", np.int16), ("reals", np.float32)):
        np.savez(tmp_path / f"{name}.npz", features=np.arange(6).reshape(3, 2).astype(dtype), labels=[0, 1, 0])
    scaled = {name: open_features(f"{tmp_path}/{name}.npz", scale=0.5) for name in ("bytes", "words", "reals")}
    check_alike(scaled["bytes"], scaled["words"])
    for a, b in (("bytes", "reals"), ("reals", "words")):
        with pytest.raises(UserError, match=rf"{b}\.npz holds .*{a}\.npz .*one scale, 0\.5, for both"):
            check_alike(scaled[a], scaled[b])
        check_alike(*(open_features(f"{tmp_path}/{name}.npz") for name in (a, b)))


@pytest.mark.parametrize("suffix", ["csv", "parquet", "npz"])
def test_labels_with_blanks_do_no_harm_where_none_are_needed(tmp_path: Path, suffix: str, capsys):
    path = tmp_path / f"x.{suffix}"
    if suffix == "csv":
        path.write_text("a,b,label\n1,2,cat\n3,4,\n")
    elif suffix == "parquet":
        pq.write_table(pa.table({"a": [1.0, 3.0], "b": [2.0, 4.0], "label": ["cat", None]}), path)
    else:
        np.savez(path, features=np.array([[1.0, 2], [3, 4]]), labels=np.array([0.0, np.nan]))
    found = open_features(str(path), labelled=False)
    assert found.labels.shape == (0,)
    np.testing.assert_array_equal(found.read()[:, 0], [[1, 2], [3, 4]])
    assert "labels are not used" in capsys.readouterr().err
    with pytest.raises(UserError):
        open_features(str(path))


@pytest.mark.parametrize(
    "name", ["objects.npz", "two.npz", "length.npz", "bytes.npz", "objects.npy", "bytes.parquet", "names.safetensors"]
)
def test_labels_at_fault_do_no_harm_where_none_are_needed(tmp_path: Path, name: str, capsys):
    spec, numbers = str(tmp_path / name), [0] * N
    if name == "objects.npy":
        spec = write(tmp_path / name, y=Y.astype(object))
    elif name == "bytes.parquet":
        pq.write_table(pa.table({"e": list(VALUES), "label": [b"\xff"] * N}), spec)
    elif name == "names.safetensors":
        save_file({"features": VALUES, "labels": Y}, spec, {"class_names": '["a", "a"]'})
    else:
        labels = {"objects": Y.astype(object), "two": Y, "length": Y[:-1], "bytes": [b"\xff"] * N}[name.split(".")[0]]
        np.savez(spec, features=VALUES, labels=labels, **({"y": numbers} if name == "two.npz" else {}))
    check_refused(spec)
    capsys.readouterr()
    found = open_features(spec, labelled=False)
    assert capsys.readouterr().err.count("labels are not used: ") == 1
    assert found.labels.shape == (0,)
    np.testing.assert_array_equal(found.read()[:, 0], VALUES)


def test_labels_that_are_no_utf8_where_none_is_needed(tmp_path: Path, capsys: pytest.CaptureFixture):
    path = tmp_path / "x.csv"
    path.write_text("a,b,label\n1,2,é\n3,4,ü\n", "latin-1")
    check_refused(path, "cannot read", "UTF8")
    assert open_features(str(path), labelled=False).read()[:, 0].tolist() == [[1, 2], [3, 4]]
    assert "labels are not used: " in capsys.readouterr().err


def test_tables_in_utf16(tmp_path: Path):
    for name in ("x.csv", "x.tsv"):
        (tmp_path / name).write_text("a,b,label\n1,2,0\n", "utf-16")
        check_refused(tmp_path / name, f"{name} is UTF-16", "UTF-8")


def test_a_wanted_column_without_numbers(tmp_path: Path):
    path = tmp_path / "x.csv"
    path.write_text("a,b,label\n1,2,0\n3,zwei,1\n")
    check_refused(path, "column 'b' holds 'zwei' in row 1, which is not a number", wanted=("a", "b"), labelled=False)
    pq.write_table(pa.table({"a": ["x"], "b": [1.0]}), tmp_path / "x.parquet")
    check_refused(tmp_path / "x.parquet", "column 'a' holds string", wanted=("a", "b"), labelled=False)


def test_a_boolean_that_is_none_is_named_by_its_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(scans, "TEXT_BYTES", 200)
    rows = [f"true,{i},0" for i in range(50)] + ["maybe,1,0"]
    (tmp_path / "x.csv").write_text("a,b,label\n" + "\n".join(rows))
    check_refused(tmp_path / "x.csv", "column 'a' holds 'maybe' in row 50, which is neither true nor false")


def test_words_and_codes_are_left_out_as_no_numbers(tmp_path: Path):
    """Lists of words in JSON, addresses and versions look a little like numbers or lists of numbers."""
    text = 'tags,ip,version,a,label\n"[""x"", ""y""]",10.0.0.1,1.2.3,5,0\n"[""z""]",10.0.0.2,1.2.4,6,1\n'
    assert table(tmp_path / "x.csv", text, label="label").left_out == ("tags", "ip", "version")


def test_two_columns_of_labels_where_none_is_needed(tmp_path: Path, capsys: pytest.CaptureFixture):
    """They are not labels, but must not become features either."""
    path = tmp_path / "x.csv"
    found = table(path, "y,a,b,label\n7,1,2,7\n8,3,4,8\n", labelled=False, wanted=("a", "b"))
    assert "labels are not used: " in capsys.readouterr().err
    assert found.labels.shape == (0,)
    assert found.read()[:, 0].tolist() == [[1, 2], [3, 4]]
    check_refused(path, "any of 'label', 'y' may be the labels", labelled=False)
    check_refused(path, "has no 'z'", labelled=False, label="z")


@pytest.mark.parametrize("name", ["x.npz", "x.packed.npz"])
@pytest.mark.parametrize("what", ["features", "labels"])
def test_a_changed_byte_in_an_archive(tmp_path: Path, name: str, what: str):
    spec = write(tmp_path / name)
    with zipfile.ZipFile(spec) as archive:
        member = archive.getinfo(f"{what}.npy")
        following = [m.header_offset for m in archive.infolist() if m.header_offset > member.header_offset]
    content = bytearray(Path(spec).read_bytes())
    content[min([*following, archive.start_dir]) - 10] ^= 1
    Path(spec).write_bytes(content)
    check_refused(spec, "cannot read", name)
    if name == "x.npz" and what == "features":
        with pytest.raises(UserError, match=r"Bad CRC-32 for file 'features\.npy'"):
            open_features(spec).rows(np.array([3]))  # this row itself is undamaged


@pytest.mark.parametrize(
    ("names", "word"), [('["a", "a", "b"]', "'a' twice"), ('[1, "b"]', "1, which"), ('["a"', "delimiter")]
)
def test_names_of_classes_that_are_none(tmp_path: Path, names: str, word: str):
    save_file({"features": VALUES, "labels": Y}, tmp_path / "x.safetensors", {"class_names": names})
    check_refused(tmp_path / "x.safetensors", "x.safetensors", word)


@pytest.mark.parametrize("kinds", [(np.int64, np.uint64), (np.uint64, np.int64)])
def test_signed_and_unsigned_labels_are_compared_exactly(kinds):
    big = 2**53
    known, given = np.array([big, big + 1, big + 2], kinds[0]), np.array([big + 2, big + 1, big], kinds[1])
    assert encode(given, known, "test").tolist() == [2, 1, 0]
    with pytest.raises(UserError, match=rf"1 of 3 rows .*: {big + 3}"):
        encode(given + np.array([1, 0, 0], kinds[1]), known, "test")


def test_classes_and_their_encoding():
    found = find_classes(np.array(["b", "a", "b", "c"]))
    assert found.tolist() == ["a", "b", "c"]
    places = encode(np.array(["c", "a"]), found, "test")
    assert places.tolist() == [2, 0]
    assert places.dtype == np.int32
    assert encode(np.array([30, -5, 30]), find_classes(np.array([30, -5, 7])), "test").tolist() == [2, 0, 2]
    with pytest.raises(UserError, match=r"all 3 labels are 5"):
        find_classes(np.array([5, 5, 5]))
    with pytest.raises(UserError, match=r"x\.npz: 3 of 4 rows have classes that training never saw: 'A', 'z'"):
        encode(np.array(["z", "A", "z", "a"]), found, "x.npz")
    with pytest.raises(UserError, match=r"never saw: 10, 11, 12, 13, 14, …"):
        encode(np.arange(10, 20), np.array([0, 1]), "x.npz")
    with pytest.raises(UserError, match=r"x\.npz: 1 of 1 rows have classes that training never saw: '3'"):
        encode(np.array([3]), found, "x.npz")
    assert encode(np.array(["10", "9"]), np.array([9, 10]), "x.csv").tolist() == [
        1,
        0,
    ]  # one file has text, the other numbers
    assert encode(np.array([10, 9]), np.array(["10", "9", "other"]), "x.csv").tolist() == [0, 1]


@pytest.mark.parametrize("code", [0x110000, 0xD800, 0xFFFFFFFF])
@pytest.mark.parametrize("order", ["<", ">"])
def test_labels_with_codes_that_are_no_characters_are_refused(tmp_path, code, order):
    codes = np.full((N, 2), ord("a"), f"{order}u4")
    codes[4, 1] = code
    np.save(tmp_path / "x.npy", VALUES)
    np.save(tmp_path / "y.npy", codes.view(f"{order}U2").ravel())
    with pytest.raises(UserError, match=r"y\.npy: the text in row 4 is not Unicode"):
        open_features(f"{tmp_path / 'x.npy'},{tmp_path / 'y.npy'}")
    np.savez(tmp_path / "x.npz", features=VALUES, labels=Y - 4, class_names=codes.view(f"{order}U2").ravel())
    with pytest.raises(UserError, match=r"x\.npz: the text in row 4 is not Unicode"):
        open_features(str(tmp_path / "x.npz"))


def test_rows_that_a_parquet_file_claims_and_lacks_are_an_error(tmp_path, monkeypatch):
    path = write(tmp_path / "x.columns.parquet")
    opened = open_features(path)
    real = pq.ParquetFile.iter_batches

    def lose(self, *args, row_groups, **options):
        for batch in real(self, *args, row_groups=row_groups, **options):
            yield batch[:3] if row_groups == [1] else batch

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", lose)
    for read in (opened.read, lambda: opened.rows(np.arange(N)), lambda: open_features(path)):
        with pytest.raises(UserError, match="row group 1 lacks 4 of the rows"):
            read()


def test_a_table_that_has_lost_rows_since_it_was_opened_is_an_error(tmp_path):
    path = Path(write(tmp_path / "x.csv"))
    opened = open_features(str(path))
    path.write_text("\n".join(path.read_text().splitlines()[:10]))
    with pytest.raises(UserError, match="it has 9 rows now, and had 23"):
        opened.read()
    with pytest.raises(UserError, match="row 9 has gone"):
        opened.rows(np.array([9, 3]))


def test_a_member_packed_with_a_damaged_lzma_stream_is_named(tmp_path):
    np.save(tmp_path / "y.npy", Y)
    with zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_LZMA) as archive:
        archive.write(tmp_path / "y.npy", "labels.npy")
    data = bytearray((tmp_path / "x.npz").read_bytes())
    data[60:90] = bytes(30)
    (tmp_path / "x.npz").write_bytes(data)
    with pytest.raises(UserError, match=r"cannot read .*x\.npz"):
        open_features(str(tmp_path / "x.npz"))


@pytest.mark.parametrize("where", ["label", "note", "two rows", "open", "packed"])
def test_a_stray_quote_does_not_swallow_rows(tmp_path: Path, where: str):
    rows = [f"{i}.5,{-i % 7}.25,{'ab'[i % 2]},note {i}" for i in range(9)]
    legit = [*rows[:4], '4.5,3.25,a,"several\nlines, with\ncommas, too, 1"', "", *rows[5:]]
    path = tmp_path / ("x.csv.gz" if where == "packed" else "x.csv")

    def write(lines: list[str], end: str = "\n") -> None:
        data = end.join(["f0,f1,label,note", *lines]).encode()
        path.write_bytes(gzip.compress(data) if where == "packed" else data)

    for end in ("\n", "\r\n"):
        write(legit, end)
        assert open_features(str(path), label="label").labels.tolist() == list("ababababa")
        bad = rows.copy()
        if where == "label":
            bad[2:6] = ['2.5,5.25,"a,note 2', rows[3], rows[4], '5.5,2.25,b",note 5']
        else:
            bad[2] = '2.5,5.25,a,"5 inch'
            if where != "open":
                bad[3 if where == "two rows" else 6] = bad[3 if where == "two rows" else 6] + '"'
        write(bad, end)
        with pytest.raises(UserError, match=r"a quote opens in row 2, column '(label|note)', and closes [0-9] lines"):
            open_features(str(path), label="label")


def test_lines_of_a_cell_beside_lists_are_no_rows(tmp_path: Path):
    path = tmp_path / "x.csv"
    path.write_text('e,label,note\n"[1, 2]",a,"a poem\nroses, red, blue\nend"\n"[2, 1]",b,short\n')
    assert open_features(str(path), label="label").read().tolist() == [[[1, 2]], [[2, 1]]]
