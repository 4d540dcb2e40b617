"""Fill the accelerator column of docs/benchmarks.md: measure everything that is compiled, on whatever JAX finds.

    python benchmarks/accelerator.py [--tiny] [--parts=NAME,...] [--json=FILE] [--torch-python=PATH]

It takes at most nine minutes on one GPU, and needs no data: all of it is drawn or generated. Parts run one after
another in a worker process, each under its own time limit. A worker that goes over it is killed, and a new one goes on
with the next part. Each figure is written to the JSON file as soon as it is known. At the end comes one table.

- resnet50, vit_b16, clip_vitb16: training steps at 224 px in bfloat16, three batch sizes each. MFU is the model's FLOP,
  as XLA counts them before compilation, over the published dense peak of the chip. Memory is the compiler's figure.
- loop: milliseconds that the training loop adds to a step.
- heads: steps of single heads on 20,000 x 768 features, and a sweep of 64 of them in one program.
- spectra: singular values of 1,281,167 x 2048 features.
- contrastive: value and gradient of the contrastive loss, from 16,384 pairs on, doubled until memory or time is up.
- extraction: JPEGs to the features of ViT-B/16, with the input pipeline; the pipeline alone; the encoder alone.
- torch_*: the same training steps in PyTorch with torch.compile and channels-last. They run only where a PyTorch with
  CUDA can be imported (by --torch-python; default: this Python).

--tiny runs the same parts with tiny models and few steps, to see that they run: its figures mean nothing.
"""

import argparse
import datetime
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "accelerator.json"
TOTAL = 535.0  # seconds
# Seconds of each part. Compiling a training step takes most of its time.
LIMITS = {
    "resnet50": 90.0,
    "vit_b16": 65.0,
    "clip_vitb16": 75.0,
    "loop": 25.0,
    "heads": 40.0,
    "spectra": 35.0,
    "contrastive": 35.0,
    "extraction": 40.0,
    "torch_resnet50": 45.0,
    "torch_vit_b16": 40.0,
    "torch_clip_vitb16": 45.0,
}
STARTED = "start"  # of a worker: imports, and finding the devices
START_LIMIT = 60.0


class Worker:
    """A process that measures parts, and tells each figure in a line of JSON."""

    def __init__(self, command: list[str]):
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, encoding="utf-8")
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                self._lines.put(line)
        self._lines.put(None)

    def read(self, seconds: float) -> dict[str, Any] | None:
        """Return what it says next, or None if it has ended.

        Raises:
            TimeoutError: it has said nothing for that time.
        """
        try:
            line = self._lines.get(timeout=max(seconds, 0))
        except queue.Empty:
            raise TimeoutError from None
        return None if line is None else json.loads(line)

    def stop(self) -> int:
        self._process.kill()
        return self.wait()

    def wait(self) -> int:
        self._reader.join(5)
        return self._process.wait()


class Record:
    """All results so far, written with each change."""

    def __init__(self, file: Path, tiny: bool):
        self.file = file
        self.content: dict[str, Any] = {
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"), "tiny": tiny, "workers": {},
            "parts": {},
        }  # fmt: skip

    def part(self, name: str) -> dict[str, Any]:
        return self.content["parts"].setdefault(name, {"limit": LIMITS[name], "seconds": 0.0, "rows": []})

    def write(self) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        new = self.file.with_name(self.file.name + ".part")
        new.write_text(json.dumps(self.content, indent=2) + "\n", "utf-8")
        os.replace(new, self.file)


def run_parts(record: Record, names: list[str], script: str, python: str, flags: list[str], deadline: float) -> None:
    """Measure parts in workers that run a script; whatever happens to one of them, the next is measured."""
    todo = list(names)
    while todo:
        worker = Worker([python, str(HERE / script), *flags, f"--parts={','.join(todo)}"])
        current: str | None = None
        begun, limit = time.monotonic(), START_LIMIT
        while True:
            try:
                said = worker.read(min(begun + limit, deadline) - time.monotonic())
            except TimeoutError:
                worker.stop()
                late = time.monotonic() >= deadline
                why = f"the {TOTAL:.0f} s of all parts are over" if late else f"its limit of {limit:.0f} s is over"
                _end(record, todo, current, begun, {"stopped": why})
                if late or current is None:
                    for name in todo:
                        _end(record, todo[:], name, time.monotonic(), {"stopped": "not run: " + why})
                    return
                break
            if said is None:
                code = worker.wait()
                if not todo:
                    return
                ended = {"failed": f"the worker ended with code {code}"}
                _end(record, todo, current or todo[0], begun, ended)
                break
            if said["part"] == STARTED:
                record.content["workers"][script] = said["row"]
            elif "row" in said:
                record.part(said["part"])["rows"].append(said["row"])
                record.part(said["part"])["seconds"] = round(time.monotonic() - begun, 2)
            elif "end" in said:
                _end(record, todo, said["part"], begun, said["end"])
                current = None
            else:  # it begins
                current, begun, limit = said["part"], time.monotonic(), LIMITS[said["part"]]
                record.part(said["part"])
            record.write()


def _end(record: Record, todo: list[str], name: Any, begun: float, how: dict[str, Any]) -> None:
    """Note how a part has ended, and take it off the list."""
    if name is None:
        return
    record.part(name).update(how, seconds=round(time.monotonic() - begun, 2))
    if name in todo:
        todo.remove(name)
    record.write()


UNITS = {
    "examples_per_s": "{:,.0f} examples/s",
    "mfu": "MFU {:.1%}",
    "ms": "{:,.2f} ms",
    "seconds": "{:,.3f} s",
    "heads_per_s": "{:,.2f} heads/s",
    "tflop_per_s": "{:,.1f} TFLOP/s",
    "memory": "{:,.2f} GiB",
    "compile_seconds": "compiled in {:,.1f} s",
    "sve": "SVE {:.6f}",
    "times_torch": "{:.2f} × PyTorch",
}


def compare(parts: dict[str, Any]) -> None:
    """Set beside each of our steps how many times PyTorch's examples a second it does, if the networks are the same."""
    for name, part in parts.items():
        theirs = {row["case"]: row for row in parts.get(f"torch_{name}", {}).get("rows", ())}
        for row in part["rows"]:
            other = theirs.get(row["case"], {})
            if "examples_per_s" not in row or "examples_per_s" not in other:
                continue
            if row["parameters"] == other["parameters"]:
                row["times_torch"] = row["examples_per_s"] / other["examples_per_s"]
            else:
                row["note"] = f"not PyTorch's network, which has {other['parameters']:,} parameters"


def format_table(content: dict[str, Any]) -> str:
    """Format all results as one table."""
    lines = [f"{'part':<18} {'case':<34} result"]
    for name, part in content["parts"].items():
        for row in part["rows"]:
            shown = [form.format(row[key]) for key, form in UNITS.items() if row.get(key) is not None]
            shown += [row["note"]] if "note" in row else []
            lines.append(f"{name:<18} {row['case']:<34} {', '.join(shown)}")
        for how in ("skipped", "stopped", "failed"):
            if how in part:
                lines.append(f"{name:<18} {how:<34} {part[how]}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="tiny models and few steps, to see that it runs")
    parser.add_argument("--parts", default=",".join(LIMITS), help="names, with commas between them; default: all")
    parser.add_argument("--json", type=Path, help=f"where to write; default: {RESULTS.relative_to(HERE.parent)}")
    parser.add_argument("--torch-python", default=sys.executable, help="a Python that has torch with CUDA")
    parser.add_argument("--torch-device", default="cuda", help="cpu only to see that the steps are the same")
    args = parser.parse_args()
    names = args.parts.split(",")
    if unknown := [name for name in names if name not in LIMITS]:
        parser.error(f"there is no part {unknown[0]!r}: choose from {', '.join(LIMITS)}")
    file = args.json or (Path(tempfile.gettempdir()) / "accelerator_tiny.json" if args.tiny else RESULTS)
    record, deadline = Record(file, args.tiny), time.monotonic() + TOTAL
    flags = ["--tiny"] * args.tiny
    ours, theirs = ([n for n in names if n.startswith("torch_") == torch] for torch in (False, True))
    run_parts(record, ours, "accelerator_parts.py", sys.executable, flags, deadline)
    flags += [f"--device={args.torch_device}"]
    run_parts(record, theirs, "accelerator_torch.py", args.torch_python, flags, deadline)
    compare(record.content["parts"])
    record.write()
    for worker in record.content["workers"].values():
        print(*(f"{key}: {value}" for key, value in worker.items()), sep="\n")
    print(f"\n{format_table(record.content)}\n\nwritten to {file}")
    if any("failed" in part for part in record.content["parts"].values()):
        sys.exit(1)


if __name__ == "__main__":
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    main()
