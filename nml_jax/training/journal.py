"""Write the files of a run in training: metrics, samples of every step, undecodable records, times."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import jax
from ml_collections import ConfigDict

from nml_jax import console
from nml_jax.processes import peers
from nml_jax.runs import goodput
from nml_jax.runs.metrics import Metrics, read_metrics
from nml_jax.training.window import Seen, hash_ids, list_ids

VALIDATION = "validation/"  # what the names of the numbers of an evaluation on clean data begin with


class Score(NamedTuple):
    """One number from an evaluator."""

    split: str  # name of the evaluator
    weights: str  # raw | ema
    metric: str
    value: float

    @property
    def name(self) -> str:
        """Name of the number in metrics files, as in "validation_ema/accuracy"."""
        return f"{self.split}{'_ema' if self.weights == 'ema' else ''}/{self.metric}"


class Journal:
    """The journal of one run. Only process 0 writes it.

    Args:
        folder: folder of the run.
        config: the whole config.
        steps: length of the whole run.
        label: name of the run on the progress line.
        clock: a clock that started with the work on the run.
        quarantine: called with the ids of undecodable records. It raises UserError if there are too many.
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
        self.disk_failed = False

    @contextlib.contextmanager
    def open(self, step: int) -> Iterator[None]:
        """Open the files to continue after `step`. Drop the lines that an interrupted run wrote after it."""
        self.metrics = Metrics(
            self.folder, step=step, steps=self.steps, batch=self.config.train.batch, label=self.label,
            active=self.active,
        )  # fmt: skip
        self.goodput = goodput.Record(self.folder, self.clock, step, active=self.active)
        self.step = self.reached = step
        try:
            with peers.track(lambda: f"step {self.reached} ({self.clock.part})"):
                yield
        finally:
            self.write_goodput(self.step)
            with self._tolerate_full_disk():
                self.metrics.close()
            if self.active and (summary := goodput.read(self.folder)):
                console.notice(f"{self.label}: {summary}")

    def count_batch(self, *, idle: bool, then: str) -> None:
        """Count a batch and switch the clock to the part `then`. An idle device was waiting for data."""
        spent = self.clock.to(then, was="data" if idle else None)
        self.reached += 1
        if idle:
            self.metrics.add_wait(spent)

    def write(self, step: int, seen: Seen, values: Mapping[str, float], skipped: int) -> None:
        """Write the results of a window of steps up to `step` and print progress.

        Args:
            skipped: number of skipped steps of the run so far.

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
        self.write_values(step, {**values, **seen.means, **speed, "goodput": self.clock.share()})
        whole = self.config.runtime.sample_ids
        with self._tolerate_full_disk():
            self.metrics.write_samples({k: ids.tolist() if whole else hash_ids(ids) for k, ids in seen.ids.items()})
            self.goodput.write(step, skipped=skipped, now=False)
        if seen.undecodable:
            self.quarantine(seen.undecodable)

    def write_values(self, step: int, values: Mapping[str, float]) -> None:
        """Write metrics of `step`."""
        with self._tolerate_full_disk():
            self.metrics.write(step, values)

    def write_last(self, step: int, evaluate: Callable[[], Mapping[str, float]]) -> None:
        """Write the evaluation of the last step, unless it is written already. Training is over, and files are closed.

        Args:
            evaluate: returns the values. All processes call it or none.
        """
        known = [line for line in read_metrics(self.folder) if line["step"] == step] if self.active else []
        if peers.agree(any(key.startswith(VALIDATION) for line in known for key in line)):
            return
        values = evaluate()
        with self._tolerate_full_disk():
            shown = {"steps": self.steps, "batch": self.config.train.batch, "label": self.label}
            metrics = Metrics(self.folder, step=step, **shown, active=self.active)
            try:
                metrics.write(step, values)
            finally:
                metrics.close()

    def write_goodput(self, step: int) -> None:
        """Write the times up to `step`."""
        with self._tolerate_full_disk():
            self.goodput.write(step, skipped=self.skipped)

    @contextlib.contextmanager
    def _tolerate_full_disk(self) -> Iterator[None]:
        """Warn once on a full disk, and drop these lines. Training continues."""
        try:
            yield
        except OSError as e:
            if not self.disk_failed:
                console.notice(f"cannot write {e.filename or self.folder}: {e.strerror}; training goes on")
            self.disk_failed = True
