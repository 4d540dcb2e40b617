"""Geometry of boxes for one image.

A box is (x1, y1, x2, y2) in pixels with exclusive ends, so that its width is x2 − x1. All functions are pure, take
arrays without a batch axis (use `jax.vmap`), and compute in float32, or in float64 if their inputs have it.
"""

from nml_jax.boxes.geometry import are_inside as are_inside
from nml_jax.boxes.geometry import clip as clip
from nml_jax.boxes.geometry import compute_areas as compute_areas
from nml_jax.boxes.geometry import compute_iou as compute_iou
from nml_jax.boxes.geometry import compute_short_sides as compute_short_sides
from nml_jax.boxes.geometry import decode as decode
from nml_jax.boxes.geometry import encode as encode
from nml_jax.boxes.geometry import make_anchors as make_anchors
from nml_jax.boxes.geometry import suppress as suppress
from nml_jax.boxes.regions import ADAPTIVE as ADAPTIVE
from nml_jax.boxes.regions import find_level as find_level
from nml_jax.boxes.regions import pool_regions as pool_regions
