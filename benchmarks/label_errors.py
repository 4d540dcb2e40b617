"""Find wrong labels that we laid on ourselves, beside cleanlab.

    python benchmarks/label_errors.py FEATURES [--sets=pacs_photo/mnv1,...] [--speed] [--write]

FEATURES is a folder of frozen features: `pacs_photo.npz`, `pacs_art_painting.npz`, `flowers5.npz` (its training rows)
and `cifar10_first5k.npz` (the same). `corrupt_labels` makes 5, 10 and 30 % of their labels wrong: symmetric, pair, and
asymmetric among the first half of the classes (there the rate is a share of these classes' rows). A suspect is right if
its label was changed. Labels that were wrong before count against both sides.

cleanlab (`pip install cleanlab`) runs `find_label_issues` with its defaults on cross-validated probabilities of the
same probe on the same folds: first with the penalty that we use ("same"), chosen by accuracy, then with the one of
lowest log loss ("log loss"), whose probabilities are the best calibrated.

--speed instead measures `find_label_errors` on 20,000 × 768 with 10 and with 100 classes, in seconds of CPU and wall.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import scipy
import sklearn
from common import print_head, write_results
from scipy.special import log_softmax, softmax

import nml_jax
from nml_jax.processes.limits import limit_blas
from nml_jax.tuning import label_errors, probes

RESULTS = Path(__file__).parent / "results" / "label_errors.json"
KINDS, RATES, FOLDS = ("symmetric", "asymmetric", "pair"), (0.05, 0.1, 0.3), 5
SIDES = ("ours", "cleanlab, same", "cleanlab, log loss")


def read_sets(folder: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return features float32 [N, D] and labels [N] of every set and network."""
    out = {}
    for name in ("pacs_photo", "pacs_art_painting", "flowers5"):
        content = dict(np.load(folder / f"{name}.npz"))
        used = ~content["is_test"].astype(bool) if "is_test" in content else slice(None)
        for network in ("mnv1", "mnv2"):
            features = content[network].astype(np.float32) * content[f"{network}_scale"]
            out[f"{name}/{network}"] = features[used], content["labels"].astype(int)[used]
    content = dict(np.load(folder / "cifar10_first5k.npz"))
    out["cifar10/mnv1"] = content["train"].astype(np.float32), content["train_y"].astype(int)
    return out


def lay_noise(labels: np.ndarray, kind: str, rate: float) -> np.ndarray:
    """Return noisy labels."""
    k = int(labels.max()) + 1
    own: dict[str, Any] = {"classes": range((k + 1) // 2), "rate_of": "classes"} if kind == "asymmetric" else {}
    return nml_jax.corrupt_labels(labels, num_classes=k, seed=0, kind=kind, rate=rate, **own)


def ask_cleanlab(X: np.ndarray, given: np.ndarray) -> dict[str, np.ndarray]:
    """Return what cleanlab suspects, bool [N], for each penalty."""
    from cleanlab.filter import find_label_issues  # pyright: ignore[reportMissingImports]

    k, X = int(given.max()) + 1, label_errors.standardize(X)
    folds = label_errors.split_folds(given, FOLDS, seed=0)
    logits = np.empty((len(label_errors.CS), len(given), k))
    with limit_blas():
        for train, test in folds:
            fitted = probes.fit_lbfgs(X[train], given[train], label_errors.CS, num_classes=k, tol=label_errors.CLOSE)
            logits[:, test] = [log_softmax(probe(X[test]), 1) for probe in fitted]
    seen = np.concatenate([test for _, test in folds[: -(-label_errors.TUNED * FOLDS // len(given))]])
    right = [(z[seen].argmax(1) == given[seen]).sum() for z in logits]
    loss = [-z[np.arange(len(given)), given].mean() for z in logits]
    best = {SIDES[1]: int(np.argmax(right)), SIDES[2]: int(np.argmin(loss))}
    return {side: find_label_issues(given, softmax(logits[i], 1), n_jobs=1) for side, i in best.items()}


def score(suspected: np.ndarray, bad: np.ndarray) -> dict[str, float]:
    """Return precision, recall and F1 in percent."""
    hits = float((suspected & bad).sum())
    precision, recall = hits / max(suspected.sum(), 1), hits / bad.sum()
    return {"precision": 100 * precision, "recall": 100 * recall,
            "f1": 200 * precision * recall / max(precision + recall, 1e-9)}  # fmt: skip


def compare(sets: dict[str, tuple[np.ndarray, np.ndarray]]) -> list[dict[str, Any]]:
    """Return a line for every set, kind and rate."""
    lines = []
    for name, (X, y) in sets.items():
        for kind in KINDS:
            for rate in RATES:
                given = lay_noise(y, kind, rate)
                bad, start = given != y, time.process_time()
                ours = nml_jax.find_label_errors(X, given)
                suspected = {"ours": ours.wrong > 0.5}
                seconds = time.process_time() - start
                suspected |= ask_cleanlab(X, given)
                line = {"set": name, "kind": kind, "rate": rate, "wrong": float(bad.mean()), "share": ours.share,
                        "interval": ours.interval, "cpu_seconds": seconds,
                        **{side: score(found, bad) for side, found in suspected.items()}}  # fmt: skip
                lines.append(line)
                told = "  ".join(f"{side} " + "/".join(f"{x:.1f}" for x in line[side].values()) for side in SIDES)
                low, high = ours.interval
                print(f"{name} {kind} {rate:g}: {told}  share {ours.share:.4f} ({low:.4f} to {high:.4f}), "
                      f"is {bad.mean():.4f}, {seconds:.1f} s", flush=True)  # fmt: skip
    return lines


def summarise(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the means by kind and rate, and over all."""
    groups = {"all": lines}
    for line in lines:
        groups.setdefault(f"{line['kind']} {line['rate']:g}", []).append(line)
    means = {
        name: {side: {metric: float(np.mean([line[side][metric] for line in of])) for metric in of[0][side]}
               for side in SIDES}
        for name, of in groups.items()
    }  # fmt: skip
    covered = np.mean([line["interval"][0] <= line["wrong"] <= line["interval"][1] for line in lines])
    error = np.mean([abs(line["share"] - line["wrong"]) for line in lines])
    return {
        "means": means,
        "intervals_that_cover": float(covered),
        "mean_absolute_error_of_share": float(error),
    }


def measure_speed() -> list[dict[str, float]]:
    """Return the time of 20,000 × 768 with 10 % of wrong labels, compilation included."""
    lines = []
    for k in (10, 100):
        rng = np.random.default_rng(0)
        y = rng.integers(0, k, 20_000)
        X = rng.standard_normal((20_000, 768), np.float32) * np.arange(1, 769, dtype=np.float32) ** -0.5
        X[:, :64] += 0.6 * rng.standard_normal((k, 64), np.float32)[y] * np.arange(1, 65, dtype=np.float32) ** -0.5
        given = nml_jax.corrupt_labels(y, num_classes=k, seed=0, rate=0.1)
        cpu, wall = time.process_time(), time.perf_counter()
        found = nml_jax.find_label_errors(X, given)
        line = {"classes": k, "cpu_seconds": time.process_time() - cpu, "seconds": time.perf_counter() - wall,
                **score(found.wrong > 0.5, given != y), "share": found.share}  # fmt: skip
        print(line, flush=True)
        lines.append(line)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("features", type=Path, help="folder of the features")
    parser.add_argument("--sets", default="", help="only these, separated by commas")
    parser.add_argument("--speed", action="store_true", help="measure the time in place of comparing")
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS.relative_to(Path(__file__).parent)}")
    args = parser.parse_args()
    if args.speed:
        print_head(nml_jax, jax, np, scipy, sklearn)
        measure_speed()
        return
    import cleanlab  # pyright: ignore[reportMissingImports]

    head = print_head(nml_jax, jax, np, scipy, sklearn, cleanlab, kinds=KINDS, rates=RATES)
    sets = read_sets(args.features)
    lines = compare({name: sets[name] for name in args.sets.split(",") if name} or sets)
    results = summarise(lines)
    for name, means in results["means"].items():
        print(f"{name:>16}", *(f"{side}: " + "/".join(f"{x:.1f}" for x in means[side].values()) for side in SIDES))
    print({key: value for key, value in results.items() if key != "means"})
    if args.write:
        write_results(RESULTS, head, {**results, "lines": lines})


if __name__ == "__main__":
    main()
