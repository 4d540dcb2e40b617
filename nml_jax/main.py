"""Run a config: the runs of its sweep, the stages of each run in order, and one report.

    python -m nml_jax.main --config=configs/digits.py --config.noise=0.05

Without --config it runs configs/digits.py. A notebook or a test can import everything that it calls.
"""

import contextlib
import functools
import os
import re
import signal
import subprocess
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from absl import flags, logging
from ml_collections import ConfigDict, config_flags

from nml_jax import __version__, settings
from nml_jax.console import allow_any_terminal, list_words, notice, show
from nml_jax.errors import NonFinite, PeerLost, Preempted, UserError, as_disk_error
from nml_jax.processes.sigterm import on_sigterm

ROOT = Path(__file__).resolve().parent.parent

DEFAULT = "configs/digits.py"

FULL = "full"


class _DryRun(flags.BooleanParser):
    """A flag without a value, or with true, false or FULL."""

    def parse(self, argument: str | int) -> Any:
        return FULL if argument == FULL else super().parse(argument)


CONFIG = config_flags.DEFINE_config_file(
    "config", help_string="What to run; --config.key=value overrides a key. Default: configs/digits.py."
)
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the experiment. Default: runs/<config.name>.")
DRY_RUN = flags.DEFINE_flag(
    flags.Flag(
        _DryRun(), None, "dry_run", False,
        "Print what would run, its size and cost, and what is missing, without training. full: also the config.",
        boolean=True,
    )
)  # fmt: skip
FORCE = flags.DEFINE_multi_string("force", [], "Run this stage again, even if it is done.")


def main(argv: Sequence[str]) -> None:
    """Launch the experiment that the parsed flags describe."""
    if len(argv) > 1:
        raise UserError(f"{argv[1]!r} is not a flag", "write --config=FILE and --config.key=value")
    config = CONFIG.value
    pinned = config_flags.get_override_values(flags.FLAGS["config"])
    workdir = Path(WORKDIR.value or Path("runs") / config.name)
    launch(config, workdir, pinned=pinned, dry_run=DRY_RUN.value, force=FORCE.value)


def launch(
    config: ConfigDict,
    workdir: Path,
    *,
    pinned: Mapping[str, Any],
    dry_run: bool | str = False,
    force: Sequence[str] = (),
) -> None:
    """Run an experiment.

    Args:
        config: what to run; see configs/common.py.
        workdir: folder of the experiment.
        pinned: dotted keys with one value for their axis of the sweep. They select runs.
        dry_run: only print what would run, what that costs and what is missing; FULL: also the whole config.
        force: stages to run again.

    Raises:
        UserError, Preempted, NonFinite, PeerLost: see `errors`.
    """
    # ---- what to run -----------------------------------------------------------------------------------------------
    from nml_jax.stages import runner

    runner.check(config.stages, "stages")
    runner.check(force, "--force")
    cells = settings.expand_sweep(config, pinned)
    todo = [stage for stage in runner.STAGES if stage in config.stages]  # in the order of STAGES

    # ---- where -----------------------------------------------------------------------------------------------------
    import jax

    from nml_jax import console, runtime
    from nml_jax.assembly import agreement, sections
    from nml_jax.processes import forecast, peers
    from nml_jax.stages import experiment, report

    console.notice_once.cache_clear()  # once for each experiment of a process
    for cell in cells.values():
        sections.check(cell)
    report.check(config)
    peers.start(config.runtime.timeout)
    mesh = runtime.make_mesh(config.runtime.data_axis, config.runtime.fsdp_axis)
    for cell in cells.values():
        for stage in todo:
            runner.find_stage(stage).check(cell, mesh, data=not dry_run)
    peers.require_same(functools.partial(agreement.collect_inputs, config, cells, force), agreement.CURE)
    if dry_run:
        from nml_jax.stages.dry_run import describe_plan

        experiment.claim(workdir, config, force=force, write=False)
        experiment.check_files(workdir, config, cells, force=force)
        plan = describe_plan(config, cells, workdir, mesh, pinned=pinned, full=dry_run == FULL)
        console.show(plan.text)
        if plan.missing:
            raise UserError(
                f"{len(plan.missing)} thing(s) are missing or do not fit: {'; '.join(plan.missing)}",
                "correct what the command names",
            )
        return
    experiment.check_files(workdir, config, cells, force=force)
    experiment.check_encoders(workdir, cells, todo, force=force)
    experiment.check_supervision(workdir, cells, todo, force=force)
    runtime.check_devices(mesh, config.runtime.timeout)
    first = jax.process_index() == 0
    if first:
        console.notice(runtime.describe(mesh))
    experiment.claim(workdir, config, force=force, write=False)
    runtime.keep_compiled(workdir / ".jax_cache")

    # ---- the runs, one after another -------------------------------------------------------------------------------
    parts, steps = {}, {}
    if config.features.train and "tune" in todo and first:
        from nml_jax.assembly.heads import tune_cost

        expected = tune_cost.estimate_parts(config, experiment.list_undone(cells, workdir, "tune", force=force))
        parts = {name: part.seconds for name, part in expected.items()}
        steps = {name: part.epochs for name, part in expected.items() if part.epochs}
        console.notice(f"first estimate: about {console.format_seconds(sum(parts.values()))}, corrected as it runs")
    page = None
    with forecast.begin(parts, steps):
        _run_cells(config, cells, workdir, mesh, todo=todo, force=force)
        if "report" in config.stages and first:  # over all runs of the experiment, these and earlier ones
            with peers.track("report"), forecast.part("report"):
                page = report.run(config, workdir, mesh)
    if page:
        console.show(report.summarise(page.parent))
        console.notice(f"report: {page.resolve()}")


def _run_cells(
    config: ConfigDict,
    cells: Mapping[str, ConfigDict],
    workdir: Path,
    mesh: Any,
    *,
    todo: Sequence[str],
    force: Sequence[str],
) -> None:
    """Run the stages of every run, one run after another."""
    import jax

    from nml_jax.processes import forecast, peers
    from nml_jax.stages import experiment, runner

    first, revision = jax.process_index() == 0, find_revision()
    if not todo and first:
        experiment.adopt_runs(workdir, cells)
    for name, cell in cells.items() if todo else ():
        with experiment.own_run(workdir, name, lost=_leave) if first else contextlib.nullcontext():
            peers.agree(True)  # the others wait until the first process owns the folder
            if name == next(iter(cells)):
                experiment.claim(workdir, config, force=force, write=first)
            folder = experiment.open_run(workdir, name, cell, write=first)
            for stage in todo:
                with peers.track(stage), forecast.part(f"{folder.name}: {stage}"):
                    runner.run(stage, cell, folder, mesh, revision=revision, force=stage in force)


def find_revision() -> str:
    """Return the revision of the code.

    In a checkout this is the commit, with "+" if there are changes. A copy without .git, as in an image, has it in the
    file REVISION. A wheel returns its version, because git would find an unrelated repository around it.
    """
    if settings.INSTALLED.is_dir():
        return __version__
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty=+", "--exclude=*"]
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    with contextlib.suppress(FileNotFoundError):
        return (ROOT / "REVISION").read_text("utf-8").strip()
    return ""


def find_config(file: str) -> str:
    """Find a config file in the working directory or else in the installed copy.

    Args:
        file: a path, optionally followed by ":" and an argument, as in "configs/resnet50_in1k.py:a3".

    Raises:
        UserError: the file is in neither.
    """
    path, *_ = file.split(":")
    if Path(path).is_file():
        return file
    if (settings.find_configs_home() / path).is_file():
        return str(settings.find_configs_home() / file)
    raise UserError(f"there is no config file {path!r}", "give --config=FILE, as in --config=configs/digits.py")


def parse(argv: Sequence[str]) -> list[str]:
    """Parse the flags and return the remaining arguments.

    Raises:
        UserError: an unknown flag, config file or key, or a value of the wrong type.
    """
    cure = "see --help, and configs/common.py for every key and its type"
    program, *rest = argv
    files = []
    # The library expects the file before the overrides, in the form --config=FILE.
    for i, arg in reversed(list(enumerate(rest))):
        if arg == "--config" and i + 1 < len(rest):
            files, rest[i : i + 2] = [rest[i + 1], *files], []
        elif arg.startswith("--config="):
            files = [rest.pop(i).removeprefix("--config="), *files]
    if len(files) > 1:
        raise UserError(f"{len(files)} configs, {list_words(files)}", "give one; --config.key=value overrides its keys")
    file = find_config(files[0] if files else DEFAULT)
    path = file.split(":")[0]
    try:
        rest, cleared = _take_placeholders(rest)
        sys.argv = [program, f"--config={file}", *rest]  # the library reads the order from there
        rest = flags.FLAGS(sys.argv)
        CONFIG.value.to_dict()  # a config that failed to load raises when it is read
        _clear(CONFIG.value, cleared)
    except UserError:
        raise
    except Exception as e:  # a config file is user code, which may raise anything
        message = _make_one_line(e)
        what = "" if isinstance(e, (AttributeError, KeyError, flags.Error)) else f"{type(e).__name__}: "
        what = "no key " if re.match(r"'\w+'($| Did you mean)", message) else what
        raise UserError(f"{path} and its overrides: {what}{message}", cure) from e
    return rest


def _take_placeholders(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Take "--config.KEY=None" out of the arguments for keys that may be None; return the rest and these keys.

    The library would read the word None as a number, a text or a tuple. If a key has several values, the last counts.
    """
    placeholders = {key for key, value in settings.flatten(settings.default_config()) if value is None}
    rest, cleared, waiting = [], {}, list(arguments)
    while waiting:
        argument = waiting.pop(0)
        flag, equals, value = argument.partition("=")
        key = flag.lstrip("-").removeprefix("config.")
        if not flag.startswith("-") or flag.lstrip("-") == key or key not in placeholders:
            rest.append(argument)
        elif value == "None" or (not equals and waiting[:1] == ["None"]):
            waiting = waiting if equals else waiting[1:]
            cleared[key] = True
        else:
            cleared.pop(key, None)
            rest.append(argument)
    return rest, list(cleared)


def _clear(config: ConfigDict, keys: Sequence[str]) -> None:
    """Set placeholders to None, as overrides of the command line."""
    overrides = config_flags.get_override_values(flags.FLAGS["config"])
    with config.unlocked():
        for key in keys:
            *sections, name = key.split(".")
            setattr(functools.reduce(getattr, sections, config), name, None)
            overrides[key] = None


def _make_one_line(error: Any) -> str:
    """Return the message of the innermost of nested exceptions, without line breaks and tracebacks."""
    while isinstance(error, BaseException) and error.args:
        error = error.args[0]
    text = str(error).strip()
    if "Traceback (most recent call last)" in text:  # of a config file, which the library passes on as text
        text = text.splitlines()[-1]
    return re.sub(r"\('Non-boolean argument.*\)$", "it must be true or false", " ".join(text.split()))


def run(argv: list[str] | None = None) -> int:
    """Run the whole program and return its exit code: 0, or that of the error (see `errors`).

    On SIGTERM the training loop saves and then returns here. Outside the loop the process ends at once.
    """
    argv = sys.argv if argv is None else argv
    allow_any_terminal()
    if {"--help", "-h"} & set(argv):
        show(f"{__doc__}\n{flags.FLAGS.module_help(sys.modules[__name__])}")
        return 0
    if os.environ.pop("JAX_ENABLE_X64", None):  # before JAX is imported, which reads it
        notice("JAX_ENABLE_X64 is left aside: the program chooses 32 or 64 bits itself")
    sys.path.insert(0, str(settings.find_configs_home()))  # for `from configs import common`
    # The checkpoint library logs a failed write in every thread, with tracebacks. We report it once.
    logging.set_verbosity(logging.FATAL)
    previous = signal.getsignal(signal.SIGINT)
    try:
        with on_sigterm(_stop):
            return _run(argv)
    finally:
        signal.signal(signal.SIGINT, previous)


def _run(argv: Sequence[str]) -> int:
    """Run the program and turn exceptions into exit codes."""
    try:
        main(parse(argv))
        if peers := _find_peers():
            peers.finish()
    except UserError as e:
        return fail(e, f"error: {e}")
    except (Preempted, NonFinite, PeerLost) as e:
        return fail(e, f"stopped: {e}")
    except KeyboardInterrupt as e:
        return fail(e, "stopped by the keyboard; the same command continues", code=130)
    except Exception as e:
        _ignore_signals()
        if isinstance(e, OSError) and (disk_error := as_disk_error(e)):
            return fail(disk_error, f"error: {disk_error}")
        # If a process is lost, libraries raise errors of many kinds. This is their cause.
        if (peers := _find_peers()) and (cause := peers.find_lost()):
            return fail(PeerLost(cause), f"stopped: {cause}")
        if peers:
            peers.leave(1, traceback.format_exc(), f"{type(e).__name__}: {_make_one_line(e)}")
        raise
    return 0


def _stop() -> None:
    """End the process on SIGTERM."""
    _report(Preempted.exit_code, "stopped: asked to stop; the same command continues", "asked to stop", saved=False)
    end(Preempted.exit_code)


def _leave(error: UserError) -> None:
    """End the process because another job has taken over its folder."""
    _report(error.exit_code, f"error: {error}", str(error))
    end(error.exit_code)


def end(code: int) -> None:
    """End the process without the interpreter's shutdown, which frees memory that XLA's threads may still use."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, RuntimeError):
            stream.flush()
    os._exit(code)


def _ignore_signals() -> None:
    """Ignore further signals, so that a process that is already ending can finish."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def fail(error: BaseException, message: str, code: int = 1) -> int:
    """Report an error to the user and to the other processes of the job; return the exit code."""
    _ignore_signals()
    code = getattr(error, "exit_code", code)
    _report(code, message, str(error))
    return code


def _report(code: int, message: str, cause: str, *, saved: bool = True) -> None:
    """Print a message, and send its cause to the other processes of the job."""
    if peers := _find_peers():
        peers.leave(code, message, cause, saved=saved)
    notice(message)


def _find_peers() -> ModuleType | None:
    """Return the module `peers` if it is fully imported. Importing it here would import JAX."""
    module = sys.modules.get("nml_jax.processes.peers")
    return module if hasattr(module, "leave") else None


if __name__ == "__main__":
    exit_code = run()
    _ignore_signals()
    if exit_code:
        end(exit_code)
