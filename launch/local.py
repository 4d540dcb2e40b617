"""Run several processes on this machine, joined as on a cluster, to try things out.

    python launch/local.py --processes=2 -- --config=configs/digits.py --config.noise=0.05

SIGTERM and Ctrl-C are forwarded to all processes. They save and stop, and the same command continues. After one process
has failed, the others have --patience seconds to end and are then killed. No process outlives this launcher.
"""

import ctypes
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence

import exits
import options
from options import UserError


def make_environment(index: int, processes: int, port: int, *, cpu_devices: int, per_gpu: bool) -> dict[str, str]:
    """Return the environment variables by which process `index` finds its job and its devices."""
    env = {
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
        "JAX_NUM_PROCESSES": str(processes),
        "JAX_PROCESS_ID": str(index),
    }
    if cpu_devices:
        env |= {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(cpu_devices)}
    if per_gpu:
        env["JAX_LOCAL_DEVICE_IDS"] = str(index)
    return env


def find_free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def show(process: subprocess.Popen[str], index: int) -> None:
    """Print every line of a process's output with the number of the process."""
    assert process.stdout is not None
    for line in process.stdout:
        print(f"{index}: {line}", end="", flush=True)


def end_with_parent() -> None:
    """Ask Linux to send SIGTERM to this process when its launcher dies. Called in the child before it starts."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, int(signal.SIGTERM))  # PR_SET_PDEATHSIG


def wait(processes: Sequence[subprocess.Popen[str]], patience: float) -> list[int]:
    """Wait for all processes and return their exit codes. `patience` seconds after the first failure, kill the rest."""
    failed = None
    while None in (codes := [process.poll() for process in processes]):  # all of them: one that runs hides no dead one
        if failed is None and any(codes):
            failed = time.monotonic()
        if failed is not None and time.monotonic() - failed > patience:
            left = [i for i, code in enumerate(codes) if code is None]
            print(f"killed {patience:g} s after another process failed: {left}", file=sys.stderr, flush=True)
            for i in left:
                processes[i].kill()
            break
        time.sleep(0.1)
    return [process.wait() for process in processes]


def main(argv: list[str]) -> int:
    own, flags = options.split(argv)
    parser = options.make_parser(__doc__, "local.py")
    parser.add_argument("--processes", type=int, default=2, help="number of processes; default: %(default)s")
    parser.add_argument("--port", type=int, default=0, help="port of the coordinator; 0: a free one")
    parser.add_argument("--cpu_devices", type=int, default=0, help="simulated CPU devices of each process")
    parser.add_argument("--per_gpu", action="store_true", help="give process i GPU i only; default: all see all GPUs")
    parser.add_argument(
        "--patience",
        type=float,
        default=180,
        help="seconds; longer than runtime.timeout, after which a lost process is noticed",
    )
    args = parser.parse_args(own)
    if args.processes < 1:
        raise UserError(f"--processes must be at least 1, got {args.processes}", "as in --processes=2")
    port = args.port or find_free_port()
    command = [sys.executable, "-m", "nml_jax.main", *flags]
    envs = [
        make_environment(i, args.processes, port, cpu_devices=args.cpu_devices, per_gpu=args.per_gpu)
        for i in range(args.processes)
    ]
    if args.dry_run:
        options.check_config(flags)
        for env in envs:
            print(shlex.join(["env", *(f"{k}={v}" for k, v in env.items()), *command]))
        return 0
    # In a session of its own, a process gets Ctrl-C only from us, as SIGTERM, and saves.
    pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "start_new_session": True,
            "preexec_fn": end_with_parent}  # fmt: skip
    processes = [subprocess.Popen(command, env=os.environ | env, **pipe) for env in envs]
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: [process.terminate() for process in processes])
    readers = [threading.Thread(target=show, args=(process, i)) for i, process in enumerate(processes)]
    for reader in readers:
        reader.start()
    word, code, line = exits.decide(wait(processes, args.patience))
    for reader in readers:
        reader.join()
    print(f"{word}: {line}" if word != "done" else line, file=sys.stderr)
    return code


if __name__ == "__main__":
    options.run(main)
