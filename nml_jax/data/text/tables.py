"""Read texts and labels from tables: TSV as GLUE writes it, CSV, JSON lines, parquet and TFDS's records."""

import csv
import io
import json
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet

from nml_jax import console
from nml_jax.errors import MissingInput, UserError

# Columns of texts, or of pairs, that are taken where no key names them, and columns of labels.
TEXTS = (
    ("sentence1", "sentence2"), ("premise", "hypothesis"), ("question1", "question2"), ("question", "sentence"),
    ("#1 String", "#2 String"), ("sentence_A", "sentence_B"), ("sentence",), ("text",),
)  # fmt: skip
LABELS = ("label", "gold_label", "labels", "is_duplicate", "Quality", "class", "target", "score")
TABBED, LINES = (".tsv", ".txt"), (".jsonl", ".ndjson")
LABELLED = (".all", ".train", ".dev", ".test")  # endings of files whose lines are a label, a blank and a text
SUFFIXES = (".parquet", ".tsv", ".csv", *LINES, ".txt")  # the first is taken where a split is there in several
KINDS = "a .tsv, .csv, .jsonl or .parquet"


class Table(dict[str, list[Any]]):
    """The columns of a table by name. All have one cell per row; a cell without a value is None or "".

    Args:
        lines: number of the line of each row in its file; None: rows are counted.
    """

    def __init__(self, columns: dict[str, list[Any]], lines: Sequence[int] | None = None):
        super().__init__(columns)
        self.lines = lines

    @property
    def rows(self) -> int:
        return len(next(iter(self.values()), ()))

    def place(self, row: int) -> str:
        """Return where a row is, in words."""
        return f"line {self.lines[row]}" if self.lines is not None else f"row {row}"


def read_table(path: Path, *, bare: Sequence[str] = (), broken: int = 0) -> Table:
    """Return the columns of a table by name.

    A .tsv or .txt is split at line feeds and tabs, without quotes, as GLUE's files are written; a .csv has quotes,
    unless its first line holds tabs, as STS-B's does. Names of classes that Hugging Face
    stores in a parquet file take the place of their numbers.

    Args:
        bare: names of the columns of a file without a header; further cells of its lines are left out.
        broken: most lines with another number of cells that are left out, and counted in a notice; one more is an
            error.

    Raises:
        UserError: the file is missing, of another format, damaged, without a header, or a line has another number of
            cells; the line is named.
    """
    if not path.is_file():
        raise MissingInput(f"{path} does not exist", f"give {KINDS} with named columns")
    kind = path.suffix.lower()
    if kind in LABELLED:
        return _read_labelled(path)
    if kind not in SUFFIXES:
        raise UserError(f"{path} is not {KINDS}", "write the texts in one of these")
    try:
        if kind == ".parquet":
            return _read_parquet(path)
        text = path.read_bytes().decode("utf-8-sig")
    except (OSError, ValueError) as e:  # Arrow's errors are ValueErrors
        cure = "write it again, in UTF-8" if isinstance(e, UnicodeError) else "write it again"
        raise UserError(f"cannot read {path}: {' '.join(str(e).split())}", cure) from e
    if kind in LINES:
        return _read_lines(path, text)
    first = text.partition("\n")[0]
    tabbed = kind in TABBED or first.count("\t") >= max(1, len(bare) - 1)
    return _name_columns(path, _split_tabs(text) if tabbed else _split_quoted(path, text), bare, broken)


def _read_parquet(path: Path) -> Table:
    with pyarrow.parquet.ParquetFile(path) as file:
        schema, read = file.schema_arrow, file.read()
        columns = {name: column.to_pylist() for name, column in zip(schema.names, read.columns, strict=True)}
    about = json.loads((schema.metadata or {}).get(b"huggingface", b"{}")).get("info", {}).get("features", {})
    for name, feature in about.items() if isinstance(about, dict) else ():
        if name in columns and isinstance(feature, dict) and feature.get("names"):
            columns[name] = name_classes(columns[name], feature["names"])
    return Table(columns)


def name_classes(numbers: Iterable[Any], names: Sequence[str]) -> list[Any]:
    """Return the name of each class; a number without one, such as −1 of a hidden label, stays."""
    return [names[n] if isinstance(n, int) and 0 <= n < len(names) else n for n in numbers]


def _read_lines(path: Path, text: str) -> Table:
    """Read an object from every line. A key that a line lacks is None there."""
    records, lines = [], []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as e:
            raise UserError(f"{path}, line {number} is not JSON: {e}", "correct or remove this line") from e
        if not isinstance(record, dict):
            raise UserError(f"{path}, line {number} is not an object", 'write lines as {"sentence": "…", "label": 1}')
        records.append(record)
        lines.append(number)
    if not records:
        raise UserError(f"{path} has no rows", "give a file with a line for each row")
    names = dict.fromkeys(name for record in records for name in record)
    return Table({name: [record.get(name) for record in records] for name in names}, lines)


Lines = list[tuple[int, list[str]]]  # number of each line, and its cells


def _split_tabs(text: str) -> Lines:
    return [(i, line.removesuffix("\r").split("\t")) for i, line in enumerate(text.split("\n"), 1)]


def _split_quoted(path: Path, text: str) -> Lines:
    reader, rows, last = csv.reader(io.StringIO(text, newline=""), strict=True), [], 0
    try:
        for cells in reader:
            rows.append((last + 1, cells))  # a quoted cell may go over several lines
            last = reader.line_num
    except csv.Error as e:
        cure = "write it again, or as .tsv, which has no quotes"
        raise UserError(f"{path}, line {last + 1}: {e}", cure) from e
    return rows


def _name_columns(path: Path, rows: Lines, bare: Sequence[str], broken: int) -> Table:
    """Return the columns of lines of cells: named by the first line, or by `bare` where that is a row itself."""
    while rows and rows[-1][1] in ([], [""]):
        rows.pop()
    first = [name.strip() for name in rows[0][1]] if rows else []
    is_bare = bool(bare) and len(first) >= len(bare) and not _is_header(first, bare)
    names, body = (list(bare), rows) if is_bare else (first, rows[1:])
    if not body:
        raise UserError(f"{path} has no rows", "give a file with a line of column names, and rows below it")
    wrong = [(i, cells) for i, cells in body if len(cells) != len(names) and not (is_bare and len(cells) > len(names))]
    if len(wrong) > broken:
        number, cells = wrong[0]
        cause = f"{path}, line {number}: {len(cells)} cells, but {len(names)} columns"
        raise UserError(cause, "correct or remove this line")
    if wrong:
        console.notice_once(f"{path}: {len(wrong)} broken lines are left out, such as line {wrong[0][0]}")
        bad = {number for number, _ in wrong}
        body = [(number, cells) for number, cells in body if number not in bad]
    if len(set(names)) < len(names):
        raise UserError(f"{path}: two columns have one name", "the first line must name each column once")
    table = Table({name: [cells[i] for _, cells in body] for i, name in enumerate(names)}, [i for i, _ in body])
    _warn_of_quotes(path, table)
    return table


def _read_labelled(path: Path) -> Table:
    """Read lines of a label, a blank and a text, as sets of sentences are often published: columns label and text.

    Lines that are not UTF-8 are read as Latin-1.
    """
    try:
        lines = [line.removesuffix(b"\r") for line in path.read_bytes().split(b"\n")]
    except OSError as e:
        raise UserError(f"cannot read {path}: {e}", "write it again") from e
    columns: dict[str, list[Any]] = {"label": [], "text": []}
    numbers = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            whole = line.decode("utf-8-sig")
        except UnicodeDecodeError:
            whole = line.decode("latin-1")
        label, _, text = whole.strip().partition(" ")
        if not text:
            raise UserError(f"{path}, line {number}: {whole[:40]!r} is no label, blank and text", "correct this line")
        columns["label"].append(label)
        columns["text"].append(text)
        numbers.append(number)
    if not columns["label"]:
        raise UserError(f"{path} has no rows", "give a file with a line for each text")
    return Table(columns, numbers)


def _is_header(first: Sequence[str], bare: Sequence[str]) -> bool:
    known = {*bare, *LABELS, *(name for names in TEXTS for name in names)}
    return not known.isdisjoint(first)


def _warn_of_quotes(path: Path, table: Table) -> None:
    """Print that cells of a .tsv are quoted as a spreadsheet writes them, which GLUE's files are not."""
    if path.suffix.lower() not in TABBED:
        return
    quoted = sum(
        len(cell) > 2 and cell[0] == cell[-1] == '"' and '""' in cell[1:-1] for own in table.values() for cell in own
    )
    if quoted:
        console.notice_once(
            f"{path}: {quoted:,} cells have quotes around them and doubled quotes inside, which stay: a .tsv has no "
            "quotes here; write a .csv if they are marks of the format"
        )


def choose_texts(path: Path, known: Collection[str], texts: str) -> tuple[str, ...]:
    """Return the names of the columns of texts: those named, one or two with a comma; "": the first of TEXTS there.

    Raises:
        UserError: there is none, or three are named.
    """
    named = tuple(filter(None, (name.strip() for name in texts.split(","))))
    found = named or next((pair for pair in TEXTS if set(pair) <= {*known}), ())
    if missing := [name for name in named if name not in known]:
        raise UserError(f"{path} has no column {missing[0]!r}", _list_columns(known))
    if not found:
        raise UserError(f"{path}: no column is known for texts", _list_columns(known))
    if len(found) > 2:
        raise UserError(f"{len(found)} columns are named for texts", "name one, or two for pairs of texts")
    return found


def choose_columns(path: Path, known: Collection[str], texts: str, label: str) -> tuple[tuple[str, ...], str]:
    """Return the names of the columns of texts, see `choose_texts`, and of the labels.

    Args:
        label: a name; "": the first of LABELS that is there.

    Raises:
        UserError: there is none.
    """
    found = choose_texts(path, known, texts)
    own = label or next((name for name in LABELS if name in known), "")
    if label and label not in known:
        raise UserError(f"{path} has no column {label!r}", _list_columns(known))
    if not own:
        cause = f"{path}: no column is known for labels; tests of benchmarks keep theirs hidden"
        raise UserError(cause, _list_columns(known))
    return found, own


def _list_columns(known: Collection[str]) -> str:
    has = ", ".join(map(repr, [*known][:8]))
    return f"it has {has}; name them with --config.texts.columns and --config.texts.label, or --columns and --label"


def join_texts(path: Path, table: Table, columns: Sequence[str]) -> list[tuple[str, ...]]:
    """Return the text, or pair of texts, of every row. Print how many are empty.

    Raises:
        UserError: a cell is not text; its place is named.
    """
    texts = list(zip(*(table[name] for name in columns), strict=True))
    for row, own in enumerate(texts):
        if not all(isinstance(text, str) for text in own):
            raise UserError(f"{path}, {table.place(row)} has no text", "fill it in, or leave the row out")
    if blank := [row for row, own in enumerate(texts) if not all(text.strip() for text in own)]:
        console.notice_once(f"{path}: {len(blank):,} rows have an empty text, such as {table.place(blank[0])}")
    return texts


def read_scores(
    path: Path, table: Table, column: str, bounds: tuple[float, float] | None, is_hidden: Callable[[Any], bool]
) -> tuple[list[float], list[int]]:
    """Return the scores of a column, and the rows that they are of: those that are not hidden.

    Args:
        bounds: the smallest and the largest score; None: any.

    Raises:
        UserError: a cell is not a finite number, or out of bounds; its place is named.
    """
    scores, rows = [], []
    for row, cell in enumerate(table[column]):
        if is_hidden(cell):
            continue
        try:
            score = float("nan") if isinstance(cell, bool) else float(cell)
        except (TypeError, ValueError):
            score = float("nan")
        low, high = bounds or (float("-inf"), float("inf"))
        if not (low <= score <= high and abs(score) < float("inf")):
            allowed = f" from {low:g} to {high:g}" if bounds else ""
            cause = f"{path}, {table.place(row)}: {column!r} is {cell!r}, not a number{allowed}"
            raise UserError(cause, "correct the cell, or leave the row out")
        scores.append(score)
        rows.append(row)
    return scores, rows
