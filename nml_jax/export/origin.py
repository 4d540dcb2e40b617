"""Find what is exported: the weights of a run or of a fine-tuned setting, and what is on record about them."""

from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from nml_jax import settings
from nml_jax.errors import UserError
from nml_jax.hashes import hash_text
from nml_jax.noise import Ledger
from nml_jax.runs.classes import read_counts
from nml_jax.runs.record import read_config, read_record
from nml_jax.training.pretrained import Loaded, load_model


class Origin(NamedTuple):
    """Weights with what is on record about them.

    loaded: the model.
    config: the config that trained it.
    weights: "raw" or "ema".
    home: the folder with its checkpoints and rows.
    run: the folder of its run; `home` itself, unless a setting of the stage finetune is exported.
    class_names: of the head, one for each class; () if they are not known or there is no head.
    ledger: of its pre-training; None where no run of ours did that.
    """

    loaded: Loaded
    config: ConfigDict
    weights: str
    home: Path
    run: Path
    class_names: tuple[str, ...]
    ledger: Ledger | None

    @property
    def tuned(self) -> bool:
        """Whether a setting of the stage finetune is exported."""
        return self.home != self.run

    @property
    def num_classes(self) -> int:
        """Classes of the head; 0 without a head."""
        return self.loaded.meta["num_classes"] if "head" in self.loaded.params else 0

    @property
    def revision(self) -> str:
        """Revision of the code that trained the weights; "" if that is not on record."""
        stage = read_record(self.run)["stages"].get("finetune" if self.tuned else "pretrain", {})
        return stage.get("revision", "")


def find_origin(path: Path, *, step: int | None = None, weights: str = "raw") -> Origin:
    """Load what is to be exported.

    Args:
        path: the folder of a run, of a fine-tuned setting (runs/NAME/RUN/finetune/TASK/SETTING), or of a checkpoint.
        step: step of the checkpoint; None: the last.
        weights: "raw" or "ema".

    Raises:
        UserError: there is no checkpoint, it is damaged, or it has no such weights.
    """
    loaded = load_model(path, step=step, weights=weights)
    home = path.resolve()
    home = home.parents[1] if home.name.isdecimal() and home.parent.name == "checkpoints" else home
    tuned = "task" in loaded.meta
    if tuned and not (home.parents[2] / "config.json").is_file():
        raise UserError(
            f"{path} is a fine-tuned setting outside of its run", "leave it in the run's folder finetune/TASK/SETTING"
        )
    run = home.parents[2] if tuned else home
    ledger = Ledger.from_dict(loaded.meta["ledger"]) if loaded.meta["ledger"] else None
    config = settings.from_json(loaded.meta["config"])
    return Origin(loaded, config, weights, home, run, _find_classes(loaded, run, tuned), ledger)


def _find_classes(loaded: Loaded, run: Path, tuned: bool) -> tuple[str, ...]:
    """Return the names of the head's classes; () if they are not on record."""
    names = loaded.meta.get("class_names", ()) if tuned else read_counts(run).get("train", {})
    return tuple(names) if "head" in loaded.params and len(names) == loaded.meta["num_classes"] else ()


def list_siblings(origin: Origin) -> list[Path]:
    """List the runs that differ from this one in their seeds alone, itself among them, by name."""

    def identify(run: Path) -> str:
        tree = read_config(run)
        seeds = ("seed", "noise_seed", *settings.NOT_IDENTITY)
        return hash_text(settings.hash_json({key: value for key, value in tree.items() if key not in seeds}))

    mine = identify(origin.run)
    others = sorted(path.parent for path in origin.run.parent.glob("*/config.json"))
    return [run for run in others if identify(run) == mine] or [origin.run]


def describe_data(config: ConfigDict) -> dict[str, Any]:
    """Return what a config says about the data of pre-training. Folders are shortened to their last name."""
    data = config.data
    names = [Path(path).name for path in (data.mixture or (data.path,)) if path]
    told = {"source": data.source, "dataset": data.name or ", ".join(names), "split": data.train}
    told |= {"classes": ", ".join(map(str, data.classes))} if data.classes else {}
    if data.source == "digits":
        told["dataset"] = "scikit-learn's digits (UCI optical recognition of handwritten digits)"
    return {key: value for key, value in told.items() if value}
