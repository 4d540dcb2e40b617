"""Compare `NMTuneClassifier().fit` with scikit-learn and eager PyTorch: accuracy beside CPU seconds.

    python benchmarks/patience.py FOLDER [--sets=...] [--splits=5] [--only=...] [--torch-python=PATH] [--widths]
        [--write]

FOLDER has frozen features with `labels`: pacs_photo.npz and pacs_art_painting.npz (other domain), flowers5.npz, and
cifar10_first5k.npz with `test` and `test_jpeg`. 70 % of the photos or flowers, or 80 % of CIFAR-10's training rows, are
trained on. Opponents are our own logistic regression (fit_lbfgs; six C, five folds), LogisticRegressionCV (six C, three
folds) and MLPClassifier (early stopping) on standardised features, and, with the Python of --torch-python, a linear
head and an MLP of 512 hidden features in eager PyTorch: AdamW, 1e-3, batch 256, stopped by 10 % of the rows. All
contenders get a turn in every split. CPU seconds count all threads, so other work on the machine changes them little.
With --widths only the MLP is fitted, from a probe of C = 0.01, and its width varies.
"""

import argparse
import json
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from common import Opponent, print_head, serve, write_results

RESULTS = Path(__file__).parent / "results"
SETS = ("pacs mnv2", "pacs mnv1", "flowers5 mnv2", "flowers5 mnv1", "cifar10 mnv1")
WIDTHS = (0.0625, 0.25, 1, 4)
CS = (1e-4, 1e-3, 0.01, 0.1, 1.0, 10.0)
Rows = tuple[np.ndarray, np.ndarray]  # features float32 [N, D], labels [N]


class Split(NamedTuple):
    """Rows to train on, test rows, and those of another domain, if there are any."""

    train: Rows
    near: Rows
    far: Rows | None


def load(path: Path, name: str, features: str, labels: str = "labels") -> Rows:
    """Load rows of a file whose features are stored as integers, with a scale."""
    with np.load(path) as z:
        return z[features].astype(np.float32) * z[f"{name}_scale"], z[labels].astype(int)


def split(folder: Path, which: str, splits: int) -> Iterator[Split]:
    """Yield the splits of a set."""
    from sklearn.model_selection import StratifiedShuffleSplit

    name, features = which.split()
    near = far = None
    if name == "cifar10":
        path = folder / "cifar10_first5k.npz"
        X, y = load(path, features, "train", "train_y")
        near, far = (load(path, features, test, "test_y") for test in ("test", "test_jpeg"))
    else:
        X, y = load(folder / ("flowers5.npz" if name == "flowers5" else "pacs_photo.npz"), features, features)
        far = load(folder / "pacs_art_painting.npz", features, features) if name == "pacs" else None
    share = 0.2 if near else 0.3
    for train, test in StratifiedShuffleSplit(splits, test_size=share, random_state=0).split(X, y):
        yield Split((X[train], y[train]), near or (X[test], y[test]), far)


class Solved:
    """Our logistic regression on standardised features, with a C that is given, or that five folds choose."""

    def __init__(self, c: float | None, seed: int):
        self.c, self.seed = c, seed

    def fit(self, X: np.ndarray, y: np.ndarray) -> None:
        from nml_jax.data.stratify import split_rows
        from nml_jax.tuning.probes import fit_lbfgs

        self.mean, self.sd, k = X.mean(0), X.std(0), int(y.max()) + 1
        self.sd[self.sd == 0] = 1
        Z, c = (X - self.mean) / self.sd, self.c
        if c is None:
            right = np.zeros(len(CS))
            for train, test in split_rows(y, 5, self.seed):
                found = fit_lbfgs(Z[train], y[train], CS, num_classes=k, tol=1e-4)
                right += [(probe(Z[test]).argmax(1) == y[test]).sum() for probe in found]
            c = CS[int(right.argmax())]
        (self.probe,) = fit_lbfgs(Z, y, (c,), num_classes=k)

    def predict(self, X: np.ndarray) -> np.ndarray:
        return self.probe((X - self.mean) / self.sd).argmax(1)


def fit_in_python(model: Any, split: Split) -> tuple[list[np.ndarray], float]:
    """Return the predictions of both tests and the CPU seconds of `fit`."""
    begun = time.process_time()
    model.fit(*split.train)
    seconds = time.process_time() - begun
    return [model.predict(test[0]) for test in split[1:] if test], seconds


def fit_in_torch(torch: Opponent, kind: str, seed: int, split: Split) -> tuple[list[np.ndarray], float]:
    """Do the same in the other process."""
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/rows.npz"
        arrays: dict[str, Any] = {f"test{i}": test[0] for i, test in enumerate(split[1:]) if test}
        np.savez(path, X=split.train[0], y=split.train[1], **arrays)
        answer = torch.ask({"path": path, "kind": kind, "seed": seed})
    return [np.array(each) for each in answer["predictions"]], answer["seconds"]


def make_contenders(seed: int, torch: Opponent | None, *, widths: bool) -> dict[str, Callable[[Split], Any]]:
    """Make functions of a split, by the name of the contender."""
    from functools import partial

    import nml_jax

    if widths:
        models: dict[str, Any] = {
            f"mlp, width {w:g}": nml_jax.NMTuneClassifier("mlp", width=w, C=0.01, random_state=seed) for w in WIDTHS
        }
        return {name: partial(fit_in_python, model) for name, model in models.items()}
    out: dict[str, Callable[[Split], Any]] = {
        name: partial(fit_in_python, Solved(c, seed))
        for name, c in (("fit_lbfgs", None), ("fit_lbfgs, C = 0.01", 0.01))
    }
    from sklearn.linear_model import LogisticRegressionCV
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    models = {name: nml_jax.NMTuneClassifier(name, random_state=seed) for name in ("linear", "mlp", "nmtune")}
    cv: Any = LogisticRegressionCV(Cs=list(CS), cv=3, max_iter=500)  # type: ignore[arg-type]
    models["LogisticRegressionCV"] = make_pipeline(StandardScaler(), cv)
    models["MLPClassifier"] = make_pipeline(StandardScaler(), MLPClassifier(early_stopping=True, random_state=seed))
    out |= {name: partial(fit_in_python, model) for name, model in models.items()}
    if torch:
        out |= {f"PyTorch {kind}": partial(fit_in_torch, torch, kind, seed) for kind in ("linear", "mlp")}
    return out


def serve_opponent() -> None:
    """Answer `Opponent`: a file of rows, linear or mlp, and a seed -> predictions and CPU seconds."""
    import torch  # pyright: ignore[reportMissingImports]

    def train(X: Any, y: Any, kind: str) -> Any:
        dim, classes, n = X.shape[1], int(y.max()) + 1, len(X)
        layers = [torch.nn.Linear(dim, classes)]
        if kind == "mlp":
            layers = [torch.nn.Linear(dim, 512), torch.nn.ReLU(), torch.nn.Linear(512, classes)]
        model, ce = torch.nn.Sequential(*layers), torch.nn.functional.cross_entropy
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        order = torch.randperm(n)
        held_out, own = order[: n // 10], order[n // 10 :]
        best, kept, waited = float("inf"), model.state_dict(), 0
        for _ in range(100):
            for rows in own[torch.randperm(len(own))].split(256):
                optimizer.zero_grad()
                ce(model(X[rows]), y[rows]).backward()
                optimizer.step()
            with torch.no_grad():
                loss = float(ce(model(X[held_out]), y[held_out]))
            waited += 1
            if loss < best:
                best, waited = loss, 0
                kept = {name: x.clone() for name, x in model.state_dict().items()}
            if waited >= 5:
                break
        model.load_state_dict(kept)
        return model

    def answer(question: dict[str, Any]) -> dict[str, Any]:
        torch.manual_seed(question["seed"])
        with np.load(question["path"]) as z:
            content = {name: torch.from_numpy(z[name]) for name in z.files}
        begun = time.process_time()
        mean, sd = content["X"].mean(0), content["X"].std(0)
        sd[sd == 0] = 1
        model = train((content["X"] - mean) / sd, content["y"], question["kind"])
        seconds = time.process_time() - begun
        with torch.no_grad():
            tests = [
                model((content[name] - mean) / sd).argmax(1).tolist() for name in sorted(content) if "test" in name
            ]
        return {"predictions": tests, "seconds": seconds}

    serve(f"{torch.__version__}, {torch.get_num_threads()} threads", answer)


def add_others(path: Path, head: dict[str, Any], results: dict[str, Any]) -> dict[str, Any]:
    """Add the results of a file, so that sets and contenders can be run one by one; none if the splits were others."""
    content = json.loads(path.read_text("utf-8")) if path.exists() else {}
    others = content["results"] if content.get("splits") == head["splits"] else {}
    return {which: others.get(which, {}) | results.get(which, {}) for which in {**others, **results}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sets", default=",".join(SETS), help="names separated by commas; default: all")
    parser.add_argument("--splits", type=int, default=5)
    parser.add_argument("--only", default="", help="contenders whose names begin so, separated by commas; default: all")
    parser.add_argument("--torch-python", default="", help="a Python that has torch; default: leave it out")
    parser.add_argument("--widths", action="store_true")
    parser.add_argument(
        "--write", action="store_true", help="write results/patience.json, or widths.json; other sets stay"
    )
    args = parser.parse_args()
    import jax
    import sklearn

    import nml_jax

    warnings.filterwarnings("ignore")  # of opponents that have not converged
    torch = Opponent(args.torch_python, __file__, str(args.folder)) if args.torch_python else None
    versions = {"torch": torch.version} if torch else None
    head = print_head(nml_jax, jax, np, sklearn, versions=versions, splits=args.splits)
    results: dict[str, dict[str, list[list[float]]]] = {}
    for which in args.sets.split(","):
        own = results.setdefault(which, {})
        for seed, part in enumerate(split(args.folder, which, args.splits)):
            contenders = make_contenders(seed, torch, widths=args.widths)
            for name in (name for name in contenders if name.startswith(tuple(args.only.split(",")))):
                predictions, seconds = contenders[name](part)
                answers = [test[1] for test in part[1:] if test]
                scores = [100 * float((p == y).mean()) for p, y in zip(predictions, answers, strict=True)]
                own.setdefault(name, []).append([*scores, seconds])
        print(f"{which}: accuracy in-domain, out-of-domain (%), CPU seconds; means of {args.splits} splits")
        for name, each in own.items():
            print(f"  {name:<22}", *(f"{x:8.2f}" for x in np.mean(each, 0)), flush=True)
        if args.write:  # after every set, so that a run that is stopped leaves something
            path = RESULTS / ("widths.json" if args.widths else "patience.json")
            write_results(path, head, add_others(path, head, results))


if __name__ == "__main__":
    serve_opponent() if "--serve" in sys.argv else main()
