"""Test the checks for values that are not finite and for constant features."""

import ml_dtypes
import numpy as np
import pytest

from nml_jax import console
from nml_jax.data.features.checks import check_exact, check_finite, check_varied
from nml_jax.errors import UserError


def test_the_first_bad_row_is_named():
    good = np.eye(3)
    assert check_finite(good).dtype == np.float32
    for value, what in ((np.nan, "NaN, 2 rows in all"), (-np.inf, "-inf"), (1e300, r"1e\+300 \(infinity in float32\)")):
        bad = good.copy()
        bad[1:, 2] = value
        with pytest.raises(UserError, match=f"row 1 of X holds {what}"):
            check_finite(bad)


def test_all_features_constant():
    ones, other = np.ones((4, 2, 3)), np.ones((4, 2, 3))
    other[3, 1, 2] = 2
    for blocks in ([np.ones((2, 3))], [ones, ones], [np.full((1, 2), 7.0)] * 2):
        with pytest.raises(UserError, match="train: every feature is constant"):
            check_varied(blocks, "train")
    for blocks in ([ones, other], [np.ones((1, 3))], [np.array([[1.0, 0.0], [1.0, 0.5]])], []):
        check_varied(blocks, "train")


def test_labels_at_the_limit_of_their_dtype_are_told(capsys):
    console.notice_once.cache_clear()
    check_exact(np.array([255, 256], ml_dtypes.bfloat16), "y: ")
    assert "labels of 256 in bfloat16 are taken as they are; if some were 257" in capsys.readouterr().err
    check_exact(np.array([255.0], ml_dtypes.bfloat16), "y: ")
    assert not capsys.readouterr().err
    with pytest.raises(UserError, match="2 labels are not exact in float16, as in row 0: 2050"):
        check_exact(np.array([2050, 2052, 3], np.float16))
