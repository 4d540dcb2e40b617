"""Train the twins on digit scenes, and write their weights and test scenes into golden_trained.safetensors.

    PYTHONPATH=. python tests/models/detection/trained_twins.py WORKDIR [SYSTEM ...]

takes half an hour of CPU time. What is trained is kept in WORKDIR, and training continues there. Then golden_trained.py
adds, in an environment of its own, what torchvision and mmdetection detect. The file in the repository has RetinaNet
after all 1,536 steps, Mask R-CNN after 295 and SOLOv2 after 643, where training was stopped.
"""

import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from configs import detect_digits
from nml_jax import runtime
from nml_jax.data.images.scenes import pad_objects
from nml_jax.stages import detect
from nml_jax.tasks import detection
from nml_jax.training import loop
from tests.models.detection import ours, twins

SYSTEMS = ("retina", "mask", "solo")  # Faster R-CNN has the weights of Mask R-CNN
SCENES = 16
# What leaves the architecture and detection as they are.
TRAINING = {"norm": "train", "epochs": 24.0, "rpn.samples": 64, "roi.samples": 64, "solo.positives": 48}


def make_config(system: str) -> Any:
    """Make the config of a twin on digit scenes."""
    config, digits = ours.make_config(system, twins.TRAINED["width"]), detect_digits.get_config()
    with config.unlocked():
        config.runtime = digits.runtime
        for key in ("data", "optimizer", "lr_batch"):
            config.detect[key] = digits.detect[key]
        config.detect.update_from_flattened_dict(TRAINING)
    return config


def train(system: str, workdir: Path) -> tuple[Any, Any]:
    """Train a twin from its random weights, print its average precision, and return its parameters and statistics."""
    config, mesh = make_config(system), runtime.make_mesh()
    task = detection.open_task(config)
    plan, program = detect.build_program(config, mesh, system, len(task.train), task.train.num_classes)
    first = jax.tree.map(jnp.asarray, ours.fill(program.model))
    job = detect.Job(detect.make_training_config(config), mesh, task, system, None, {}, workdir / system)
    evaluator = detect.build_evaluator(job, program.model)
    started = program._replace(init=lambda key: program.adopt(first, key))
    state = detect.train(job, started, plan, evaluator)
    print(system, {score.metric: round(score.value, 3) for score in loop.run_all({"test": evaluator}, state)})
    return jax.device_get((state.params, state.model_state))


def keep_weights(weights: tuple[Any, Any], prefix: str, out: dict[str, np.ndarray]) -> None:
    """Keep rounded weights by their names in torchvision, as it has them."""
    for path, x in jax.tree_util.tree_leaves_with_path(weights):
        name = ours.name_there(path[1:])
        there = ours.convert_back(name, x)
        np.testing.assert_array_equal(ours.convert(name, there), x)
        out |= {f"{prefix}/{name}/{part}": value for part, value in twins.round_weight(there).items()}


def keep_scenes(out: dict[str, np.ndarray]) -> None:
    """Keep test scenes, which are grey, and their objects."""
    source = detection.open_task(make_config("retina")).test
    out["trained/image"] = np.stack([source.image(i)[..., 0] for i in range(SCENES)])
    objects = [source.objects(i) for i in range(SCENES)]
    padded = [pad_objects(one.boxes, one.labels, max(len(x.labels) for x in objects)) for one in objects]
    out |= {f"trained/{name}": np.stack([one[name] for one in padded]) for name in padded[0]}


if __name__ == "__main__":
    golden: dict[str, np.ndarray] = {}
    keep_scenes(golden)
    for each in sys.argv[2:] or SYSTEMS:
        keep_weights(train(each, Path(sys.argv[1])), f"trained/{each}/weights", golden)
    file = Path(__file__).with_name("golden_trained.safetensors")
    save_file({k: np.ascontiguousarray(x) for k, x in golden.items()}, file)
    print(f"{file.stat().st_size:,} bytes")
