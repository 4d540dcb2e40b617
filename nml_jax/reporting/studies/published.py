"""Read what the papers report: numbers beside which a study's own are set."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

TABLE = Path(__file__).with_name("published.json")


class Published(NamedTuple):
    """A line of numbers.

    study: a key of RECIPES. data: the dataset that they are for, as `data.name` calls it; "": several. y: what they
    measure, as View.y. x: conditions, noise rates or words. values: in %. sure: read in a table, not in a summary.
    """

    study: str
    data: str
    y: str
    what: str
    x: Sequence[float | str]
    values: Sequence[float]
    source: str
    sure: bool
    noise: str = "symmetric"  # its kind


def read_published(study: str) -> list[Published]:
    """Read the lines of a study."""
    lines = [Published(**line) for line in json.loads(TABLE.read_text("utf-8"))]
    return [line for line in lines if line.study == study]


def find_agreeing(lines: Sequence[Published], data: str, y: str, kind: str) -> list[Published]:
    """Return the lines that measure the same on the same data as a panel, and over rates of its kind of noise."""
    same = [line for line in lines if line.data == data and line.y == y and kind == line.noise]
    return [line for line in same if all(isinstance(v, int | float) for v in line.x)]
