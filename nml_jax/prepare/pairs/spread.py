"""Call a function with every shard, on processes of this machine or on a cluster, with Apache Beam."""

import contextlib
import io
import multiprocessing
import os
import shlex
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Any

from nml_jax import console
from nml_jax.errors import UserError

# (what, function, items): calls the function with every item, in any order, on processes or a cluster.
Spread = Callable[[str, Callable[[Any], None], Sequence[Any]], None]


class PipelineFailed(Exception):
    """Failure of Apache Beam, with the reason in one line."""


def run_processes(workers: int | None, what: str, function: Callable[[Any], None], items: Sequence[Any]) -> None:
    """Call `function` with every item, in up to `workers` processes. This is a `Spread` once `workers` is bound."""
    from tqdm import tqdm

    workers = min(workers or os.cpu_count() or 1, len(items))
    with tqdm(total=len(items), desc=what, unit=" shards", mininterval=0.5) as bar:
        if workers <= 1:
            for item in items:
                function(item)
                bar.update()
            return
        spawn = multiprocessing.get_context("spawn")  # a fork would copy locks that other threads hold
        with ProcessPoolExecutor(workers, spawn, initializer=_obey_parent) as pool:
            try:
                for future in as_completed([pool.submit(function, item) for item in items]):
                    future.result()
                    bar.update()
            except KeyboardInterrupt:
                for worker in multiprocessing.active_children():
                    worker.terminate()  # else the pool would wait for their shards
                raise
            finally:
                pool.shutdown(wait=False, cancel_futures=True)


def _obey_parent() -> None:
    """Ignore Ctrl-C, which the parent handles, and exit when the parent dies.

    Otherwise the workers of a killed build would wait for ever, or keep writing during the next build.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def connect_beam(options: str) -> Spread:
    """Return a `Spread` that runs an Apache Beam pipeline with these options."""
    try:
        import apache_beam  # pyright: ignore[reportMissingImports]
        from apache_beam.options.pipeline_options import PipelineOptions  # pyright: ignore[reportMissingImports]
    except ImportError as e:
        cure = "pip install apache-beam beside nml_jax, in an environment of its own, without -c constraints.txt"
        raise UserError(f"--beam needs Apache Beam: {e}", cure) from e

    def make_pipeline() -> Any:
        return apache_beam.Pipeline(options=PipelineOptions(shlex.split(options)))

    printed = io.StringIO()  # argparse prints pages before it exits
    try:
        with contextlib.redirect_stderr(printed):
            make_pipeline().options.get_all_options()
    except (Exception, SystemExit) as e:  # every runner has errors of its own
        why = printed.getvalue().splitlines()[-1] if isinstance(e, SystemExit) else _join_lines(e)
        raise UserError(f"Apache Beam rejects --beam={options!r}: {why}", "see the options of the runner") from e

    def spread(what: str, function: Callable[[Any], None], items: Sequence[Any]) -> None:
        console.notice(f"{what}: {len(items)} to do")
        try:
            with make_pipeline() as pipeline:
                _ = pipeline | apache_beam.Create(items) | apache_beam.Reshuffle() | apache_beam.Map(function)
        except Exception as e:  # every runner wraps the errors of workers in its own way
            raise PipelineFailed(_join_lines(e).split(" [while running")[0]) from e

    return spread


def _join_lines(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
