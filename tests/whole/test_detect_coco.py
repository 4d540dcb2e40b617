"""The recipes of detectors on COCO at full size, from shapes alone."""

import jax
import pytest

from configs import detect_coco
from nml_jax import runtime
from nml_jax.errors import UserError
from nml_jax.models import detection
from nml_jax.stages import detect

# torchvision's counts with 91 outputs, without those of background, which only it has: 4 deltas and a mask.
COUNTS = {"retina": (91, 34_068_119), "faster": (90, 41_808_406 - 4 * 1025), "mask": (90, 44_454_513 - 4 * 1025 - 257)}


SLOW = pytest.mark.slow


@pytest.mark.parametrize("system", [pytest.param(s, marks=() if s == "mask" else SLOW) for s in COUNTS])
def test_parameters_are_as_many_as_torchvisions(system: str):
    config, (num_classes, count) = detect_coco.get_config(f"{system},torchvision"), COUNTS[system]
    model = detection.build(config.model, config.detect, system, num_classes=num_classes, canvas=(64, 64))
    assert sum(x.size for x in jax.tree.leaves(model.shapes[0])) == count


@SLOW
@pytest.mark.parametrize("which", ["retina", "mask,detectron2", "solo"])
def test_a_whole_step_at_full_size(which: str):
    """Both canvases of 16 images, of a hundred objects each."""
    config, mesh = detect_coco.get_config(which), runtime.make_mesh()
    system = config.detect.systems[0]
    _, program = detect.build_program(config, mesh, system, config.detect.data.expected, 80)
    for batch in detect.make_batch_shapes(config, program.model):
        assert sorted(batch["image"].shape[1:3]) == [800, 1344]
        model, key = program.model, jax.random.key(0)
        apply = lambda *args, train, model=model, key=key: model.apply(*args, train=train, key=key)[0]  # noqa: E731
        outputs = jax.eval_shape(lambda *args, apply=apply: apply(*args, train=True), *model.shapes, batch)
        assert outputs
        found = jax.eval_shape(lambda *args, apply=apply: apply(*args, train=False), *model.shapes, batch)
        assert found["boxes"].shape == (16, 100, 4)


@SLOW
def test_anchors_are_as_many_as_published():
    config = detect_coco.get_config("retina")
    model = detection.build(config.model, config.detect, "retina", num_classes=80, canvas=(800, 1344))
    batch = {name: jax.ShapeDtypeStruct((2, *x.shape[1:]), x.dtype) for name, x in model.spec.items()}
    outputs = jax.eval_shape(lambda *args: model.apply(*args, train=True, key=None)[0], *model.shapes, batch)
    assert outputs["logits"].shape == (2, 201_600, 80)


def test_recipes_differ_where_the_codebases_do():
    detectron2, torchvision = (
        detect_coco.get_config(f"faster,{name}").detect for name in ("detectron2", "torchvision")
    )
    assert (detectron2.norm, torchvision.norm) == ("frozen", "frozen")
    assert detect_coco.get_config("faster").detect.norm == "eval"
    assert (torchvision.roi.aligned, torchvision.roi.beta) == (False, 1 / 9)
    assert detect_coco.get_config("retina,rsb").detect.optimizer.lr == 1e-4
    assert detect_coco.get_config("mask,rsb").detect.optimizer.lr == 2e-4


@pytest.mark.parametrize("which", ["yolo", "retina,keras", "solo,detectron2"])
def test_unknown_recipes_are_refused(which: str):
    with pytest.raises(UserError):
        detect_coco.get_config(which)
