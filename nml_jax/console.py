"""Print lines for the person at the terminal."""

import functools
import math
import re
import sys
from collections.abc import Iterable

# Characters that move a cursor, change a colour or the order of what is read: control characters but the tab and the
# line feed, marks of direction, separators of lines, halves of surrogate pairs (bytes of file names that are no text).
UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def format_seconds(seconds: float) -> str:
    """Format seconds as h:mm:ss or m:ss."""
    if not math.isfinite(seconds):
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def list_words(words: Iterable[str]) -> str:
    """Words as a sentence lists them: "a, b and c"."""
    *first, last = [*words] or [""]
    return f"{', '.join(first)} and {last}" if first else last


def shorten(names: Iterable[str]) -> str:
    """Return names separated by commas, twelve at most, and how many more there are; "nothing" if there are none."""
    shown = list(names)
    return ", ".join(shown[:12]) + f" and {len(shown) - 12} more" * (len(shown) > 12) or "nothing"


def notice(message: str) -> None:
    """Print a line to stderr; stdout is for results."""
    print(make_printable(message), file=sys.stderr, flush=True)


@functools.cache
def notice_once(message: str) -> None:
    """Print a line to stderr, the first time that it is given."""
    notice(message)


def show(text: str) -> None:
    """Print a result to stdout."""
    print(make_printable(text))


def make_printable(text: str) -> str:
    """Return a text as a terminal may get it: names of classes and files cannot send it commands.

    A character of UNPRINTABLE is written as Python does, such as \\x1b.
    """
    return UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)
