"""Record training records that cannot be decoded, and stop the run if there are too many."""

import json
from collections.abc import Iterable
from pathlib import Path

from nml_jax import console
from nml_jax.data.sources.source import Source
from nml_jax.data.stream import pipeline
from nml_jax.errors import UserError, report_disk_errors
from nml_jax.runs.files import QUARANTINE, write_atomic
from nml_jax.stored import FAULTS, make_damage, parse_json, read_lines, require_type

CURE = "delete it; records that cannot be decoded are found again"


class Quarantine:
    """The undecodable records of a run, in `quarantine.jsonl` with a line {"id", "reason"} for each.

    Args:
        folder: folder of the run.
        source: training source of the run.
        budget: share of the records that may be undecodable; one record is always allowed.
        active: False on all processes but the first, which then count and write nothing.
    """

    def __init__(self, folder: Path, source: Source, budget: float, *, active: bool = True):
        self.path, self.source, self.budget, self.active = folder / QUARANTINE, source, budget, active
        self.known = self._read_known()

    def __call__(self, ids: Iterable[int]) -> None:
        """Record the new ones among these ids of all processes.

        Raises:
            UserError: the budget is exceeded. Every process raises at the same call.
        """
        new = [i for i in dict.fromkeys(ids) if i not in self.known]
        if not new:
            return
        self.known.update(new)
        lines = [{"id": i, "reason": pipeline.find_reason(self.source, i)} for i in new] if self.active else []
        for line in lines:
            console.notice(f"record replaced by another: {line['reason']}")
        if lines:
            with report_disk_errors(self.path):
                written = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
                write_atomic(self.path, "".join(f"{line}\n" for line in self._lines()) + written)
        if len(self.known) > max(1, self.budget * len(self.source)):
            raise UserError(
                f"{len(self.known)} of {len(self.source)} training records cannot be decoded, more than "
                f"runtime.quarantine={self.budget:g} allows; {self.path} lists them",
                "build the dataset again with python -m nml_jax.prepare, or raise --config.runtime.quarantine",
            )

    def _lines(self) -> list[str]:
        return read_lines(self.path, CURE) if self.path.exists() else []

    def _read_known(self) -> set[int]:
        """Read the ids that are recorded already. Raise UserError if a line is damaged."""
        try:
            return {require_type(parse_json(line)["id"], int) for line in self._lines()}
        except FAULTS as e:
            raise make_damage(self.path, e, CURE) from e
