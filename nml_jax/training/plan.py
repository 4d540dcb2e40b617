"""How long training is, in steps; and the ranges of the section `train`, which says so."""

from typing import NamedTuple

from ml_collections import ConfigDict

from nml_jax import ranges


def check_ranges(config: ConfigDict) -> None:
    """Refuse values of the section `train` that are out of range."""
    ranges.require_at_least(1, "train", config, "batch")
    ranges.require_positive("train", config, "epochs")
    ranges.require_share("train", config, "ema", below_one=True)


class Plan(NamedTuple):
    """How long, in steps."""

    steps: int
    per_epoch: float

    @classmethod
    def of(cls, config: ConfigDict, n: int) -> "Plan":
        """`train.epochs` over n records; with repeated augmentation an epoch is still n samples."""
        per_epoch = n / config.train.batch
        return cls(max(1, round(config.train.epochs * per_epoch)), per_epoch)

    def every(self, epochs: float) -> int:
        """An interval in epochs as steps; never less than one, 0 means at the end."""
        return max(1, round(epochs * self.per_epoch)) if epochs else self.steps
