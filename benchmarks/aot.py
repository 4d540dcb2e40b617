"""Compile every full-size config for 64 and for 256 chips of a v5e, and print the table of docs/benchmarks.md.

    python benchmarks/aot.py            print the table of benchmarks/results/aot.json
    python benchmarks/aot.py --write    compile what the file lacks, one after another; with --again, everything

It needs the extra `tpu`, but no TPU. Each compilation is a process of its own (launch/aot.py) and takes minutes, even
with the compiler's least effort. The file is written after each, so an interrupted call continues where it stopped. A
step that does not fit is a result, too.
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
# Procedure a1 compiles to the same program as a2; only its run is twice as long.
CONFIGS = ("clip_r50.py", "vitb16_in1k.py", "clip_vitb16.py", "resnet50_in1k.py:a2", "resnet50_in1k.py:a3")
TOPOLOGIES = ("v5e:8x8", "v5e:16x16")


def run_aot(config: str, topology: str) -> dict[str, Any]:
    """Run launch/aot.py and return its result, or its error."""
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


def format_table(results: dict[str, dict[str, Any]]) -> str:
    """Format the results as a table in Markdown."""
    lines = [
        "| config | slice | batch | GiB per chip | TFLOP per chip and step | sent per chip and step, MB "
        "| step, ms (bound by) | examples/s | hours | chip-hours |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, result in results.items():
        config, _, topology = name.partition(" ")
        if "error" in result:
            lines.append(f"| `{config}` | {topology} | {result['error'].splitlines()[0].removeprefix('error: ')} |")
            continue
        step, sent = result["seconds"], sum(row["sent"] for row in result["collectives"])
        lines.append(
            f"| `{config}` | {topology} | {result['batch']:,} | {result['memory']['total'] / 2**30:.1f} "
            f"| {result['flop']['executed'] / 1e12:.2f} | {sent / 1e6:,.0f} "
            f"| {1e3 * step['step']:.0f} ({step['bound']}) | {result['examples_per_s']:,.0f} | {result['hours']:,.1f} "
            f"| {result['chip_hours']:,.0f} |"
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
                results[name] = run_aot(config, topology)
                RESULTS.write_text(json.dumps(results, indent=2) + "\n", "utf-8")
    print(format_table(results))


if __name__ == "__main__":
    main()
