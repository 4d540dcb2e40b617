"""Test that headers are judged before what they describe is read: bombs, forgeries, numbers that were rounded."""

import io
import struct
import tracemalloc
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import save_file

from nml_jax.data.features import formats
from nml_jax.data.features.files import open_features
from nml_jax.errors import UserError
from nml_jax.tuning.classifier import NMTuneClassifier

X = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)


def make_npy(shape: tuple[int, ...], dtype: str, data: bytes = b"") -> bytes:
    """Return a .npy whose header describes an array, and whose content is `data`."""
    out = io.BytesIO()
    np.lib.format.write_array_header_1_0(out, {"descr": dtype, "fortran_order": False, "shape": shape})
    return out.getvalue() + data


def write_npz(path: Path, members: dict[str, bytes], how: int = zipfile.ZIP_DEFLATED) -> str:
    with zipfile.ZipFile(path, "w", how) as archive:
        for name, data in members.items():
            archive.writestr(f"{name}.npy", data)
    return str(path)


FEATURES = make_npy(X.shape, "<f4", X.tobytes())
LABELS = make_npy((40,), "<i8", (np.arange(40) % 2).tobytes())
ZEROS = bytes(64 << 20)


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ({"x": FEATURES, "y": make_npy((8 << 20,), "<i8", ZEROS)}, "40 rows of features and 8388608 labels"),
        ({"x": FEATURES, "y": make_npy((40, 1 << 17), "<i8", ZEROS)}, r"labels have shape \[40, 131072\]"),
        ({"x": FEATURES, "y": make_npy((40,), "<U400000", ZEROS)}, "each label takes 1,600,000 bytes, 65,536 at most"),
        ({"x": make_npy((40, 10**12), "<f4", X.tobytes()), "y": LABELS}, r"x\.npy claims 160,000,000,000,128 bytes"),
        ({"x": FEATURES.replace(b"(40, 3)", b"(40, 3 "), "y": LABELS}, "cannot read .*bomb"),
        ({"x": FEATURES.replace(b"'descr'", b"(descr  "), "y": LABELS}, "cannot read .*bomb"),
        ({"x": make_npy((-1, 3), "<f4", X.tobytes()), "y": LABELS}, r"claims the shape \[-1, 3\]"),
        ({"x": FEATURES, "y": b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**32 - 1) + ZEROS}, "cannot read"),
    ],
)
def test_bombs_are_refused_before_they_are_unpacked(tmp_path: Path, members: dict[str, bytes], words: str):
    spec = write_npz(tmp_path / "bomb.npz", members)
    assert Path(spec).stat().st_size < 200_000
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match=words) as e:
            open_features(spec).read()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8 << 20
    assert "\n" not in e.value.cause + e.value.cure


def test_sizes_in_the_directory_of_an_archive_are_not_believed(tmp_path: Path):
    """The directory may lie too: a deflated byte stands for 1032 bytes at most."""
    spec = write_npz(tmp_path / "x.npz", {"x": make_npy((40, 1 << 30), "<f4", X.tobytes()), "y": LABELS})
    content = bytearray(Path(spec).read_bytes())
    with zipfile.ZipFile(spec) as archive:
        at = content.index(b"PK\x01\x02", archive.start_dir) + 24  # where the directory holds the unpacked size
    content[at : at + 4] = struct.pack("<I", 2**32 - 2)
    Path(spec).write_bytes(content)
    with pytest.raises(UserError, match="cannot hold more than"):
        open_features(spec)


def test_a_stored_member_ends_where_it_ends(tmp_path: Path):
    spec = write_npz(tmp_path / "x.npz", {"y": make_npy((40,), "<i8", bytes(80)), "x": FEATURES}, zipfile.ZIP_STORED)
    with pytest.raises(UserError, match=r"y\.npy claims 320 bytes"):
        open_features(spec)


def test_labels_that_would_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A dictionary holds a text once, equal rows take no room, and NumPy gives each text the room of the longest."""
    path, rows = tmp_path / "x.parquet", 3000
    columns = {f"f{j}": np.resize(X[:, j], rows) for j in range(3)}

    def refuse(labels, words: str) -> None:
        pq.write_table(pa.table({**columns, "label": labels}), path, compression="zstd")
        assert path.stat().st_size < 200_000
        with pytest.raises(UserError, match=words):
            open_features(str(path))

    refuse(["a" * 200_000] * rows, "each label takes 200,000 bytes, 65,536 at most")
    refuse(pa.array(["a", "b" * 70_000]).take(np.arange(rows) % 2).dictionary_encode(), "each label takes 70,000 bytes")
    monkeypatch.setattr(formats, "read_memory_limit", lambda: 2 * 8 * rows - 1)
    refuse(np.arange(rows) % 2, "3,000 labels of 8 bytes take")
    np.savez_compressed(tmp_path / "x.npz", x=np.resize(X, (rows, 3)), y=np.arange(rows) % 2)
    with pytest.raises(UserError, match="3,000 labels of 8 bytes take"):
        open_features(str(tmp_path / "x.npz"))
    monkeypatch.setattr(formats, "read_memory_limit", lambda: 1 << 29)
    refuse(["a"] * (rows - 1) + ["b" * 60_000], "3,000 labels of 240,000 bytes take 0.7 GiB")


LIMITS = {"bfloat16": 2**8, "float16": 2**11, "float32": 2**24, "float64": 2**53}


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *(("x.npz", dtype) for dtype in ("float16", "float32", "float64")),
        *(("x.safetensors", dtype) for dtype in LIMITS),
        *(("x.parquet", dtype) for dtype in ("float16", "float32", "float64")),
    ],
)
def test_labels_that_a_dtype_cannot_tell_apart(tmp_path: Path, name: str, dtype: str):
    path, limit = tmp_path / name, LIMITS[dtype]
    for most in (limit, 2 * limit):
        labels = np.array([0, most, 1, -most], np.float64).astype(ml_dtypes.bfloat16 if "b" in dtype else dtype)
        if name == "x.npz":
            np.savez(path, x=X[:4], y=labels)
        elif name == "x.parquet":
            pq.write_table(pa.table({"e": list(X[:4]), "y": labels}), path)
        else:
            save_file({"x": X[:4], "y": labels}, path)
        if most == limit:
            assert open_features(str(path)).labels.tolist() == [0, limit, 1, -limit]
        else:
            with pytest.raises(UserError, match=rf"2 labels are not exact in {dtype}, as in row 1: .*{limit:,}"):
                open_features(str(path))


def test_labels_of_a_classifier_in_half_precision():
    head = NMTuneClassifier(method="linear", epochs=1)
    with pytest.raises(ValueError, match="y: 20 labels are not exact in float16, as in row 1: 4096"):
        head.fit(X, np.tile([0, 4096], 20).astype(np.float16))
    assert head.fit(X, np.tile([0, 2048], 20).astype(np.float16)).classes_.tolist() == [0, 2048]


def test_class_names_beside_the_arrays_of_an_archive(tmp_path: Path):
    y = np.arange(40) % 2
    np.savez(tmp_path / "x.npz", x=X, y=y, class_names=["cat", "dog"])
    assert open_features(f"{tmp_path}/x.npz").class_names == ("cat", "dog")
    np.savez(tmp_path / "x.npz", x=X, y=y, class_names=["cat", "cat"])
    with pytest.raises(UserError, match="'cat' twice"):
        open_features(f"{tmp_path}/x.npz")


@pytest.mark.parametrize(
    ("suffix", "mark"), [(".csv", ";"), (".csv", "\t"), (".csv", "|"), (".tsv", ","), (".tsv", ";")]
)
def test_another_mark_between_cells_is_named(tmp_path, suffix, mark):
    path = tmp_path / f"x{suffix}"
    path.write_text("".join(mark.join(row) + "\n" for row in (("f0", "f1", "label"), ("0.5", "1.5", "ant"))))
    with pytest.raises(UserError, match="separates its cells by ") as e:
        open_features(str(path))
    assert repr(mark) in e.value.cause


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view(), pa.binary()])
@pytest.mark.parametrize("coded", [False, True])
def test_labels_in_every_type_of_text(tmp_path: Path, kind: pa.DataType, coded: bool):
    labels = pa.array(list("ab") * 20).cast(kind)
    if coded and kind != pa.string_view():
        labels = labels.dictionary_encode()
    table = pa.table({**{f"f{j}": X[:, j] for j in range(3)}, "label": labels})
    pa.feather.write_feather(table, tmp_path / "x.feather", compression="uncompressed")
    pq.write_table(table, tmp_path / "x.parquet")
    for name in ("x.feather", "x.parquet"):
        assert open_features(str(tmp_path / name)).labels.tolist() == list("ab") * 20


def test_labels_of_an_enum_of_polars(tmp_path: Path):
    """Codes of one byte for views of text."""
    labels = pa.DictionaryArray.from_arrays(pa.array([0, 1] * 20, pa.uint8()), pa.array(["a", "b"], pa.string_view()))
    path = tmp_path / "x.feather"
    pa.feather.write_feather(pa.table({"f": X[:, 0], "label": labels}), path, compression="uncompressed")
    assert open_features(str(path)).labels.tolist() == list("ab") * 20
