"""Apply a tuned head to features.

    python -m nml_jax.stages.predict HEAD.safetensors FEATURES [--out predictions.csv] [--proba]

FEATURES is any file that data/features.py reads, stored as the training file was: a scale is part of the head. Labels
in it are not needed, and where there are any, the accuracy is printed. The output is CSV: row, prediction, and with
--proba the probability of every class.
"""

import argparse
import csv
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nml_jax import errors
from nml_jax.data import features as files
from nml_jax.errors import UserError
from nml_jax.training import tuned

BLOCK = 16_384  # rows


def predict(head: tuned.TunedHead, features: files.Features) -> Iterator[tuple[int, np.ndarray]]:
    """(first row, probabilities float64 [n, K]) of the first views, block by block.

    Raises:
        UserError: the features are of another width than the head's.
    """
    if features.dim != head.dim:
        raise UserError(
            f"{features.path} has {features.dim} features per row, the head takes {head.dim}",
            "use features of the encoder and layer that the head was tuned on",
        )
    for start, block in features.blocks(BLOCK):
        _, logits = head.outputs(block[:, 0])
        odds = np.exp(np.float64(logits) - logits.max(1, keepdims=True))
        yield start, odds / odds.sum(1, keepdims=True)


def write(head: tuned.TunedHead, features: files.Features, out: Any, *, proba: bool) -> list[Any]:
    """Write the CSV to an open text file.

    Returns:
        The predictions.
    """
    table = csv.writer(out, lineterminator="\n")
    table.writerow(["row", "prediction", *(head.classes if proba else ())])
    predictions: list[Any] = []
    for start, odds in predict(head, features):
        for i, p in enumerate(odds):
            best = head.classes[int(p.argmax())]
            table.writerow([start + i, best, *(f"{x:.6g}" for x in (p if proba else ()))])
            predictions.append(best)
    return predictions


def named(features: files.Features) -> list[str]:
    """The labels of a file as the classes of a head are called; none where it has none."""
    names = features.class_names
    whole = len(features.labels) and features.labels.dtype.kind in "iu" and features.labels.max() < len(names)
    return [names[c] if whole else str(c) for c in features.labels.tolist()]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m nml_jax.stages.predict", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("head", type=Path, help="a file in the folder heads/ of a run")
    parser.add_argument("features", help="FILE, or FEATURES.npy,LABELS.npy")
    parser.add_argument("--out", type=Path, help="CSV file; default: standard output")
    parser.add_argument("--proba", action="store_true", help="also the probability of every class")
    parser.add_argument("--columns", default="", help="name of the feature array or column")
    parser.add_argument("--label", default="", help="name of the label array or column")
    args = parser.parse_args(argv)
    try:
        head = tuned.load(args.head)
        keys = {"label": args.label, "columns": args.columns}
        features = files.open_features(args.features, **keys, labelled=False)
        if args.out:
            with errors.storage(args.out.parent), args.out.open("w", encoding="utf-8", newline="") as out:
                predictions = write(head, features, out, proba=args.proba)
        else:
            predictions = write(head, features, sys.stdout, proba=args.proba)
        known = named(features)
        if set(known) & set(map(str, head.classes)):
            right = np.mean([a == str(b) for a, b in zip(known, predictions, strict=True)])
            print(f"accuracy on the labels in the file: {100 * right:.2f} %", file=sys.stderr)
    except UserError as e:
        print(f"error: {e}", file=sys.stderr)
        return e.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
