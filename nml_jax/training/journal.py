"""What a run writes down while it trains: metrics, the samples of every step, undecodable records, where time goes."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import jax
from ml_collections import ConfigDict

from nml_jax import console
from nml_jax.processes import peers
from nml_jax.runs import goodput
from nml_jax.runs.metrics import Metrics
from nml_jax.training.window import Seen, hash_ids, list_ids


class Score(NamedTuple):
    """One number that an evaluator finds."""

    split: str  # the evaluator's name
    weights: str  # raw | ema
    metric: str
    value: float

    @property
    def name(self) -> str:
        """What metrics files call it, as in "validation_ema/accuracy"."""
        return f"{self.split}{'_ema' if self.weights == 'ema' else ''}/{self.metric}"


class Journal:
    """The journal of one run; it is written on the first process only.

    Args:
        folder: of the run.
        config: `train.batch` and `runtime.sample_ids` are read.
        steps: of the whole run.
        label: names the run on the progress line.
        clock: has begun when the work on the run did.
        quarantine: takes the ids of undecodable records; it may refuse to go on.
    """

    def __init__(
        self,
        folder: Path,
        config: ConfigDict,
        *,
        steps: int,
        label: str,
        clock: goodput.Clock,
        quarantine: Callable[[Iterable[int]], None],
    ):
        self.folder, self.config, self.steps, self.label = folder, config, steps, label
        self.clock, self.quarantine = clock, quarantine
        self.active = jax.process_index() == 0
        self.skipped = 0
        self.refused = False

    @contextlib.contextmanager
    def open(self, step: int) -> Iterator[None]:
        """Write from the step on that training starts from; what an interrupted run wrote after it is dropped."""
        self.metrics = Metrics(
            self.folder, step=step, steps=self.steps, batch=self.config.train.batch, label=self.label,
            active=self.active,
        )  # fmt: skip
        self.goodput = goodput.Record(self.folder, self.clock, step, active=self.active)
        self.step = self.reached = step
        try:
            with peers.stepping(lambda: f"step {self.reached} ({self.clock.part})"):
                yield
        finally:
            self.saved(self.step)
            with self._spared():
                self.metrics.close()
            if self.active and (summary := goodput.read(self.folder)):
                console.notice(f"{self.label}: {summary}")

    def received(self, *, idle: bool, then: str) -> None:
        """A batch has come. If the device was idle meanwhile, that time was lost to data."""
        spent = self.clock.to(then, was="data" if idle else None)
        self.reached += 1
        if idle:
            self.metrics.waiting(spent)

    def write(self, step: int, seen: Seen, values: Mapping[str, float], skipped: int) -> None:
        """Write what a window of steps has said, up to `step`, and show where training is.

        Args:
            skipped: steps up to here that changed nothing.

        Raises:
            UserError: too many records cannot be decoded.
        """
        self.step, self.skipped = step, skipped
        for k in seen.skipped if self.active else ():
            console.notice(
                f"step {k} was skipped: its loss or gradient is not finite; ids of its batch: {list_ids(seen.ids[k])}"
            )
        shown = {k: seen.means[f"train/{k}"] for k in ("loss", "accuracy") if f"train/{k}" in seen.means}
        speed = self.metrics.progress(step, shown)
        self.values(step, {**values, **seen.means, **speed, "goodput": self.clock.share()})
        whole = self.config.runtime.sample_ids
        with self._spared():
            self.metrics.samples({k: ids.tolist() if whole else hash_ids(ids) for k, ids in seen.ids.items()})
            self.goodput.write(step, skipped=skipped, now=False)
        if seen.undecodable:
            self.quarantine(seen.undecodable)

    def values(self, step: int, values: Mapping[str, float]) -> None:
        """Write numbers of `step`."""
        with self._spared():
            self.metrics.write(step, values)

    def saved(self, step: int) -> None:
        """A checkpoint is under way: also keep where the time has gone up to here."""
        with self._spared():
            self.goodput.write(step, skipped=self.skipped)

    @contextlib.contextmanager
    def _spared(self) -> Iterator[None]:
        """A disk that takes no more is told once; it costs these lines, not the run."""
        try:
            yield
        except OSError as e:
            if not self.refused:
                console.notice(f"cannot write {e.filename or self.folder}: {e.strerror}; training goes on")
            self.refused = True
