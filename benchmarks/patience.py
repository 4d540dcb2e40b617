"""Compare `NMTuneClassifier().fit` with scikit-learn's LogisticRegressionCV and MLPClassifier: accuracy, CPU seconds.

    python benchmarks/patience.py PACS_FOLDER [--features=mnv2] [--splits=3] [--widths] [--write]

PACS_FOLDER has pacs_photo.npz and pacs_art_painting.npz, with `labels` and the features. 70 % of the photos are trained
on; the rest are the in-domain test, the paintings the out-of-domain test. All contenders get a turn in every split. CPU
seconds count all threads, so other work on the machine changes them little. With --widths the MLP's width varies.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import sklearn
from common import print_head, write_results
from sklearn.linear_model import LogisticRegressionCV
from sklearn.model_selection import StratifiedShuffleSplit
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import nml_jax

RESULTS = Path(__file__).parent / "results" / "patience.json"


def load(path: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Load features float32 [N, D] and labels [N]."""
    with np.load(path) as z:
        return z[name].astype(np.float32) * z[f"{name}_scale"], z["labels"].astype(int)


def make_contenders(seed: int, *, widths: bool) -> dict[str, Any]:
    if widths:
        sizes = (0.0625, 0.125, 0.25, 0.5, 1, 2, 4)
        return {f"mlp, width {w:g}": nml_jax.NMTuneClassifier("mlp", width=w, random_state=seed) for w in sizes}
    own = {name: nml_jax.NMTuneClassifier(name, random_state=seed) for name in ("linear", "mlp", "nmtune")}
    cv = LogisticRegressionCV(Cs=[1e-4, 1e-3, 0.01, 0.1, 1.0, 10.0], cv=5, max_iter=500)  # type: ignore[arg-type]
    return own | {
        "LogisticRegressionCV": make_pipeline(StandardScaler(), cv),
        "MLPClassifier": make_pipeline(StandardScaler(), MLPClassifier(early_stopping=True, random_state=seed)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--features", default="mnv2")
    parser.add_argument("--splits", type=int, default=3)
    parser.add_argument("--widths", action="store_true")
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS.relative_to(Path(__file__).parent)}")
    args = parser.parse_args()
    X, y = load(args.folder / "pacs_photo.npz", args.features)
    far, answer = load(args.folder / "pacs_art_painting.npz", args.features)
    head = print_head(nml_jax, jax, np, sklearn, features=args.features, splits=args.splits)
    results: dict[str, list[list[float]]] = {}
    splits = StratifiedShuffleSplit(args.splits, test_size=0.3, random_state=0).split(X, y)
    for seed, (train, test) in enumerate(splits):
        for name, model in make_contenders(seed, widths=args.widths).items():
            begun = time.process_time()
            model.fit(X[train], y[train])
            seconds = time.process_time() - begun
            scores = 100 * model.score(X[test], y[test]), 100 * model.score(far, answer)
            results.setdefault(name, []).append([*scores, seconds])
            print(f"{name:<22} in-domain {scores[0]:.2f} %, out-of-domain {scores[1]:.2f} %, {seconds:.1f} CPU s")
    if args.write:
        write_results(RESULTS, head, results)


if __name__ == "__main__":
    main()
