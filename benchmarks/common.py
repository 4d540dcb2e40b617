"""Shared parts of the benchmarks: flags, the head above their numbers, the results file, and opponents."""

import argparse
import datetime
import io
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any


def make_parser(doc: str | None, results: Path, *, repeats: int, needs: str) -> argparse.ArgumentParser:
    """Return a parser with the flags of a benchmark against PyTorch in a process of its own.

    Args:
        doc: the script's own words.
        results: the file that --write writes.
        repeats: rounds by default.
        needs: what the opponent's Python must have.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=repeats)
    parser.add_argument("--torch-python", default=sys.executable, help=f"a Python that has {needs}")
    parser.add_argument("--write", action="store_true", help=f"write {results.name}")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    return parser


def pin_to_a_core() -> None:
    """Keep this process on one core. Call it before JAX or PyTorch count their threads."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def import_torch() -> Any:
    """Import PyTorch, with one thread, so that timm and transformers can be imported after it."""
    import torch  # pyright: ignore[reportMissingImports]

    torch.set_num_threads(1)
    library = torch.library.Library("torchvision", "DEF")
    for op in ("nms", "qnms"):  # they want these, even if torchvision lacks its compiled part
        library.define(f"{op}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _KEPT.append(library)  # what it defines goes with it
    return torch


_KEPT: list[Any] = []


def print_head(*modules: ModuleType, versions: Mapping[str, str] | None = None, **facts: Any) -> dict[str, Any]:
    """Print and return date, device, versions and facts of a benchmark.

    Args:
        modules: modules whose versions are printed; with JAX among them, also its device.
        versions: versions of programs that run elsewhere, by name.
        facts: sizes, repeats and the like.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # figures have signs that not every terminal knows
        sys.stdout.reconfigure(errors="backslashreplace")
    device = [m.devices()[0].device_kind for m in modules if m.__name__ == "jax"]
    device += [f"{len(os.sched_getaffinity(0))} of {os.cpu_count()} cores", platform.machine()]
    device += [f"niceness {os.nice(0)}"] if os.nice(0) else []
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


def write_results(path: Path, head: Mapping[str, Any], results: Any) -> None:
    """Write the results with the head and the load at the end."""
    path.parent.mkdir(exist_ok=True)
    content = {**head, "load_at_the_end": round(os.getloadavg()[0], 1), "results": results}
    path.write_text(json.dumps(content, indent=2) + "\n", "utf-8")


def merge_results(path: Path, head: Mapping[str, Any], results: Mapping[str, Any]) -> None:
    """Write results by name; those of other names keep what the file says of them, and the head that they had."""
    kept = json.loads(path.read_text("utf-8")) if path.exists() else {"results": {}}
    about = {name: value for name, value in kept.items() if name not in ("results", "measured")}
    measured = dict.fromkeys(kept["results"], about) | kept.get("measured", {}) | dict.fromkeys(results, head)
    write_results(path, {**head, "measured": measured}, {**kept["results"], **results})


class Opponent:
    """PyTorch in a process of its own, which runs a benchmark's script with --serve; see `serve`.

    Attributes:
        version: versions of PyTorch and its libraries.
    """

    def __init__(self, python: str, script: str, *args: str, needs: str = "torch"):
        self._needs = needs
        command = [python, script, "--serve", *args]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.version = self._read_answer()

    def ask(self, question: Any = None) -> Any:
        assert self._process.stdin is not None
        print(json.dumps(question), file=self._process.stdin, flush=True)
        return self._read_answer()

    def _read_answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            sys.exit(f"the opponent did not answer: give --torch-python a Python that has {self._needs}")
        return json.loads(line)


def serve(version: str, answer: Callable[[Any], Any]) -> None:
    """Run the opponent's side of `Opponent`: print the version, then the answer to each question, as lines of JSON."""
    print(json.dumps(version), flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)
