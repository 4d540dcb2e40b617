"""Compare 30 epochs of NMTune on features extracted once with the released procedure, which encodes two augmented views
of every image at every step.

    python benchmarks/features_once.py [--quick] [--repeats=3] [--write]

Both sides have the same encoder (a ViT-S/16 at 128 pixels with random weights, which do not change its speed), images
(scikit-learn's digits), augmentation (shifts), head, preset (`code`), batch and schedule. Both are our code, compiled.
They differ in how often an image goes through augmentation and encoder: once or 60 times. Accuracy is on the test
images.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
from common import print_head, write_results

sys.path.insert(0, str(Path(__file__).parent.parent))
import nml_jax
from configs import common
from nml_jax import models, runtime
from nml_jax.data import sources
from nml_jax.data.sources.source import Source, Subset
from nml_jax.data.stream import pipeline
from nml_jax.models.heads.mlp import Form
from nml_jax.objectives import nmtune, terms
from nml_jax.tuning import descent, select
from nml_jax.tuning.head_file import TunedHead

RESULTS = Path(__file__).parent / "results" / "features_once.json"
SIZE, ROWS, BATCH, EPOCHS, LR, WEIGHT_DECAY, CLASSES = 128, 128, 64, 30, 1e-3, 1e-4, 10


def get_config(quick: bool) -> Any:
    config = common.get_config().copy_and_resolve_references()
    config.data.image_size = SIZE
    config.model.name, config.model.pool = "vit_s", "gap"
    config.augment.crop, config.augment.flip = "pad", 0.0
    config.tune.epochs, config.tune.batch = (2 if quick else EPOCHS), BATCH
    config.tune.standardize = True
    config.tune.lrs, config.tune.weight_decays = (LR,), (WEIGHT_DECAY,)
    return config


def iterate_images(config: Any, source: Source, view: int | None) -> Iterator[np.ndarray]:
    """Yield batches uint8 [B, S, S, 3] of a split in order, augmented as view `view`, or plain."""
    seen = {"augment": config.augment, "image_size": SIZE, "mean": config.model.mean, "std": config.model.std}
    for batch in pipeline.evaluate(source, **seen, batch=BATCH, view=view, threads=2):
        yield batch["image"]


class Race:
    """Both sides of the comparison, with the same encoder and data."""

    def __init__(self, quick: bool):
        self.config = config = get_config(quick)
        data = SimpleNamespace(source="digits", path="", name="", classes=(), num_classes=None)
        self.train = Subset(sources.load(data, "train"), np.arange(ROWS))
        self.test = sources.load(data, "test")
        model = models.build(config.model, num_classes=2, image_size=SIZE)
        params, state = model.init(jax.random.key(0), model.spec)

        def encode(image: jax.Array) -> jax.Array:
            return model.apply(params, state, {"image": image}, train=False, key=None)[0]["features"]

        self._encode = runtime.jit(encode, runtime.make_mesh())
        self.tests = self.features(self.test, None)

    def features(self, source: Source, view: int | None) -> np.ndarray:
        """Encode a split to float32 [N, D]."""
        return np.concatenate([np.asarray(self._encode(x)) for x in iterate_images(self.config, source, view)])[
            : len(source)
        ]

    def ours(self) -> float:
        """Return the test accuracy of NMTune on features extracted once."""
        features = self.features(self.train, None)
        how = {"method": "nmtune", "preset": "code", "num_classes": CLASSES, "config": self.config.tune, "seed": 0}
        return self.accuracy(select.fit(features, self.train.labels, **how))

    def released(self) -> float:
        """Return the test accuracy when each epoch trains on two new views of every image."""
        config = self.config.tune
        labels = np.asarray(self.train.labels, np.int32)
        weights, _ = nmtune.resolve_weights("code", 2)
        form, numbers = terms.split("nmtune", weights)
        spec = descent.Spec(Form(mlp=True), form, CLASSES, BATCH, config.standardize)
        rows, n = np.arange(len(labels)), np.int32(len(labels))
        setting = descent.to_arrays(descent.Setting(rows, LR, WEIGHT_DECAY, 0, numbers))
        total, carry = np.int32(config.epochs * -(-n // BATCH)), None
        for i in range(config.epochs):
            views = np.stack([self.features(self.train, 2 * i + k) for k in (1, 2)], 1)
            if carry is None:
                standard = descent.get_standard(views) if config.standardize else None
                carry = descent.begin(spec, setting, views.shape[-1], standard)
            bank = descent.TrainingSet(views, labels, np.ones(n, np.float32))
            carry = descent.advance(spec, carry, bank, setting, n, np.int32(i), total)
        assert carry is not None
        return self.accuracy(TunedHead(spec.form, *jax.device_get((carry.params, carry.state))))

    def accuracy(self, head: Any) -> float:
        return float((head.outputs(self.tests)[1].argmax(1) == self.test.labels).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two epochs, to see that it runs")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS.relative_to(Path(__file__).parent)}")
    args = parser.parse_args()
    head = print_head(nml_jax, jax, np, images=f"{ROWS} of {SIZE} px", encoder="ViT-S/16, drawn", repeats=args.repeats)
    race = Race(args.quick)
    seconds: dict[str, list[float]] = {"ours": [], "released": []}
    accuracy: dict[str, float] = {}
    for i in range(args.repeats + 1):
        for name, each in seconds.items():
            if i == 0 and name == "released":
                continue  # it compiles in its first epoch, which is one of thirty
            begun = time.perf_counter()
            accuracy[name] = getattr(race, name)()
            if i:
                each.append(time.perf_counter() - begun)
    ratio = statistics.median(b / a for a, b in zip(seconds["ours"], seconds["released"], strict=True))
    for name, each in seconds.items():
        print(f"{name:<9} {statistics.median(each):8.2f} s, accuracy {100 * accuracy[name]:.2f} %")
    print(f"features once are {ratio:.1f} times as fast")
    if args.write:
        write_results(RESULTS, head, {"seconds": seconds, "accuracy": accuracy, "ratio": ratio})


if __name__ == "__main__":
    main()
