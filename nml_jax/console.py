"""Print lines for the person at the terminal."""

import math
import sys


def format_seconds(seconds: float) -> str:
    """Format seconds as h:mm:ss or m:ss."""
    if not math.isfinite(seconds):
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def notice(message: str) -> None:
    """Print a line to stderr; stdout is for results."""
    print(message, file=sys.stderr, flush=True)
