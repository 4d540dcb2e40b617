"""Measures of a spectrum against values worked out by hand."""

import math
import subprocess
import sys

import numpy as np
import pytest

from nml_jax import spectrum
from nml_jax.errors import UserError
from nml_jax.spectrum import (
    alpha_req,
    effective_rank,
    lsvr,
    singular_values,
    stable_rank,
    sve,
    top_share,
)
from tests.spectrum.spectra import draw_gaussian, make_matrix, measure_by_formula


def test_equal_singular_values():
    s = singular_values(np.eye(8))
    np.testing.assert_allclose([sve(s), lsvr(s)], math.log(8), rtol=1e-15)
    assert top_share(s) == 1 / 8
    assert effective_rank(s) == pytest.approx(8)


def test_one_direction():
    for s in ([2.0], [2.0, 0.0, 0.0]):
        assert [str(f(s)) for f in (sve, lsvr, top_share, effective_rank)] == ["0.0", "0.0", "1.0", "1.0"]


def test_three_to_one():
    s = [1.0, 3.0]  # in any order; p = 1/4, 3/4
    assert sve(s) == pytest.approx(math.log(4) - 0.75 * math.log(3))
    assert lsvr(s) == pytest.approx(math.log(4 / 3))
    assert top_share(s) == 0.75


def test_measures_are_batched():
    s = np.sort(draw_gaussian(2, 3, 5) ** 2, axis=-1)[..., ::-1]
    for i in np.ndindex(2, 3):
        np.testing.assert_allclose([f(s)[i] for f in (sve, lsvr, top_share)], measure_by_formula(s[i]), rtol=1e-13)


def test_lsvr_rises_when_the_top_share_falls():
    steep, mild = 1 / np.arange(1, 9) ** 2, 1 / np.arange(1, 9)
    assert lsvr(mild) > lsvr(steep)
    assert top_share(mild) < top_share(steep)
    assert sve(mild) > sve(steep)


def test_stable_rank():
    assert stable_rank([2.0, 0.0]) == 1
    assert stable_rank(np.ones(7)) == 7
    assert stable_rank([1.0, 3.0]) == pytest.approx(10 / 9)
    np.testing.assert_allclose(stable_rank([[3e200, 3e200], [1e-200, 0]]), [2, 1])
    F = draw_gaussian(30, 8)
    assert stable_rank(singular_values(F)) == pytest.approx((F**2).sum() / np.linalg.norm(F, 2) ** 2)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0, 2.5])
@pytest.mark.parametrize("values", [2, 3, 4, 5, 6, 64, 500])
def test_alpha_of_a_power_law(alpha, values):
    i = np.arange(1, values + 1)
    assert alpha_req(7 * i ** (-alpha / 2)) == pytest.approx(alpha, abs=1e-12)


def test_alpha_looks_at_ranks_4_to_100():
    i = np.arange(1, 201.0)
    law = i**-0.5
    outside = np.where((i < 4) | (i > 100), [5, 4, 3, *np.full(197, 1e-3)], law)  # still falling
    assert alpha_req(outside) == pytest.approx(1)
    bent = np.where(i < 10, law, 10**-0.5)  # λ = 1/i up to rank 10, flat from there
    x, y, w = np.log(i[3:100]), 2 * np.log(bent[3:100]), i[3:100] ** -0.5
    assert alpha_req(bent) == pytest.approx(-np.polyfit(x, y, 1, w=w)[0])  # NumPy weighs residuals, not their squares


def test_alpha_leaves_out_what_is_zero():
    law = np.arange(1, 41.0) ** -1
    assert alpha_req([*law, *np.full(30, 1e-9), 0]) == pytest.approx(2)
    np.testing.assert_allclose(alpha_req([[*law[:4], 0, 0], [*law[:6]]]), [2, 2])
    assert alpha_req(singular_values(make_matrix("1/i", 90, 40))) == pytest.approx(2, abs=1e-9)
    for s in ([2.0], [2.0, 0.0], [[1.0, 0.5], [1.0, 1e-9]]):
        with pytest.raises(UserError, match="one direction have no decay"):
            alpha_req(s)


@pytest.mark.parametrize(
    "function", [*spectrum.MEASURES.values(), spectrum.effective_rank, spectrum.stable_rank, spectrum.alpha_req]
)
@pytest.mark.parametrize(
    ("s", "message"),
    [
        (np.zeros(3), "all singular values are zero"),
        (np.array([[1.0, 0.0], [0.0, 0.0]]), r"all singular values of matrix \(1,\) are zero"),
        (np.array([1.0, np.nan]), "nan cannot be a singular value"),
        (np.array([np.inf]), "inf cannot be a singular value"),
        (np.array([2.0, -1.0]), r"-1.0 cannot be a singular value"),
    ],
)
def test_no_spectrum(function, s, message):
    with pytest.raises(UserError, match=message):
        function(s)


def test_importing_imports_no_jax():
    code = "import sys, nml_jax; nml_jax.sve([1.0]); sys.exit('jax' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
