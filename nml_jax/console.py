"""Print lines for the person at the terminal. What a terminal cannot show is written in other characters."""

import codecs
import contextlib
import functools
import math
import os
import re
import sys
import unicodedata
from collections.abc import Iterable
from typing import Any

# Characters of our messages, and how a terminal without them shows them.
PLAIN = {
    "−": "-", "–": "-", "—": "-", "‑": "-", "±": "+/-", "×": "x", "·": "*", "→": "->", "…": "...", "√": "sqrt",
    "≤": "<=", "≥": ">=", "≠": "!=", "∞": "inf", "λ": "lambda", "α": "alpha", "σ": "sigma", "µ": "mu", "°": " deg",
    "\N{NO-BREAK SPACE}": " ", "\N{NARROW NO-BREAK SPACE}": " ", "“": '"', "”": '"', "‘": "'", "’": "'",
    **{mark: f"^{power}" for power, mark in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹")},
}  # fmt: skip
HANDLER = "nml_jax.plain"  # the name of our error handler among Python's codecs

# Characters that move a cursor, change a colour or the order of what is read: control characters but the tab and the
# line feed, marks of direction, separators of lines, halves of surrogate pairs (bytes of file names that are not text).
UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def format_seconds(seconds: float) -> str:
    """Format seconds as h:mm:ss or m:ss."""
    if not math.isfinite(seconds):
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def list_words(words: Iterable[str]) -> str:
    """Return words as a sentence lists them: "a, b and c"."""
    *first, last = [*words] or [""]
    return f"{', '.join(first)} and {last}" if first else last


def shorten(names: Iterable[str]) -> str:
    """Return names separated by commas, twelve at most, and how many more there are; "nothing" if there are none."""
    shown = list(names)
    return ", ".join(shown[:12]) + f" and {len(shown) - 12} more" * (len(shown) > 12) or "nothing"


_live = False  # whether the last line of the terminal is one that changes


def show_live(line: str) -> None:
    """Print a line to a terminal in place of the last one that this function printed; "" only clears that.

    It is cut to the width of the terminal: what has gone to a second line could not be cleared.
    """
    global _live
    if line or _live:
        with contextlib.suppress(OSError, ValueError):
            shown = cut_line(make_printable(line), _find_width())
            print(f"\r\x1b[K{shown}", end="", file=sys.stderr, flush=True)
        _live = bool(line)


def cut_line(line: str, width: int) -> str:
    """Return a line that is shorter than `width` columns; where it is cut, what follows the last "; " stays."""
    if _count_columns(line) < width:
        return line
    start, _, end = line.rpartition("; ")
    end = f"...; {end}" if start and len(end) < width // 2 else "..."
    while line and _count_columns(line + end) >= width:
        line = line[:-1]
    return line + end


def _count_columns(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)


def _find_width() -> int:
    """Return the columns of the terminal at stderr, 80 where they are not known."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        return os.get_terminal_size(sys.stderr.fileno()).columns or 80
    return 80


def notice(message: str) -> None:
    """Print a line to stderr; stdout is for results. If stderr cannot be written, do nothing."""
    show_live("")
    with contextlib.suppress(OSError, ValueError):  # a closed terminal must not end what runs
        print(make_printable(message), file=sys.stderr, flush=True)


@functools.cache
def notice_once(message: str) -> None:
    """Print a line to stderr, the first time that it is given."""
    notice(message)


def show(text: str) -> None:
    """Print a result to stdout. If its reader is gone, as in `| head`, print nothing more."""
    show_live("")
    try:
        print(make_printable(text), flush=True)
    except (OSError, ValueError):
        _close_stdout()


def show_line(text: str) -> None:
    """Print a result to stdout in one line: the name of a file cannot begin another. A line feed is written as \\n."""
    show(text.replace("\n", "\\n"))


def make_printable(text: str) -> str:
    """Return a text as a terminal may get it: names of classes and files cannot send it commands.

    A character of UNPRINTABLE is written as Python does, such as \\x1b.
    """
    return UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


def allow_any_terminal() -> None:
    """Make stdout and stderr write every text, whatever their encoding. Every command calls this first.

    A character that the encoding lacks is written as PLAIN says, or else as \\u and its number, so that two names never
    look the same.
    """
    streams: tuple[Any, Any] = sys.stdout, sys.stderr
    for stream in streams:
        if hasattr(stream, "reconfigure"):  # a notebook's streams take every text already
            stream.reconfigure(errors=HANDLER)


def _replace(error: UnicodeError) -> tuple[str, int]:
    """Handle characters that an encoding lacks; see `allow_any_terminal`."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    wrong = error.object[error.start : error.end]
    return "".join(PLAIN.get(character, _escape(character)) for character in wrong), error.end


def _escape(character: str) -> str:
    return character.encode("ascii", "backslashreplace").decode("ascii")


def _close_stdout() -> None:
    """Let further output vanish: at exit Python would flush the rest of the buffer, and fail again."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        stdout: Any = sys.stdout
        os.dup2(os.open(os.devnull, os.O_WRONLY), stdout.fileno())


codecs.register_error(HANDLER, _replace)
