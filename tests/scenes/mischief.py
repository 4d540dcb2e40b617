"""Mischief for every reader: valid inputs, seeded mutations of them, and the judge of what a reader made of them.

A `Scene` writes valid inputs, damages them, and reads them. `play` accepts two outcomes: the reader's own checks hold,
or it raises UserError of one line of cause and one of cure, in time and in bounded memory.
"""

import contextlib
import dataclasses
import datetime
import decimal
import io
import json
import os
import resource
import shutil
import signal
import tarfile
import time
import traceback
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from nml_jax.errors import UserError

SECONDS = 10.0  # of one reading at most
BYTES = 300 << 20  # of memory beside three times the decoded input

# What people and programs write into cells, names and values: dates, locales, quotes, invisible and odd characters.
WORDS = (
    "", " ", "nan", "NaN", "inf", "-Infinity", "1e400", "-1e-400", "0,5", "1.234,5", "1'234", "1 234", "12 %", "$5",
    "2024-01-31", "31/01/2024", "01.02.24", "2024-01-31T10:00:00+02:00", "12:30", "TRUE", "wahr", "None", "null", "N/A",
    "-", "+", "--", "0x1F", "1_000", "٣", "²", "９", "9223372036854775808", "1" * 400, "-0", "007", "2.0", "1e5",
    "caf\u00e9", "cafe\u0301", "\ufeff", "\u200b", "\u00ad", "\u202egnp", "\u00a0ant\u00a0", "İ", "ß", "\ud7ff", "😀",
    "=1+1", "@x", "'", '"', '""', '"\n', "a\tb", "a\rb", "a\x00b", "\x1b[31m", "\x85", "\u2028", "a,b;c|d", "[", "[]",
    "[1, 2", "[1, 2]", "[[1, 2, 3, 4]]", "[0.1 0.2 0.3 0.4]", "[null, 1]", "{}", '{"a": 1}', "../../etc/passwd", "/",
    "CON", "a" * 300, "&nbsp;", "&#0;", "%s", "%n", "{0}", "\\", "\\N", "#REF!", "label", "key", "id", "Unnamed: 0",
)  # fmt: skip
VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 2, 10**9, 2**63, 10**400, 0.5, -0.0, 1e308, [], [[]], {}, {"a": None}, [None], [1, "a"],
    *WORDS[:60],
)  # fmt: skip
ENCODINGS = ("utf-16", "utf-8-sig", "latin-1", "cp1252", "utf-32", "utf-16-be", "cp037", "shift_jis")
Rng = np.random.Generator


@dataclasses.dataclass(frozen=True)
class Scene:
    """A reader with valid inputs.

    write: writes valid inputs into an empty folder; returns the files to damage.
    read: reads the folder's inputs and checks what it gets. It may return a size: bytes of the decoded input.
    changes: functions (bytes, rng) -> bytes that damage the content of a file, beside those of every file.
    """

    name: str
    write: Callable[[Path, Rng], Sequence[Path]]
    read: Callable[[Path], Any]
    changes: Sequence[Callable[[bytes, Rng], bytes]] = ()


# ---- changes of bytes


def pick(rng: Rng, items: Sequence[Any]) -> Any:
    return items[int(rng.integers(len(items)))]


def _span(data: bytes, rng: Rng) -> tuple[int, int]:
    """Return the ends of a part of the data, mostly a short one."""
    a, b = sorted(rng.integers(0, len(data) + 1, 2).tolist())
    return (a, b) if rng.random() < 0.3 else (a, min(b, a + int(rng.integers(1, 40))))


def truncate(data: bytes, rng: Rng) -> bytes:
    return data[: int(rng.integers(len(data) + 1))]


def behead(data: bytes, rng: Rng) -> bytes:
    return data[_span(data, rng)[0] :]


def flip(data: bytes, rng: Rng) -> bytes:
    out = bytearray(data)
    for _ in range(int(pick(rng, (1, 1, 2, 8, 64)))):
        if out:
            out[int(rng.integers(len(out)))] ^= 1 << int(rng.integers(8))
    return bytes(out)


def overwrite(data: bytes, rng: Rng) -> bytes:
    a, b = _span(data, rng)
    return data[:a] + pick(rng, (bytes(b - a), b"\xff" * (b - a), rng.bytes(b - a))) + data[b:]


def splice(data: bytes, rng: Rng) -> bytes:
    (a, b), c = _span(data, rng), int(rng.integers(len(data) + 1))
    return data[:c] + data[a:b] + data[c:]


def cut_out(data: bytes, rng: Rng) -> bytes:
    a, b = _span(data, rng)
    return data[:a] + data[b:]


def reorder(data: bytes, rng: Rng) -> bytes:
    (a, b), c = _span(data, rng), int(rng.integers(1, 60))
    return data[:a] + data[b : b + c] + data[a:b] + data[b + c :]


def double(data: bytes, rng: Rng) -> bytes:
    return data + pick(rng, (data, data[: len(data) // 2], b"\n", b"\x00" * 512, rng.bytes(30)))


def reencode(data: bytes, rng: Rng) -> bytes:
    return data.decode("utf-8", "replace").encode(pick(rng, ENCODINGS), "replace")


def end_lines(data: bytes, rng: Rng) -> bytes:
    return data.replace(b"\n", pick(rng, (b"\r\n", b"\r", b"\n\n", b"", b"\x85", b"\n\r")))


def shuffle_lines(data: bytes, rng: Rng) -> bytes:
    lines = data.split(b"\n")
    for _ in range(int(rng.integers(1, 4))):
        i, j = rng.integers(0, len(lines), 2).tolist()
        match int(rng.integers(3)):
            case 0:
                lines[i], lines[j] = lines[j], lines[i]
            case 1:
                lines.insert(i, lines[j])
            case _:
                del lines[i : i + 1]
                lines = lines or [b""]
    return b"\n".join(lines)


def insert_word(data: bytes, rng: Rng) -> bytes:
    a = int(rng.integers(len(data) + 1))
    return data[:a] + pick(rng, WORDS).encode() + data[a:]


def replace_word(data: bytes, rng: Rng) -> bytes:
    """Replace a cell or word between separators."""
    for mark in rng.permutation([b",", b"\t", b" ", b'"', b"\n"]).tolist():
        if mark in data:
            cells = data.split(mark)
            for _ in range(int(pick(rng, (1, 1, 3)))):
                cells[int(rng.integers(len(cells)))] = pick(rng, WORDS).encode()
            return mark.join(cells)
    return pick(rng, WORDS).encode()


def use_commas(data: bytes, rng: Rng) -> bytes:
    """Write the numbers of a continental locale: a decimal comma, and ; between cells."""
    return data.replace(b",", b";").replace(b".", b",")


BINARY = (truncate, behead, flip, overwrite, splice, cut_out, reorder, double)
TEXT = (reencode, end_lines, shuffle_lines, insert_word, replace_word, replace_word, use_commas)


# ---- changes of structure


def change_tree(tree: Any, rng: Rng) -> Any:
    """Change one place of a JSON value: another value or type, a lost or doubled key, a deep nest."""
    places = list(_walk(tree, ()))
    path = pick(rng, places)
    if not path:
        return pick(rng, VALUES) if rng.random() < 0.3 else [tree]
    at = tree
    for key in path[:-1]:
        at = at[key]
    match int(rng.integers(6)):
        case 0 | 1 | 2:
            at[path[-1]] = pick(rng, VALUES)
        case 3 if isinstance(at, dict):
            at[pick(rng, WORDS)] = at.pop(path[-1])
        case 4:
            at[path[-1]] = [at[path[-1]]]
        case _:
            del at[path[-1]]
    return tree


def _walk(tree: Any, path: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    yield path
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield from _walk(value, (*path, key))


def change_json(data: bytes, rng: Rng) -> bytes:
    """Change a JSON text, or one line of JSON lines."""
    if rng.random() < 0.03:
        return b"[" * 100_000
    try:
        return json.dumps(change_tree(json.loads(data), rng)).encode()
    except ValueError:
        lines = data.split(b"\n")
        i = int(rng.integers(len(lines)))
        with contextlib.suppress(ValueError):
            lines[i] = json.dumps(change_tree(json.loads(lines[i]), rng)).encode()
        return b"\n".join(lines)


def change_safetensors(data: bytes, rng: Rng) -> bytes:
    """Change the header of a safetensors file, or JSON within its metadata."""
    n = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + n])
    about = header.get("__metadata__", {})
    nested = [k for k, v in about.items() if v[:1] in "[{"]
    if nested and rng.random() < 0.5:
        key = pick(rng, nested)
        about[key] = change_json(about[key].encode(), rng).decode()
    else:
        header = change_tree(header, rng)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + n :]


def change_npy(data: bytes, rng: Rng) -> bytes:
    """Save an array under another dtype, order, shape or claim."""
    array = np.load(io.BytesIO(data), allow_pickle=False)
    kinds = ("f2", "f8", ">f4", ">i4", "i1", "u1", "u8", "c8", "U8", "S8", "?", "M8[D]", "m8[s]", "f4")
    with np.errstate(all="ignore"), contextlib.suppress(ValueError, TypeError):
        array = array.astype(pick(rng, kinds))
    shapes = (
        array.T,
        array[None],
        array[..., None],
        array.ravel(),
        array[:0],
        array[::-1],
        array[:-1],
        np.asfortranarray(array),
    )
    np.save(out := io.BytesIO(), pick(rng, shapes))
    if rng.random() < 0.3:
        return out.getvalue().replace(b"(", pick(rng, (b"(-1, ", b"(9, ", b"(99999999, ", b"((", b"(1.5, ")), 1)
    return out.getvalue()


def change_zip(data: bytes, rng: Rng) -> bytes:
    """Pack members of a zip archive again: damaged, renamed, doubled, without one, in another order."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = [(name, archive.read(name)) for name in archive.namelist()]
    members = _change_members(members, rng)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", pick(rng, (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA))) as archive:
        for name, content in dict(members).items():
            archive.writestr(name or "x", content)
    return out.getvalue()


def _change_members(members: list[tuple[str, bytes]], rng: Rng) -> list[tuple[str, bytes]]:
    i = int(rng.integers(len(members)))
    name, content = members[i]
    match int(rng.integers(6)):
        case 0:
            members[i] = name, pick(rng, BINARY)(content, rng)
        case 1 if name.endswith(".npy"):
            with contextlib.suppress(ValueError):
                members[i] = name, change_npy(content, rng)
        case 1 | 2:
            members[i] = pick(rng, WORDS).replace("\x00", "") + os.path.splitext(name)[1], content
        case 3:
            members.insert(int(rng.integers(len(members))), members[i])
        case 4 if len(members) > 1:
            del members[i]
        case _:
            members = [members[j] for j in rng.permutation(len(members))]
    return members


def change_tar(data: bytes, rng: Rng) -> bytes:
    """Pack members of a tar again: damaged, renamed, doubled, without one, in another order, as links or devices."""
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        members = [(m.name, archive.extractfile(m).read()) for m in archive if m.isfile()]  # type: ignore[union-attr]
    members, out = _change_members(members, rng), io.BytesIO()
    form = pick(rng, (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT))
    odd = int(rng.integers(len(members))) if rng.random() < 0.3 else -1
    with contextlib.suppress(ValueError), tarfile.open(fileobj=out, mode="w", format=form) as archive:
        for i, (name, content) in enumerate(members):
            info = tarfile.TarInfo(name)
            if i == odd:
                info.type = pick(
                    rng, (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE)
                )
                info.linkname = "../../etc/passwd"
                archive.addfile(info)
            else:
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


def change_parquet(data: bytes, rng: Rng) -> bytes:
    """Write a table again: a column of another type, name, order or nullness, other rows, other encodings."""
    table = pq.read_table(io.BytesIO(data))
    i = int(rng.integers(table.num_columns))
    match int(rng.integers(6)):
        case 0 | 1 | 2:
            column = _make_column(table.num_rows, rng)
            table = table.set_column(i, table.column_names[i], column)
        case 3:
            names = table.column_names
            names[i] = pick(rng, WORDS)
            table = table.rename_columns(names)
        case 4:
            table = table.take(rng.integers(0, table.num_rows, int(rng.integers(0, 20))))
        case _:
            mask = pa.array(rng.random(table.num_rows) < 0.3)
            column = pa.chunked_array(
                [pa.array(table.column(i).to_pylist(), table.schema.field(i).type, mask=mask.to_numpy(False))]
            )
            table = table.set_column(i, table.column_names[i], column)
    rows, packing = int(rng.integers(1, 9)), pick(rng, ("zstd", "none", "gzip"))
    pq.write_table(table, out := io.BytesIO(), row_group_size=rows, compression=packing)
    return out.getvalue()


def _make_column(n: int, rng: Rng) -> pa.Array:
    """Return a column of n rows, of a type that people and programs write."""
    day = datetime.date(2024, 1, 31)
    moment = datetime.datetime(2024, 1, 31, 12, tzinfo=datetime.UTC)
    x = rng.normal(size=(n, 4)).astype(np.float32)
    lists = [row.tolist() for row in x]
    four = pa.list_(pa.float32(), 4)
    tensor = pa.fixed_shape_tensor(pa.float32(), [2, 2])
    # Values of one row that all rows have, and their types; None: Arrow's choice.
    same: tuple[tuple[Any, pa.DataType | None], ...] = (
        (day, None), (moment, None), (datetime.timedelta(3), None), (datetime.time(12), None), (True, None),
        (decimal.Decimal("1.50"), None), (None, None), ("x", pa.large_string()), ("x", pa.string_view()),
        ({"a": 1.0, "b": 2.0}, None), ([("a", 1)], pa.map_(pa.string(), pa.int64())), ([None, 1.0, 2.0, 3.0], None),
        (b"\xff\xfe", None), ([], pa.list_(pa.float32())), (np.nan, None), (2.0**70, None), ([["a"]], None),
        (moment, pa.timestamp("ns", "Europe/Berlin")), (2**63 - 1, None), ({"bytes": b"x", "path": None}, None),
    )  # fmt: skip
    own: tuple[Callable[[], pa.Array], ...] = (
        lambda: pa.array(range(n), pa.uint64()), lambda: pa.array(range(n), pa.int8()),
        lambda: pa.array(x[:, 0].astype(np.float16)), lambda: pa.array([row.tobytes() for row in x]),
        lambda: pa.array([row.tobytes() for row in x], pa.binary(16)), lambda: pa.array([str(row) for row in x]),
        lambda: pa.array([pick(rng, WORDS) for _ in range(n)]), lambda: pa.array(lists), lambda: pa.array(lists, four),
        lambda: pa.array(["b", "a"] * n)[:n].dictionary_encode(), lambda: pa.array([1, 2] * n)[:n].dictionary_encode(),
        lambda: pa.array(lists, pa.large_list(pa.float64())), lambda: pa.array([[row] for row in lists]),
        lambda: pa.array([row[: int(rng.integers(5))] for row in lists]),
        lambda: pa.ExtensionArray.from_storage(tensor, pa.array(lists, four)),
    )  # fmt: skip
    if rng.random() < len(own) / (len(own) + len(same)):
        return pick(rng, own)()
    value, kind = same[int(rng.integers(len(same)))]
    return pa.array([value] * n, kind)


def disturb_folder(folder: Path, files: Sequence[Path], rng: Rng) -> None:
    """Change the names and kinds of files: renamed, doubled, emptied, folders in place of files, loops of links."""
    path = pick(rng, files)
    name = pick(rng, WORDS).replace("/", "").replace("\x00", "")[:80]
    other = path.with_name(name + path.suffix if name + path.suffix not in ("", ".") else "x")
    with contextlib.suppress(OSError, ValueError):
        match int(rng.integers(7)):
            case 0:
                path.rename(other)
            case 1:
                shutil.copy(path, other)
            case 2:
                path.unlink()
                path.mkdir()
            case 3:
                path.unlink()
                path.symlink_to(path.name)
            case 4:
                path.rename(path.with_suffix(pick(rng, (".JPG", ".gz", "", ".txt", ".npy", ".parquet", ".csv"))))
            case 5:
                path.unlink()
            case _:
                (path.parent / "loop").symlink_to(folder)


# ---- the judge


def damage(scene: Scene, folder: Path, rng: Rng) -> list[str]:
    """Write the valid inputs of a scene, change them, and return the names of the changes."""
    files = list(scene.write(folder, rng))
    told = []
    for _ in range(int(pick(rng, (1, 1, 1, 2, 3)))):
        if rng.random() < 0.06:
            told.append("disturb_folder")
            disturb_folder(folder, files, rng)
            continue
        path = pick(rng, files)
        change = pick(rng, (*scene.changes, *scene.changes, *BINARY, *(() if rng.random() < 0.7 else TEXT)))
        with contextlib.suppress(OSError):
            content = path.read_bytes()
            try:
                path.write_bytes(change(content, rng))
            except Exception:
                continue  # an earlier change has left nothing that this one could read
            told.append(f"{change.__name__} {path.name}")
    return told


def play(scene: Scene, folder: Path, seed: int) -> UserError | None:
    """Damage the inputs of a scene in an empty folder and read them. Return the UserError, or None if all is right.

    Raises:
        AssertionError: a traceback, a hang, too much memory, or an error that is not two lines.
    """
    told = damage(scene, folder, np.random.default_rng(seed))
    where = f"{scene.name}, seed {seed} ({', '.join(told)})"
    start, before, size = time.monotonic(), _reset_peak(), 0
    error = None
    try:
        with _alarm():
            size = scene.read(folder) or 0
    except UserError as e:
        error = e
        for text in (e.cause, e.cure):
            assert text.strip(), f"{where}: an empty line"
            assert len(text.splitlines()) == 1, f"{where}: not one line: {text!r}"
    except BaseException as e:
        if isinstance(e, KeyboardInterrupt):
            raise
        raise AssertionError(f"{where}: {traceback.format_exc()}") from e
    assert time.monotonic() - start < SECONDS, f"{where}: {time.monotonic() - start:.0f} s"
    grown = _read_peak() - before
    assert grown < 3 * size + BYTES, f"{where}: {grown >> 20} MB of memory for {size:,} bytes"
    return error


@contextlib.contextmanager
def _alarm() -> Iterator[None]:
    """Raise TimeoutError if Python code takes too long."""

    def ring(number: int, frame: Any) -> None:
        raise TimeoutError(f"more than {SECONDS} s")

    previous = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def _reset_peak() -> int:
    """Start the count of the most memory anew, where the system can; return the memory in use, in bytes."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _read_peak()


def _read_peak() -> int:
    """Return the most memory that the process has used, in bytes."""
    with contextlib.suppress(OSError, StopIteration, IndexError):
        lines = Path("/proc/self/status").read_text("utf-8").splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
