"""Read what the papers report: numbers beside which a study's own are set, and signs of what only a figure shows."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd

TABLE = Path(__file__).with_name("published.json")
COLUMNS = [
    "study",
    "what",
    "metric",
    "domain",
    "data",
    "test",
    "noise",
    "at",
    "value",
    "sign",
    "source",
    "place",
    "sure",
]


class Published(NamedTuple):
    """A line of numbers, or a sign.

    study: a key of RECIPES. data: the dataset that they are for, as `data.name` calls it; "": several. y: what they
    measure, as View.y. x: conditions, noise rates or words. values: in %; () of a sign. source: the paper. place: its
    table or figure. sure: whether values, or the sign, are confirmed; the number of a table may still not be.
    noise: its kind. domain: "id" or "ood". test: what is classified, if not `data`. sign: of a difference, as
    Claim.sign. encoders: names of the published folders that the line is about, in any spelling of case, - and _.
    classes: their number, as a folder's name does not tell which data it has. size: the records of `data`.
    """

    study: str
    data: str
    y: str
    what: str
    x: Sequence[float | str]
    values: Sequence[float]
    source: str
    place: str
    sure: bool
    noise: str = "symmetric"
    domain: str = "id"
    test: str = ""
    sign: int | None = None
    encoders: Sequence[str] = ()
    classes: int | None = None
    size: int | None = None


def read_published(study: str) -> list[Published]:
    """Read the lines of a study."""
    lines = [Published(**line) for line in json.loads(TABLE.read_text("utf-8"))]
    return [line for line in lines if line.study == study]


def tabulate(lines: Sequence[Published]) -> pd.DataFrame:
    """Return a row for every value and every sign: COLUMNS, where `at` is a noise rate, a method or words."""
    return pd.DataFrame(list(_list_rows(lines)), columns=COLUMNS).astype({"sign": "Int64"})


def _list_rows(lines: Sequence[Published]) -> Iterator[list[object]]:
    for line in lines:
        of = [line.study, line.what, line.y, line.domain, line.data, line.test, line.noise]
        end = [line.source, line.place, "sure" if line.sure else "unconfirmed"]
        for i, x in enumerate(line.x):
            yield [*of, x, line.values[i] if line.values else None, line.sign, *end]


def find_agreeing(
    lines: Sequence[Published],
    data: str,
    y: str,
    kind: str,
    test: str = "",
    classes: int | None = None,
    size: int | None = None,
) -> list[Published]:
    """Return the lines that measure the same on the same data as a panel, and over rates of its kind of noise.

    Args:
        classes: their number, 0 if nobody knows; None where the names are enough.
        size: the records that the config promises; None if it does not.
    """
    same = [line for line in lines if (line.data, line.y, line.noise, line.test) == (data, y, kind, test)]
    same = [line for line in same if None in (line.classes, classes) or line.classes == classes]
    same = [line for line in same if None in (line.size, size) or line.size == size]
    return [line for line in same if line.values and all(isinstance(v, int | float) for v in line.x)]


def find_encoders(lines: Sequence[Published], domain: str, names: Sequence[str]) -> list[Published]:
    """Return a line for each method, over those of the named encoders whose means of a domain are published.

    They are means over the papers' tests, whatever the study's are.
    """
    by_method: dict[str, dict[str, float]] = {}
    for line in lines:
        known = {_spell(name) for name in line.encoders}
        for name in (name for name in names if line.domain == domain and _spell(name) in known):
            for method, value in zip(line.x, line.values, strict=True):
                by_method.setdefault(str(method), {})[name] = value
    like = next((line for line in lines if line.encoders), None)
    return [like._replace(what=f"{method}, on the papers' tests", domain=domain, x=list(of), values=list(of.values()))
            for method, of in by_method.items() if like]  # fmt: skip


def _spell(name: str) -> str:
    return name.lower().replace("-", "_")
