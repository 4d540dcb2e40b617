"""Check launch/README.md: its commands work, its links exist, and its table of exit codes is right."""

import re
import shlex

import pytest

from tests.launch.shell import LAUNCH, load, printed

README = (LAUNCH / "README.md").read_text("utf-8")
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL) for line in block.splitlines() if line]
OURS = [line for line in COMMANDS if "launch/" in line and not line.startswith("docker")]


def test_every_launcher_is_shown():
    shown = {match for line in OURS for match in re.findall(r"launch/([\w.]+)", line)}
    scripts = {path.name for path in LAUNCH.iterdir() if path.suffix in (".sh", ".sbatch")}
    scripts |= {"local.py", "ray_job.py", "sweep.py"}
    assert shown == scripts - {"lib.sh", "on_worker.sh"}, "these two are not called by hand"


@pytest.mark.parametrize("line", OURS)
def test_command(line: str):
    """Run every command with --dry_run."""
    words = shlex.split(line)
    at = next(i for i, word in enumerate(words) if word.startswith("launch/"))
    commands = printed(words[at].removeprefix("launch/"), "--dry_run", *words[at + 1 :])
    assert commands


def test_every_link_leads_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("https://") or (LAUNCH / target).exists(), target


@pytest.mark.parametrize(
    ("code", "word"), [(0, "done"), (75, "resume"), (76, "restart"), (77, "stop"), (2, "stop"), (1, "stop")]
)
def test_the_table_of_ends(code: int, word: str):
    shown = {"done": "end", "resume": "start again", "restart": "start again", "stop": "stop"}
    (row,) = [line for line in README.splitlines() if re.match(rf"\| ({code}|{'else' if code == 1 else code})\b", line)]
    assert row.split("|")[3].strip().startswith(shown[word])
    assert load("exits").decide([code])[0] == word
