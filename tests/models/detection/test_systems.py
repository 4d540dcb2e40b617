"""What every system must do, by its row in the table: padding changes nothing, and odd objects do no harm."""

import pytest

from nml_jax.errors import UserError
from nml_jax.models import detection
from tests.models.detection import comparison, ours


@pytest.mark.parametrize("system", ours.SYSTEMS)
def test_padding_changes_nothing(system: str):
    comparison.check_padding(system)


@pytest.mark.parametrize("system", ours.SYSTEMS)
def test_degenerate_objects_give_finite_losses(system: str):
    comparison.check_degenerate(system)


@pytest.mark.parametrize("name", ["vit_s", "efficientnet_b0", "swin_t", "bit_50x1", "convnext_t"])
def test_other_encoders_are_refused_by_name(name: str):
    """Before they are built: a canvas that is not square, or a width, must not be the first fault that is named."""
    config = ours.make_config("retina")
    with config.unlocked():
        config.model.name, config.model.width = name, 8
    with pytest.raises(UserError, match=f"no detector has an encoder model.name={name}"):
        detection.build(config.model, config.detect, "retina", num_classes=2, canvas=(96, 128))
