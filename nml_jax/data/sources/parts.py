"""Draw parts of splits that are stored class by class, such as "photo[:70%]" of an image folder.

TFDS cuts a split where it is stored. In one that is stored class by class such a part would lack whole classes, so a
part in percent is then this share of every class. Parts that complete each other have no record in common.
"""

import re
from collections.abc import Mapping

import numpy as np

from nml_jax.console import notice_once

PART = re.compile(r"(?P<name>[^\[\]]+)\[(?:(?P<start>-?\d+)%)?:(?:(?P<stop>-?\d+)%)?\]")


def draw_parts(split: str, labels: Mapping[str, np.ndarray]) -> tuple[str, np.ndarray] | None:
    """Return the whole splits that a sum of parts is of, and which of their records it has.

    Args:
        split: as TFDS writes it, and known to be right: "photo", "photo[:70%]" or "photo[:70%]+art".
        labels: of every split in it that is stored, int [N].

    Returns:
        The sum of the whole splits, and int64 positions in it, ascending; None if TFDS can cut the parts.
    """
    names, rows, start, by_class = [], [], 0, False
    for term in map(str.strip, split.split("+")):
        part = PART.fullmatch(term)
        name = part["name"] if part else term
        if name not in labels:  # a part in records, or TFDS's "all"
            return None
        own = np.arange(len(labels[name]))
        if part and _is_class_by_class(labels[name]):
            own, by_class = _draw(labels[name], part["start"], part["stop"]), True
        elif part:
            return None
        names.append(name)
        rows.append(start + own)
        start += len(labels[name])
    found = np.concatenate(rows)
    if not by_class or len(found) == start:
        return None
    notice_once(f"{split}: this share of every class, because records are stored class by class")
    return "+".join(names), found


def _is_class_by_class(labels: np.ndarray) -> bool:
    """Return whether records of each class lie together."""
    return len(labels) > 1 and np.count_nonzero(np.diff(labels)) == len(np.unique(labels)) - 1 > 0


def _draw(labels: np.ndarray, start: str | None, stop: str | None) -> np.ndarray:
    """Return the records of a part, int64, ascending. Bounds are percent, from the end if negative.

    The part is cut from an order in which the classes take turns, each as often as it is frequent: by a record's place
    among those of its class, from 0 to 1. A negative bound is that from the front, so that parts complete each other.
    """
    place = np.empty(len(labels))
    for label in np.unique(labels):
        own = np.flatnonzero(labels == label)
        place[own] = (np.arange(len(own)) + 0.5) / len(own)
    first, last = _find_bound(start or "0", len(labels)), _find_bound(stop or "100", len(labels))
    return np.sort(np.argsort(place, kind="stable")[first:last])


def _find_bound(percent: str, n: int) -> int:
    """Return a bound among n records."""
    value = int(percent)
    return round(min(max(value + 100 * (value < 0), 0), 100) * n / 100)
