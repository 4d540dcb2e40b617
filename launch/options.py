"""The command line of the Python launchers: their own options, `--`, then the flags of nml_jax.main."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # a launcher needs the checkout, not an installation

from nml_jax import console  # noqa: E402
from nml_jax.errors import UserError  # noqa: E402


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that raises UserError instead of printing its usage."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{self.prog}: {message}", f"see python launch/{self.prog} --help; flags of main come after --")


def make_parser(module_doc: str | None, prog: str) -> Parser:
    """Make a parser with --dry_run that shows the module's docstring as its help."""
    form = argparse.RawDescriptionHelpFormatter
    out = Parser(prog=prog, description=module_doc, formatter_class=form, allow_abbrev=False)
    out.add_argument("--dry_run", action="store_true", help="print the exact commands and run nothing")
    return out


def split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split arguments at the first `--` into the launcher's own options and the flags of nml_jax.main."""
    argv = list(argv)
    at = argv.index("--") if "--" in argv else len(argv)
    return argv[:at], argv[at + 1 :]


def check_config(flags: Sequence[str]) -> None:
    """Raise UserError if the config file that flags of nml_jax.main name is neither here nor in the checkout."""
    words = [flag.removeprefix("--config=") for flag in flags if flag.startswith("--config=")]
    words += [flags[i + 1] for i, flag in enumerate(flags[:-1]) if flag == "--config"]
    for path in (Path(word.split(":")[0]) for word in words):
        if not path.is_file() and not (ROOT / path).is_file():
            raise UserError(
                f"there is no config file {str(path)!r}", "give --config=FILE, as in --config=configs/digits.py"
            )


def run(main: Callable[[list[str]], int]) -> NoReturn:
    """Run a launcher. Print a UserError in two lines and exit with 2."""
    console.allow_any_terminal()
    try:
        sys.exit(main(sys.argv[1:]))
    except UserError as e:
        print(f"error: {e}", file=sys.stderr)
        sys.exit(e.exit_code)
