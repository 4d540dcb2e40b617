"""Run a job on a Ray cluster. Ray chooses the hosts and starts the processes; JAX joins them.

    python launch/ray_job.py --processes=4 --gpus=8 -- --config=configs/clip_vitb16.py --workdir=/shared/clip   hosts
    python launch/ray_job.py --processes=32 --gpus=1 --pack -- --config=...                                     GPUs

Every host needs the checkout and its environment at the same paths, and the folder of --workdir. SIGTERM and Ctrl-C are
forwarded to all processes. They save, and the same command continues. If a process is lost or stopped from elsewhere,
all start again.
"""

import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import Any

import exits
import options
from options import ROOT, UserError


def make_environment(address: str, index: int, processes: int, gpus: int) -> dict[str, str]:
    """Return the environment variables by which process `index` finds its job and the GPUs that Ray gave it."""
    env = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(processes), "JAX_PROCESS_ID": str(index)}
    if gpus:
        env["JAX_LOCAL_DEVICE_IDS"] = ",".join(map(str, range(gpus)))
    return env


class Process:
    """A process of the job. As a Ray actor it can be stopped while it runs."""

    def __init__(self) -> None:
        self.child: subprocess.Popen[bytes] | None = None
        self.stopping = False

    def find_address(self) -> str:
        """Return the address of this host with a free port."""
        import ray  # pyright: ignore[reportMissingImports]

        with socket.socket() as s:
            s.bind(("", 0))
            return f"{ray.util.get_node_ip_address()}:{s.getsockname()[1]}"

    def run(self, command: list[str], folder: str, env: dict[str, str]) -> int:
        self.child = subprocess.Popen(command, cwd=folder, env=os.environ | env)
        if self.stopping:  # stop was called before the child existed
            self.child.terminate()
        return self.child.wait()

    def stop(self) -> None:
        self.stopping = True
        if self.child:
            self.child.terminate()


def run_once(ray: Any, args: Any, command: list[str], stopping: threading.Event) -> list[int]:
    """Start all processes and wait for them.

    Returns:
        Their exit codes, 137 for a process that was lost with its host. An empty list if `stopping` was set before
        Ray had room for them.

    Raises:
        UserError: the cluster has too few hosts, CPUs or GPUs, or a host lacks the checkout or the Python.
    """
    bundle = {"CPU": args.cpus} | ({"GPU": args.gpus} if args.gpus else {})
    group = ray.util.placement_group([bundle] * args.processes, strategy="PACK" if args.pack else "STRICT_SPREAD")
    try:
        end = time.monotonic() + args.timeout
        while not group.wait(1) and not stopping.is_set():
            if time.monotonic() > end:
                where = "" if args.pack else ", each on a host of its own"
                raise UserError(
                    f"Ray had no room for {args.processes} × {bundle}{where}, within {args.timeout} s",
                    "see `ray status`; ask for less, wait longer with --timeout, or let processes share hosts with "
                    "--pack",
                )
        if stopping.is_set():
            return []
        actors = [
            ray.remote(Process)
            .options(
                max_concurrency=2,
                num_cpus=args.cpus,
                num_gpus=args.gpus,
                scheduling_strategy=ray.util.scheduling_strategies.PlacementGroupSchedulingStrategy(
                    placement_group=group, placement_group_bundle_index=i
                ),
            )
            .remote()
            for i in range(args.processes)
        ]
        address = ray.get(actors[0].find_address.remote())
        waiting = {
            actor.run.remote(command, str(ROOT), make_environment(address, i, args.processes, args.gpus)): i
            for i, actor in enumerate(actors)
        }
        codes: dict[int, int] = {}
        unable, stopped = "", False
        while waiting:
            if (stopping.is_set() or unable) and not stopped:
                stopped = True
                for actor in actors:
                    actor.stop.remote()
            for future in ray.wait(list(waiting), timeout=1)[0]:
                index = waiting.pop(future)
                try:
                    codes[index] = ray.get(future)
                except ray.exceptions.RayActorError as e:
                    print(f"process {index} was lost: {str(e).splitlines()[0]}", file=sys.stderr)
                    codes[index] = 137
                except ray.exceptions.RayTaskError as e:
                    unable = f"process {index} did not start on its host: {e.cause}"
        if unable:
            raise UserError(unable, f"every host needs the checkout at {ROOT} and the Python {sys.executable}")
        return [codes[i] for i in sorted(codes)]
    finally:
        ray.util.remove_placement_group(group)  # also ends its actors


def main(argv: list[str]) -> int:
    own, flags = options.split(argv)
    parser = options.make_parser(__doc__, "ray_job.py")
    parser.add_argument("--processes", type=int, default=1, help="number of processes; one per host without --pack")
    parser.add_argument("--gpus", type=int, default=0, help="GPUs of each process")
    parser.add_argument("--cpus", type=int, default=1, help="CPUs of each process")
    parser.add_argument("--pack", action="store_true", help="let processes share a host")
    parser.add_argument("--address", default="auto", help="address of the cluster; local: start Ray on this machine")
    parser.add_argument("--timeout", type=int, default=600, help="seconds to wait for room")
    parser.add_argument("--max_restarts", type=int, default=50, help="most restarts after a loss or exit code 75")
    args = parser.parse_args(own)
    if args.processes < 1 or min(args.gpus, args.cpus, args.max_restarts) < 0:
        raise UserError("--processes, --gpus, --cpus or --max_restarts is too small", "give at least one process")
    command = [sys.executable, "-m", "nml_jax.main", *flags]
    if args.dry_run:
        options.check_config(flags)
        for i in range(args.processes):
            env = make_environment("HOST_OF_PROCESS_0:PORT", i, args.processes, args.gpus)
            print(shlex.join(["env", *(f"{k}={v}" for k, v in env.items()), *command]))
        return 0
    try:
        import ray  # pyright: ignore[reportMissingImports]
    except ImportError as e:
        raise UserError("Ray is not installed", "pip install ray in the environment of every host") from e
    try:
        ray.init(address=args.address, log_to_driver=True, configure_logging=False)
    except ConnectionError as e:
        raise UserError(f"no Ray cluster at {args.address!r}", "ray start --head, or give --address=HOST:PORT") from e
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    restarts = 0
    while True:
        codes = run_once(ray, args, command, stopping)
        if not codes:
            print("stopped before Ray had room for it; the same command tries again", file=sys.stderr)
            return exits.PREEMPTED
        word, code, line = exits.decide(codes)
        print(f"{word}: {line} (exit codes: {codes})", file=sys.stderr)
        if word in ("done", "stop") or stopping.is_set():
            return code
        if restarts == args.max_restarts:
            line = f"not started again after {restarts} restarts; find the reason, then the same command continues"
            print(line, file=sys.stderr)
            return code
        restarts += 1


if __name__ == "__main__":
    options.run(main)
