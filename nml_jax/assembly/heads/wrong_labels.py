"""Put wrong labels into downstream training rows: the same ones for heads on features and for fine-tuning."""

from typing import Any

import numpy as np
from ml_collections import ConfigDict

from nml_jax import noise
from nml_jax.errors import UserError


def corrupt_downstream(labels: np.ndarray, num_classes: int, rate: float, config: ConfigDict) -> np.ndarray:
    """Return the labels of downstream training rows, int32 [N]. Exactly the share `rate` of them is wrong.

    Heads on features and fine-tuning of a run get the same wrong labels: its seed draws them (`tune.noise_kind`).
    """
    if not rate:
        return labels
    how: dict[str, Any] = {"num_classes": num_classes, "kind": config.tune.noise_kind, "seed": config.seed}
    return np.asarray(noise.corrupt_labels(labels, rate=rate, **how), np.int32)


def check_downstream_kind(config: ConfigDict) -> None:
    """Raise UserError unless `tune.noise_kind` is a kind that takes a rate alone."""
    kinds = [kind for kind in noise.KINDS if noise.list_arguments(kind) == ("rate",)]
    if config.tune.noise_kind not in kinds:
        raise UserError(f"tune.noise_kind={config.tune.noise_kind!r}", f"choose {' or '.join(kinds)}")
