"""Every full-size config, compiled for 64 and for 256 chips of a v5e: the table in docs/benchmarks.md.

    python benchmarks/aot.py            the table, of benchmarks/results/aot.json
    python benchmarks/aot.py --write    compile what the file lacks, one after another; --again: all of it

Needs the extra `tpu`, no TPU. A compilation is a process of its own (launch/aot.py) and takes minutes, although the
compiler is asked for its least effort. The file is written after each, so that an interrupted call goes on where it
was. A step that does not fit is a result, too.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).parent / "results" / "aot.json"
# Procedure a1 differs from a2 in numbers alone: the program is the same, the run is twice as long.
CONFIGS = ("clip_r50.py", "vitb16_in1k.py", "clip_vitb16.py", "resnet50_in1k.py:a2", "resnet50_in1k.py:a3")
TOPOLOGIES = ("v5e:8x8", "v5e:16x16")


def compiled(config: str, topology: str) -> dict[str, Any]:
    """What launch/aot.py says, or its error."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "result.json"
        command = [
            sys.executable,
            str(ROOT / "launch" / "aot.py"),
            f"--config={ROOT / 'configs' / config}",
            "--effort=-1",
        ]
        done = subprocess.run(
            [*command, f"--topology={topology}", f"--json={file}"], stderr=subprocess.PIPE, text=True, check=False
        )
        if done.returncode == 2:
            return {"error": done.stderr.strip()}
        done.check_returncode()
        return json.loads(file.read_text("utf-8"))


def table(results: dict[str, dict[str, Any]]) -> str:
    """The results in Markdown."""
    lines = [
        "| config | slice | batch | GiB per chip | TFLOP per chip and step | sent per chip and step, MB "
        "| step, ms (bound by) | examples/s | hours | chip-hours |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, told in results.items():
        config, _, topology = name.partition(" ")
        if "error" in told:
            lines.append(f"| `{config}` | {topology} | {told['error'].splitlines()[0].removeprefix('error: ')} |")
            continue
        step, sent = told["seconds"], sum(row["sent"] for row in told["collectives"])
        lines.append(
            f"| `{config}` | {topology} | {told['batch']:,} | {told['memory']['total'] / 2**30:.1f} "
            f"| {told['flop']['executed'] / 1e12:.2f} | {sent / 1e6:,.0f} "
            f"| {1e3 * step['step']:.0f} ({step['bound']}) | {told['examples_per_s']:,.0f} | {told['hours']:,.1f} "
            f"| {told['chip_hours']:,.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="compile what is missing")
    parser.add_argument("--again", action="store_true", help="compile all of it")
    args = parser.parse_args()
    results = json.loads(RESULTS.read_text("utf-8")) if RESULTS.exists() else {}
    for topology in TOPOLOGIES if args.write or args.again else ():
        for config in CONFIGS:
            name = f"{config} {topology}"
            if args.again or name not in results:
                print(f"{name} ...", file=sys.stderr, flush=True)
                results[name] = compiled(config, topology)
                RESULTS.write_text(json.dumps(results, indent=2) + "\n", "utf-8")
    print(table(results))


if __name__ == "__main__":
    main()
