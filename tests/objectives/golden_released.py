"""Run 50 steps of NMTune's released procedure in PyTorch, for the losses in `golden_released.safetensors`.

`python tests/objectives/golden_released.py` writes the file again; it needs torch and safetensors, but not nml_jax.
`arrays` draws weights and batches again with NumPy alone.

A step is that of the papers' released code (arXiv 2309.17002) on fixed features. Two views of a batch are side by side.
The loss is the cross-entropy of both, the mean squared difference of unit rows between view 2 of Z and view 1 of F, the
squared off-diagonal covariance of Z over D, and the mean share of the five largest singular values of all of Z. AdamW
trains every parameter, with a cosine schedule to zero.
"""

from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

FILE = Path(__file__).with_suffix(".safetensors")
BATCH, DIM, CLASSES, WIDTH, STEPS = 16, 24, 5, 4, 50
LR, WEIGHT_DECAY = 1e-3, 1e-4
MSE, COV, SVD = 1.0, 0.04, 0.001


def arrays() -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Draw parameters by path, features float32 [STEPS, BATCH, 2, DIM] and labels int64 [STEPS, BATCH]."""
    rng = np.random.default_rng(2309)

    def uniform(bound: float, *shape: int) -> np.ndarray:
        return (bound * rng.uniform(-1, 1, shape)).astype(np.float32)

    hidden = WIDTH * DIM
    params = {
        "classifier/kernel": uniform((6 / DIM) ** 0.5, DIM, CLASSES),
        "classifier/bias": np.zeros(CLASSES, np.float32),
        "dense1/kernel": uniform(DIM**-0.5, DIM, hidden),
        "dense1/bias": uniform(DIM**-0.5, hidden),
        "norm/scale": np.ones(hidden, np.float32),
        "norm/bias": np.zeros(hidden, np.float32),
        "dense2/kernel": uniform(hidden**-0.5, hidden, DIM),
        "dense2/bias": uniform(hidden**-0.5, DIM),
        "scale": np.ones(DIM, np.float32),
    }
    labels = rng.integers(0, CLASSES, (STEPS, BATCH))
    image = rng.normal(size=(CLASSES, DIM))[labels] + rng.normal(size=(STEPS, BATCH, DIM))
    views = np.maximum(image[:, :, None] + 0.3 * rng.normal(size=(STEPS, BATCH, 2, DIM)), 0)
    return params, views.astype(np.float32), labels


def losses() -> np.ndarray:
    """Return the losses of float32 steps, float64 [STEPS]."""
    import torch
    from torch.nn import functional

    class Head(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.dense1 = torch.nn.Linear(DIM, WIDTH * DIM)
            self.norm = torch.nn.BatchNorm1d(WIDTH * DIM)
            self.dense2 = torch.nn.Linear(WIDTH * DIM, DIM)
            self.scale = torch.nn.Parameter(torch.ones(DIM))
            self.classifier = torch.nn.Linear(DIM, CLASSES)

        def forward(self, F):
            Z = self.scale * self.dense2(torch.relu(self.norm(self.dense1(F)))) + F
            return Z, self.classifier(Z)

    params, features, labels = arrays()
    head = Head()
    with torch.no_grad():
        for path, value in params.items():
            owner, _, leaf = path.rpartition("/")
            tensor = torch.from_numpy(value)
            if leaf == "kernel":
                getattr(head, owner).weight.copy_(tensor.T)
            elif owner:
                getattr(getattr(head, owner), "weight" if leaf == "scale" else leaf).copy_(tensor)
            else:
                head.scale.copy_(tensor)
    optimizer = torch.optim.AdamW(head.parameters(), lr=LR, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: (1 + np.cos(np.pi * step / STEPS)) / 2)
    seen = []
    for F, label in zip(torch.from_numpy(features), torch.from_numpy(labels), strict=True):
        Z, logits = head(torch.cat([F[:, 0], F[:, 1]]))
        loss = functional.cross_entropy(logits, torch.cat([label, label]))
        second = functional.normalize(Z.chunk(2)[1], dim=1)
        loss = loss + MSE * functional.mse_loss(second, functional.normalize(F[:, 0], dim=1))
        _, s, _ = torch.svd(Z)
        loss = loss - SVD * (s / s.sum())[:5].mean()
        centred = Z - Z.mean(0)
        C = centred.T @ centred / (len(Z) - 1)
        loss = loss + COV * (C - torch.diag(torch.diag(C))).pow(2).sum() / DIM
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        seen.append(loss.item())
    return np.array(seen)


if __name__ == "__main__":
    save_file({"losses": losses()}, FILE)
    print(FILE, FILE.stat().st_size)
