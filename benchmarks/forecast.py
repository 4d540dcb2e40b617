"""Compare what a run of configs/features.py takes with what it expected at its start, on generated features.

    python benchmarks/forecast.py [--sizes=1000x512,3000x1536,10000x768] [--parts] [--write]

Every file has ten classes: clusters around means, with a covariance whose eigenvalues fall by a factor of about 3,000,
and a test file of another domain, moved and scaled. The first estimate is that of the run itself, before anything is
compiled. --parts prints every part of the job: expected and measured seconds.
"""

import argparse
import re
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from common import print_head, write_results

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results" / "forecast.json"
CLASSES, TEST_ROWS, DISTANCE = 10, 2000, 0.32  # so far apart that logistic regression gets about 80 %


def draw(rows: int, dim: int, folder: Path) -> dict[str, str]:
    """Write files to train on, of the same domain and of another one; return the keys of the config that name them."""
    rng = np.random.default_rng(0)
    rank = min(dim, 768)
    basis = np.linalg.qr(rng.normal(size=(dim, rank)))[0].T
    sd = (1 + np.arange(rank)) ** -0.6
    means = DISTANCE * rng.normal(size=(CLASSES, rank)) * sd
    means[:, 64:] *= 0.3
    scales, moves = 1 + 0.2 * rng.normal(size=rank), 0.7 * sd * rng.normal(size=rank)
    keys = {}
    for key, n, far in (("train", rows, False), ("test", TEST_ROWS, False), ("ood", TEST_ROWS, True)):
        y = rng.integers(0, CLASSES, n)
        z = means[y] + sd * rng.normal(size=(n, rank))
        z = z * scales + moves if far else z
        x = z @ basis + 0.02 * rng.normal(size=(n, dim))
        np.savez(folder / f"{key}.npz", features=x.astype(np.float32), labels=y)
        keys[f"features.{key}"] = str(folder / f"{key}.npz")
    return keys


def run(rows: int, dim: int) -> dict[str, Any]:
    """Run the config; return expected and measured seconds, and those of the first verdict."""
    from configs import features
    from nml_jax import console, main
    from nml_jax.processes import forecast

    made: list[Any] = []

    class Kept(forecast.Forecast):
        def __init__(self, parts: Any):
            super().__init__(parts)
            self.expected = dict(parts)
            made.append(self)

    forecast.Forecast = Kept
    lines: list[tuple[float, str]] = []
    with tempfile.TemporaryDirectory() as folder:
        config = features.get_config()
        with config.unlocked():
            config.update_from_flattened_dict(draw(rows, dim, Path(folder)))
        begun, cpu = time.perf_counter(), time.process_time()
        said, console.notice = console.notice, lambda text: lines.append((time.perf_counter() - begun, text))
        try:
            main.launch(config, Path(folder) / "run", pinned={})
        finally:
            console.notice = said
        seconds, cpu = time.perf_counter() - begun, time.process_time() - cpu
    (own,) = made
    told = {
        name: next((at for at, line in lines if name in line), None) for name in ("first estimate", "first verdict")
    }
    parts = {name: [expected, own.spent.get(name)] for name, expected in own.expected.items()}
    first = sum(own.expected.values())
    return {"rows": rows, "dim": dim, "expected": first, "seconds": seconds, "cpu": cpu, "told": told, "parts": parts}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="1000x512,3000x1536,10000x768", help="rows × features")
    parser.add_argument("--parts", action="store_true")
    parser.add_argument("--write", action="store_true", help="write results/forecast.json")
    args = parser.parse_args()
    sys.path.insert(0, str(ROOT))  # for the configs
    import nml_jax

    head = print_head(nml_jax, jax, np)
    results = []
    for size in args.sizes.split(","):
        found = run(*map(int, re.split("[x×]", size)))
        results.append(found)
        told = ", ".join(f"{name} after {at:.1f} s" for name, at in found["told"].items() if at is not None)
        print(
            f"{size}: expected {found['expected']:.0f} s, took {found['seconds']:.0f} s ({found['cpu']:.0f} of CPU), "
            f"ratio {found['seconds'] / found['expected']:.2f}; {told}"
        )
        for name, (expected, spent) in found["parts"].items() if args.parts else ():
            print(f"  {name:<28} expected {expected:7.1f} s, took {spent or 0:7.1f} s", flush=True)
    print(f"median ratio {statistics.median(x['seconds'] / x['expected'] for x in results):.2f}")
    if args.write:
        write_results(RESULTS, head, results)


if __name__ == "__main__":
    main()
