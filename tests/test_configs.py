"""Trace every config at full size from shapes alone: initialisation and a whole training step, without data."""

import importlib.util
from pathlib import Path

import jax
import pytest

from configs import common
from nml_jax import runtime, settings
from nml_jax.stages.dry_run import make_batch_shapes
from nml_jax.stages.runner import ALL_STAGES
from nml_jax.training import loop
from nml_jax.training.window import put_signals

CONFIGS = sorted(p for p in (Path(__file__).parent.parent / "configs").glob("*.py") if p.stem != "common")
CASES = [(path, arg) for path in CONFIGS for arg in (("a1", "a2", "a3") if "resnet50" in path.stem else (None,))]


def load(path: Path, arg: str | None):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(*([arg] if arg else [])), module


# The suite also runs the README's dry runs, which trace the first line. a2 differs from a1 and a3 only in size.
SLOW = {"clip_r50", "clip_vitb16", "vitb16_in1k", "resnet50_in1k:a2", "resnet50_in1k:a3"}
SLOW |= {"features", "published", "text"}
NO_STEP = {"text_api", "detect_coco"}  # a service is not trained; whole/test_detect_coco.py traces the detectors
NAMES = [f"{path.stem}{':' + arg if arg else ''}" for path, arg in CASES]
assert set(NAMES) >= SLOW
STEPS = [
    pytest.param(*case, marks=pytest.mark.slow if name in SLOW else (), id=name)
    for case, name in zip(CASES, NAMES, strict=True)
    if name not in NO_STEP
]


@pytest.mark.parametrize(("path", "arg"), STEPS)
def test_a_whole_step_at_full_size(path: Path, arg: str | None):
    config, _ = load(path, arg)
    cell = next(iter(settings.expand_sweep(config).values()))
    n, num_classes = cell.data.size or cell.data.expected or 1000, cell.data.num_classes or 10
    mesh = runtime.make_mesh(-1, 2)
    runtime.check_batch(cell.train.batch, mesh, "train.batch")
    program = loop.build(cell, loop.Plan.from_config(cell, n), mesh, num_classes=num_classes)
    state, metrics = jax.eval_shape(program.step, program.shapes, make_batch_shapes(cell), put_signals(mesh))
    shapes = jax.tree.map(lambda x: (x.shape, x.dtype), program.shapes)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), state) == shapes
    assert {"loss", "accuracy", "grad_norm"} <= metrics.keys()
    for total, count in metrics.values():
        assert total.shape == count.shape == ()
    assert jax.tree.map(lambda x: x.shape, jax.eval_shape(program.init, jax.random.key(0))) == jax.tree.map(
        lambda x: x.shape, program.shapes
    )


@pytest.mark.parametrize(("path", "arg"), CASES, ids=NAMES)
def test_noise_overrides_every_config(path: Path, arg: str | None):
    config, module = load(path, arg)
    with config.unlocked():
        config.noise = 0.05
    cells = settings.expand_sweep(config, {"noise": 0.05})
    assert {cell.noise for cell in cells.values()} == {0.05}
    assert set(config.stages) <= set(ALL_STAGES)
    assert config.name.startswith(path.stem)
    assert "--config=configs/" + path.name in module.__doc__, "the docstring gives the command"


@pytest.mark.parametrize(("path", "arg"), CASES, ids=NAMES)
def test_configs_add_no_key(path: Path, arg: str | None):
    def keys(c):
        return {k for k, _ in settings.flatten({k: v for k, v in c.to_dict().items() if k != "sweep"})}

    config, _ = load(path, arg)
    assert keys(config) == keys(common.get_config())
    with pytest.raises(AttributeError):
        config.nois = 0.1


def test_every_key_has_a_comment():
    lines = (Path(__file__).parent.parent / "configs" / "common.py").read_text().splitlines()
    sets = [line for line in lines if line.startswith("    ") and " = " in line and not line.endswith("ConfigDict()")]
    assert len(sets) > 80
    assert [line for line in sets if "#" not in line] == []
