"""What the benchmarks share: what stands above their numbers, the file that keeps both, and opponents."""

import datetime
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any


def about(*modules: ModuleType, versions: Mapping[str, str] | None = None, **facts: Any) -> dict[str, Any]:
    """When, where, with which versions and of what is measured, printed and returned.

    Args:
        modules: whose versions are told; with JAX among them, its device, too.
        versions: of what runs elsewhere, by name.
        facts: sizes, repeats and the like.
    """
    device = [m.devices()[0].device_kind for m in modules if m.__name__ == "jax"]
    device += [f"{len(os.sched_getaffinity(0))} of {os.cpu_count()} cores", platform.machine()]
    head = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "device": ", ".join([*device, f"load {os.getloadavg()[0]:.1f} at the start"]),
        "versions": {m.__name__: m.__version__ for m in modules}
        | {"python": platform.python_version()}
        | dict(versions or {}),
        **facts,
    }
    print(*(f"{key}: {value}" for key, value in head.items()), sep="\n")
    return head


def write(path: Path, head: Mapping[str, Any], results: Any) -> None:
    """Keep the results, with `about` them and the load at the end."""
    path.parent.mkdir(exist_ok=True)
    told = {**head, "load_at_the_end": round(os.getloadavg()[0], 1), "results": results}
    path.write_text(json.dumps(told, indent=2) + "\n", "utf-8")


class Opponent:
    """PyTorch in a process of its own, which runs a benchmark's script with --serve; see `serve`.

    version: of PyTorch and what belongs to it.
    """

    def __init__(self, python: str, script: str, *args: str, needs: str = "torch"):
        self._needs = needs
        command = [python, script, "--serve", *args]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.version = self._answer()

    def ask(self, question: Any = None) -> Any:
        assert self._process.stdin is not None
        print(json.dumps(question), file=self._process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            sys.exit(f"the opponent did not answer: give --torch-python a Python that has {self._needs}")
        return json.loads(line)


def serve(version: str, answer: Callable[[Any], Any]) -> None:
    """The opponent's side of `Opponent`: its version, then the answers to all questions, a line of JSON each."""
    print(json.dumps(version), flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)
