"""Measure speed and accuracy of the singular values of 10,000 × 2048 features.

    python benchmarks/spectrum.py [--quick] [--repeats=5] [--kinds=KIND ...] [--write]

The opponents are numpy.linalg.svd (without vectors) and scikit-learn's TruncatedSVD with as many components as features
(its default algorithm, "randomized"; "arpack" allows at most one component less). All run in one process and take turns
in every round, so that a busy machine slows all of them. The well-conditioned features are Gaussian. `code` is the same
in the mode of the released code. For three kinds one Gram matrix is not accurate enough: `steep` has σ from 1 to
exp(-100), `falling` from 1 to exp(-18), and of `deficient` an eighth is zero. `device` is float32, too: its `jitted` is
the route of accelerators, a JAX array that a compiled program reduces to D × D in float64, on one device of this CPU
and on eight simulated ones. Seconds are wall time; CPU seconds are those of all threads. Kinds that are left out keep
their results in the file, with their own date and machine.
"""

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import scipy
import sklearn
import threadpoolctl
from common import merge_results, print_head
from sklearn.decomposition import TruncatedSVD

import nml_jax
from nml_jax.spectrum import PRESETS, SpectrumMeter, device, singular_values, sve
from nml_jax.spectrum.rows import Kind

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)

RESULTS = Path(__file__).parent / "results" / "spectrum.json"


def features(n: int, d: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    F = rng.standard_normal((n, d))
    u, v = np.linalg.qr(F)[0], np.linalg.qr(rng.standard_normal((d, d)))[0]
    falls = {"steep": np.exp(np.linspace(0, -100, d)), "falling": np.exp(np.linspace(0, -18, d)),
             "deficient": 1.0 * (np.arange(d) < d - d // 8)}  # fmt: skip
    hidden = {name: u * fall @ v.T for name, fall in falls.items()}
    return {"float64": F, **dict.fromkeys(("float32", "code", "device"), F.astype(np.float32)), **hidden}


def metered(F: np.ndarray) -> np.ndarray:
    meter = SpectrumMeter(F.shape[1])
    for i in range(0, len(F), 256):
        meter.update(F[i : i + 256])
    return meter.result()


def svd(F: np.ndarray) -> np.ndarray:
    return np.linalg.svd(F, compute_uv=False)


def truncated_svd(F: np.ndarray) -> np.ndarray:
    return TruncatedSVD(n_components=F.shape[1], random_state=0).fit(F).singular_values_


def jitted(F: np.ndarray, devices: int = 1) -> np.ndarray:
    """Reduce rows that lie on devices, as `singular_values` does on accelerators."""
    mode = Kind(None, None, exact=False)
    (sums,) = device.reduce_rows(place(F, devices)[None], np.ones(len(F), bool), mode)
    return SpectrumMeter.from_reduction(sums, mode).result()


def jitted_on_8(F: np.ndarray) -> np.ndarray:
    return jitted(F, 8)


def place(F: np.ndarray, devices: int) -> jax.Array:
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:devices]), ("rows",))
    return jax.device_put(F, jax.NamedSharding(mesh, jax.P("rows")))


def code(F: np.ndarray) -> np.ndarray:
    return singular_values(F, **PRESETS["code"])


def code_svd(F: np.ndarray) -> np.ndarray:
    F = F / np.linalg.norm(F.astype(np.float64), axis=1, keepdims=True)
    return svd(F - F.mean(axis=1, keepdims=True))


# Functions for each kind of features: ours, then the reference for its error, then the rest.
ROUNDS = {
    "float64": (singular_values, svd, truncated_svd, metered),
    "float32": (singular_values, svd, truncated_svd, metered),
    "code": (code, code_svd),
    "device": (singular_values, svd, jitted, jitted_on_8),
    "steep": (singular_values, svd),
    "falling": (singular_values, svd),
    "deficient": (singular_values, svd),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="1,504 × 256, to see that it runs")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--kinds", nargs="+", choices=ROUNDS, default=list(ROUNDS))
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS.relative_to(Path(__file__).parent)}")
    args = parser.parse_args()
    n, d = (1504, 256) if args.quick else (10_000, 2048)

    blas = sorted({f"{p['internal_api']} {p['version']}, {p['num_threads']} threads" for p in _pools()})
    head = print_head(nml_jax, np, scipy, sklearn, blas=blas, shape=[n, d], repeats=args.repeats)

    results = {}
    for kind, F in features(n, d).items():
        if kind not in args.kinds:
            continue
        seconds: dict[str, list[float]] = {run.__name__: [] for run in ROUNDS[kind]}
        cpu: dict[str, list[float]] = {run.__name__: [] for run in ROUNDS[kind]}
        spectra = {run.__name__: run(F[:64, :32]) for run in ROUNDS[kind]}  # first calls load libraries
        for run in (jitted, jitted_on_8):
            if run in ROUNDS[kind]:
                run(F)  # compiles
        for _ in range(args.repeats):
            for run in ROUNDS[kind]:
                start, spent = time.perf_counter(), time.process_time()
                spectra[run.__name__] = run(F)
                cpu[run.__name__].append(time.process_time() - spent)
                seconds[run.__name__].append(time.perf_counter() - start)
        ours, truth = ROUNDS[kind][0].__name__, spectra[ROUNDS[kind][1].__name__].astype(np.float64)
        print(f"\n{kind:<16} {'median s':>9} {'min':>8} {'max':>8} {'× ours':>7} {'CPU s':>8} {'SVE off by':>11}")
        results[kind] = {}
        for name, times in seconds.items():
            median = statistics.median(times)
            ratio, off = median / statistics.median(seconds[ours]), abs(float(sve(spectra[name]) - sve(truth)))
            print(f"{name:<16} {median:9.3f} {min(times):8.3f} {max(times):8.3f} {ratio:7.2f} "
                  f"{statistics.median(cpu[name]):8.3f} {off:11.1e}")  # fmt: skip
            results[kind][name] = {"seconds": times, "median": median, "times_ours": ratio, "cpu_seconds": cpu[name],
                                   "sve_off_by": off}  # fmt: skip
    if args.write:
        merge_results(RESULTS, head, results)


def _pools() -> list[dict[str, Any]]:
    return [pool for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "blas"]


if __name__ == "__main__":
    main()
