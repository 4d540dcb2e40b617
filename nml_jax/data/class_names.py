"""Decide which spellings are one name. Every reader of classes, splits, groups and keys asks this module.

- `clean_name(text)`: one name, as it is stored and compared; `compose(text)`: one that keeps its blanks, as a file's.
- `read_name(name)`: the name of a folder, which becomes a class or split; `escape_name(name)`: one that can be written.
- `merge_spellings(names)`: all names of a column or folder -> the class of each. Use it where classes are found.
- `clean_labels(labels, where)`: the same for an array of labels. It also warns of names that look alike.
- `warn_alike(names, where)`: print which classes look alike and stay apart.
- `NameIndex(names)`: find names that were read elsewhere, perhaps in another spelling.
- `simplify_group(text)`: a group, whose values need not all be numbers for 2 and 02 to be one.
- `count_labels(labels, names)`, `describe_counts(counts)`, `describe_split(where, counts)`: classes and counts;
  `describe_scores(where, scores)`: the same of scores.
- `is_empty(text)`: whether a text shows nothing.

Names that are equal under Unicode NFC, without blanks and invisible characters at both ends, are one. So are numbers of
equal value, such as 2, 2.0 and 02, if all names are numbers. Names that differ in case or in inner white space stay
apart.
"""

import os
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from nml_jax import console

SHOWN = 20  # classes, or pairs of classes that look alike, in one message

# Characters that nobody sees: soft hyphen, zero-width ones, marks of direction, byte-order mark. A tag or a variation
# selector at the end is a part of an emoji.
INVISIBLE = "\u00ad\u034f\u061c\u180e\ufeff" + "".join(
    chr(c) for first, last in ((0x200B, 0x200F), (0x202A, 0x202E), (0x2060, 0x2064), (0x2066, 0x206F))
    for c in range(first, last + 1)
)  # fmt: skip
CONTROLS = "".join(map(chr, (*range(0x20), *range(0x7F, 0xA0))))
EDGES = INVISIBLE + CONTROLS + "".join(filter(str.isspace, map(chr, range(0x3001))))
BLANKS = re.compile(f"[{re.escape(EDGES)}]+")
EMPTY = {"Cc", "Cf", "Zs", "Zl", "Zp"}  # Unicode's categories of control, format and separating characters
FILLERS = "\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0" + "".join(
    chr(c) for first, last in ((0x180B, 0x180F), (0xFE00, 0xFE0F), (0xFFF0, 0xFFF8), (0xE0000, 0xE0FFF))
    for c in range(first, last + 1)
)  # fmt: skip  # letters, marks and codes without ink (Unicode's Default_Ignorable_Code_Point, and blank Braille)
NUMBER = re.compile(r"([+-]?)(\d+\.?\d*|\.\d+)", re.ASCII)


def compose(name: str) -> str:
    """Return a name in Unicode NFC: "e" with an accent of its own becomes "é"."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def read_name(name: str) -> str:
    """Return the name of a folder in Unicode NFC, whatever the locale that Python read it in.

    File names are bytes, and UTF-8 almost everywhere, while Python decodes them by the locale.
    """
    return compose(os.fsencode(name).decode("utf-8", "surrogateescape"))


def escape_name(name: str) -> str:
    """Return a name as UTF-8 can write it: a byte that is not UTF-8 becomes "\\xff"."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def clean_name(name: str) -> str:
    """Return a name in Unicode NFC, without blanks and invisible characters at both ends."""
    return compose(name).strip(EDGES)


def is_empty(text: str) -> bool:
    """Return whether a text holds nothing but blanks, control and invisible characters."""
    return all(unicodedata.category(c) in EMPTY or c in FILLERS for c in text)


def simplify_number(name: str) -> str | None:
    """Return a number without the zeros and signs that do not change it, as "2" for "02.0"; None for other names."""
    if not (parts := NUMBER.fullmatch(name)):
        return None
    whole, _, fraction = parts[2].partition(".")
    number = ".".join(filter(None, (whole.lstrip("0") or "0", fraction.rstrip("0"))))
    return f"-{number}" if parts[1] == "-" and number != "0" else number


def simplify_group(name: str) -> str:
    """Return a clean name, and a number as `simplify_number` does. So records of equal numbers stay together."""
    name = clean_name(name)
    return simplify_number(name) or name


def merge_spellings(names: Iterable[str]) -> dict[str, str]:
    """Map every spelling to the name of its class.

    Numbers of equal value are one class if all names are numbers. They keep their spelling, such as 007, unless there
    are two spellings of one number, or some have a decimal point and others none.
    """
    clean = {name: clean_name(name) for name in names}
    numbers = {name: simplify_number(name) for name in set(clean.values())}
    if None in numbers.values():
        return clean
    two = len(set(numbers.values())) < len(numbers) or len({"." in name for name in numbers}) > 1
    return {name: numbers[c] or c for name, c in clean.items()} if two else clean


def find_alike(names: Iterable[str]) -> list[tuple[str, str]]:
    """Return pairs of different names that are one but for case, blanks and invisible characters, or one number."""
    first: dict[str, str] = {}
    pairs = []
    for name in sorted(set(names)):
        folded = unicodedata.normalize("NFKC", BLANKS.sub("", name).casefold())
        other = first.setdefault(simplify_number(folded) or folded, name)
        if other != name:
            pairs.append((other, name))
    return pairs


def warn_alike(names: Iterable[str], where: object) -> list[tuple[str, str]]:
    """Print which names of `where` look alike and stay apart. Return the pairs."""
    pairs = find_alike(names)
    if pairs:
        shown = ", ".join(f"{a!r} and {b!r}" for a, b in pairs[:SHOWN])
        more = f" and {len(pairs) - SHOWN} more pairs" if len(pairs) > SHOWN else ""
        console.notice(f"{where}: names that look alike stay apart: {shown}{more}; if they are one, write them alike")
    return pairs


def clean_labels(labels: Any, where: object) -> Any:
    """Return labels [N] with merged spellings; text as text, other dtypes unchanged. Warn of names that look alike.

    Args:
        labels: NumPy array of any dtype.
        where: what the message calls them, such as a path.
    """
    import numpy as np

    if labels.dtype.kind != "U" or not labels.size:
        return labels
    found, rows = np.unique(labels, return_inverse=True)
    merged = merge_spellings(found.tolist())
    warn_alike(merged.values(), where)
    return np.array([merged[name] for name in found.tolist()], str)[rows]


class NameIndex:
    """The positions of `names`, which are found in any spelling of theirs: exact first, then clean, then as numbers.

    Numbers are compared by value only if all names are numbers. A spelling that fits two names finds neither.
    """

    def __init__(self, names: Iterable[Any]):
        exact = [str(name) for name in names]
        clean = [clean_name(name) for name in exact]
        numbers = [simplify_number(name) or "" for name in clean]
        self._exact = dict(zip(exact, range(len(exact)), strict=True))
        self._clean = _number_single(clean)
        self._values = _number_single(numbers) if all(numbers) else {}

    def find(self, name: Any) -> int | None:
        """Return the position of a name, or None."""
        name = str(name)
        if (place := self._exact.get(name)) is not None:
            return place
        name = clean_name(name)
        place = self._clean.get(name)
        return self._values.get(simplify_number(name) or "") if place is None else place


def _number_single(names: Sequence[str]) -> dict[str, int]:
    """Map the names that occur once to their positions."""
    places: dict[str, int] = {}
    twice = set()
    for i, name in enumerate(names):
        if places.setdefault(name, i) != i:
            twice.add(name)
    return {name: i for name, i in places.items() if name not in twice}


def list_names(names: Sequence[str]) -> str:
    """Return names as a message shows them, in quotes, twenty at most."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(map(repr, names[:SHOWN])) + more


def count_labels(labels: Any, names: Iterable[Any]) -> dict[str, int]:
    """Count the records of every class. `labels` are class numbers, int [N]; `names` name the classes."""
    import numpy as np

    counts: dict[str, int] = {}
    names = list(names)
    for name, n in zip(names, np.bincount(labels, minlength=len(names)).tolist(), strict=True):
        counts[str(name)] = counts.get(str(name), 0) + n
    return counts


def describe_split(where: str, counts: Mapping[str, int]) -> str:
    """Return the classes of a split with their counts in one line, and the classes that it lacks."""
    missing = [name for name, n in counts.items() if not n]
    lacks = f"; no record of {list_names(missing)}" if missing else ""
    return f"{where}: {describe_counts({name: n for name, n in counts.items() if n})}{lacks}"


def describe_scores(where: str, scores: Any) -> str:
    """Return the number of scores of a split with their range, mean and standard deviation, in one line."""
    return (
        f"{where}: {len(scores):,} scores from {scores.min():g} to {scores.max():g}, mean {scores.mean():.4g}, "
        f"standard deviation {scores.std():.4g}"
    )


def describe_counts(counts: Mapping[str, int]) -> str:
    """Return the number of classes and the count of each, in one line; of many classes, the first and the range."""
    shown = [f"{name!r} {n}" for name, n in counts.items()][:SHOWN]
    if len(counts) > SHOWN:
        shown.append(f"and {len(counts) - SHOWN} more ({min(counts.values())} to {max(counts.values())} records each)")
    return f"{len(counts)} classes: {', '.join(shown)}"
