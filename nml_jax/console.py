"""Print lines for the person at the terminal."""

import math
import sys
from collections.abc import Iterable


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
    print(message, file=sys.stderr, flush=True)
