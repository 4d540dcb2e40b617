"""A stage of a run as a value, with all that the runner needs."""

import dataclasses
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from jax.sharding import Mesh
from ml_collections import ConfigDict

from nml_jax.runs.rows import Row, read_rows

# Keys that list which heads the stage tune trains. Others that read the section do not read these.
HEADS = ("tune.methods", "tune.presets", "tune.shares", "tune.noises", "tune.suspects")


@dataclasses.dataclass(frozen=True)
class Outputs:
    """What a stage writes to a run's folder, besides its rows.

    names: its files and folders, relative to the run's folder. They are removed before the stage runs again.
    needed: (run's folder, the stage's rows) -> the paths that must exist for the stage to count as done. None means
        all of `names`.
    proved: files whose SHA-256 is recorded, and which the stage writes again if they have changed.
    grown: files whose SHA-256 is recorded, but which only a new training makes again.
    """

    names: tuple[str, ...] = ()
    needed: Callable[[Path, list[Row]], Iterable[Path]] | None = None
    proved: tuple[str, ...] = ()
    grown: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """A stage of a run.

    name: as in `config.stages` and in its rows.
    version: raised when the same inputs give different numbers.
    keys: the top-level keys of the config that it reads.
    upstream: the stages whose outputs it reads.
    outputs: what it writes.
    check: (config, mesh, data=True) raises UserError for what would fail later, before anything runs. With `data` it
        also reads the data.
    run: (config, run's folder, mesh) -> digest of its results.
    lists: dotted keys that list what to do. What is done stays when they change, and only what is new is done.
    differs: for a stage with lists: (config, the stage's rows) -> whether the rows are others than the lists ask for.
    estimate: (config, mesh) -> what it would train and what that costs, for a dry run; None: it trains nothing of size.
    encoded: config -> whether it starts from an encoder, that of the stage pretrain or `init_from`.
    """

    name: str
    version: int
    keys: tuple[str, ...]
    upstream: tuple[str, ...]
    outputs: Outputs
    check: Callable[..., None]
    run: Callable[[ConfigDict, Path, Mesh], str]
    lists: tuple[str, ...] = ()
    differs: Callable[[ConfigDict, list[Row]], bool] = lambda config, rows: False
    estimate: Callable[[ConfigDict, Mesh], Mapping[str, str]] | None = None
    encoded: Callable[[ConfigDict], bool] = lambda config: False

    def intact(self, workdir: Path) -> bool:
        """Return whether all files that the stage needs to count as done exist."""
        needed = self.outputs.needed
        if needed is None:
            return all((workdir / name).exists() for name in self.outputs.names)
        return all(path.exists() for path in needed(workdir, [r for r in read_rows(workdir) if r.stage == self.name]))

    def forget(self, workdir: Path) -> None:
        """Remove what the stage wrote, except its rows, which are replaced when it ends."""
        for path in (workdir / name for name in self.outputs.names):
            if path.is_dir():
                # Whoever reads it finds it whole or gone. A kill may have left one from before.
                gone = path.with_name(f".{path.name}.gone")
                shutil.rmtree(gone, ignore_errors=True)
                path.rename(gone)
                shutil.rmtree(gone)
            else:
                path.unlink(missing_ok=True)
