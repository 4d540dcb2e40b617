"""Check the documents about launching: their commands work, and their table of exit codes is right."""

import re
import shlex

import pytest

from tests.launch.shell import LAUNCH, load, printed
from tests.scenes.documents import DOCS, commands, launches

GUIDE = (DOCS / "guides" / "launch.md").read_text("utf-8")
OURS = [line for line in commands() if launches(line)]


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


@pytest.mark.parametrize(
    ("code", "word"), [(0, "done"), (75, "resume"), (76, "restart"), (77, "stop"), (2, "stop"), (1, "stop")]
)
def test_the_table_of_ends(code: int, word: str):
    shown = {"done": "end", "resume": "start again", "restart": "start again", "stop": "stop"}
    (row,) = [line for line in GUIDE.splitlines() if re.match(rf"\| ({code}|{'else' if code == 1 else code})\b", line)]
    assert row.split("|")[3].strip().startswith(shown[word])
    assert load("exits").decide([code])[0] == word
