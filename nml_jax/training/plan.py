"""The length of training in steps, and the ranges of the section `train`, which states it."""

from typing import NamedTuple

from ml_collections import ConfigDict

from nml_jax import ranges


def check_ranges(config: ConfigDict) -> None:
    """Raise UserError if a value of the section `train` is out of range."""
    ranges.require_at_least(1, "train", config, "batch")
    ranges.require_positive("train", config, "epochs")
    ranges.require_share("train", config, "ema", below_one=True)


class Plan(NamedTuple):
    """The length of training in steps."""

    steps: int  # of the whole run
    per_epoch: float

    @classmethod
    def from_config(cls, config: ConfigDict, n: int) -> "Plan":
        """Plan `train.epochs` over n records; with repeated augmentation an epoch is still n samples."""
        per_epoch = n / config.train.batch
        return cls(max(1, round(config.train.epochs * per_epoch)), per_epoch)

    def to_steps(self, epochs: float) -> int:
        """Convert an interval in epochs to steps, at least one; 0 epochs is the whole run."""
        return max(1, round(epochs * self.per_epoch)) if epochs else self.steps
