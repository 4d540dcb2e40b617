"""The command line that the Python launchers share: their own options, `--`, then the flags of nml_jax.main."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # a launcher needs the checkout, not an installation

from nml_jax.errors import UserError  # noqa: E402


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that raises UserError in place of printing its usage."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{self.prog}: {message}", f"see python launch/{self.prog} --help; flags of main come after --")


def parser(module_doc: str | None, prog: str) -> Parser:
    """A parser that knows --dry_run and shows the module's docstring."""
    form = argparse.RawDescriptionHelpFormatter
    out = Parser(prog=prog, description=module_doc, formatter_class=form, allow_abbrev=False)
    out.add_argument("--dry_run", action="store_true", help="print the exact commands and run nothing")
    return out


def split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """(a launcher's own options, flags of nml_jax.main): what stands before and after the first `--`."""
    argv = list(argv)
    at = argv.index("--") if "--" in argv else len(argv)
    return argv[:at], argv[at + 1 :]


def run(main: Callable[[list[str]], int]) -> NoReturn:
    """Run a launcher; bad input is told in two lines and ends with exit code 2."""
    try:
        sys.exit(main(sys.argv[1:]))
    except UserError as e:
        print(f"error: {e}", file=sys.stderr)
        sys.exit(e.exit_code)
