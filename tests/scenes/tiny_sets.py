"""Write tiny prepared datasets of the catalogue: TFDS's own schema and version, a few records each, no download."""

import io
import re
from pathlib import Path

import numpy as np

from nml_jax.tasks.catalogue import Entry


def image(seed: int, side: int = 8) -> bytes:
    """Return a PNG of random pixels."""
    from PIL import Image

    out = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def write(root: Path, entry: Entry, corruption: str = "", labels: tuple[int, ...] = (), records: int = 10) -> Path:
    """Write a dataset as TFDS would prepare it for `entry` into `root`, with `records` records in each split.

    The labels are `labels` in turn; by default all classes.

    Returns:
        The folder of the dataset's version.
    """
    import tensorflow_datasets as tfds

    info = tfds.builder(entry.folder.format(corruption), data_dir=root, file_format="array_record").info
    splits = sorted(set(re.findall(r"[a-z]+(?=\[|\+|$)", "+".join((entry.train, entry.full, entry.test)))))
    Path(info.data_dir).mkdir(parents=True)
    writer = tfds.core.SequentialWriter(info, records, file_format="array_record", overwrite=False)
    writer.initialize_splits(splits)
    labels = labels or tuple(range(entry.num_classes))
    for n, split in enumerate(splits):
        examples = [
            {name: _value(feature, labels[i % len(labels)], 100 * n + i) for name, feature in info.features.items()}
            for i in range(records)
        ]
        writer.add_examples({split: examples})
    writer.close_all()
    return Path(info.data_dir)


def _value(feature, label: int, seed: int):
    """Return a value for this feature. A class label is `label` modulo the number of classes."""
    import tensorflow_datasets as tfds

    match feature:
        case tfds.features.ClassLabel():
            return label % feature.num_classes
        case tfds.features.Image():
            return image(seed)
        case tfds.features.BBoxFeature():
            return tfds.features.BBox(0.0, 0.0, 1.0, 1.0)
        case tfds.features.Text():
            return f"{seed}.png"
    raise NotImplementedError(feature)
