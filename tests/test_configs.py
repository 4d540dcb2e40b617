"""Trace every config at full size from shapes alone: initialisation and a whole training step, without data."""

import importlib.util
from pathlib import Path

import jax
import pytest

from configs import common, detect_coco
from nml_jax import runtime, settings
from nml_jax.assembly import sections
from nml_jax.errors import UserError
from nml_jax.models import detection
from nml_jax.stages.dry_run import make_batch_shapes
from nml_jax.stages.runner import ALL_STAGES
from nml_jax.training import detect, loop, optim
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
SLOW |= {"detect_coco", "features", "published", "text"}
NO_STEP = {"text_api"}  # nobody here can train a service
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


@pytest.mark.parametrize("variant", ["", ",rsb", ",d2", ",tv"])
def test_the_recipes_of_coco_fit_their_optimiser(variant: str):
    for system in detection.SYSTEMS:
        config = detect_coco.get_config(system + variant)
        sections.check(config)
        params = {
            "encoder": {"stem_bn": {"scale": 0.0}, "stage2_block0": {"bn1": {"scale": 0.0}, "conv1": {"kernel": 0.0}}}
        }
        shapes = jax.tree.map(lambda _: jax.ShapeDtypeStruct((2,), "float32"), {**params, "detector": {"bias": 0.0}})
        how = detect.build_optimizer(config.optimizer, config.detect, shapes)
        per_epoch = config.detect.data.expected / config.detect.batch
        steps = round(config.detect.epochs * per_epoch)
        _, schedule = optim.make(how, shapes, steps=steps, steps_per_epoch=per_epoch)
        peak = {"": 0.01 if system in ("retina", "solo") else 0.02, ",rsb": 1e-4 if system == "retina" else 2e-4}
        peak |= {",d2": peak[""], ",tv": peak[""]}
        assert float(schedule(2000)) == pytest.approx(peak[variant], rel=1e-3)
        assert float(schedule(steps - 1)) == pytest.approx(peak[variant] / 100, rel=1e-3)
        assert float(schedule(0)) == pytest.approx(peak[variant] / 1000, rel=1e-3)
    if variant == ",d2":
        assert (steps, round(how.milestones[0] * per_epoch)) == (90_000, 60_000)


@pytest.mark.parametrize("wrong", ["yolo", "retina,3x", ""])
def test_a_recipe_of_coco_that_does_not_exist_is_refused(wrong: str):
    with pytest.raises(UserError, match="choose one of retina, faster, mask, solo"):
        detect_coco.get_config(wrong)


def test_every_key_has_a_comment():
    lines = (Path(__file__).parent.parent / "configs" / "common.py").read_text().splitlines()
    sets = [line for line in lines if line.startswith("    ") and " = " in line and not line.endswith("ConfigDict()")]
    assert len(sets) > 80
    assert [line for line in sets if "#" not in line] == []
