"""Which anchors and regions the systems give to objects, on one level of 16 pixels."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.common import get_config
from nml_jax.models.detection import SYSTEMS, faster, rpn
from nml_jax.models.detection.system import Setting


def make_setting(**changes: Any) -> Setting:
    """Make the setting of detectors with square anchors of 24 pixels and two classes."""
    config = get_config().detect
    config.update(fpn={"width": 4}, retina={"strides": (16,), "scales": (1.5,), "tower": 1})
    config.update(anchors={"ratios": (1.0,)}, rpn={"strides": (16,), "scales": (1.5,)}, roi={"width": 4})
    config.update_from_flattened_dict(changes)
    return Setting(config, 2, (16,), jnp.dtype("float32"), None)


@pytest.mark.parametrize("system", ["retina", "faster"])
def test_an_object_at_the_edge_gets_an_anchor_within_the_picture(system: str):
    """The anchor that fits it best is centred in the padding, where none is learned from: it gets the next one."""
    setting, maps = make_setting(**{"rpn.low_quality": 0.0}), [jnp.ones((1, 4, 6, 4))]
    batch = {"size": jnp.array([[64, 79]]), "boxes": jnp.array([[[71.0, 20, 79, 44]]]), "labels": jnp.array([[1]])}
    if system == "retina":
        parts = SYSTEMS[system](setting)
        index = parts.train(parts.init(jax.random.key(0), maps), maps, batch, None)["index"]
    else:
        index = rpn.make_targets(setting, maps, batch, jax.random.split(jax.random.key(1), 1))["rpn_index"]
    assert np.argwhere(np.asarray(index).reshape(4, 6) >= 0).tolist() == [[2, 4]]


@pytest.mark.parametrize(("low_quality", "owner"), [(0.5, 0), (None, 1)])
def test_the_best_proposal_of_an_object_can_be_its_region(low_quality: float | None, owner: int):
    """The first proposal overlaps the second object most, but no proposal overlaps the first object more."""
    parts = faster.Faster(make_setting(**{"roi.samples": 4, "roi.share": 1.0}), low_quality)
    objects = jnp.array([[[0.0, 0, 10, 10], [4, 0, 14, 10]]])
    proposals = rpn.Proposals(jnp.array([[[3.0, 0, 12, 10], [4, 0, 13.5, 10]]]), jnp.ones((1, 2), bool))
    batch = {"boxes": objects, "labels": jnp.array([[0, 1]])}
    out = parts.sample_regions(proposals, batch, jax.random.split(jax.random.key(0), 1))
    found = {tuple(region.tolist()): int(i) for region, i in zip(out["regions"][0], out["roi_index"][0], strict=True)}
    assert found == {(3, 0, 12, 10): owner, (4, 0, 13.5, 10): 1, (0, 0, 10, 10): 0, (4, 0, 14, 10): 1}
