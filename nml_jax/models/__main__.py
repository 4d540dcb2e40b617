"""List the models, or describe one.

python -m nml_jax.models [NAME]
"""

import argparse
import sys

from nml_jax import console
from nml_jax.errors import UserError
from nml_jax.models import listing


def main(argv: list[str] | None = None) -> int:
    """Run the command line. Return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m nml_jax.models", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("name", metavar="NAME", nargs="?", help="a model; without it, all are listed")
    console.allow_any_terminal()
    args = parser.parse_args(argv)
    try:
        console.show(listing.describe_model(args.name) if args.name else listing.list_models())
    except UserError as e:
        console.notice(str(e))
        return e.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
