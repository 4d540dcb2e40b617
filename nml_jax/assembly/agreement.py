"""What all processes of a job must read alike: config, files and data. Otherwise they would train on, or hang."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from ml_collections import ConfigDict

from nml_jax import inputs, settings
from nml_jax.data import sources
from nml_jax.processes import peers
from nml_jax.tasks.classification import load_task
from nml_jax.tasks.task import Task

CURE = "give every process the same command, and every host the same files, or one folder that all see"
FREE = ("runtime.threads", "runtime.prefetch")  # keys that change no number, and fit the host


def collect_inputs(config: ConfigDict, cells: Mapping[str, ConfigDict], force: Sequence[str]) -> dict[str, str]:
    """Collect what a job reads: what it is -> its value in words. This reads all files that the config names."""
    keys = {f"config.{key}": json.dumps(value) for key, value in settings.flatten(settings.to_json(config))}
    paths = dict.fromkeys(path for cell in cells.values() for path in inputs.list_paths(settings.to_json(cell)))
    return {
        **{key: value for key, value in keys.items() if key.removeprefix("config.") not in FREE},
        "list of runs": ", ".join(cells),
        "--force": ", ".join(force),
        **{path: inputs.describe_content(Path(path)) for path in paths},
        **sources.opened,
    }


def collect_training(steps: int) -> dict[str, str]:
    """Collect what a training reads and does, once its data are open."""
    return {**sources.opened, "number of steps": str(steps)}


def open_task(name: str, config: ConfigDict) -> Task:
    """Load a downstream task, and compare its sources between the processes, which must score the same records.

    Raises:
        UserError: it does not exist, or a host has other data.
    """
    task = load_task(name, config)
    peers.require_same(lambda: dict(sources.opened), CURE)
    return task
