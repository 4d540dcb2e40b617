"""The README tells the truth: its commands run, its Python runs."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.scenes import clip_experiment

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text("utf-8")
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL) for line in block.splitlines() if line]
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """A folder that looks like a checkout, with photos in it, where commands may write."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("configs", "launch", "Makefile", "setup.py", "constraints.txt"):
        (folder / name).symlink_to(ROOT / name)
    rng = np.random.default_rng(0)
    for split, count in (("train", 20), ("test", 4)):
        for name in ("ant", "bee"):
            (folder / "my_photos" / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / "my_photos" / split / name / f"{i}.jpg")
    for name, seed in (("train", 0), ("test", 1), ("other", 2)):
        draw = np.random.default_rng(seed)
        labels = np.arange(60) % 3
        np.savez(folder / f"{name}.npz", features=draw.normal(size=(60, 8)) + 4 * np.eye(3, 8)[labels], labels=labels)
    words = ["".join(word) for word in rng.choice(list("abcdefghijklmnop"), (400, 5))]
    clip_experiment.write_tar(folder / "my_pairs" / "00000.tar", [
        {"png": clip_experiment.image("red", "square", rng), "txt": " ".join(rng.choice(words, 20)).encode()}
        for _ in range(48)
    ])  # fmt: skip
    return folder


def test_there_are_commands():
    assert "@@" not in README
    assert len(COMMANDS) >= 9
    assert {"make demo", "make test"} <= set(COMMANDS)


def tried(line: str) -> str:
    """What is run in place of a command: make is asked what it would do, main does a dry run."""
    if line.startswith("make "):
        return f"{line} -n"
    if line.startswith("python -m nml_jax.main ") and "--dry_run" not in line:
        return f"{line} --dry_run"
    return line


@pytest.mark.parametrize("line", dict.fromkeys(map(tried, COMMANDS)))
def test_command(line: str, checkout: Path):
    words = shlex.split(line)
    if words[:3] == ["python", "-m", "nml_jax.report"]:
        from tests.stages.test_features import launch

        launch(checkout / "runs" / "digits", stages=("pretrain",))
    if words[:3] == ["python", "-m", "nml_jax.predict"]:
        from tests.stages.test_features import launch

        files = {f"features.{key}": str(checkout / f"{key}.npz") for key in ("train", "test")}
        launch(checkout / "runs" / "features", **files, **{"tune.epochs": 1, "tune.methods": ("nmtune",)})
    if words[0] == "python":
        words[0] = sys.executable
    env = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(words, cwd=checkout, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("code", PYTHON)
def test_python(code: str):
    exec(compile(code, "README.md", "exec"), {})


def test_every_link_leads_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if not target.startswith("http"):
            assert (ROOT / target).exists(), target


def test_help_is_complete_and_imports_nothing_heavy():
    code = (
        "import sys; from nml_jax import main; main.run(['main', '--help']);"
        "assert not {'jax', 'numpy', 'flax', 'tensorflow_datasets'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    for flag in ("--config", "--workdir", "--[no]dry_run", "--force"):
        assert flag in done.stdout
