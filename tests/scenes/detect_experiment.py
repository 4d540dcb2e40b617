"""The experiment of detectors on digit scenes in miniature, for tests that need finished runs."""

from pathlib import Path
from typing import Any

from configs import detect_digits
from nml_jax import main

SMALL = {
    "train.epochs": 1.0, "optimizer.warmup_epochs": 0.5, "data.image_size": 8, "model.width": 4,
    "runtime.save_every": 1.0, "runtime.log_every": 2, "runtime.eval_every": 0.0, "runtime.threads": 0,
    "detect.systems": ("retina",), "detect.starts": ("encoder",), "detect.fpn.width": 8, "detect.batch": 8,
    "detect.epochs": 3.0, "detect.optimizer.warmup_steps": 2, "detect.data.scenes": 16, "detect.data.test_scenes": 4,
    "detect.data.canvas": (32, 32), "detect.score_threshold": 0.005,
    "model.blocks": (1, 1, 1), "detect.retina.strides": (4,),
}  # fmt: skip
PINNED = {"noise": 0.3, "seed": 0}


def config(**overrides: Any):
    """The miniature, one run."""
    out = detect_digits.get_config()
    with out.unlocked():
        out.update_from_flattened_dict(SMALL | PINNED | overrides)
    return out


def launch(workdir: Path, *, force=(), dry_run=False, **overrides: Any) -> None:
    """Run it in this process."""
    main.launch(config(**overrides), workdir, pinned=PINNED, force=force, dry_run=dry_run)


def flags(workdir: Path, **overrides: Any) -> list[str]:
    """The same as arguments of the command line."""
    values = SMALL | PINNED | overrides
    pairs = (f"--config.{k}={v}" for k, v in values.items())
    return ["--config=configs/detect_digits.py", f"--workdir={workdir}", *pairs]
