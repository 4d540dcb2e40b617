"""Measure one NMTune training step, 64 examples × 2 views, against the same step in eager PyTorch.

    python benchmarks/nmtune.py [--quick] [--repeats=7] [--torch-python=PATH] [--write]

Ours is a run of spread.train over 1024 × 2 features, minus a run of no epochs, per step. The opponent is the released
step: two stacked views, BatchNorm over both, MSE, COV by the D×D covariance, `torch.svd`, backward, AdamW, schedule. It
runs in a process of its own, with the Python of --torch-python (default: this one), and the two take turns in every
round. First both train the same small head from the same start on the same batches, and their parameters must agree.
The last column is the share of our step that the singular-value term takes, from the same run without the term.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import Opponent, print_head, serve, write_results

RESULTS = Path(__file__).parent / "results" / "nmtune.json"
ROWS, BATCH, CLASSES = 1024, 64, 10
LR, WEIGHT_DECAY = 1e-3, 1e-4
EPOCHS = {512: 4, 768: 4, 2048: 1}
# Our names of tensors -> the opponent's, which transposes kernels.
NAMES = {
    "dense1": "mlp.0", "norm": "mlp.1", "dense2": "mlp.3", "classifier": "classifier",
    "kernel": "weight", "scale": "weight", "bias": "bias",
}  # fmt: skip


def draw_bank(rows: int, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw features like those after a ReLU, with two similar views, and labels."""
    rng = np.random.default_rng(0)
    image = rng.normal(size=(rows, 1, dim))
    features = np.maximum(image + 0.3 * rng.normal(size=(rows, 2, dim)), 0)
    return features.astype(np.float32), rng.integers(0, CLASSES, rows).astype(np.int32)


class Ours:
    """A run of the head trainer. `svd=0.0` leaves out the singular-value term."""

    def __init__(self, rows: int, dim: int, preset: str, svd: float | None = None):
        import jax

        from nml_jax.models.heads.mlp import Form
        from nml_jax.objectives import nmtune, terms
        from nml_jax.tuning import descent, spread

        weights, _ = nmtune.resolve_weights(preset, 2, svd=svd)
        form, numbers = terms.split("nmtune", weights)
        self.spec = descent.Spec(Form(mlp=True), form, CLASSES, BATCH, standardize=False)
        self.setting = descent.Setting(np.arange(rows), LR, WEIGHT_DECAY, 0, numbers)
        self.rows, self.train = rows, spread.train
        self.bank = jax.device_put(descent.TrainingSet(*draw_bank(rows, dim), np.ones(rows, np.float32)))

    def params(self, epochs: int) -> dict[str, Any]:
        return self.train(self.spec, self.bank, [self.setting], self.rows, epochs=epochs)[0][0]

    def seconds(self, epochs: int) -> float:
        """Return the seconds of one step. The first call compiles."""
        times = []
        for n in (0, epochs):
            start = time.perf_counter()
            self.params(n)
            times.append(time.perf_counter() - start)
        return (times[1] - times[0]) / (epochs * self.rows / BATCH)


def serve_opponent() -> None:
    """Answer `Opponent`: rows, dim, preset, steps and perhaps a file of parameters -> seconds per step."""
    import torch  # pyright: ignore[reportMissingImports]
    from torch.nn import functional  # pyright: ignore[reportMissingImports]

    class Head(torch.nn.Module):
        def __init__(self, dim: int):
            super().__init__()
            self.mlp = torch.nn.Sequential(
                torch.nn.Linear(dim, 4 * dim), torch.nn.BatchNorm1d(4 * dim), torch.nn.ReLU(),
                torch.nn.Linear(4 * dim, dim),
            )  # fmt: skip
            self.scale = torch.nn.Parameter(torch.ones(dim))
            self.classifier = torch.nn.Linear(dim, CLASSES)
            torch.nn.init.kaiming_uniform_(self.classifier.weight)
            torch.nn.init.zeros_(self.classifier.bias)

        def forward(self, F: Any) -> tuple[Any, Any]:
            Z = self.scale * self.mlp(F) + F
            return Z, self.classifier(Z)

    def loss(head: Any, F1: Any, F2: Any, labels: Any, preset: str) -> Any:
        F = torch.cat([F1, F2])
        Z, logits = head(F)
        ce = functional.cross_entropy(logits, torch.cat([labels, labels]))
        centred = Z - Z.mean(0)
        C = centred.T @ centred / (len(Z) - 1)
        cov = (C.pow(2).sum() - C.diagonal().pow(2).sum()) / Z.shape[1]
        _, s, _ = torch.svd(Z)
        if preset == "code":
            mse = functional.mse_loss(functional.normalize(Z.chunk(2)[1]), functional.normalize(F1).detach())
            return ce + mse + 0.04 * cov - 0.001 * (s[:5] / s.sum()).mean()
        mse = (functional.normalize(Z) - functional.normalize(F)).pow(2).sum(1).mean()
        return ce + 0.01 * (mse + cov - s[0] / s.sum())

    def run(head: Any, features: Any, labels: Any, preset: str, steps: int) -> float:
        optimizer = torch.optim.AdamW(head.parameters(), lr=LR, weight_decay=WEIGHT_DECAY)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        order = torch.cat([torch.randperm(len(labels)) for _ in range(-(-steps * BATCH // len(labels)))])
        start = time.perf_counter()
        for step in range(steps):
            rows = order[step * BATCH : (step + 1) * BATCH]
            total = loss(head, features[rows, 0], features[rows, 1], labels[rows], preset)
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
            schedule.step()
        return (time.perf_counter() - start) / steps

    heads: dict[int, Head] = {}

    def answer(question: dict[str, Any]) -> float:
        dim, steps = question["dim"], question["steps"]
        features, labels = (torch.from_numpy(x) for x in draw_bank(question["rows"], dim))
        labels = labels.long()
        head = heads.get(dim) or heads.setdefault(dim, Head(dim))
        if path := question.get("params"):
            with np.load(path) as start:
                head.load_state_dict({name: torch.from_numpy(start[name]) for name in start.files}, strict=False)
        seconds = run(head, features, labels, question["preset"], steps)
        if path:
            np.savez(path, **{name: x.detach().numpy() for name, x in head.named_parameters()})
        return seconds

    serve(f"{torch.__version__}, {torch.get_num_threads()} threads", answer)


def rename_params(params: dict[str, Any]) -> dict[str, Any]:
    """Rename our parameters to the opponent's names."""
    out = {"scale": params["scale"]}
    for layer in ("dense1", "norm", "dense2", "classifier"):
        out |= {f"{NAMES[layer]}.{NAMES[leaf]}": np.ascontiguousarray(x.T) for leaf, x in params[layer].items()}
    return out


def check(opponent: Opponent, preset: str) -> float:
    """Return the largest difference of a parameter after four full-batch steps from the same start.

    The bias before BatchNorm does not count, because its gradient is rounding noise.
    """
    with tempfile.TemporaryDirectory() as folder:
        path, ours = str(Path(folder) / "params.npz"), Ours(BATCH, 32, preset)
        np.savez(path, **rename_params(ours.params(0)))
        opponent.ask({"rows": BATCH, "dim": 32, "preset": preset, "steps": 4, "params": path})
        want = rename_params(ours.params(4))
        with np.load(path) as got:
            return max(float(np.abs(got[name] - want[name]).max()) for name in want if name != "mlp.0.bias")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="256 rows, two rounds, to see that it runs")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--torch-python", default=sys.executable, help="a Python that has torch")
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS.relative_to(Path(__file__).parent)}")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        return serve_opponent()
    import jax
    import jaxlib

    import nml_jax

    rows, repeats = (256, 2) if args.quick else (ROWS, args.repeats)
    opponent = Opponent(args.torch_python, __file__)
    torch = {"torch": opponent.version}
    head = print_head(nml_jax, jax, jaxlib, np, versions=torch, batch=f"{BATCH} × 2 views", repeats=repeats)
    for preset in ("code", "paper"):
        off = check(opponent, preset)
        print(f"{preset}: after four steps from one start, parameters differ by at most {off:.1e}")
        if not off < 1e-4:
            sys.exit("the two sides do not train the same head")

    columns = (f"{name:>7}" for name in ("ours", "min", "max", "torch", "min", "max"))
    print(f"\n{'ms a step':<16}", *columns, f"{'ratio':>6} {'SVD':>8}")
    results = {}
    for dim, epochs in EPOCHS.items():
        for preset in ("code", "paper"):
            ours, without, seconds = Ours(rows, dim, preset), Ours(rows, dim, preset, svd=0.0), []
            for _ in range(repeats + 1):  # the first warms up
                a, c = ours.seconds(epochs), without.seconds(epochs)
                time.sleep(0.3)  # until idle threads sleep
                steps = epochs * rows // BATCH
                b = opponent.ask({"rows": rows, "dim": dim, "preset": preset, "steps": steps})
                time.sleep(0.3)
                seconds.append((a, b, c))
            a, b, c = zip(*seconds[1:], strict=True)
            ratio = statistics.median(y / x for x, y, _ in seconds[1:])
            share = statistics.median(1 - z / x for x, _, z in seconds[1:])
            figures = [1000 * f(times) for times in (a, b) for f in (statistics.median, min, max)]
            print(f"{f'D={dim}, {preset}':<16}", *(f"{ms:7.1f}" for ms in figures), end=" ")
            print(f"{ratio:6.2f} {100 * share:6.1f} %")
            results[f"{dim}/{preset}"] = {
                "seconds": a, "torch_seconds": b, "seconds_without_svd": c, "ratio": ratio, "svd_share": share,
            }  # fmt: skip
    if args.write:
        write_results(RESULTS, head, results)


if __name__ == "__main__":
    main()
