"""Put noisy supervision over sources, and read labels from a file."""

import csv
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from nml_jax.data.class_names import clean_name
from nml_jax.data.sources.captions import Swapped
from nml_jax.data.sources.source import Overlay, Source, _check_labels, digest
from nml_jax.errors import UserError
from nml_jax.noise import CaptionSwap


class NoisyLabels(Overlay):
    """A source with the labels `noisy`, int [N]. The original labels stay in `labels_clean`.

    Raises:
        UserError: the number of labels is not that of records, or a label is outside the classes.
    """

    def __init__(self, source: Source, noisy: np.ndarray):
        if np.shape(noisy) != source.labels.shape:
            raise UserError(
                f"noisy labels of shape {np.shape(noisy)} for {len(source)} records",
                "give one label per record of the training split, after class selection and without validation",
            )
        super().__init__(
            noisy,
            labels_clean=source.labels_clean,
            num_classes=source.num_classes,
            class_names=source.class_names,
            fingerprint=digest("noisy", source.fingerprint, np.asarray(noisy, np.int32)),
            parts=source.parts,
        )
        self.source = source


class SwappedCaptions(Overlay):
    """A source whose records have the captions of their partners. Their own captions stay in `captions_clean`.

    Raises:
        UserError: the swap is for another number of records.
    """

    def __init__(self, source: Source, swap: CaptionSwap):
        if swap.n != len(source):
            raise UserError(f"a caption swap of {swap.n} records for {len(source)}", "draw it for this split")
        super().__init__(
            captions=Swapped(source.captions, swap),
            captions_clean=source.captions_clean,
            fingerprint=digest("swapped", source.fingerprint, swap.n, swap.rate, swap.seed),
            parts=source.parts,
        )
        self.source = source


def align_by_key(path: Path, source: Source) -> np.ndarray:
    """Read labels from a .csv with lines of key,label in any order; int32 [N] in the order of `source`.

    A label is a class id in the source's numbering. Lines of other records are ignored. A key may be written in another
    form of Unicode than the dataset's.

    Raises:
        UserError: the source has no keys; a record has no line or two; a label is not a class id.
    """
    if source.keys is None:
        raise UserError(f"{path} gives labels by key, but the dataset has no keys", "give a .npy in record order")
    try:
        with path.open(encoding="utf-8-sig", newline="") as f:
            rows = [row for row in csv.reader(f) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as e:
        raise UserError(f"{path} is not a readable .csv: {e}", "give a UTF-8 file with lines of key,label") from e
    if rows and rows[0] == ["key", "label"]:
        rows = rows[1:]
    if wrong := [row for row in rows if len(row) != 2 or not re.fullmatch(r"\s*\d{1,9}\s*", row[1])]:
        raise UserError(
            f"{path} has a line {','.join(wrong[0])!r}", "write every line as key,label, where label is a class id"
        )
    labels = {key: int(label) for key, label in rows}
    if len(labels) < len(rows):
        raise UserError(f"{path} has {len(rows) - len(labels)} keys twice", "keep one line per record")
    found = _match_keys(path, source.keys, labels)
    if missing := [key for key, other in zip(source.keys, found, strict=True) if other is None]:
        raise UserError(
            f"{path} has no label for {len(missing)} of {len(source)} records, such as {missing[0]!r}",
            f"use the keys of the dataset, which look like {source.keys[0]!r}",
        )
    return _check_labels(np.array([labels[key] for key in found if key is not None], np.int64), source.num_classes)


def _match_keys(path: Path, keys: Sequence[str], labels: Mapping[str, int]) -> list[str | None]:
    """Return how `labels` spells each of `keys`: as it is, else in another form of Unicode; None if it does not.

    Raises:
        UserError: two spellings of one key have different labels.
    """
    if all(key in labels for key in keys) and all(key.isascii() for key in labels):
        return list(keys)
    spellings: dict[str, list[str]] = {}
    for key in labels:
        spellings.setdefault(clean_name(key), []).append(key)
    own = set(keys)

    def match(key: str) -> str | None:
        others = [other for other in spellings.get(clean_name(key), ()) if other == key or other not in own]
        if len({labels[other] for other in others}) > 1:
            raise UserError(
                f"{path} has two labels for {key!r}, spelled {' and '.join(map(ascii, others))}",
                "keep one line per record",
            )
        return others[0] if others else None

    return [match(key) for key in keys]
