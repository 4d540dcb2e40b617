"""Find wrong labels that we laid on ourselves, beside cleanlab.

    python benchmarks/label_errors.py FEATURES [--sets=pacs_photo/mnv1,...] [--speed] [--write]

FEATURES is a folder of frozen features: `pacs_photo.npz`, `pacs_art_painting.npz`, `flowers5.npz` (its training rows)
and `cifar10_first5k.npz` (the same). Eight sets are made besides, with labels that are all right (MADE).
`corrupt_labels` makes none, 5, 10 and 30 % of their labels wrong: symmetric, pair, and asymmetric among the first half
of the classes (there the rate is a share of these classes' rows); and 12 %, symmetric. A suspect is right if its label
was changed. Labels that were wrong before count against both sides. --write writes after every set.

cleanlab (`pip install cleanlab`) runs `find_label_issues` with its defaults on cross-validated probabilities of the
same probe on the same folds: first with the penalty that we use ("same"), chosen by accuracy, then with the one of
lowest log loss ("log loss"), whose probabilities are the best calibrated.

--speed instead measures `find_label_errors` on 20,000 × 768 with 10 and with 100 classes, in seconds of CPU and wall.
"""

import argparse
import time
from collections.abc import Iterator
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
FOLDS = 5
NOISES = (
    *(("symmetric", 0.12), ("none", 0.0), ("pair", 0.1), ("asymmetric", 0.1), ("symmetric", 0.05), ("pair", 0.3)),
    *(("symmetric", 0.3), ("pair", 0.05), ("asymmetric", 0.3), ("asymmetric", 0.05), ("symmetric", 0.1)),
)
MADE: dict[str, dict[str, Any]] = {
    "easy": {"n": 1500, "d": 128, "k": 8, "gap": 0.7},
    "near": {"n": 1500, "d": 256, "k": 8, "gap": 0.45},
    "imbalanced": {"n": 2500, "d": 128, "k": 8, "gap": 0.6, "fall": 1.2},
    "two classes": {"n": 1200, "d": 128, "k": 2, "gap": 0.45},
    "sixty classes": {"n": 3000, "d": 128, "k": 60, "gap": 0.7},
    "not linear": {"n": 1500, "d": 192, "k": 10, "gap": 0.5, "curve": 1.0},
    "several clouds": {"n": 2000, "d": 128, "k": 6, "gap": 0.7, "clouds": 4},
    "heavy tails": {"n": 1500, "d": 128, "k": 6, "gap": 0.5, "freedom": 3},
}
SIDES = ("ours", "cleanlab, same", "cleanlab, log loss")


def make_set(
    n: int, d: int, k: int, gap: float, fall: float = 0.0, curve: float = 0.0, clouds: int = 1, freedom: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Make clouds in 40 directions, which D features mix, each direction weaker than the one before.

    Args:
        gap: distance of centres; 1 is a cloud's standard deviation in a direction.
        fall: class c has rows as c^-fall.
        curve: weight of 40 features that are not linear.
        clouds: for each class.
        freedom: of Student's t, by whose scale a row is drawn out; 0: normal.
    """
    rng, rank = np.random.default_rng(0), 40
    share = np.arange(1, k + 1.0) ** -fall
    y = rng.choice(k, n, p=share / share.sum())
    spread = rng.standard_normal((n, rank)) * (np.sqrt(freedom / rng.chisquare(freedom, (n, 1))) if freedom else 1)
    z = gap * rng.standard_normal((k, clouds, rank))[y, rng.integers(0, clouds, n)] + spread
    if curve:
        z = np.concatenate([z, curve * np.maximum(z @ rng.standard_normal((rank, rank)) / np.sqrt(rank), 0)], 1)
    mixed = z @ (rng.standard_normal((z.shape[1], d)) * (np.arange(1, z.shape[1] + 1) ** -0.7)[:, None])
    return (mixed + 0.3 * rng.standard_normal((n, d))).astype(np.float32), y


def read_sets(folder: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return features float32 [N, D] and labels [N] of every set, those of more features last."""
    out: dict[str, tuple[np.ndarray, np.ndarray]] = {name: make_set(**how) for name, how in MADE.items()}
    for name in ("pacs_photo", "pacs_art_painting", "flowers5"):
        content = dict(np.load(folder / f"{name}.npz"))
        used = ~content["is_test"].astype(bool) if "is_test" in content else slice(None)
        for network in ("mnv1", "mnv2"):
            features = content[network].astype(np.float32) * content[f"{network}_scale"]
            out[f"{name}/{network}"] = features[used], content["labels"].astype(int)[used]
    content = dict(np.load(folder / "cifar10_first5k.npz"))
    out["cifar10/mnv1"] = content["train"].astype(np.float32), content["train_y"].astype(int)
    return dict(sorted(out.items(), key=lambda item: item[1][0].size))


def lay_noise(labels: np.ndarray, kind: str, rate: float) -> np.ndarray:
    """Return noisy labels."""
    if not rate:
        return labels
    k = int(labels.max()) + 1
    own: dict[str, Any] = {"classes": range(max((k + 1) // 2, 2)), "rate_of": "classes"} if kind == "asymmetric" else {}
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
    precision, recall = hits / max(suspected.sum(), 1), hits / max(bad.sum(), 1)
    return {"precision": 100 * precision, "recall": 100 * recall,
            "f1": 200 * precision * recall / max(precision + recall, 1e-9)}  # fmt: skip


def compare(sets: dict[str, tuple[np.ndarray, np.ndarray]]) -> Iterator[dict[str, Any]]:
    """Yield a line for every noise and set."""
    for kind, rate in NOISES:
        for name, (X, y) in sets.items():
            given = lay_noise(y, kind, rate)
            bad, start = given != y, time.process_time()
            ours = nml_jax.find_label_errors(X, given)
            suspected = {"ours": ours.wrong > 0.5}
            seconds = time.process_time() - start
            suspected |= ask_cleanlab(X, given)
            line = {"set": name, "kind": kind, "rate": rate, "wrong": float(bad.mean()), "share": ours.share,
                    "interval": ours.interval, "cpu_seconds": seconds,
                    "suspects": {side: int(found.sum()) for side, found in suspected.items()},
                    **{side: score(found, bad) for side, found in suspected.items()}}  # fmt: skip
            told = "  ".join(f"{side} " + "/".join(f"{x:.1f}" for x in line[side].values()) for side in SIDES)
            low, high = ours.interval
            print(f"{name} {kind} {rate:g}: {told}  share {ours.share:.4f} ({low:.4f} to {high:.4f}), "
                  f"is {bad.mean():.4f}, {seconds:.1f} s", flush=True)  # fmt: skip
            yield line


def summarise(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the means by kind and rate, and over all."""
    groups = {"all": [line for line in lines if line["rate"]]}
    for line in groups["all"]:
        groups.setdefault(f"{line['kind']} {line['rate']:g}", []).append(line)
    means = {
        name: {side: {metric: float(np.mean([line[side][metric] for line in of])) for metric in of[0][side]}
               for side in SIDES}
        for name, of in groups.items() if of
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

    head = print_head(nml_jax, jax, np, scipy, sklearn, cleanlab, noises=NOISES, made=MADE)
    sets = read_sets(args.features)
    lines: list[dict[str, Any]] = []
    for line in compare({name: sets[name] for name in args.sets.split(",") if name} or sets):
        lines.append(line)
        if args.write:
            write_results(RESULTS, head, {**summarise(lines), "lines": lines})
    results = summarise(lines)
    for name, means in results["means"].items():
        print(f"{name:>16}", *(f"{side}: " + "/".join(f"{x:.1f}" for x in means[side].values()) for side in SIDES))
    print({key: value for key, value in results.items() if key != "means"})


if __name__ == "__main__":
    main()
