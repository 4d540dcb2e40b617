"""Measure how many ids per second the noise handles at n = 27 million, and in how much memory.

    python benchmarks/noise.py [--quick] [--repeats=5] [--write]

The opponent is the plain way with the same exact counts: corrupt the first m of `Generator.permutation(n)`. It stores
tables of n. Ours passes over all n ids in blocks and stores nothing but labels, if there are any. Both use one thread
and take turns, timed in CPU seconds, which a busy machine stretches less than wall time.

`decide` finds out for every id whether it is corrupted, `swap` gives every caption its partner, `labels` corrupts int64
labels of 1000 classes. Peaks of memory come from a separate round and do not count the input labels.

At the end a single id is timed: in plain Python integers, and as an array.
"""

import argparse
import statistics
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from common import print_head, write_results

import nml_jax
from nml_jax.noise import CaptionSwap, Permutation, corrupt_labels

RESULTS = Path(__file__).parent / "results" / "noise.json"
CLASSES = 1000


def split_blocks(n: int) -> Iterator[np.ndarray]:
    return (np.arange(start, min(start + 2**18, n)) for start in range(0, n, 2**18))


def decide(n: int, rate: float) -> int:
    permutation, count = Permutation(n, 0), round(rate * n)
    return sum(int((permutation(ids) < count).sum()) for ids in split_blocks(n))


def decide_numpy(n: int, rate: float) -> int:
    corrupted = np.zeros(n, bool)
    corrupted[np.random.default_rng(0).permutation(n)[: round(rate * n)]] = True
    return int(corrupted.sum())


def swap(n: int, rate: float) -> int:
    partner = CaptionSwap(n=n, rate=rate, seed=0)
    return sum(int((partner(ids) != ids).sum()) for ids in split_blocks(n))


def swap_numpy(n: int, rate: float) -> int:
    swapped, partners = np.random.default_rng(0).permutation(n)[: round(rate * n)], np.arange(n)
    partners[swapped] = np.roll(swapped, -1)
    return sum(int((partners[ids] != ids).sum()) for ids in split_blocks(n))


def ours(labels: np.ndarray, rate: float) -> np.ndarray:
    return corrupt_labels(labels, num_classes=CLASSES, rate=rate, seed=0)


def numpys(labels: np.ndarray, rate: float) -> np.ndarray:
    rng, out = np.random.default_rng(0), labels.copy()
    corrupted = rng.permutation(labels.size)[: round(rate * labels.size)]
    out[corrupted] = (labels[corrupted] + rng.integers(1, CLASSES, corrupted.size)) % CLASSES
    return out


def measure_seconds(run: Callable[[], Any]) -> float:
    start = time.thread_time()
    run()
    return time.thread_time() - start


def measure_peak(run: Callable[[], Any]) -> float:
    tracemalloc.start()
    run()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / 1e6


def measure_many(n: int, repeats: int) -> dict[str, Any]:
    labels = np.arange(n) % CLASSES
    pairs: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {}
    for rate in (0.05, 0.3, 1.0):
        pairs[f"decide, {rate:.0%}"] = (lambda r=rate: decide(n, r)), (lambda r=rate: decide_numpy(n, r))
        pairs[f"swap, {rate:.0%}"] = (lambda r=rate: swap(n, r)), (lambda r=rate: swap_numpy(n, r))
        pairs[f"labels, {rate:.0%}"] = (lambda r=rate: ours(labels, r)), (lambda r=rate: numpys(labels, r))
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in pairs}
    for _ in range(repeats):
        for name, (a, b) in pairs.items():
            seconds[name].append((measure_seconds(a), measure_seconds(b)))
    print(f"\n{'million ids/s':<14} {'ours':>7} {'min':>7} {'max':>7} {'NumPy':>7} {'ratio':>6} {'MB':>9} {'NumPy':>7}")
    results = {}
    for name, (a, b) in pairs.items():
        ours_s, numpy_s = zip(*seconds[name], strict=True)
        speed, other = (n / 1e6 / statistics.median(times) for times in (ours_s, numpy_s))
        ratio = statistics.median(y / x for x, y in seconds[name])
        megabytes = measure_peak(a), measure_peak(b)
        slowest, fastest = n / 1e6 / max(ours_s), n / 1e6 / min(ours_s)
        print(
            f"{name:<14} {speed:7.1f} {slowest:7.1f} {fastest:7.1f} {other:7.1f} {ratio:6.2f}"
            f" {megabytes[0]:9.1f} {megabytes[1]:7.1f}"
        )
        results[name] = {"seconds": ours_s, "numpy_seconds": numpy_s, "million_ids_per_s": speed,
                         "numpy_million_ids_per_s": other, "ratio": ratio, "peak_mb": megabytes}  # fmt: skip
    return results


def measure_single(n: int, repeats: int, calls: int) -> dict[str, float]:
    permutation, partner = Permutation(n, 0), CaptionSwap(n=n, rate=0.3, seed=0)
    ids = range(0, n, n // calls)
    swapped = permutation.inverse(np.arange(calls)).tolist()
    kinds: dict[str, Callable[[], Any]] = {
        "rank of an id": lambda: [permutation(i) for i in ids],
        "partner at 30 %": lambda: [partner(i) for i in ids],
        "partner of a swapped id": lambda: [partner(i) for i in swapped],
        "partner at 30 %, as an array": lambda: [partner(np.array([i])) for i in ids],
    }
    rounds = [{name: measure_seconds(run) / len(ids) * 1e6 for name, run in kinds.items()} for _ in range(repeats)]
    medians = {name: statistics.median(r[name] for r in rounds) for name in kinds}
    print("\nmicroseconds for one id", *(f"{name:<30} {us:6.2f}" for name, us in medians.items()), sep="\n")
    return medians


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="n = 2 million, to see that it runs")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS.relative_to(Path(__file__).parent)}")
    args = parser.parse_args()
    n = 2_000_000 if args.quick else 27_000_000

    head = print_head(nml_jax, np, threads=1, n=n, repeats=args.repeats)
    results = {"many": measure_many(n, args.repeats), "microseconds_single": measure_single(n, args.repeats, 10_000)}
    if args.write:
        write_results(RESULTS, head, results)


if __name__ == "__main__":
    main()
