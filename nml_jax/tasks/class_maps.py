"""Maps from the classes of test sets to ImageNet-1K classes, from class_maps.json."""

import functools
import json
from pathlib import Path
from typing import Any

ClassMap = tuple[tuple[int, ...], ...]


def load(name: str) -> dict[str, tuple[int, ...]]:
    """Load a class map: test class -> the ImageNet-1K classes it stands for, in the order of the test set's labels.

    Args:
        name: imagenet_a, imagenet_r, objectnet or imagenet_vid_robust. The first two use ImageNet's own classes; their
            ids serve as names.
    """
    stored = _read_file()[name]
    if isinstance(stored, list):
        return {str(i): (i,) for i in stored}
    return {test: tuple(_expand_ranges(classes)) for test, classes in stored.items()}


def load_ids(name: str) -> ClassMap:
    """Load a class map without names: for each test class, the ids of its training classes."""
    return tuple(load(name).values())


@functools.cache
def _read_file() -> dict[str, Any]:
    return json.loads(Path(__file__).with_suffix(".json").read_text("utf-8"))


def _expand_ranges(classes: list[Any]) -> list[int]:
    """Expand a list of single ids and of ranges, written as [first, last]."""
    return [i for c in classes for i in (range(c[0], c[1] + 1) if isinstance(c, list) else (c,))]
