"""Test which columns of a table become features: embeddings in odd types, ids, headers of numbers."""

import base64
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nml_jax.data.features import scans
from nml_jax.data.features.files import Features, open_features
from nml_jax.data.features.guesses import Counter, is_id
from nml_jax.errors import UserError

N, D = 20, 4
X = np.random.default_rng(0).normal(size=(N, D)).astype(np.float32)
Y = np.arange(N) % 2
STRAY = {"n_tokens": Y * 7 + 3, "stars": (np.arange(N) * 3) % 5}


def open_table(folder: Path, table: dict, **options) -> Features:
    pq.write_table(pa.table({**table, "label": Y}), folder / "x.parquet")
    return open_features(f"{folder}/x.parquet", **options)


def check_refused(folder: Path, table: dict, *words: str, **options) -> None:
    with pytest.raises(UserError) as e:
        open_table(folder, table, **options).read()
    assert "\n" not in e.value.cause + e.value.cure
    for word in words:
        assert word in str(e.value)


FLAT = pa.array(X.reshape(-1))
READ = {
    "tensors": pa.FixedShapeTensorArray.from_numpy_ndarray(X),
    "tensors of one row": pa.FixedShapeTensorArray.from_numpy_ndarray(X[:, None]),
    "lists of one list": pa.array(X[:, None].tolist()),
    "columns": pa.array(X[:, :, None].tolist()),
    "fixed lists": pa.FixedSizeListArray.from_arrays(FLAT, D),
    "fixed lists of fixed lists": pa.FixedSizeListArray.from_arrays(pa.FixedSizeListArray.from_arrays(FLAT, D), 1),
    "large lists": pa.array(list(X.astype(np.float16)), pa.large_list(pa.float16())),
    "list views": pa.array(list(X), pa.list_view(pa.float32())),
    "decimals": pa.array(X.round(2).astype(float).tolist(), pa.list_(pa.float64())).cast(pa.list_(pa.decimal128(9, 2))),
    "json": [json.dumps(row.tolist()) for row in X],
    "json of one row": [json.dumps([row.tolist()]) for row in X],
    "printed": [str(row) for row in X],
    "printed reprs": [repr(row) for row in X],
    "printed lists of scalars": [str(list(row)) for row in X],
    "printed tensors": [f"tensor({row.tolist()}, device='cuda:0')" for row in X],
}


@pytest.mark.parametrize("kind", READ)
@pytest.mark.parametrize("named", [True, False])
def test_embeddings_that_can_be_read(tmp_path: Path, kind: str, named: bool, monkeypatch: pytest.MonkeyPatch):
    """The stray numbers beside them are left out; in small batches, too."""
    monkeypatch.setattr(scans, "BATCH_ROWS", 3)
    name = "embedding" if named else "e5"
    found = open_table(tmp_path, {**STRAY, name: READ[kind]})
    assert (found.columns, found.views, found.dim) == ((name,), 1, D)
    assert found.left_out == ("n_tokens", "stars")
    close = {"large lists": 1e-3, "decimals": 6e-3}.get(kind, 1e-6 if "printed" in kind else 0)
    np.testing.assert_allclose(found.read()[:, 0], X, rtol=0, atol=close)
    np.testing.assert_allclose(found.rows(np.array([7, 2, 7]))[:, 0], X[[7, 2, 7]], rtol=0, atol=close)


VIEWS = X.reshape(N, 2, 2)


SWAPPED = VIEWS.transpose(0, 2, 1)


@pytest.mark.parametrize(
    ("cells", "wanted"),
    [
        (pa.array(VIEWS.tolist()), VIEWS),
        (pa.FixedShapeTensorArray.from_numpy_ndarray(VIEWS), VIEWS),
        (pa.FixedShapeTensorArray.from_numpy_ndarray(SWAPPED), SWAPPED),  # stored as VIEWS, with a permutation
        ([json.dumps(row.tolist()) for row in VIEWS], VIEWS),
    ],
)
def test_cells_of_two_sides_are_views(tmp_path: Path, cells, wanted: np.ndarray, capsys: pytest.CaptureFixture):
    found = open_table(tmp_path, {"e": cells, **STRAY})
    assert (found.views, found.dim) == (2, 2)
    np.testing.assert_array_equal(found.read(), wanted)
    assert f"{tmp_path}/x.parquet: 2 views of each row, and only the first is scored" in capsys.readouterr().err


def test_views_of_an_array_are_told(tmp_path: Path, capsys: pytest.CaptureFixture):
    np.savez(tmp_path / "x.npz", x=np.ones((N, 12, 3)), y=Y)
    open_features(f"{tmp_path}/x.npz")
    assert f"{tmp_path}/x.npz: 12 views of each row, and only the first is scored\n" in capsys.readouterr().err


UNREAD = {
    "binary": ([row.tobytes() for row in X], "binary"),
    "binary in half precision": ([row.astype(np.float16).tobytes() * 3 for row in X], "binary"),
    "large binary": (pa.array([row.astype(np.float64).tobytes() for row in X], pa.large_binary()), "large_binary"),
    "fixed binary": (pa.array([row.tobytes() for row in X], pa.binary(4 * D)), "fixed_size_binary[16]"),
    "struct": ([{f"f{i}": float(x) for i, x in enumerate(row)} for row in X], "struct<f0"),
    "sparse": ([{"indices": [1, 5, 7, 9], "values": row.tolist()} for row in X], "struct<indices"),
    "lists of text": ([[repr(float(x)) for x in row] for row in X], "list<element: string>"),
    "bare numbers": ([" ".join(map(str, row)) for row in X], "string"),
    "base64": ([base64.b64encode(row.tobytes()).decode() for row in X], "string"),
    "shortened": ([f"[{row[0]} {row[1]} ... {row[3]}]" for row in X], "string"),
    "braces": (["{" + ",".join(map(str, row)) + "}" for row in X], "string"),
}


@pytest.mark.parametrize("kind", UNREAD)
@pytest.mark.parametrize("name", ["embedding", "e5"])
def test_embeddings_that_cannot_be_read(tmp_path: Path, kind: str, name: str):
    cells, words = UNREAD[kind]
    columns = {**STRAY, name: cells}
    check_refused(tmp_path, columns, f"column '{name}' of type {words}", "looks like an embedding", "features.columns")
    assert open_table(tmp_path, columns, columns="n_tokens,stars").columns == ("n_tokens", "stars")  # the user decides
    tags = {"tags": [[1, 2, 3]] * N, name: cells}  # a list of another meaning must not stand in for it
    check_refused(tmp_path, tags, f"column '{name}'", "looks like an embedding")


@pytest.mark.parametrize("cells", [["emb/1.npy"], [None], [[{"i": 1, "v": 0.5}]], [X[:2].tobytes()], [{"v": {"w": 1}}]])
def test_an_embedding_by_its_name_alone(tmp_path: Path, cells: list):
    table = {**STRAY, "text_embedding": cells * N}
    check_refused(tmp_path, table, "column 'text_embedding'", "looks like an embedding")


def test_words_with_the_name_of_an_embedding(tmp_path: Path):
    """They may describe a house, or name a model."""
    for cells in (["pool", "garage"], {"kind": "hut"}, "pool and garage", "text-embedding-3-small"):
        found = open_table(tmp_path, {**STRAY, "features": [cells] * N, "vector": [cells] * N}, label="label")
        assert found.columns == tuple(STRAY)


def test_a_list_with_nan_is_a_list(tmp_path: Path):
    """It is not dropped: its row is named, as everywhere."""
    cells = [json.dumps(row.tolist()) for row in X]
    for bad in ("[0.1, nan, 0.2, 0.3]", "[0.1, NaN, 0.2, 0.3]", "[0.1, null, 0.2, 0.3]", "[0.1 None 0.2 0.3]"):
        for row in (0, 5):
            check_refused(
                tmp_path, {**STRAY, "e": [*cells[:row], bad, *cells[row + 1 :]]}, "1 of 20 rows", f"rows {row}"
            )
    for strange in ("[" * 3000, "[1" + "0" * 400 + "]", '[{"a": 1}]', "[1, 2]]", "[[1], [2, 3]]", "[]"):
        check_refused(tmp_path, {**STRAY, "e": [*cells[1:], strange]}, "19")
        if "," in strange:
            check_refused(tmp_path, {**STRAY, "e": [strange] * N}, "column 'e' of type string looks like an embedding")
        else:
            assert open_table(tmp_path, {**STRAY, "e": [strange] * N}, label="label").columns == tuple(STRAY)
    check_refused(tmp_path, {**STRAY, "e": ["n/a", *cells[1:]]}, "column 'e' holds 'n/a' in row 0, which is not a list")
    lists = [[None, 1.0, 2.0], *([[1.0, 2.0, 3.0]] * (N - 1))]
    check_refused(tmp_path, {**STRAY, "e": lists}, "1 of 20 rows", "rows 0")


F = {f"f{i}": X[:, i % D] * (i + 1) for i in range(10)}


@pytest.mark.parametrize(
    "other",
    [
        [bytes(np.random.default_rng(i).integers(0, 256, 32, np.uint8)) for i in range(N)],  # keys
        [bytes(np.random.default_rng(i).integers(0, 256, 12, np.uint8)) for i in range(N)],  # shorter ones
        [f"202001{i:02}".encode() for i in range(N)],  # dates in bytes
        [{"bytes": b"png", "path": "a.png"}] * N,
        [{"lat": 1.5, "lon": 2.5}] * N,
        [np.zeros((4, 4), np.uint8).tolist()] * N,  # a grey image
        [np.zeros((3, 4, 4), np.uint8).tolist()] * N,
        ["555 123 4567"] * N,
        ["(48.85, 2.35)"] * N,
        ["A long text, with 1, 2 and 3 in it"] * N,
    ],
)
def test_other_columns_beside_features_are_left_out_as_before(tmp_path: Path, other):
    assert open_table(tmp_path, {**F, "other": other}, label="label").columns == tuple(F)


def test_columns_by_several_names_and_patterns(tmp_path: Path):
    columns = {**F, "row": np.arange(N), "note": ["x"] * N}
    assert open_table(tmp_path, columns, columns="row, f[12],f2").columns == ("row", "f1", "f2")
    assert open_table(tmp_path, columns, columns="f*").columns == tuple(F)
    assert open_table(tmp_path, columns, columns="*").columns == (*F, "row")  # neither the label nor words
    assert open_table(tmp_path, columns, columns="f*", wanted=("f3", "row")).columns == ("f3", "row")
    check_refused(tmp_path, columns, "no column 'g*'", "'f0'", columns="f1,g*")
    check_refused(tmp_path, columns, "column 'note' holds string", columns="f1,note")
    check_refused(tmp_path, columns, "no column of numbers matches 'n*'", columns="n*")


WHOLE, TEXT, PART = pa.array([7, 3, 9]), pa.array(["a", "b", "c"]), pa.array([0.5, 1.5, 1.0])


@pytest.mark.parametrize(
    "name",
    [
        "id", "ID", "Idx", "index", "Row", "KEY", "uuid", "sample_id", "image_id", "ImageID", "sampleId", "userid",
        "row_id", "rowid", "RowKey", "doc-uuid", "item idx", "row_index", "row_number", "Unnamed: 0", "Unnamed: 0.1",
        "unnamed: 3", "__index_level_0__", "__index_level_1__", "level_0", "level_1", "id_2", "input_ids", "", "_id",
    ],
)  # fmt: skip
def test_names_of_ids(name: str):
    assert is_id(name, WHOLE)
    assert is_id(name, TEXT)


@pytest.mark.parametrize(
    "name",
    ["f0", "x", "valid", "grid", "humid", "width", "monkey", "keyboard", "rows_read", "key_length", "indexed", "level",
     "identity", "unnamed", "arrow", "idea", "0", "n_tokens", "solidity", "level_a"],
)  # fmt: skip
def test_names_of_features(name: str):
    assert not is_id(name, WHOLE)


def test_fractions_are_no_ids():
    assert not is_id("mass_index", PART)
    assert not is_id("level_1", PART)
    assert is_id("mass_index", WHOLE)
    assert is_id("index", PART)  # pandas' own name
    assert is_id("sample_id", pa.array([1.0, 2.0, None]))
    assert not is_id("id_embedding", pa.array([[0.5]]))


def test_ids_are_left_out_and_named(tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(scans, "BATCH_ROWS", 3)
    columns = {"sample_id": Y + 5, "uuid": ["x"] * N, "f0": X[:, 0], "n": np.arange(N) + 7, "late": np.arange(N) // 19}
    found = open_table(tmp_path, columns)
    assert found.columns == ("f0", "late")
    assert found.left_out == ("sample_id", "uuid", "n")
    said = capsys.readouterr().err
    assert "taken for ids: 'sample_id' (by its name), 'uuid' (by its name), 'n' (it counts up)" in said
    assert "features.columns keeps" in said
    assert open_table(tmp_path, columns, columns="f0,n").columns == ("f0", "n")
    check_refused(tmp_path, {"n": np.arange(N)}, "'n' count up", "features.columns='n'")
    check_refused(tmp_path, {"sample_id": Y}, "no columns of numbers", "features.columns='sample_id'")


@pytest.mark.parametrize(
    ("values", "up"),
    [
        (range(8), True),
        (range(7), False),  # too few to tell
        (range(100, 0, -1), False),
        (range(5, 900, 10), True),
        ([0, 1, 3, 4, 5, 8, 9, 10, 12], True),  # a part of a set
        ([1, 10, 1000, 10**4, 10**5, 10**6, 10**7, 10**8, 10**9], False),
        ([0, 1, 2, 3, 4, 5, 6, 7, 7], False),
        ([0, 1, 2, 3, 4, 5, 6, 7, 8.5], False),
        ([0, 1, 2, 3, 4, 5, 6, 7, np.nan], False),
    ],
)
def test_counting_up(values, up: bool):
    for size in (1, 3, 100):
        counter, rows = Counter(), np.array(list(values))
        for i in range(0, len(rows), size):
            counter.add(rows[i : i + size])
        assert counter.counts() == up


def write_csv(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


ROWS = "5.1,3.5,{}\n4.9,3.0,{}\n4.7,3.2,{}\n"


@pytest.mark.parametrize(
    ("text", "options"),
    [
        (ROWS.format("cat", "dog", "cat"), {}),
        (ROWS.format("y", "n", "y"), {}),  # a class with a label's name
        (ROWS.format("1", "0", "1"), {"label": "1"}),
        (ROWS.format("1", "0", "1"), {"labelled": False}),
        ("1,2\n3,4\n", {"labelled": False}),
        ("12,7,9\n3,4,5\n", {"labelled": False}),
        ("0,0,1\n3,4,5\n", {"labelled": False}),
        ("-1,0,1\n3,4,5\n", {"labelled": False}),
        ("1e3,5\n3,4\n", {"labelled": False}),
        ("12,7,NA\n3,4,5\n", {"labelled": False}),
        ("[0.1 0.2],a\n[0.3 0.4],b\n", {"labelled": False}),
    ],
)
@pytest.mark.parametrize("name", ["x.csv", "x.tsv"])
def test_a_first_line_of_numbers_is_no_header(tmp_path: Path, text: str, options: dict, name: str):
    spec = write_csv(tmp_path / name, text if name == "x.csv" else text.replace(",", "\t"))
    with pytest.raises(UserError, match="the first line must name the columns"):
        open_features(spec, **options)


@pytest.mark.parametrize(
    ("text", "options", "columns"),
    [
        ("0,1,2,label\n5,3,1,0\n4,2,9,1\n", {}, ("0", "1", "2")),
        ("7,3,label\n5,3,0\n4,2,1\n", {}, ("7", "3")),
        ("0.5,0.9,label\n5,3,0\n4,2,1\n", {}, ("0.5", "0.9")),
        ("0,1,2\n5,3,0\n4,2,1\n", {"label": "2"}, ("0", "1")),
        (",0,1,2\n0,5,3,0\n1,4,2,1\n", {"labelled": False}, ("0", "1", "2")),
        ("2019,2020,2021\n5,3,0\n4,2,1\n", {"labelled": False}, ("2019", "2020", "2021")),
        ("f0,2,9\n5,3,0\n4,2,1\n", {"labelled": False}, ("f0", "2", "9")),
        ("5,3\n5,3\n4,2\n", {"labelled": False, "wanted": ("3", "5")}, ("3", "5")),
        ("word,5,3\na,3,2\nb,2,1\n", {"label": "word"}, ("5", "3")),
    ],
)
def test_names_that_are_numbers(tmp_path: Path, text: str, options: dict, columns: tuple[str, ...]):
    found = open_features(write_csv(tmp_path / "x.csv", text), **options)
    assert (len(found), found.columns) == (2, columns)


@pytest.mark.parametrize("separator", [" ", ", ", ",", ";", "  "])
def test_lists_without_brackets(tmp_path: Path, separator: str):
    rows = np.arange(20).reshape(2, 10) / 8
    texts = [separator.join(map(str, row)) for row in rows.tolist()]
    pq.write_table(pa.table({"embedding": texts, "size": ["4, 5, 6"] * 2, "label": [0, 1]}), tmp_path / "x.parquet")
    np.testing.assert_array_equal(open_features(f"{tmp_path}/x.parquet").read()[:, 0], rows)


def test_a_late_list_that_was_shortened_is_named(tmp_path: Path):
    """Here the first cells are whole, so that the column is one of lists."""
    wide = np.arange(10.0 * N).reshape(N, 10)
    cells = [*map(str, wide[1:]), np.array2string(wide[0], threshold=5)]
    check_refused(tmp_path, {"embedding": cells}, f"in row {N - 1}, which was shortened with ...", "as JSON does")
