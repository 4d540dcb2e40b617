"""What every system must do, by its row in the table: padding changes nothing, and odd objects do no harm."""

import pytest

from tests.models.detection import comparison, ours


@pytest.mark.parametrize("system", ours.SYSTEMS)
def test_padding_changes_nothing(system: str):
    comparison.check_padding(system)


@pytest.mark.parametrize("system", ours.SYSTEMS)
def test_degenerate_objects_give_finite_losses(system: str):
    comparison.check_degenerate(system)
