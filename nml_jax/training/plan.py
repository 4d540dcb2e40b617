"""How long training is, in steps."""

from typing import NamedTuple

from ml_collections import ConfigDict


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
