"""One config -> the runs of its sweep -> the stages of each run, in order -> one report.

    python -m nml_jax.main --config=configs/digits.py --config.noise=0.05

Without --config it runs configs/digits.py. Everything it calls can be imported from a notebook or a test.
"""

import contextlib
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_flags

from nml_jax.errors import NonFinite, PeerLost, Preempted, UserError

ROOT = Path(__file__).resolve().parent.parent

CONFIG = config_flags.DEFINE_config_file(
    "config", str(ROOT / "configs" / "digits.py"), "What to run; --config.key=value overrides a key."
)
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the experiment. Default: runs/<config.name>.")
DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print what would be run, its size and its cost, and train nothing.")
FORCE = flags.DEFINE_multi_string("force", [], "Do this stage again, although it is done.")


def main(argv: Sequence[str]) -> None:
    """The command line, parsed."""
    if len(argv) > 1:
        raise UserError(f"{argv[1]!r} is no flag", "write --config=FILE and --config.key=value")

    # ---- what to run -------------------------------------------------------------------------------------------
    from nml_jax import settings, stages
    from nml_jax.stages import experiment

    config = CONFIG.value
    pinned = config_flags.get_override_values(flags.FLAGS["config"])
    cells = settings.cells(config, pinned)
    workdir = Path(WORKDIR.value or Path("runs") / config.name)
    stages.check(config.stages, "stages")
    stages.check(FORCE.value, "--force")

    # ---- where -------------------------------------------------------------------------------------------------
    import jax

    from nml_jax import log, runtime

    runtime.start(config.runtime.timeout)
    mesh = runtime.make_mesh(config.runtime.data_axis, config.runtime.fsdp_axis)
    if DRY_RUN.value:
        from nml_jax.stages import plan

        print(plan.describe(config, cells, workdir, mesh))
        return
    first = jax.process_index() == 0
    revision = code_revision()
    experiment.claim(workdir, config, force=FORCE.value, write=first)

    # ---- the runs, one after another ---------------------------------------------------------------------------
    for name, cell in cells.items():
        folder = experiment.open_run(workdir, name, cell, write=first)
        for stage in config.stages:
            if stage in stages.STAGES:
                stages.run(stage, cell, folder, mesh, revision=revision, force=stage in FORCE.value)

    # ---- the report over all runs of the experiment, these and earlier ones ------------------------------------
    if "report" in config.stages and first:
        from nml_jax.stages import report

        page = report.run(config, workdir, mesh)
        print(report.summary(page.parent))
        log.say(f"report: {page.resolve()}")


def code_revision() -> str:
    """The commit of the checkout, with "+" if it has changes; "" outside one."""
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty=+", "--exclude=*"]
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    return ""


def parse(argv: list[str]) -> list[str]:
    """Parse the flags; what the user mistyped is told in one line.

    Raises:
        UserError: an unknown flag, config file or key, or a value of the wrong type.
    """
    try:
        return flags.FLAGS(argv)
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as e:
        cause = " ".join(str(e.args[0] if e.args else e).split())
        raise UserError(cause, "see --help, and configs/common.py for every key and its type") from e
    except (OSError, SyntaxError) as e:
        raise UserError(f"cannot read the config: {e}", "give --config=FILE, as in --config=configs/digits.py") from e


def run(argv: list[str] | None = None) -> int:
    """The whole program: its exit code is 0, or that of what went wrong (`errors`)."""
    argv = sys.argv if argv is None else argv
    if {"--help", "-h"} & set(argv):
        print(f"{__doc__}\n{flags.FLAGS.module_help(sys.modules[__name__])}")
        return 0
    sys.path.insert(0, str(ROOT))  # for `from configs import common`
    try:
        main(parse(argv))
    except UserError as e:
        return fail(e, f"error: {e}")
    except (Preempted, NonFinite, PeerLost) as e:
        return fail(e, f"stopped: {e}")
    return 0


def fail(error: Any, message: str) -> int:
    print(message, file=sys.stderr, flush=True)
    return error.exit_code


if __name__ == "__main__":
    sys.exit(run())
