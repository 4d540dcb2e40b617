"""Read texts and labels from tables with named columns: TSV as GLUE writes it, CSV, and parquet."""

import csv
import io
from pathlib import Path
from typing import Any

import pyarrow.parquet

from nml_jax.errors import MissingInput, UserError

# Columns of texts, or of pairs, that are taken where no key names them, and columns of labels.
TEXTS = (
    ("sentence1", "sentence2"), ("premise", "hypothesis"), ("question1", "question2"), ("question", "sentence"),
    ("#1 String", "#2 String"), ("sentence",), ("text",),
)  # fmt: skip
LABELLED = (".all", ".train", ".dev", ".test")  # endings of files whose lines are a label, a blank and a text
LABELS = ("label", "gold_label", "labels", "is_duplicate", "Quality", "class", "target")


def read_table(path: Path) -> dict[str, list[Any]]:
    """Return the columns of a table by name.

    A .tsv is split at line feeds and tabs, without quotes, as GLUE's files are written; a .csv has quotes.

    Raises:
        UserError: the file is missing, of another format, damaged, without a header, or a line has another number of
            cells; the line is named.
    """
    if not path.is_file():
        raise MissingInput(f"{path} does not exist", "give a .tsv, .csv or .parquet with named columns")
    kind = path.suffix.lower()
    if kind in LABELLED:
        return _read_labelled(path)
    try:
        if kind == ".parquet":
            with pyarrow.parquet.ParquetFile(path) as file:
                return {name: column.to_pylist() for name, column in zip(file.schema_arrow.names, file.read().columns,
                                                                          strict=True)}  # fmt: skip
        if kind not in (".tsv", ".csv"):
            raise UserError(f"{path} is neither .tsv, .csv, .parquet nor .all", "write the texts in one of these")
        text = path.read_bytes().decode("utf-8-sig")
    except (OSError, ValueError) as e:  # Arrow's errors are ValueErrors
        raise UserError(f"cannot read {path}: {' '.join(str(e).split())}", "write it again, in UTF-8") from e
    try:
        rows = _split_tabs(text) if kind == ".tsv" else list(csv.reader(io.StringIO(text, newline=""), strict=True))
    except csv.Error as e:
        raise UserError(f"cannot read {path}: {e}", "write it again, or as .tsv, which has no quotes") from e
    rows = list(enumerate(rows, 1))
    while rows and rows[-1][1] in ([], [""]):
        rows.pop()
    if len(rows) < 2:
        raise UserError(f"{path} has no rows", "give a file with a line of column names, and rows below it")
    header = [name.strip() for name in rows[0][1]]
    for number, cells in rows[1:]:
        if len(cells) != len(header):
            raise UserError(
                f"{path}, line {number}: {len(cells)} cells, but {len(header)} columns", "correct or remove this line"
            )
    if len(set(header)) < len(header):
        raise UserError(f"{path}: two columns have one name", "the first line must name each column once")
    return {name: [cells[place] for _, cells in rows[1:]] for place, name in enumerate(header)}


def _read_labelled(path: Path) -> dict[str, list[Any]]:
    """Read lines of a label, a blank and a text, as sets of sentences are often published: columns label and text.

    Lines that are not UTF-8 are read as Latin-1.
    """
    try:
        lines = [line.removesuffix(b"\r") for line in path.read_bytes().split(b"\n")]
    except OSError as e:
        raise UserError(f"cannot read {path}: {e}", "write it again") from e
    columns: dict[str, list[Any]] = {"label": [], "text": []}
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
    if not columns["label"]:
        raise UserError(f"{path} has no rows", "give a file with a line for each text")
    return columns


def _split_tabs(text: str) -> list[list[str]]:
    return [line.removesuffix("\r").split("\t") for line in text.split("\n")]


def choose_columns(path: Path, known: list[str], texts: str, label: str) -> tuple[tuple[str, ...], str]:
    """Return the names of the columns of texts and of the labels.

    Args:
        texts: one name, or two separated by a comma; "": the first of TEXTS that is there.
        label: a name; "": the first of LABELS that is there.

    Raises:
        UserError: there is none.
    """
    named = tuple(filter(None, (name.strip() for name in texts.split(","))))
    found = named or next((pair for pair in TEXTS if set(pair) <= {*known}), ())
    own = label or next((name for name in LABELS if name in known), "")
    has = f"it has {', '.join(map(repr, known[:8]))}; name them with --config.texts.columns and --config.texts.label"
    if missing := [name for name in (*named, *filter(None, [label])) if name not in known]:
        raise UserError(f"{path} has no column {missing[0]!r}", has)
    if not found or not own:
        raise UserError(f"{path}: no column is known for {'labels' if found else 'texts'}", has)
    if len(found) > 2:
        raise UserError(f"texts.columns names {len(found)} columns", "name one, or two for pairs of texts")
    return found, own
