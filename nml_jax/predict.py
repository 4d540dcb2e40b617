"""Apply a tuned head to features, or to images or texts with the encoder that it was tuned on; or a detector.

    python -m nml_jax.predict HEAD.safetensors FEATURES [--out predictions.csv] [--proba] [--keep id,text]
    python -m nml_jax.predict HEAD.safetensors PHOTOS --encoder=RUN_OR_FOLDER [--out predictions.csv] [--proba]
    python -m nml_jax.predict HEAD.safetensors TEXTS.tsv --encoder=RUN_OR_FOLDER [--keep id] [--columns text1,text2]
    python -m nml_jax.predict own PHOTOS_OR_TEXTS --encoder=RUN_OR_FOLDER
    python -m nml_jax.predict RUN/detect/SYSTEM PHOTOS [--out detections]

FEATURES is any file, pattern or folder that data/features/files.py reads, stored in the same scale as the training
file. Columns of a table are matched to those of training by name, in any order. Arrays, and lists in a column, are
matched by position. Labels are optional, and looked for in the column that training took. If there are labels, the
accuracy is printed; rows of classes that the head does not know count as wrong, and their number is printed. A head of
a regression predicts a number, and its correlation with the numbers of that column is printed. The output is CSV: row,
the columns that --keep names, prediction, and with --proba the probability of every class. Class names that a
spreadsheet would take for formulas have an apostrophe in front (spreadsheet.py).

PHOTOS is a folder of images, at any depth; the output has a column `file`. TEXTS is a table of texts, or of pairs of
texts, with named columns: .tsv, .csv, .jsonl or .parquet. The encoder is a run, a fine-tuned setting in it, or a folder
of published weights, and its own preprocessing or tokenizer is used. A head remembers encoder, layer, preprocessing or
tokenizer, and whether it takes pairs; another encoder is refused. `own` in place of a head is the encoder's own
classifier.

A detector is the folder of one in a run, or a run that has only one. It writes into the folder --out: results.json with
all detections in COCO's format, and pictures with those of a score of at least 0.3.
"""

import argparse
import contextlib
import csv
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from nml_jax import console
from nml_jax.data.class_names import NameIndex
from nml_jax.data.features import files
from nml_jax.errors import UserError
from nml_jax.evals.answers import Answers
from nml_jax.evals.correlations import UNDEFINED, compute_numbers
from nml_jax.runs.files import check_output, replace_file
from nml_jax.spreadsheet import escape_cell
from nml_jax.tuning import head_file

OWN = "own"  # in place of a head: the encoder's own classifier
CLOSED = 141  # exit code if the reader of the output is gone, the same as of a program that SIGPIPE ends


def predict(head: Any, features: Any) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (index of the first row, logits float32 [n, K]) of the first views, block by block.

    Args:
        head: a `head_file.TunedHead`, or the own classifier of an encoder.
        features: `files.Features`, or encoded images or texts.

    Raises:
        UserError: the features have another width than the head takes.
    """
    if features.dim != head.dim:
        raise UserError(
            f"{features.path} has {features.dim} features per row, the head takes {head.dim}",
            "use features of the encoder and layer that the head was tuned on",
        )
    for start, block in features.blocks(files.count_block_rows(features.views, features.dim)):
        yield start, head.outputs(block[:, 0])[1]


class Wanted(NamedTuple):
    """What the output holds besides the number of the row and the prediction.

    proba: whether it holds the probabilities. keep: names of further columns -> their N cells.
    """

    proba: bool = False
    keep: Mapping[str, Sequence[Any]] = MappingProxyType({})


def write(head: Any, features: Any, out: Any, wanted: Wanted) -> list[Any]:
    """Write the CSV to an open text file.

    Returns:
        The predictions.

    Raises:
        UserError: see `predict`; or the head has no probabilities.
    """
    table = csv.writer(out, lineterminator="\n")
    names = [escape_cell(name) if isinstance(name, str) else name for name in head.classes]
    predictions: list[Any] = []
    for start, logits in predict(head, features):
        odds = head.probabilities(logits) if wanted.proba else np.empty((len(logits), 0))
        if not start:
            kept = map(escape_cell, wanted.keep)
            table.writerow(["row", *kept, "prediction", *(names if wanted.proba else ())])
        numbers = logits[:, 0].tolist() if head.predicts_numbers else []
        for i, (p, best) in enumerate(zip(odds, logits.argmax(1).tolist(), strict=True)):
            predictions.append(numbers[i] if numbers else head.classes[best])
            kept = [_show_cell(cells[start + i]) for cells in wanted.keep.values()]
            shown = f"{numbers[i]:.7g}" if numbers else names[best]
            table.writerow([start + i, *kept, shown, *(f"{x:.6g}" for x in p)])
    return predictions


def _show_cell(cell: Any) -> Any:
    """Return a cell of a kept column as the CSV holds it."""
    return "" if cell is None else escape_cell(cell) if isinstance(cell, str) else cell


def write_file(head: Any, features: Any, out: Path, wanted: Wanted) -> list[Any]:
    """Write the CSV to a file that appears under its name when it is complete. Return the predictions.

    Raises:
        UserError: see `write`; or the file cannot be written.
    """
    if out.exists() and not out.is_file() and not out.is_dir():  # a pipe or device is written to, not replaced
        with _writing(out), out.open("w", encoding="utf-8", newline="") as file:
            return write(head, features, file, wanted)
    target = out.resolve()
    with _writing(out), replace_file(target) as part, part.open("w", encoding="utf-8", newline="") as file:
        return write(head, features, file, wanted)


class _Terminal:
    """Standard output where it is a terminal, which gets no control characters of class names."""

    def __init__(self, stream: Any):
        self._stream = stream

    def write(self, text: str) -> None:
        self._stream.write(console.make_printable(text))


def write_stdout(head: Any, features: Any, wanted: Wanted) -> list[Any]:
    """Write the CSV to standard output. Return the predictions.

    Raises:
        UserError: see `write`; or standard output cannot be written.
        BrokenPipeError: the reader is gone, as in `| head`.
    """
    with _writing("standard output"):
        if sys.stdout is None:
            raise OSError("it is closed")
        stdout: Any = sys.stdout
        if hasattr(stdout, "reconfigure"):  # two names must not become one; --out writes UTF-8
            stdout.reconfigure(errors="backslashreplace")
        try:
            out = _Terminal(sys.stdout) if sys.stdout.isatty() else sys.stdout
            predictions = write(head, features, out, wanted)
            sys.stdout.flush()
        except OSError:  # at exit Python would flush the rest of the buffer, and fail again
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise
    return predictions


@contextlib.contextmanager
def _writing(what: object) -> Iterator[None]:
    """Turn an OSError into a UserError, except that of a pipe whose reader is gone."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as e:
        raise UserError(f"cannot write {what}: {e.strerror or e}", "give --out a file in a folder with room") from e


def read_kept(features: files.Features, names: str) -> dict[str, list[Any]]:
    """Read the columns to carry through, by names that are separated by commas.

    Raises:
        UserError: the file has no such column, or the output has one of that name anyway.
    """
    wanted = list(dict.fromkeys(name.strip() for name in names.split(",") if name.strip()))
    if taken := [name for name in wanted if name in ("row", "prediction")]:
        raise UserError(f"--keep={taken[0]}: the output has a column of that name", "give the column another name")
    return files.read_more(features, wanted) if wanted else {}


def choose_label(head: head_file.TunedHead, spec: str) -> str:
    """Return the name of the label in training, if the file has a column of that name; else ""."""
    name = str(head.about.get("label") or "")
    return name if name and files.has_column(spec, name) else ""


def label_names(features: Any, classes: Sequence[Any] = ()) -> list[str]:
    """Return the labels of a file as class names; empty if it has none.

    Where none of the names is among `classes`, of a head that was trained on numbers, return the numbers.
    """
    names, labels = features.class_names, features.labels
    if len(labels) and labels.dtype.kind in "iu" and 0 <= labels.min() <= labels.max() < len(names):
        found = [names[c] for c in labels.tolist()]
        if not classes or not set(found).isdisjoint(map(str, classes)):
            return found
    return [str(c) for c in labels.tolist()]


def describe_scores(known: np.ndarray, predictions: Sequence[float]) -> str:
    """Compare predicted numbers with those of the file, [N], in one line of text."""
    found = compute_numbers(Answers(known, np.asarray(predictions)))
    words = [f"{name.removesuffix(UNDEFINED)} {'undefined' if name.endswith(UNDEFINED) else f'{value:.4f}'}"
             for name, value in found.items()]  # fmt: skip
    return f"on the numbers in the file: {', '.join(words)}"


def describe_agreement(known: list[str], predictions: Sequence[Any], head: Any) -> str:
    """Compare the predictions with the labels of the file, as `label_names` returns them, in one line of text."""
    index = NameIndex(head.classes)
    places = {label: index.find(label) for label in {*known, *map(str, predictions)}}
    new = [label for label in known if places[label] is None]
    if len(new) == len(known):
        return f"labels are not used: the head knows none of their classes, such as {new[0]!r}"
    right = np.mean([places[a] == places[str(b)] for a, b in zip(known, predictions, strict=True)])
    text = f"accuracy on the labels in the file: {100 * right:.2f} %"
    if new:
        text += f"; {len(new)} of {len(known)} rows count as wrong: the head does not know classes such as {new[0]!r}"
    return text


Inputs = tuple[Any, Any, Mapping[str, Sequence[Any]]]  # head, features, columns to carry through


def open_table(args: argparse.Namespace) -> Inputs:
    """Open the head and the features of a file.

    Raises:
        UserError: one of them is missing or damaged, or has no such column.
    """
    if str(args.head) == OWN and not args.head.exists():
        raise UserError(
            "an encoder's own classifier needs images or texts", "give --encoder, and a folder of images or a table"
        )
    head = head_file.load(args.head)
    label = args.label or choose_label(head, args.features)
    keys = {"label": label, "columns": args.columns, "wanted": head.columns, "scored": head.predicts_numbers}
    features = files.open_features(args.features, **keys, labelled=False)
    return head, features, read_kept(features, args.keep)


def open_encoded(args: argparse.Namespace) -> Inputs:
    """Open the head, and a folder of images or a table of texts with an encoder.

    Raises:
        UserError: one of them is missing or damaged, or the head was tuned on features of another encoder.
    """
    own = str(args.head) == OWN and not args.head.exists()
    head, opened = None if own else head_file.load(args.head), None
    from nml_jax.assembly.predictions import encoded  # loads the models
    from nml_jax.assembly.predictions.user_files import Asked

    if own:
        head, opened = encoded.open_own(args.encoder)
    asked = Asked(args.columns, args.label, args.keep)
    features, unknown = encoded.open_encoded(head, Path(args.features), args.encoder, opened, asked)
    if unknown:
        console.notice(unknown)
    return head, features, features.inputs.kept


def detect(args: argparse.Namespace) -> None:
    """Apply a detector to a folder of images.

    Raises:
        UserError: there is no detector, an option is not for one, or see `write_detections`.
    """
    if given := [name for name in ("keep", "columns", "label", "proba", "encoder") if getattr(args, name)]:
        raise UserError(f"--{given[0]} is not for detectors, and {args.head} is a folder", "leave it out")
    from nml_jax.assembly.detection import photos  # loads the models
    from nml_jax.training.detection.saved import find_detector

    folder, out = find_detector(args.head), args.out or Path("detections")
    if folder is None:
        cure = "give RUN/detect/SYSTEM, or a head: a file in the folder heads/ of a run"
        raise UserError(f"{args.head} is a folder without a detector", cure)
    n = photos.write_detections(folder, Path(args.features), out)
    console.notice(f"{n:,} detections in {out / 'results.json'}, pictures in {out / photos.PICTURES}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m nml_jax.predict", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    heads = "a file in the folder heads/ of a run; with --encoder also own; or the folder of a detector"
    parser.add_argument("head", type=Path, help=heads)
    parser.add_argument("features", help="FILE, or FEATURES.npy,LABELS.npy; with --encoder images or texts")
    parser.add_argument("--encoder", type=Path, help="a run, a fine-tuned setting, or a folder of published weights")
    parser.add_argument("--out", type=Path, help="CSV file; default: standard output; of a detector, a folder")
    parser.add_argument("--proba", action="store_true", help="also write the probability of every class")
    parser.add_argument("--keep", default="", help="names of columns to carry through, as in id,text")
    parser.add_argument("--columns", default="", help="name of the feature array or column; of texts one or two")
    parser.add_argument("--label", default="", help="name of the label array or column; default: as in training")
    console.allow_any_terminal()
    args = parser.parse_args(argv)
    try:
        if args.head.is_dir():
            detect(args)
            return 0
        head, features, kept = open_encoded(args) if args.encoder else open_table(args)
        wanted = Wanted(args.proba, kept)
        if args.out:
            check_output(args.out, [args.head, *features.files])
            predictions = write_file(head, features, args.out, wanted)
        else:
            predictions = write_stdout(head, features, wanted)
        if head.predicts_numbers:
            if len(features.labels):
                console.notice(describe_scores(features.labels, predictions))
        elif known := label_names(features, head.classes):
            console.notice(describe_agreement(known, predictions, head))
    except UserError as e:
        console.notice(f"error: {e}")
        return e.exit_code
    except BrokenPipeError:
        return CLOSED
    return 0


if __name__ == "__main__":
    sys.exit(main())
