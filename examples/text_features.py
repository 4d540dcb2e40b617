"""Convert sentences to features without a download: TF-IDF of words and word pairs, reduced by a truncated SVD.

    python examples/text_features.py OUT_DIR TRAIN.csv [TEST.csv ...] [--dim 256]

Each CSV has the columns text and label, and a different name. The vocabulary and the SVD are learned from TRAIN alone.
Every file becomes OUT_DIR/<its name>.safetensors with features float32 [N, dim] and labels, for configs/features.py.
"""

import argparse
import csv
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import numpy as np
import safetensors.numpy
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer


def fail(cause: str, cure: str) -> NoReturn:
    print(f"error: {cause}\n  cure: {cure}", file=sys.stderr)
    sys.exit(2)


def read(path: Path) -> tuple[list[str], list[str]]:
    """Read the texts and labels of a CSV."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as e:
        fail(f"{path} cannot be read: {e}", "give a CSV file in UTF-8")
    if not rows or not {"text", "label"} <= rows[0].keys():
        fail(f"{path} has no rows, or no columns text and label", "give a CSV with a header text,label")
    if wrong := [i for i, row in enumerate(rows) if None in (row["text"], row["label"])]:
        fail(f"{path}: row {wrong[0]} lacks its text or label", "give both in every row")
    return [row["text"] for row in rows], [row["label"] for row in rows]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("files", type=Path, nargs="+", help="the training file first")
    parser.add_argument("--dim", type=int, default=256)
    args = parser.parse_args(argv)
    if args.dim < 1:
        fail(f"--dim must be at least 1, got {args.dim}", "as in --dim 256")
    stems = [path.stem for path in args.files]
    if doubled := [path for i, path in enumerate(args.files) if path.stem in stems[:i]]:
        cause = f"{doubled[0]} and a file before it would both become {doubled[0].stem}.safetensors"
        fail(cause, "rename one of them")
    texts, labels = zip(*(read(path) for path in args.files), strict=True)
    names = sorted(set(labels[0]))
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"\S+")
    try:
        tfidf = vectorizer.fit_transform(texts[0])
    except ValueError as e:
        fail(f"{args.files[0]}: {str(e).splitlines()[0]}", "give texts with words in them")
    dim = min(args.dim, *tfidf.shape)
    if dim < args.dim:
        print(f"{args.files[0]}: only {dim} features, not {args.dim}, from so few texts or words", file=sys.stderr)
    svd = TruncatedSVD(dim, random_state=0).fit(tfidf)
    args.out.mkdir(parents=True, exist_ok=True)
    for path, text, label in zip(args.files, texts, labels, strict=True):
        known = {name: i for i, name in enumerate(names)}
        if unknown := set(label) - set(names):
            fail(f"{path} has the class {min(unknown)!r}, which {args.files[0]} lacks", "drop its rows")
        tensors = {
            "features": svd.transform(vectorizer.transform(text)).astype(np.float32),
            "labels": np.array([known[name] for name in label], np.int64),
        }
        target = args.out / f"{path.stem}.safetensors"
        safetensors.numpy.save_file(tensors, target, {"class_names": json.dumps(names)})
        print(f"{target}: {tensors['features'].shape[0]} × {dim}, {len(names)} classes")


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  a terminal may lack characters
    main()
