"""A stage of a run, as a value: what the runner needs to know of it."""

import dataclasses
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

from jax.sharding import Mesh
from ml_collections import ConfigDict

from nml_jax.runs.rows import Row, read_rows


@dataclasses.dataclass(frozen=True)
class Outputs:
    """What a stage leaves in a run's folder, besides its rows.

    names: its files and folders, relative to the run's folder. They are removed before the stage is done again.
    needed: (run's folder, the stage's rows) -> the paths without which the stage does not count as done. None: all of
        `names`.
    """

    names: tuple[str, ...] = ()
    needed: Callable[[Path, list[Row]], Iterable[Path]] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """A stage of a run.

    name: as in `config.stages`; its rows carry it.
    version: raised when the same inputs give other numbers.
    keys: the top-level keys of the config that it reads.
    upstream: the stages whose output it reads.
    outputs: what it leaves.
    check: (config, mesh, data=True) refuses what can only fail later, before anything is run. With `data` also what is
        not there to be read.
    run: (config, run's folder, mesh) -> digest of what it produced.
    """

    name: str
    version: int
    keys: tuple[str, ...]
    upstream: tuple[str, ...]
    outputs: Outputs
    check: Callable[..., None]
    run: Callable[[ConfigDict, Path, Mesh], str]

    def intact(self, workdir: Path) -> bool:
        """Whether everything that makes the stage count as done is still there."""
        needed = self.outputs.needed
        if needed is None:
            return all((workdir / name).exists() for name in self.outputs.names)
        return all(path.exists() for path in needed(workdir, [r for r in read_rows(workdir) if r.stage == self.name]))

    def forget(self, workdir: Path) -> None:
        """Remove what the stage has left. Its rows stay: they are replaced when it ends."""
        for path in (workdir / name for name in self.outputs.names):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
