"""Compare launch/sweep.py with nml_jax.main: the same cells, each once, in every form."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.launch.shell import ROOT, clean, printed, refused, run
from tests.scenes import programs

# Sweeps of several types of values, pinned and not, in a folder with a space.
SWEEPS = {
    "digits": ["--config=configs/digits.py", "--workdir=my runs/digits"],
    "pinned": ["--config=configs/digits.py", "--config.noise=0.1"],
    "one": ["--config=configs/digits.py", "--config.noise=0.1", "--config.seed=2"],
    "types": [
        "--config=configs/digits.py", "--config.sweep.seed=(3,)", "--config.sweep.noise=(0.05, 1e-05)",
        "--config.noise_kind=pair",
    ],
    "no report": ["--config=configs/digits.py", "--config.seed=1", "--config.stages=('pretrain','extract')"],
    "some stages": ["--config.stages", "('pretrain','report')", "--config=configs/digits.py", "--config.seed", "1"],
    "odd": ["--config={odd}"],
}  # fmt: skip
ODD = """
from configs import digits

def get_config():
    config = digits.get_config()
    with config.unlocked():
        config.sweep.seed = ()
        config.sweep.noise = (0.1, 1.0)
        config.sweep.model = {"name": ("resnet18", "resnet50"), "blocks": ((1, 1), (1, 2, 1))}
        config.sweep.tune = {"standardize": (True, False)}
    return config.lock()
"""
# Prints main's cells for flags: name of each cell -> its resolved config.
MAIN = """
import json, sys
from absl import flags
from ml_collections import config_flags
from nml_jax import main, settings

sys.path.insert(0, str(main.ROOT))
for line in sys.stdin:
    main.parse(["main", *json.loads(line)])
    pinned = config_flags.get_override_values(flags.FLAGS["config"])
    cells = settings.expand_sweep(main.CONFIG.value, pinned)
    print(json.dumps({name: settings.to_json(cell) for name, cell in cells.items()}))
    for name in [name for name in flags.FLAGS if name.startswith("config.")]:
        delattr(flags.FLAGS, name)  # parsing defines them
"""


def cells(*commands: list[str]) -> list[dict[str, dict]]:
    """Return main's cells for each of these lists of flags."""
    text = "".join(json.dumps(flags) + "\n" for flags in commands)
    program = [sys.executable, "-c", MAIN]
    done = programs.run(program, cwd=ROOT, env=clean(), input=text, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def sweeps(tmp_path_factory) -> dict[str, list[str]]:
    path = tmp_path_factory.mktemp("configs") / "odd.py"
    path.write_text(ODD)
    return {name: [flag.format(odd=path) for flag in flags] for name, flags in SWEEPS.items()}


@pytest.fixture(scope="module")
def commands(sweeps) -> dict[str, list[list[str]]]:
    return {name: printed("sweep.py", "--", *flags) for name, flags in sweeps.items()}


@pytest.fixture(scope="module")
def seen(sweeps, commands) -> dict[tuple[str, int], dict[str, dict]]:
    """Return (sweep, -1) -> main's cells of the sweep, and (sweep, i) -> those of its i-th command."""
    keys, texts = [], []
    for name, flags in sweeps.items():
        keys += [(name, -1), *((name, i) for i in range(len(commands[name])))]
        texts += [flags, *(command[3:] for command in commands[name])]
    return dict(zip(keys, cells(*texts), strict=True))


@pytest.mark.parametrize("name", SWEEPS)
def test_each_command_is_one_cell_of_main(name: str, commands, seen):
    whole, lines = seen[name, -1], commands[name]
    assert all(line[:3] == ["python", "-m", "nml_jax.main"] for line in lines)
    reports = [i for i in range(len(lines)) if next(iter(seen[name, i].values()))["stages"] == ["report"]]
    runs = [i for i in range(len(lines)) if i not in reports]
    assert reports == ([] if name == "no report" else [len(lines) - 1]), "the report comes last"
    assert [list(seen[name, i]) for i in runs] == [[cell] for cell in whole], "the same cells, in order, each once"
    for i in runs:
        ((cell, config),) = seen[name, i].items()
        assert config["stages"] == [stage for stage in whole[cell]["stages"] if stage != "report"]
        assert config | {"stages": 0} == whole[cell] | {"stages": 0}, "to the last key"
    for i in reports:
        assert set(seen[name, i]) == set(whole)


def test_how_many_there_are(seen):
    counts = {name: len(seen[name, -1]) for name in SWEEPS}
    assert counts == {"digits": 48, "pinned": 16, "one": 1, "types": 2, "no report": 3,
                      "some stages": 3, "odd": 16}  # fmt: skip


def array_commands(flags: list[str], *own: str) -> tuple[list[str], list[list[str]], list[str]]:
    """Return the sbatch line, the command that slurm.sbatch runs for each task of the array, and the report's line."""
    done = run("sweep.py", "--as=slurm", *own, "--", *flags)
    assert done.returncode == 0, done.stderr
    first, *rest = done.stdout.splitlines()
    assert first.startswith("job=$(")
    assert first.endswith(")")
    words = shlex.split(first.removeprefix("job=$(").removesuffix(")"))
    script = words[words.index("launch/slurm.sbatch") + 1 :]
    (array,) = [word.removeprefix("--array=") for word in words if word.startswith("--array=")]
    low, high = map(int, array.split("%")[0].split("-"))
    tasks = [
        printed("slurm.sbatch", "--dry_run", *script, SLURM_ARRAY_TASK_ID=str(i), SLURM_JOB_ID=str(100 + i))[0]
        for i in range(low, high + 1)
    ]
    return words, [task[task.index("nml_jax.main") + 1 :] for task in tasks], shlex.split(rest[0])


def test_a_slurm_array_covers_each_cell_once(sweeps, seen):
    words, tasks, report = array_commands(sweeps["types"], "--at_once=1", "--sbatch=--nodes=2", "--sbatch=--time=1:00")
    assert words[:6] == ["sbatch", "--parsable", "--job-name=digits", "--array=0-1%1", "--nodes=2", "--time=1:00"]
    made = cells(*tasks, report[report.index("--") + 1 :])
    assert [list(cell) for cell in made[:-1]] == [[name] for name in seen["types", -1]]
    assert [cell["stages"] for one in made[:-1] for cell in one.values()] == [["pretrain", "extract", "tune"]] * 2
    assert report[:3] == ["sbatch", "--parsable", "--dependency=afterany:$job"]
    assert report[3:8] == ["--job-name=digits-report", "--nodes=2", "--time=1:00", "--nodes=1", "--ntasks=1"]
    assert all(cell["stages"] == ["report"] for cell in made[-1].values())


def test_a_slurm_array_of_one(sweeps):
    words, tasks, _ = array_commands(sweeps["one"])
    assert "--array=0-0" in words
    assert len(tasks) == 1


def run_with_scheduler(tmp_path: Path, name: str, text: str, *args: str) -> subprocess.CompletedProcess[str]:
    """Run sweep.py with a fake of a scheduler's command on the path."""
    (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
    (tmp_path / name).chmod(0o755)
    return run("sweep.py", *args, PATH=f"{tmp_path}:/usr/bin:/bin")


def test_submit_to_slurm(tmp_path: Path, sweeps):
    called = f'printf "%s\\n" "$*" >>{tmp_path}/called; echo "41;cluster"'
    done = run_with_scheduler(tmp_path, "sbatch", called, "--as=slurm", "--submit", "--", *sweeps["one"])
    assert done.returncode == 0, done.stderr
    array, report = (tmp_path / "called").read_text().splitlines()
    assert array.startswith("--parsable --job-name=digits --array=0-0 launch/slurm.sbatch -- ")
    assert report.startswith("--parsable --dependency=afterany:41 --job-name=digits-report --nodes=1 --ntasks=1 ")
    assert done.stdout.splitlines()[0] == "1 cells: job 41"


def test_submit_to_kubernetes(tmp_path: Path, sweeps):
    own = ["--as=jobset", "--image=r/i:tpu", "--topology=4x4"]
    flags = ["--", *sweeps["types"]]
    done = run_with_scheduler(tmp_path, "kubectl", f'echo "$*"; cat >{tmp_path}/applied', *own, "--submit", *flags)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("apply -f -\n")
    shown = run("sweep.py", *own, *flags)
    assert list(yaml.safe_load_all((tmp_path / "applied").read_text())) == list(yaml.safe_load_all(shown.stdout))


def test_dry_run_wins_over_submit(tmp_path: Path, sweeps):
    words = ["--as=slurm", "--submit", "--dry_run", "--", *sweeps["one"]]
    done = run_with_scheduler(tmp_path, "sbatch", f"touch {tmp_path}/called", *words)
    assert done.stdout == run("sweep.py", "--as=slurm", "--", *sweeps["one"]).stdout
    assert not (tmp_path / "called").exists()


def test_a_failure_of_the_scheduler_is_reported(tmp_path: Path, sweeps):
    words = ["--as=slurm", "--submit", "--", *sweeps["one"]]
    done = run_with_scheduler(tmp_path, "sbatch", "exit 3", *words)
    assert done.returncode == 2
    assert done.stderr == "error: sbatch failed with exit code 3\n  cure: see its message above\n"
    (tmp_path / "sbatch").unlink()
    assert "there is no sbatch" in refused("sweep.py", *words, PATH=str(tmp_path))


@pytest.mark.parametrize(
    ("args", "cause"),
    [
        (["--as=lsf", "--"], "invalid choice: 'lsf'"),
        (["--config=configs/digits.py"], "--config=configs/digits.py"),
        (["--", "--config=nowhere.py"], "'nowhere.py'"),
        (["--", "--config=configs/digits.py", "--config.noises=0.1"], "noises"),
        (["--", "--config=configs/digits.py", "--config.sweep.noise=(0.1,0.1)"], "sweep.noise"),
        (["--", "--config=configs/digits.py", "--config.stages=('report',)"], "nothing to run"),
        (["--submit", "--", "--config=configs/digits.py"], "cannot be submitted"),
        (["--as=jobset", "--topology=8x8", "--", "--config=configs/digits.py"], "no image"),
        (["--as=jobset", "--image=i", "--", "--config=configs/digits.py"], "--topology=''"),
        (["--as=jobset", "--image=i", "--topology=3x5", "--", "--config=configs/digits.py"], "15 chips"),
        (["--as=jobset", "--image=i", "--topology=8x8", "--slices=0", "--"], "too small"),
    ],
)
def test_bad_input(args: list[str], cause: str):
    assert cause in refused("sweep.py", *args)
