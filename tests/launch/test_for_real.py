"""Test the launchers with real schedulers and training: stop and resume two processes of the miniature digits.

Each test needs its scheduler (Debian: slurm-wlm and munge, openmpi-bin; pip: ray) and is skipped without it. They take
minutes, so run them by pytest -m slow tests/launch/test_for_real.py.
"""

import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from nml_jax.runs.rows import read_rows
from tests.launch.shell import LAUNCH, ROOT, clean
from tests.scenes.digits_experiment import flags
from tests.scenes.process_scenes import free_port

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

CELL = "noise=0.3,seed=0"
# Long enough to be stopped in the middle. An epoch has 9 steps.
LONG = {"train.epochs": 5.0, "runtime.save_every": 100.0, "runtime.log_every": 1, "stages": ("pretrain",)}
STEPS = 45


def environment(**more: str) -> dict[str, str]:
    """Return variables for one CPU device per process, this Python, and a compilation cache for the resumed run."""
    env = clean() | {"JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".pytest_cache" / "xla")}
    env |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3", "PYTHONUNBUFFERED": "1"}
    return env | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"} | more


def needs(*programs: str) -> None:
    if absent := [
        program for program in programs if shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin") is None
    ]:
        pytest.skip(f"not installed: {', '.join(absent)}")


def wait_for(what: Callable[[], object], why: str, seconds: float = 300) -> None:
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until, f"not within {seconds} s: {why}"
        time.sleep(0.2)


def steps(workdir: Path) -> list[int]:
    """Return the training steps in the log of metrics."""
    path = workdir / CELL / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line)["step"] for line in lines if '"train/loss"' in line]


def saved(workdir: Path) -> int:
    """Return the last step with a checkpoint; 0 if there is none."""
    names = [p.name for p in (workdir / CELL / "checkpoints").glob("*") if p.name.isdigit()]
    return max(map(int, names), default=0)


def check_stopped(workdir: Path) -> int:
    """Return the step that was saved. Check that it is the last one in the log, and not the end."""
    step = saved(workdir)
    assert max(steps(workdir)) <= step < STEPS
    return step


def check_finished(workdir: Path, resumed_at: int) -> None:
    """Check that every step is in the log once, and that the run did not start over."""
    assert steps(workdir) == list(range(1, STEPS + 1))
    assert saved(workdir) == STEPS
    assert 0 < resumed_at < STEPS
    record = json.loads((workdir / CELL / "run.json").read_text())
    assert "output" in record["stages"]["pretrain"]
    assert record["environment"]["processes"] == "2"


def launch(command: list[str], env: dict[str, str]) -> subprocess.Popen[str]:
    out = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, env=env, text=True, stdout=out, stderr=subprocess.STDOUT)


def stop_and_resume(command: list[str], workdir: Path, env: dict[str, str]) -> None:
    """Send SIGTERM in the middle, expect exit code 75, and run the same command to the end."""
    process = launch(command, env)
    wait_for(lambda: steps(workdir) or process.poll() is not None, "a first step")
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 75, out
    step = check_stopped(workdir)
    process = launch(command, env)
    out, _ = process.communicate(timeout=600)
    assert process.returncode == 0, out
    check_finished(workdir, step)


def test_local(tmp_path: Path):
    workdir = tmp_path / "run"
    command = [sys.executable, str(LAUNCH / "local.py"), "--processes=2", "--", *flags(workdir, **LONG)]
    stop_and_resume(command, workdir, environment())


def test_ray(tmp_path: Path):
    if importlib.util.find_spec("ray") is None:
        pytest.skip("not installed: ray")
    workdir = tmp_path / "run"
    own = ["--address=local", "--processes=2", "--cpus=1", "--pack"]
    command = [sys.executable, str(LAUNCH / "ray_job.py"), *own, "--", *flags(workdir, **LONG)]
    stop_and_resume(command, workdir, environment(RAY_DISABLE_IMPORT_WARNING="1"))


def test_mpi(tmp_path: Path):
    needs("mpirun")
    workdir = tmp_path / "run"
    command = ["bash", str(LAUNCH / "mpi.sh"), "-n", "2", "--oversubscribe", "--", *flags(workdir, **LONG)]
    env = environment(OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1")
    stop_and_resume(command, workdir, env)


# ---- Slurm: its own daemons, one node, in a temporary folder ---------------------------------------------------------


class Slurm:
    """A one-node cluster of 2 CPUs."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.daemons: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        for name in ("state", "spool", "munge"):
            (self.folder / name).mkdir(mode=0o755)
        key = self.folder / "munge" / "key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        files = [f"--{name}={self.folder}/munge/{name}" for name in ("socket", "pid-file", "log-file", "seed-file")]
        self.daemon("munged", "--foreground", "--force", f"--key-file={key}", *files)
        ports = [free_port(), free_port()]
        host = socket.gethostname()
        (self.folder / "slurm.conf").write_text(f"""
            ClusterName=test
            SlurmctldHost={host}(127.0.0.1)
            SlurmUser=root
            SlurmctldPort={ports[0]}
            SlurmdPort={ports[1]}
            AuthType=auth/munge
            CredType=cred/munge
            AuthInfo=socket={self.folder}/munge/socket
            StateSaveLocation={self.folder}/state
            SlurmdSpoolDir={self.folder}/spool
            SlurmctldPidFile={self.folder}/slurmctld.pid
            SlurmdPidFile={self.folder}/slurmd.pid
            SlurmctldLogFile={self.folder}/slurmctld.log
            SlurmdLogFile={self.folder}/slurmd.log
            ProctrackType=proctrack/linuxproc
            TaskPlugin=task/none
            SelectType=select/cons_tres
            SelectTypeParameters=CR_CPU
            SlurmdParameters=config_overrides
            ReturnToService=2
            KillWait=30
            MpiDefault=none
            NodeName={host} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
            PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
        """)
        wait_for((self.folder / "munge" / "socket").exists, "munged")
        self.daemon("slurmctld", "-D", "-f", str(self.folder / "slurm.conf"))
        self.daemon("slurmd", "-D", "-f", str(self.folder / "slurm.conf"))
        wait_for(lambda: "idle" in self.call("sinfo", "-h", "-o", "%t", check=False), "a node that is idle")

    def daemon(self, name: str, *args: str) -> None:
        path = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")
        assert path
        with (self.folder / f"{name}.out").open("wb") as out:
            self.daemons.append(subprocess.Popen([path, *args], env=self.env(), stdout=out, stderr=out))

    def env(self) -> dict[str, str]:
        return clean() | {"SLURM_CONF": str(self.folder / "slurm.conf")}

    def call(self, *command: str, check: bool = True, env: Mapping[str, str] | None = None) -> str:
        env = self.env() | dict(env or {})
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60)
        assert not check or done.returncode == 0, done.stderr
        return done.stdout.strip()

    def state(self, job: str) -> dict[str, str]:
        """Return what Slurm reports about a job: JobState, Restarts, ExitCode, ..."""
        words = self.call("scontrol", "show", "job", "-o", job).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def end(self, job: str) -> dict[str, str]:
        """Wait until a job has ended and return its last state."""
        active = ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING")
        wait_for(lambda: self.state(job)["JobState"] not in active, f"the end of job {job}", 600)
        return self.state(job)

    def now(self, job: str) -> None:
        """Start a requeued job at once instead of after Slurm's two minutes."""
        wait_for(lambda: self.state(job)["JobState"] == "PENDING", f"job {job} in the queue again")
        self.call("scontrol", "update", f"jobid={job}", "StartTime=now")

    def stop(self) -> None:
        self.call("scancel", "--state=RUNNING", check=False)
        self.call("scancel", "--state=PENDING", check=False)
        for daemon in reversed(self.daemons):
            daemon.terminate()
            daemon.wait(60)


@pytest.fixture(scope="module")
def slurm(tmp_path_factory) -> Iterator[Slurm]:
    needs("slurmctld", "slurmd", "munged", "sbatch")
    if os.geteuid():
        pytest.skip("only root can start Slurm's daemons")
    cluster = Slurm(tmp_path_factory.mktemp("slurm"))
    cluster.folder.chmod(0o755)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


def sbatch(slurm: Slurm, tmp_path: Path, *own: str, run: list[str]) -> str:
    """Submit launch/slurm.sbatch and return the number of the job."""
    out = f"--output={tmp_path}/%x-%j.log"
    return slurm.call("sbatch", "--parsable", out, *own, "launch/slurm.sbatch", "--", *run, env=environment())


def log_of(tmp_path: Path) -> str:
    return "\n".join(path.read_text() for path in sorted(tmp_path.glob("*.log")))


def test_slurm_requeues_and_resumes(slurm: Slurm, tmp_path: Path):
    workdir = tmp_path / "run"
    job = sbatch(slurm, tmp_path, "--ntasks=2", run=flags(workdir, **LONG))
    wait_for(lambda: steps(workdir) or slurm.state(job)["JobState"] not in ("PENDING", "RUNNING"), "a first step")
    slurm.call("scancel", "--signal=TERM", job)
    slurm.now(job)
    step = check_stopped(workdir)
    state = slurm.end(job)
    assert (state["JobState"], state["Restarts"]) == ("COMPLETED", "1"), log_of(tmp_path)
    check_finished(workdir, step)
    assert "resume 75: pre-empted and saved" in log_of(tmp_path)


def test_slurm_stops_before_the_time_limit(slurm: Slurm, tmp_path: Path):
    """Check --signal=TERM@120. A limit of 6 minutes leaves three to train, because Slurm may be a minute early."""
    workdir = tmp_path / "run"
    long = LONG | {"train.epochs": 100000.0, "optimizer.warmup_epochs": 1.0, "runtime.log_every": 20}
    job = sbatch(slurm, tmp_path, "--ntasks=2", "--time=6", run=flags(workdir, **long))
    wait_for(lambda: "resume 75" in log_of(tmp_path), "the signal", 600)
    wait_for(lambda: slurm.state(job)["JobState"] == "PENDING", "the queue")
    assert slurm.state(job)["Restarts"] == "1"
    assert saved(workdir) > 0
    slurm.call("scancel", job)


def test_slurm_does_not_requeue_after_bad_input(slurm: Slurm, tmp_path: Path):
    job = sbatch(slurm, tmp_path, "--ntasks=2", run=flags(tmp_path / "run", noise=7))
    state = slurm.end(job)
    assert (state["JobState"], state["Restarts"], state["ExitCode"]) == ("FAILED", "0", "2:0"), log_of(tmp_path)
    assert "noise=7" in log_of(tmp_path)
    assert "stop 2: bad input" in log_of(tmp_path)


def test_slurm_array_sweep(slurm: Slurm, tmp_path: Path):
    """Submit two cells with launch/sweep.py, and the report over both, which waits for them."""
    workdir = tmp_path / "sweep"
    short = {"train.epochs": 1.0, "optimizer.warmup_epochs": 0.5, "stages": ("pretrain", "extract", "report")}
    run = [flag for flag in flags(workdir, **short) if not flag.startswith("--config.noise=")]
    run += ["--config.sweep.noise=(0.0,0.3)"]
    own = ["--as=slurm", "--submit", "--sbatch=--ntasks=2", f"--sbatch=--output={tmp_path}/%x-%j.log"]
    done = slurm.call(sys.executable, str(LAUNCH / "sweep.py"), *own, "--", *run, env=environment())
    cells, report = done.splitlines()
    assert cells.startswith("2 cells: job ")
    last = report.removeprefix("report: job ")
    assert slurm.end(last)["JobState"] == "COMPLETED", log_of(tmp_path)
    assert sorted(p.parent.name for p in workdir.glob("*/run.json")) == ["noise=0,seed=0", "noise=0.3,seed=0"]
    assert (workdir / "report.html").exists()
    for noise in ("0", "0.3"):
        assert read_rows(workdir / f"noise={noise},seed=0")
