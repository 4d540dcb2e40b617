"""Spectra that one Gram matrix cannot show, by a second one, against an SVD."""

import numpy as np
import pytest
import threadpoolctl

from nml_jax.spectrum import PRESETS, SpectrumMeter, singular_values, steep, values
from nml_jax.spectrum.meter import EPS
from nml_jax.spectrum.steep import Factor, decompose_steep, factorise, is_probably_mild, is_probably_steep
from tests.spectrum.spectra import compute_svd, draw_gaussian, measure

N, D = 300, 160
INDEX = np.arange(D, dtype=float)
SPECTRA = {
    "exp(-i/5)": np.exp(-INDEX / 5),
    "exp(-i/8)": np.exp(-INDEX / 8),
    "power": (INDEX + 1) ** -8,
    "stairs": 10.0 ** -np.floor(INDEX / 16),
    "one": 1.0 * (INDEX < 1),
    "half": 1.0 * (INDEX < D / 2),
    "all but 60": 1.0 * (INDEX < D - 60),
    "tail 1e-6": np.where(INDEX < 1, 1, 1e-6),
    "tail 2e-7": np.where(INDEX < 3, 1, 2e-7),
    "tail 1e-12": np.where(INDEX < 100, 1, 1e-12),
}
MILD = {
    "flat": np.ones(D),
    "1/i": 1 / (INDEX + 1),
    "tail 1e-3": np.where(INDEX < 1, 1, 1e-3),
    "exp(-i/20)": np.exp(-INDEX / 20),
}


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    with threadpoolctl.threadpool_limits(1):
        yield


@pytest.fixture
def _no_svd(monkeypatch):
    """Leave the two Gram matrices as the only way."""

    def fail(*args, **kwargs):
        raise AssertionError("took an SVD")

    monkeypatch.setattr(values, "svdvals", fail)


def make(s: np.ndarray, seed: int = 0) -> np.ndarray:
    u, v = (np.linalg.qr(draw_gaussian(n, D, seed=seed))[0] for n in (N, D))
    return u * s @ v.T


def find_factor(F: np.ndarray) -> tuple[Factor, float]:
    meter = SpectrumMeter(F.shape[1])
    meter.update(F)
    gram = meter.state()["factor"]
    return factorise(gram, meter.units * EPS * gram.trace()), meter.units


@pytest.mark.parametrize("scale", [1e-15, 1, 1e15])
@pytest.mark.parametrize("spectrum", SPECTRA)
def test_the_second_gram_matrix_is_within_its_bound(spectrum, scale):
    F = make(SPECTRA[spectrum]) * scale
    s, bound = decompose_steep([F[:200], F[200:]], N, *find_factor(F), D)
    truth = compute_svd(F)
    np.testing.assert_allclose(s, truth, rtol=0, atol=2e-10 * truth[0])
    assert np.abs(measure(s) - measure(truth)).max() <= bound < 1e-6


@pytest.mark.parametrize("k", [0, 1, D - 1])
def test_any_split_is_within_its_bound(k, monkeypatch):
    F = make(MILD["exp(-i/20)"])
    monkeypatch.setattr(steep, "_choose_split", lambda *_: k)
    s, bound = decompose_steep([F], N, *find_factor(F), D)
    assert np.abs(measure(s) - measure(compute_svd(F))).max() <= bound < 1e-6


@pytest.mark.usefixtures("_no_svd")
@pytest.mark.parametrize("center", [None, "features", "samples"])
@pytest.mark.parametrize("spectrum", SPECTRA)
def test_no_svd_is_needed(spectrum, center):
    F = make(SPECTRA[spectrum]) + (0.3 if center == "features" else 0)
    mean = {None: 0, "features": F.mean(0), "samples": F.mean(1, keepdims=True)}[center]
    for matrix, how in ((F, center), (F.T, {"features": "samples", "samples": "features"}.get(center))):
        truth = measure(compute_svd(F - mean))
        np.testing.assert_allclose(measure(singular_values(matrix, center=how)), truth, rtol=0, atol=1e-6)


@pytest.mark.usefixtures("_no_svd")
def test_repeated_columns_and_rows_in_the_mode_of_the_code():
    F = np.repeat(draw_gaussian(N, D // 4), 4, axis=1) * np.float32(1e15)
    F[5:50] = F[4]
    rows = F / np.linalg.norm(F, axis=1, keepdims=True)
    truth = measure(compute_svd(rows - rows.mean(1, keepdims=True)))
    np.testing.assert_allclose(measure(singular_values(F, **PRESETS["code"])), truth, rtol=0, atol=1e-6)


def test_numbers_too_small_for_a_gram_matrix_take_an_svd():
    F = make(SPECTRA["exp(-i/5)"]) * 1e-170
    np.testing.assert_allclose(measure(singular_values(F)), measure(compute_svd(F)), rtol=0, atol=1e-6)


def test_what_is_probably_steep():
    """Nothing that the first Gram matrix shows well enough, so that it costs no second; but most that it does not."""
    for spectrum in MILD.values():
        assert not is_probably_steep(*find_factor(make(spectrum)))
        assert is_probably_mild(make(spectrum).T @ make(spectrum), 10.0)
    found = [name for name, spectrum in SPECTRA.items() if is_probably_steep(*find_factor(make(spectrum)))]
    assert {"exp(-i/5)", "power", "one"} <= set(found)
    assert not any(is_probably_mild(make(SPECTRA[name]).T @ make(SPECTRA[name]), 10.0) for name in found)
    assert not is_probably_steep(factorise(np.zeros((3, 3)), 0), 10.0)


@pytest.mark.parametrize("decay", np.linspace(2, 40, 39))
def test_mild_spectra_are_not_taken_for_steep(decay):
    F = make(np.exp(-INDEX / decay))
    meter = SpectrumMeter(D)
    meter.update(F)
    assert meter.error_bound() > 1e-6 or not is_probably_steep(*find_factor(F))
