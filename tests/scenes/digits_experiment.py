"""The digits experiment in miniature, for tests that need finished runs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from configs import digits
from nml_jax import main

SMALL = {
    "train.epochs": 3.0, "optimizer.warmup_epochs": 1.0, "model.width": 4, "model.blocks": (1, 1),
    "tune.epochs": 2, "tune.lrs": (0.01,), "tune.weight_decays": (0.0,), "runtime.save_every": 1.0,
    "runtime.log_every": 4, "downstream.tasks": ("digits",), "downstream.shifts": (),
    "tune.methods": ("linear", "lbfgs", "mlp", "nmtune"), "tune.presets": ("paper", "code"),
}  # fmt: skip
PINNED = {"noise": 0.3, "seed": 0}


def config(**overrides: Any):
    """The miniature, one cell unless `noise` or `seed` is None, which leaves the axis to the sweep."""
    out = digits.get_config()
    values = {k: v for k, v in (SMALL | PINNED | overrides).items() if v is not None}
    with out.unlocked():
        out.update_from_flattened_dict(values)
    return out


def launch(
    workdir: Path, *, force=(), dry_run=False, pinned: Mapping[str, Any] | None = None, **overrides: Any
) -> None:
    """Run it in this process."""
    if pinned is None:
        pinned = {k: v for k, v in (PINNED | overrides).items() if k in PINNED and v is not None}
    main.launch(config(**overrides), workdir, pinned=pinned, force=force, dry_run=dry_run)


def flags(workdir: Path, **overrides: Any) -> list[str]:
    """The same as arguments of the command line."""
    values = SMALL | PINNED | overrides
    return ["--config=configs/digits.py", f"--workdir={workdir}", *(f"--config.{k}={v}" for k, v in values.items())]
