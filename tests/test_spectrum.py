"""Spectra against a float64 SVD of the same numbers, and against values worked out by hand."""

import functools
import math
import re
import subprocess
import sys

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import threadpoolctl

from nml_jax import spectrum
from nml_jax.errors import UserError
from nml_jax.spectrum import (
    PRESETS,
    SpectrumMeter,
    alpha_req,
    effective_rank,
    lsvr,
    singular_values,
    stable_rank,
    sve,
    top_share,
)

SHAPES = [(90, 40), (40, 90), (60, 60)]
# Singular values over i = 0, 1, ... The last ones are the hardest: all mass in one value, and a long tail far below it.
DECAYS = {
    "flat": lambda i: np.ones_like(i),
    "1/i": lambda i: 1 / (i + 1),
    "exp(-i/20)": lambda i: np.exp(-i / 20),
    "exp(-i/2)": lambda i: np.exp(-i / 2),
    "rank 5": lambda i: 1.0 * (i < 5),
    "rank 1": lambda i: 1.0 * (i < 1),
    "tail 1e-5": lambda i: np.where(i < 1, 1, 1e-5),
    "tail 1e-7": lambda i: np.where(i < 1, 1, 1e-7),
}


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """Matrices this small gain nothing from a second BLAS thread, and wait for it where cores are busy."""
    with threadpoolctl.threadpool_limits(1):
        yield


@functools.cache
def matrix(decay: str, n: int, d: int) -> np.ndarray:
    """U diag(s) Vᵀ with random orthonormal U and V."""
    rng, k = np.random.default_rng(0), min(n, d)
    u, v = (np.linalg.qr(rng.standard_normal((m, k)))[0] for m in (n, d))
    return u * DECAYS[decay](np.arange(k, dtype=float)) @ v.T


def gaussian(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def reference(F) -> np.ndarray:
    return np.linalg.svd(np.asarray(F, np.float64), compute_uv=False)


def measures(s) -> np.ndarray:
    """SVE, LSVR and top share, as their formulas read."""
    p = [x / math.fsum(s) for x in s if x > 0]
    return np.array([-math.fsum(x * math.log(x) for x in p), -math.log(max(p)), max(p)])


def ours(s) -> np.ndarray:
    return np.array([sve(s), lsvr(s), top_share(s)])


def metered(F, *, batch: int = 16, **kind) -> SpectrumMeter:
    meter = SpectrumMeter(np.shape(F)[1], **kind)
    for i in range(0, len(F), batch):
        meter.update(F[i : i + batch])
    return meter


# --- measures, by hand


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
    s = np.sort(gaussian(2, 3, 5) ** 2, axis=-1)[..., ::-1]
    for i in np.ndindex(2, 3):
        np.testing.assert_allclose([f(s)[i] for f in (sve, lsvr, top_share)], measures(s[i]), rtol=1e-13)


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
    F = gaussian(30, 8)
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
    assert alpha_req(singular_values(matrix("1/i", 90, 40))) == pytest.approx(2, abs=1e-9)
    for s in ([2.0], [2.0, 0.0], [[1.0, 0.5], [1.0, 1e-9]]):
        with pytest.raises(UserError, match="one direction have no decay"):
            alpha_req(s)


# --- agreement with a float64 SVD


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("decay", DECAYS)
def test_agrees_with_svd(decay, shape, dtype):
    F = matrix(decay, *shape).astype(dtype)
    truth = reference(F)
    s = singular_values(F)
    assert s.dtype == np.float64
    np.testing.assert_allclose(ours(s), measures(truth), rtol=0, atol=1e-6)
    exact = metered(F, exact=True).result()
    np.testing.assert_allclose(exact, truth, rtol=0, atol=1e-13 * truth[0])
    np.testing.assert_allclose(ours(exact), measures(truth), rtol=0, atol=1e-10)


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("exact", [False, True])
def test_error_bound_holds(decay, exact):
    for shape in (*SHAPES, (300, 100)):
        F = matrix(decay, *shape)
        meter = metered(F, exact=exact)
        off = np.abs(ours(meter.result()) - measures(reference(F))).max()
        assert off <= meter.error_bound()
        if exact or decay in ("flat", "1/i", "exp(-i/20)"):
            assert meter.error_bound() < spectrum.TOLERANCE


def test_error_bound_is_needed():
    F = matrix("rank 1", 300, 100)
    meter = metered(F)
    assert abs(sve(meter.result()) - measures(reference(F))[0]) > spectrum.TOLERANCE
    assert spectrum.TOLERANCE < meter.error_bound() < 1e-2


@pytest.mark.parametrize(
    "F",
    [
        np.ones((50, 20)),
        np.tile(gaussian(1, 30), (25, 1)),
        np.repeat(gaussian(15, 40), 2, axis=0),
        np.repeat(gaussian(100, 8), 3, axis=1),
        gaussian(1, 30),
        gaussian(30, 1),
        np.array([[-3.0]]),
        np.random.default_rng(0).integers(0, 256, (60, 32), dtype=np.uint8),
        np.arange(600).reshape(60, 10),
    ],
    ids=["ones", "one row", "pairs", "columns", "1×D", "N×1", "1×1", "uint8", "int"],
)
def test_degenerate_and_integer(F):
    truth = reference(F)
    for s in (singular_values(F), metered(F, exact=True).result()):
        assert s.shape == truth.shape
        np.testing.assert_allclose(ours(s), measures(truth), rtol=0, atol=1e-10)


@pytest.mark.parametrize("scale", [1e-200, 1e-160, 1e-30, 1e30, 1e130])
@pytest.mark.parametrize("mode", PRESETS)
def test_scale_invariance(scale, mode):
    F = matrix("1/i", 30, 12)
    expected = ours(singular_values(F, **PRESETS[mode]))
    np.testing.assert_allclose(ours(singular_values(F * scale, **PRESETS[mode])), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("decay", ["1/i", "rank 5"])
def test_row_blocks_do_not_matter(monkeypatch, decay):
    F = matrix(decay, 90, 40)
    expected = singular_values(F, normalize="rows", center="features")
    monkeypatch.setattr(spectrum, "BLOCK", 7)
    np.testing.assert_allclose(singular_values(F, normalize="rows", center="features"), expected, atol=1e-13)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("shape", [(30, 12), (12, 30), (1, 30), (30, 1)])
def test_input_is_left_alone(order, shape):
    F = np.array(matrix("rank 1", *shape), order=order)
    before = F.copy()
    singular_values(F, normalize="rows", center="features")
    singular_values(F)
    metered(F, exact=True, batch=1).result()
    np.testing.assert_array_equal(F, before)


def test_batch_is_a_loop():
    F = gaussian(2, 3, 20, 7).astype(np.float32)
    s = singular_values(F, **PRESETS["code"])
    assert s.shape == (2, 3, 7)
    for i in np.ndindex(2, 3):
        np.testing.assert_array_equal(s[i], singular_values(F[i], **PRESETS["code"]))


def test_jax_arrays():
    F = gaussian(20, 7).astype(np.float32)
    np.testing.assert_array_equal(singular_values(jnp.asarray(F)), singular_values(F))
    half = jnp.asarray(F, jnp.bfloat16)
    np.testing.assert_array_equal(metered(half).result(), metered(np.asarray(half)).result())


# --- modes


def released(F):
    """The released code: rows of unit length, then each minus its own mean."""
    F = F / np.linalg.norm(F, axis=1, keepdims=True)
    return F - F.mean(axis=1, keepdims=True)


MODES = [
    (PRESETS["paper"], lambda F: F),
    (PRESETS["code"], released),
    ({"normalize": "rows"}, lambda F: F / np.linalg.norm(F, axis=1, keepdims=True)),
    ({"center": "samples"}, lambda F: F - F.mean(axis=1, keepdims=True)),
    ({"center": "features"}, lambda F: F - F.mean(axis=0)),
    (
        {"normalize": "rows", "center": "features"},
        lambda F: F / np.linalg.norm(F, axis=1, keepdims=True) - (F / np.linalg.norm(F, axis=1, keepdims=True)).mean(0),
    ),
]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("mode", "formula"), MODES)
def test_modes(mode, formula, shape):
    F = gaussian(*shape) + 3
    truth = reference(formula(F))
    for s in (singular_values(F, **mode), metered(F, exact=True, **mode).result()):
        np.testing.assert_allclose(s, truth, rtol=0, atol=1e-12 * truth[0])
    streamed = metered(F, **mode)
    np.testing.assert_allclose(ours(streamed.result()), measures(truth), rtol=0, atol=streamed.error_bound())


@pytest.mark.parametrize(
    ("F", "mode"),
    [
        (gaussian(90, 40), PRESETS["code"]),  # of rank 39 by its centring
        (gaussian(40, 90), {"center": "features"}),
        (gaussian(90, 40) * (np.arange(40) % 3 > 0), PRESETS["paper"]),  # features that are always zero
    ],
)
def test_known_zeros_stay_on_the_fast_route(monkeypatch, F, mode):
    monkeypatch.delattr(spectrum, "_of_triangle")
    assert singular_values(F, **mode)[-1] == 0


def test_presets_by_name():
    assert spectrum.preset("code") == {"normalize": "rows", "center": "samples"}
    with pytest.raises(UserError, match="'papper' is unknown"):
        spectrum.preset("papper")


def test_a_row_of_zeros_stays():
    F = gaussian(20, 6)
    padded = np.vstack([F, np.zeros((2, 6))])
    np.testing.assert_allclose(
        singular_values(padded, **PRESETS["code"]), singular_values(F, **PRESETS["code"]), atol=1e-14
    )


# --- the meter


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("mode", [mode for mode, _ in MODES])
def test_merge_is_a_single_pass(mode, exact):
    F = gaussian(60, 12) + 100
    whole = metered(F, batch=60, exact=exact, **mode)
    parts = [metered(F[a:b], exact=exact, **mode) for a, b in ((0, 7), (7, 7), (7, 50), (50, 60))]
    before = parts[2].state()
    merged = SpectrumMeter(12, exact=exact, **mode)
    for part in parts:
        merged.merge(part)
    assert merged.n == 60
    assert merged.state()["sums"] > sum(part.state()["sums"] for part in parts)  # rounding adds up
    tolerance = 1e-12 if exact else 1e-9
    np.testing.assert_allclose(merged.result(), whole.result(), rtol=0, atol=tolerance * whole.result()[0])
    for name, value in parts[2].state().items():
        np.testing.assert_array_equal(value, before[name])


@pytest.mark.parametrize("exact", [False, True])
def test_order_of_updates(exact):
    F = gaussian(60, 12)
    kind = {"center": "features", "exact": exact}
    backwards = metered(F[::-1], batch=7, **kind)
    np.testing.assert_allclose(backwards.result(), metered(F, **kind).result(), rtol=1e-12)


@pytest.mark.parametrize("exact", [False, True])
def test_large_means_cost_no_digits(exact):
    F = np.random.default_rng(0).integers(-50, 50, (200, 8)).astype(float)
    truth = reference(F - F.mean(axis=0))
    meter = metered(F + 2.0**24 * np.arange(8), center="features", exact=exact)
    np.testing.assert_allclose(meter.result(), truth, rtol=1e-9)


@pytest.mark.parametrize("exact", [False, True])
def test_fewer_rows_than_features(exact):
    F = gaussian(5, 12)
    meter = SpectrumMeter(12, exact=exact)
    for i in range(5):
        meter.update(F[i : i + 1])
        np.testing.assert_allclose(meter.result(), reference(F[: i + 1]), atol=1e-13)
    centred = metered(F, center="features", exact=exact)
    np.testing.assert_allclose(centred.result(), reference(F - F.mean(axis=0)), atol=1e-13)
    assert centred.result()[-1] == 0  # five centred rows span four dimensions


def test_mask():
    F = gaussian(20, 6)
    mask = np.arange(20) % 3 > 0
    padded = np.where(mask[:, None], F, np.nan)
    meter = SpectrumMeter(6)
    meter.update(padded, mask)
    meter.update(padded, mask=np.zeros(20))
    meter.update(padded[:10], jnp.asarray(mask[:10], jnp.float32))
    expected = metered(np.vstack([F[mask], F[:10][mask[:10]]]))
    assert meter.n == expected.n
    np.testing.assert_allclose(meter.result(), expected.result(), rtol=1e-13)


@pytest.mark.parametrize("exact", [False, True])
def test_state(exact):
    kind = {"normalize": "rows", "center": "features", "exact": exact}
    meter = metered(gaussian(20, 6), **kind)
    copy = SpectrumMeter.from_state(meter.state(), **kind)
    for m in (meter, copy):
        m.update(gaussian(9, 6, seed=1))
    np.testing.assert_array_equal(copy.result(), meter.result())
    assert copy.error_bound() == meter.error_bound()


def test_result_follows_updates():
    meter = metered(gaussian(20, 6))
    meter.result()[:] = 0  # the caller's own
    first = meter.result()
    assert first[0] > 0
    meter.update(gaussian(20, 6, seed=1))
    assert meter.result()[0] > first[0]


# --- bad input


@pytest.mark.parametrize(
    "measure", [*spectrum.MEASURES.values(), spectrum.effective_rank, spectrum.stable_rank, spectrum.alpha_req]
)
@pytest.mark.parametrize(
    ("s", "message"),
    [
        (np.zeros(3), "all singular values are zero"),
        (np.array([[1.0, 0.0], [0.0, 0.0]]), r"all singular values of matrix \(1,\) are zero"),
        (np.array([1.0, np.nan]), "nan is no singular value"),
        (np.array([np.inf]), "inf is no singular value"),
        (np.array([2.0, -1.0]), r"-1.0 is no singular value"),
        (np.zeros(0), r"shape \(0,\) holds no spectrum"),
        (1.0, r"shape \(\) holds no spectrum"),
    ],
)
def test_no_spectrum(measure, s, message):
    with pytest.raises(UserError, match=message):
        measure(s)


def test_zero_features_have_zero_singular_values():
    np.testing.assert_array_equal(singular_values(np.zeros((5, 3))), np.zeros(3))
    np.testing.assert_array_equal(singular_values(np.ones((1, 3)), center="features"), [0])
    assert metered(np.zeros((5, 3))).error_bound() == np.inf


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e200])
@pytest.mark.parametrize("shape", [(5000, 4), (4, 5000)])
@pytest.mark.parametrize("mode", PRESETS)
def test_bad_rows_are_named(value, shape, mode):
    F = np.ones(shape)
    F[-2:, 2] = value
    with pytest.raises(UserError, match=rf"^row {shape[0] - 2} of the features holds {re.escape(str(abs(value)))}\n"):
        singular_values(F, **PRESETS[mode])
    with pytest.raises(UserError, match=rf"^matrix \(1,\): row {shape[0] - 2} "):
        singular_values(np.stack([np.ones(shape), F]), **PRESETS[mode])


def test_refused_rows_leave_the_meter_as_it_was():
    meter = metered(gaussian(20, 6))
    before = meter.result()
    with pytest.raises(UserError, match=r"row 3 of the features holds nan"):
        meter.update(np.where(np.eye(6) * np.arange(6) == 3, np.nan, 1), mask=[0, 1, 0, 1, 1, 1])
    np.testing.assert_array_equal(meter.result(), before)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: singular_values(np.zeros((0, 3))), r"features of shape \(0, 3\)"),
        (lambda: singular_values(np.zeros((0, 4, 3))), r"features of shape \(0, 4, 3\)"),
        (lambda: singular_values(np.zeros(3)), r"features of shape \(3,\)"),
        (lambda: singular_values(np.ones((2, 2), complex)), "dtype complex128"),
        (lambda: singular_values([["a", "b"]]), "dtype <U1"),
        (lambda: singular_values(np.eye(2), normalize="columns"), "normalize='columns'"),
        (lambda: singular_values(np.ones((1, 2)), normalize="columns"), "normalize='columns'"),
        (lambda: singular_values(np.eye(2), center="rows"), "center='rows'"),
        (lambda: singular_values(np.ones((1, 2)), center="rows"), "center='rows'"),
        (lambda: SpectrumMeter(0), "dim=0"),
        (lambda: SpectrumMeter(3).update(np.ones((2, 4))), r"shape \(2, 4\) does not fit"),
        (lambda: SpectrumMeter(3).update(np.ones(3)), r"shape \(3,\) does not fit"),
        (lambda: SpectrumMeter(3).update(np.ones((2, 3)), mask=np.ones(3)), r"mask of shape \(3,\) does not fit"),
        (lambda: SpectrumMeter(3).merge(SpectrumMeter(4)), "'dim': 4.* does not fit one of .*'dim': 3"),
        (lambda: SpectrumMeter(3).merge(SpectrumMeter(3, exact=True)), "'exact': True"),
        (lambda: SpectrumMeter(3).result(), "no features have been seen"),
        (lambda: SpectrumMeter(3).error_bound(), "no features have been seen"),
    ],
)
def test_bad_calls(call, message):
    with pytest.raises(UserError, match=message):
        call()


def test_importing_imports_no_jax():
    code = "import sys, nml_jax; nml_jax.sve([1.0]); sys.exit('jax' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
