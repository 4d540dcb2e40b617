"""Print lines for the person at the terminal. What a terminal cannot show is written in other characters."""

import codecs
import contextlib
import math
import os
import sys
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


def notice(message: str) -> None:
    """Print a line to stderr; stdout is for results. If stderr cannot be written, do nothing."""
    with contextlib.suppress(OSError, ValueError):  # a closed terminal must not end what runs
        print(message, file=sys.stderr, flush=True)


def show(text: str) -> None:
    """Print a result to stdout. If its reader is gone, as in `| head`, print nothing more."""
    try:
        print(text, flush=True)
    except (OSError, ValueError):
        _close_stdout()


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
