"""Define a downstream classification task: one training set, and test sets in- and out-of-domain."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from nml_jax.data.sources.source import Source
from nml_jax.tasks import class_maps
from nml_jax.tasks.frames import Frames


@dataclasses.dataclass(frozen=True)
class Test:
    """One test split of a task.

    Its classes are the task's. With a class map, its labels are test classes of their own, and class_map[i] lists the
    task's classes that test class i stands for (evals/mapped.py).
    """

    __test__ = False  # tells pytest that this is not a test case

    split: str
    domain: str  # "id" or "ood"
    source: Source
    shift: str | None = None  # a key of transforms.SHIFTS, applied to every image
    class_map: class_maps.ClassMap | None = None
    frames: Frames | None = None  # for frames of videos
    scoring: Mapping[str, Any] = dataclasses.field(
        default_factory=dict
    )  # further arguments of evals.mapped.Scorer, as JSON values


@dataclasses.dataclass(frozen=True)
class Task:
    """A downstream classification task. All splits have the same classes, except tests with a class map."""

    name: str
    train: Source
    tests: tuple[Test, ...]
    metric: str = "accuracy"  # the customary metric of the dataset

    @property
    def num_classes(self) -> int:
        return self.train.num_classes
