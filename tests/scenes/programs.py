"""Start programs of the package quickly: each is forked from a server that has imported what they all import.

Importing JAX, Flax, Orbax and scikit-learn takes two seconds, and the tests start about a hundred programs. `Popen` and
`run` do what those of `subprocess` do, for a command that begins with sys.executable and -m, -c or a file. What happens
after the imports is real: the process has its own arguments, environment, output, devices and exit code, and can be
killed. Tests of what is imported, of terminals and of encodings use `subprocess`.

    python -m tests.scenes.programs FD

serves the requests that come in at the socket FD.
"""

import atexit
import contextlib
import gc
import importlib
import inspect
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import types
import warnings
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]

# What libraries read when they are imported: processes that differ in it need different servers.
READ_EARLY = ("JAX_", "XLA_", "TF_", "PYTHON", "OMP_", "OPENBLAS_", "MKL_", "NPROC")
READ_LATE = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID", "PYTHONPATH")
# What JAX reads early, but can be told later: variable -> its type and JAX's default.
SETTINGS = {
    "JAX_PLATFORMS": (str, None),
    "JAX_COMPILATION_CACHE_DIR": (str, None),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": (float, 1.0),
}

# Not the commands themselves: each defines its flags as it begins.
IMPORTED = (
    "nml_jax.stages.runner", "nml_jax.assembly.sections", "nml_jax.stages.experiment", "nml_jax.stages.dry_run",
    "nml_jax.stages.pretrain", "nml_jax.stages.extract", "nml_jax.stages.tune", "nml_jax.stages.report",
    "nml_jax.tuning.classifier", "nml_jax.tuning.diagnosis", "sklearn.datasets", "configs.common",
)  # fmt: skip

_servers: dict[tuple[tuple[str, str], ...], socket.socket] = {}


def _find_server(env: dict[str, str]) -> socket.socket:
    """Return the socket of the server for an environment; start it if there is none."""
    late = {*READ_LATE, *SETTINGS}
    key = tuple(sorted((name, env[name]) for name in env if name.startswith(READ_EARLY) and name not in late))
    if key not in _servers:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            server = subprocess.Popen(
                [sys.executable, "-m", "tests.scenes.programs", str(theirs.fileno())],
                cwd=ROOT, env=env, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            )  # fmt: skip
        atexit.register(_close_server, ours, server)
        _servers[key] = ours
    return _servers[key]


def _close_server(ours: socket.socket, server: subprocess.Popen) -> None:
    ours.close()
    server.wait()


class Popen(subprocess.Popen):
    """A process that a server forks; otherwise as the class in `subprocess`."""

    def _execute_child(self, *args: Any) -> None:
        given = inspect.signature(super()._execute_child).bind(*args).arguments  # type: ignore[misc]
        program, *words = map(os.fspath, given["args"])
        if program != sys.executable or (words[0].startswith("-") and words[0] not in ("-m", "-c")):
            raise ValueError(f"not a Python program with -m, -c or a file: {given['args']}")
        if given["preexec_fn"] or given["pass_fds"] or given["start_new_session"] or given["shell"]:
            raise ValueError("a forked program takes no preexec_fn, pass_fds, start_new_session or shell")
        env = dict(os.environ if given["env"] is None else given["env"])
        status, theirs = os.pipe()
        pipes = [given[name] for name in ("p2cread", "c2pwrite", "errwrite")]
        fds = [own if fd == -1 else fd for own, fd in enumerate(pipes)]
        request = {"words": words, "env": env, "cwd": os.fspath(given["cwd"] or os.getcwd())}
        socket.send_fds(_find_server(env), [json.dumps(request).encode()], [*fds, theirs])
        os.close(theirs)
        self._status = open(status, "rb", buffering=0)  # noqa: SIM115
        self.pid = int.from_bytes(self._status.read(4), "little")
        self._child_created = True
        names = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")
        self._close_pipe_fds(*(given[name] for name in names))  # type: ignore[attr-defined]

    def _look(self, wait: bool) -> None:
        """Read the exit code that the process's parent sends, if it is there or must be waited for."""
        os.set_blocking(self._status.fileno(), wait)
        told = self._status.read(4)
        if told is not None:
            self.returncode = int.from_bytes(told, "little", signed=True)
            self._status.close()

    def _internal_poll(self, *args: Any, **kwargs: Any) -> int | None:
        if self.returncode is None:
            self._look(wait=False)
        return self.returncode

    def _try_wait(self, wait_flags: int) -> tuple[int, int]:
        if self.returncode is None:
            self._look(wait=not wait_flags & os.WNOHANG)
        return (0 if self.returncode is None else self.pid), 0

    def _handle_exitstatus(self, sts: int, *args: Any) -> None:
        """Keep the exit code that was read."""


def run(
    command: list[Any], *, timeout: float, check: bool = False, input: str | None = None, **kwargs: Any
) -> subprocess.CompletedProcess:
    """Run a program to its end, as the function in `subprocess` does."""
    if kwargs.pop("capture_output", False):
        kwargs |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    if input is not None:
        kwargs["stdin"] = subprocess.PIPE
    with Popen(command, **kwargs) as process:
        try:
            out, err = process.communicate(input, timeout=timeout)
        except BaseException:
            process.kill()
            raise
    done = subprocess.CompletedProcess(command, process.returncode, out, err)
    if check:
        done.check_returncode()
    return done


# ---- the server ------------------------------------------------------------------------------------------------------


def _serve(requests: socket.socket) -> list[str]:
    """Fork a process for each request, until the socket is closed. In such a process, return its words."""
    for module in IMPORTED:
        importlib.import_module(module)
    gc.freeze()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the programs get it, too
    while True:
        message, fds, *_ = socket.recv_fds(requests, 1 << 20, 4)
        if not message:
            os._exit(0)
        if os.fork() == 0:
            requests.close()
            return _begin(json.loads(message), fds)
        for fd in fds:
            os.close(fd)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


def _begin(request: dict[str, Any], fds: list[int]) -> list[str]:
    """Fork the program. In its parent, wait for it and report its exit code."""
    import jax

    *streams, status = fds
    if pid := os.fork():
        for fd in (0, 1, 2, *streams):
            os.close(fd)
        os.write(status, pid.to_bytes(4, "little"))
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        with contextlib.suppress(BrokenPipeError):
            os.write(status, code.to_bytes(4, "little", signed=True))
        os._exit(0)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, fd in enumerate(streams):
        os.dup2(fd, number)
    os.closerange(3, max(fds) + 1)
    sys.stdin, sys.stdout = (open(fd, mode, closefd=False) for fd, mode in enumerate("rw"))  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    for name, (type_, default) in SETTINGS.items():
        jax.config.update(name.lower(), type_(os.environ[name]) if name in os.environ else default)
    return request["words"]


def main() -> None:
    warnings.filterwarnings("ignore", "This process", DeprecationWarning)  # of threads: those of libraries are idle
    words = _serve(socket.socket(fileno=int(sys.argv[1])))
    how, what = words[:2] if words[0].startswith("-") else ("", words[0])
    first = {"-m": os.getcwd(), "-c": "", "": os.path.dirname(os.path.abspath(what))}[how]
    sys.path[0:1] = [first, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    sys.argv[:] = [how, *words[2:]] if how else words
    if how == "-m":
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    elif how == "-c":
        sys.modules["__main__"] = module = types.ModuleType("__main__")
        exec(compile(what, "<string>", "exec"), vars(module))
    else:
        runpy.run_path(what, run_name="__main__")


if __name__ == "__main__":
    main()
