"""What is printed arrives on every terminal, and never decides how a program ends."""

import io
import subprocess
import sys
from pathlib import Path

import pytest

from nml_jax import console
from tests.launch.shell import LAUNCH, ROOT, clean


def write(text: str, encoding: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return what a terminal of this encoding gets of a printed text."""
    terminal = io.TextIOWrapper(io.BytesIO(), encoding)
    monkeypatch.setattr(sys, "stdout", terminal)
    console.allow_any_terminal()
    console.show(text)
    return terminal.buffer.getvalue().decode(encoding)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [
        ("ascii", "-1.5 +/- 2 x 10^3 caf\\xe9 \\u732b \\udce9\n"),
        ("latin-1", "-1.5 ± 2 × 10³ café \\u732b \\udce9\n"),
        ("utf-8", "−1.5 ± 2 × 10³ café 猫 \\udce9\n"),  # the last is a byte of a file's name that is no UTF-8
    ],
)
def test_a_terminal_shows_what_it_can(encoding: str, shown: str, monkeypatch: pytest.MonkeyPatch):
    assert write("−1.5 ± 2 × 10³ café 猫 \udce9", encoding, monkeypatch) == shown


@pytest.mark.parametrize(
    ("line", "width", "shown"),
    [
        ("seed=0: mlp; about 3:52 left", 80, "seed=0: mlp; about 3:52 left"),
        ("seed=0: mlp, lr 0.001, epoch 11; about 3:52 left", 40, "seed=0: mlp, lr 0.0...; about 3:52 left"),
        ("x" * 50, 20, "x" * 16 + "..."),
        ("猫" * 30, 20, "猫" * 8 + "..."),
    ],
)
def test_a_live_line_stays_on_one_line(line: str, width: int, shown: str):
    assert console.cut_line(line, width) == shown


class Gone(io.StringIO):
    """A terminal that is gone."""

    def write(self, text: str) -> int:
        raise BrokenPipeError


def test_a_terminal_that_is_gone_ends_nothing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "stdout", Gone())
    monkeypatch.setattr(sys, "stderr", Gone())
    console.show("a result")
    console.notice("a line")


@pytest.mark.parametrize(
    "command",
    [
        ["-m", "nml_jax.main", "--help"],
        ["-m", "nml_jax.main", "--config=−猫.py"],
        ["-m", "nml_jax.prepare", "image_folder", "−猫", "out"],
        ["-m", "nml_jax.predict", "−猫", "x.npz"],
        pytest.param(["-m", "nml_jax.report", "−猫"], marks=pytest.mark.slow),
        ["-m", "nml_jax.tokenizer", "train", "−猫", "out.json"],
        [str(LAUNCH / "local.py"), "--dry_run", "--", "--config=−猫.py"],
    ],
    ids=lambda command: " ".join(command[:2]).rpartition("/")[2].split(" ")[-1],
)
def test_every_command_prints_on_an_ascii_terminal(command: list[str], tmp_path: Path):
    env = clean() | {"PYTHONIOENCODING": "ascii:strict", "PYTHONPATH": str(ROOT), "PYTHONUTF8": "1"}
    done = subprocess.run([sys.executable, *command], cwd=tmp_path, env=env, capture_output=True, timeout=60)
    assert done.returncode == (0 if "--help" in command else 2), done.stderr
    assert b"Traceback" not in done.stderr
    assert (done.stdout + done.stderr).isascii()
    assert "--help" in command or b"-\\u732b" in done.stderr


@pytest.mark.slow
def test_an_experiment_whose_reader_is_gone_ends_well(tmp_path: Path):
    command = f"{sys.executable} -m nml_jax.main --config=configs/digits.py --config.noise=0 --dry_run"
    shell = f"{command} --workdir={tmp_path} | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", shell], cwd=ROOT, env=clean(), capture_output=True, text=True, timeout=60)
    assert (done.stdout, "Traceback" in done.stderr, "BrokenPipe" in done.stderr) == ("0\n", False, False), done.stderr
