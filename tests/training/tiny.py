"""A small training run: random images, a tiny ResNet, every source of randomness switched on."""

import dataclasses
from collections.abc import Container, Iterator, Mapping
from pathlib import Path

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from configs import digits
from nml_jax import runtime, settings
from nml_jax.runs import goodput
from nml_jax.training import checkpoint, loop
from nml_jax.training.journal import Journal
from nml_jax.training.state import TrainState

RECORDS, CLASSES = 64, 3


def tiny_config(**overrides) -> ConfigDict:
    config = next(iter(settings.expand_sweep(digits.get_config()).values()))
    values = {
        "model.width": 4, "model.blocks": (1, 1), "model.drop_path": 0.2, "train.batch": 16, "train.epochs": 3.0,
        "train.ema": 0.9, "objective.mixup": 0.2, "objective.cutmix": 1.0, "runtime.log_every": 2,
        "runtime.eval_every": 0.0, "runtime.save_every": 1.0, "optimizer.warmup_epochs": 1.0,
    }  # fmt: skip
    with config.unlocked():
        config.update_from_flattened_dict(values | overrides)
    return config


def random_batches(batch: int, *, poison: Container[int] = ()):
    """Return a function that yields batches from a step on. Those in `poison` make the loss NaN."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (RECORDS, 8, 8, 3), dtype=np.uint8)
    labels = rng.integers(0, CLASSES, RECORDS).astype(np.int32)

    def batches(start: int) -> Iterator[Mapping[str, np.ndarray]]:
        step = start
        while True:
            ids = np.random.default_rng(step).permutation(RECORDS)[:batch].astype(np.int32)
            mask = np.ones(batch, np.float32)
            if step in poison:
                mask[0] = np.nan
            yield {"image": images[ids], "label": labels[ids], "label_clean": labels[ids], "id": ids, "mask": mask}
            step += 1

    return batches


@dataclasses.dataclass
class Run:
    """One run in a folder. Call `train` again for a restart."""

    folder: Path
    config: ConfigDict
    mesh: Mesh
    quarantined: list[int] = dataclasses.field(default_factory=list)

    def __post_init__(self):
        self.plan = loop.Plan.from_config(self.config, RECORDS)
        self.program = loop.build(self.config, self.plan, self.mesh, num_classes=CLASSES)

    def checkpoints(self) -> checkpoint.Checkpoints:
        meta = {"config": settings.to_json(self.config), "num_classes": CLASSES}
        every = self.plan.to_steps(self.config.runtime.save_every)
        return checkpoint.Checkpoints(self.folder / "checkpoints", every=every, keep=2, keep_every=0, meta=meta)

    def train(self, batches=None, evaluators=None) -> TrainState:
        checkpoints = self.checkpoints()
        self.folder.mkdir(exist_ok=True)
        try:
            return loop.train(
                self.config,
                self.program,
                self.plan,
                self.mesh,
                batches=batches or random_batches(self.config.train.batch),
                evaluators=evaluators or {},
                checkpoints=checkpoints,
                journal=Journal(
                    self.folder, self.config, steps=self.plan.steps, label="tiny", clock=goodput.Clock(),
                    quarantine=self.quarantined.extend,
                ),
            )  # fmt: skip
        finally:
            checkpoints.close()


def step_batch(run: Run, step: int = 0) -> dict:
    """Return batch `step` on the run's mesh, as its compiled step takes it."""
    local = next(random_batches(run.config.train.batch)(step))
    return runtime.put_batch(run.mesh)({k: v for k, v in local.items() if k != "label_clean"})


def host(state: TrainState) -> dict[str, np.ndarray]:
    """Return the state's arrays by name, on the host; the key as its data."""
    import jax

    raw = dataclasses.replace(state, key=jax.random.key_data(state.key))
    return {jax.tree_util.keystr(path): np.asarray(x) for path, x in jax.tree_util.tree_leaves_with_path(raw)}
