"""Turn the rows of many runs into tables, figures and one offline HTML file.

    python -m nml_jax.report runs/digits [runs/other ...] [--out DIR]

This builds `report.html` and `summary.csv` from the finished runs of one or more experiments, or from a single run.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from nml_jax import console
from nml_jax.errors import UserError


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0, or 2 for bad input."""
    parser = argparse.ArgumentParser(
        "python -m nml_jax.report", description="Build report.html and summary.csv from finished runs."
    )
    parser.add_argument("folders", nargs="+", type=Path, metavar="DIR", help="folder of an experiment, or of a run")
    parser.add_argument("--out", type=Path, help="where to write; default: DIR, or here if several are given")
    console.allow_any_terminal()
    flags = parser.parse_args(argv)
    from nml_jax.stages.report import build  # imported after --help, because it takes a second

    try:
        page = build(flags.folders, flags.out or (flags.folders[0] if len(flags.folders) == 1 else Path()))
    except UserError as e:
        console.notice(f"error: {e}")
        return e.exit_code
    console.show(str(page))
    return 0


if __name__ == "__main__":
    sys.exit(main())
