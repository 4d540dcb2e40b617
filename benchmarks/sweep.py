"""Compare sixteen settings of a head in one call with sixteen single runs.

    python benchmarks/sweep.py [--quick] [--repeats=5] [--write]

The settings differ in learning rate, weight decay and weights of the terms. Both sides use spread.train. The single
runs are timed twice: with a compilation each, as in sixteen processes (without import and start-up), and with a shared
compilation. The sweep must compile once and be no slower per run than compiled single runs. On an accelerator it is one
mapped program.
"""

import argparse
import itertools
import statistics
import time
from pathlib import Path

import jax
import numpy as np
from common import print_head, write_results

import nml_jax
from nml_jax.models.heads.mlp import Form
from nml_jax.objectives import nmtune, terms
from nml_jax.tuning import descent, spread
from nml_jax.tuning.descent import Setting, Spec, TrainingSet

RESULTS = Path(__file__).parent / "results" / "sweep.json"
ROWS, DIM, CLASSES, BATCH = 1024, 512, 10, 64


def draw_problem(rows: int) -> tuple[Spec, TrainingSet, list[Setting]]:
    """Return NMTune (`paper`) with two learning rates, two decays and four weights of the singular-value term."""
    rng = np.random.default_rng(0)
    features = np.maximum(rng.normal(size=(rows, 1, DIM)), 0).astype(np.float32)
    labels = rng.integers(0, CLASSES, rows).astype(np.int32)
    settings, form = [], None
    for lr, decay, svd in itertools.product((1e-2, 1e-3), (0.0, 1e-4), (0.01, 0.02, 0.05, 0.1)):
        form, numbers = terms.split("nmtune", nmtune.resolve_weights("paper", 1, svd=svd)[0])
        settings.append(Setting(np.arange(rows), lr, decay, 0, numbers))
    bank = jax.device_put(TrainingSet(features, labels, np.ones(rows, np.float32)))
    return Spec(Form(mlp=True), form, CLASSES, BATCH, standardize=False), bank, settings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few rows, one round, to see that it runs")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS.relative_to(Path(__file__).parent)}")
    args = parser.parse_args()
    rows, repeats = (128, 1) if args.quick else (ROWS, args.repeats)
    spec, bank, settings = draw_problem(rows)
    what = f"NMTune (paper), {rows} × {DIM}, batch {BATCH}, 1 epoch, {len(settings)} settings"
    head = print_head(nml_jax, jax, np, head=what, repeats=repeats)

    def measure(groups: list[list[Setting]]) -> float:
        begun = time.perf_counter()
        for group in groups:
            spread.train(spec, bank, group, rows, epochs=1)
        return time.perf_counter() - begun

    singles = [[setting] for setting in settings]
    first = measure([settings])
    compiled = descent.train_one._cache_size() + spread.compile_mapped.cache_info().currsize  # type: ignore[attr-defined]
    jax.clear_caches()
    alone = measure(singles[:1])
    seconds = [(measure([settings]), measure(singles)) for _ in range(repeats + 1)][1:]
    together, apart = (statistics.median(each) for each in zip(*seconds, strict=True))
    ratio = statistics.median(b / a for a, b in seconds)
    print(
        f"compilations of the sweep: {compiled}; its first call took {first:.2f} s, that of a single run {alone:.2f} s"
    )
    print(f"{len(settings)} settings together {together:.2f} s, one by one {apart:.2f} s: ratio {ratio:.2f}")
    fresh = len(settings) * alone
    print(f"with a compilation for each run about {fresh:.1f} s: {fresh / first:.1f} times as long as the first sweep")
    if args.write:
        found = {"compilations": compiled, "first": first, "first_single": alone, "seconds": seconds, "ratio": ratio}
        write_results(RESULTS, head, found)


if __name__ == "__main__":
    main()
