"""SOLOv2 against mmdetection's head, part by part."""

from typing import Any

import jax
import numpy as np
import pytest

from nml_jax.errors import UserError
from nml_jax.models import detection
from tests.models.detection import comparison, ours, twins
from tests.models.detection.comparison import get_golden


def get_outputs() -> dict[str, np.ndarray]:
    return comparison.get_twin("solo").plain[0]


def test_class_logits_are_mmdetections():
    theirs = get_golden("solo/logits")
    assert np.abs(get_outputs()["logits"] - theirs).max() <= 2e-5 * np.abs(theirs).max()


def test_targets_are_mmdetections():
    """Classes of cells, the pairs of objects and cells in order, and their masks; then the masks that are predicted."""
    out = get_outputs()
    for i in range(2):
        classes, cells, painted = (get_golden(f"solo/{i}/{name}") for name in ("class", "cell", "painted"))
        np.testing.assert_array_equal(np.where(out["class"][i] < 0, twins.CLASSES, out["class"][i]), classes)
        used = out["used"][i]
        np.testing.assert_array_equal(out["cell"][i][used], cells)
        np.testing.assert_array_equal(np.packbits(out["painted"][i][used], -1), painted)
        masks, theirs = out["masks"][i][used][:, ::4, ::4], get_golden(f"solo/{i}/masks")
        assert np.abs(masks - theirs).max() <= 2e-5 * np.abs(theirs).max()
    assert len(set(out["cell"][0][out["used"][0]])) < out["used"][0].sum(), "a cell belongs to two objects"
    assert not out["dropped"].any()


def test_losses_and_gradients_are_mmdetections():
    comparison.check_losses("solo", {"mask_loss": "loss_mask", "class_loss": "loss_cls"})


def test_detections_are_mmdetections():
    """The scores after Matrix-NMS, the classes, and the masks at the size of the picture."""
    found = comparison.get_twin("solo").plain[3]
    for i in range(2):
        scores, labels, masks = (get_golden(f"solo/detections/{i}/{name}") for name in ("scores", "labels", "masks"))
        np.testing.assert_allclose(found["scores"][i], scores, atol=1e-5)
        np.testing.assert_array_equal(found["classes"][i], labels)
        large = jax.image.resize(found["maps"][i], (len(scores), *twins.CANVAS), "bilinear") > 0.5
        assert (np.packbits(large, -1) != masks).mean() < 1e-3
        covered = found["maps"][i][0] > 0.5
        y, x = covered.any(1).nonzero()[0], covered.any(0).nonzero()[0]
        assert found["boxes"][i, 0].tolist() == [2 * x[0], 2 * y[0], 2 * x[-1] + 2, 2 * y[-1] + 2]


@pytest.mark.parametrize("own", [{"strides": (4, 8), "grids": (4, 2), "ranges": ((1, 9), (9, 99))}, {"grids": (4, 2)}])
def test_levels_that_do_not_fit_are_refused(own: dict[str, Any]):
    config = ours.make_config("solo")
    config.detect.solo.update(own)
    with pytest.raises(UserError, match=r"detect\.solo"):
        detection.build(config.model, config.detect, "solo", num_classes=twins.CLASSES, canvas=twins.CANVAS)
