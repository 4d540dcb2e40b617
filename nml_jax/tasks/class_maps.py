"""Which training classes a class of another test set stands for: facts of the sets, in class_maps.json."""

import functools
import json
from pathlib import Path
from typing import Any

ClassMap = tuple[tuple[int, ...], ...]


def load(name: str) -> dict[str, tuple[int, ...]]:
    """Test class -> the ImageNet-1K classes it stands for, in the order of the test set's labels.

    Args:
        name: imagenet_a, imagenet_r, objectnet or imagenet_vid_robust. The classes of the first two are ImageNet's own,
            and named by their ids.
    """
    stored = _file()[name]
    if isinstance(stored, list):
        return {str(i): (i,) for i in stored}
    return {test: tuple(_ids(classes)) for test, classes in stored.items()}


def find_ids(name: str) -> ClassMap:
    """The same without the names: of every test class the training classes."""
    return tuple(load(name).values())


@functools.cache
def _file() -> dict[str, Any]:
    return json.loads(Path(__file__).with_suffix(".json").read_text("utf-8"))


def _ids(classes: list[Any]) -> list[int]:
    """Single ids, and ranges written as [first, last]."""
    return [i for c in classes for i in (range(c[0], c[1] + 1) if isinstance(c, list) else (c,))]
