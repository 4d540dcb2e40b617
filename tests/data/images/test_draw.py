"""Objects drawn on pictures."""

import numpy as np
import pytest

from nml_jax.data.images import draw
from nml_jax.data.images.codec import decode

SQUARE = [[2.0, 2.0, 9.0, 2.0, 9.0, 9.0, 2.0, 9.0]]


@pytest.mark.parametrize("mask", [None, SQUARE])
@pytest.mark.parametrize("side", [None, 24, 48])
def test_the_picture_itself_stays(mask, side):
    """Also where it cannot be written to, as what Pillow decodes, and where its size stays."""
    image = np.full((16, 24, 3), 90, np.uint8)
    image.setflags(write=False)
    drawn = draw.draw_objects(image, [draw.Drawn([2, 2, 9, 9], "cat 0.90", 0, mask)], side)
    assert (image == 90).all()
    assert (drawn != 90).any()
    assert drawn.shape == ((32, 48, 3) if side == 48 else (16, 24, 3))


@pytest.mark.parametrize("turn", [np.rot90, lambda x: x.swapaxes(0, 1), lambda x: x[::-1, ::-1]])
def test_a_turned_picture_is_drawn_on(turn):
    """What EXIF turns is a view, with another layout in memory."""
    image = turn(np.full((16, 24, 3), 90, np.uint8))
    assert (draw.draw_objects(image, [draw.Drawn([2, 2, 9, 9], "cat", 0)]) != 90).any()


def test_a_picture_that_is_too_wide_for_a_jpeg_shrinks():
    drawn = draw.draw_objects(np.zeros((2, draw.MOST + 10, 3), np.uint8), [])
    assert decode(draw.encode_jpeg(drawn)).shape == (2, draw.MOST, 3)
