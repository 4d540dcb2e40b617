"""Spectra against a float64 SVD of the same numbers."""

import re

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import threadpoolctl

from nml_jax import spectrum
from nml_jax.errors import UserError
from nml_jax.spectrum import PRESETS, SpectrumMeter, singular_values, sve
from nml_jax.spectrum import meter as meter_module
from tests.spectrum.spectra import DECAYS, SHAPES, compute_svd, draw_gaussian, make_matrix, measure, measure_by_formula


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """Use one BLAS thread: on a busy machine such small matrices would only wait for a second one."""
    with threadpoolctl.threadpool_limits(1):
        yield


def fill_meter(F, *, batch: int = 16, **kind) -> SpectrumMeter:
    meter = SpectrumMeter(np.shape(F)[1], **kind)
    for i in range(0, len(F), batch):
        meter.update(F[i : i + batch])
    return meter


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("decay", DECAYS)
def test_agrees_with_svd(decay, shape, dtype):
    F = make_matrix(decay, *shape).astype(dtype)
    truth = compute_svd(F)
    s = singular_values(F)
    assert s.dtype == np.float64
    np.testing.assert_allclose(measure(s), measure_by_formula(truth), rtol=0, atol=1e-6)
    exact = fill_meter(F, exact=True).result()
    np.testing.assert_allclose(exact, truth, rtol=0, atol=1e-13 * truth[0])
    np.testing.assert_allclose(measure(exact), measure_by_formula(truth), rtol=0, atol=1e-10)


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("exact", [False, True])
def test_error_bound_holds(decay, exact):
    for shape in (*SHAPES, (300, 100)):
        F = make_matrix(decay, *shape)
        meter = fill_meter(F, exact=exact)
        off = np.abs(measure(meter.result()) - measure_by_formula(compute_svd(F))).max()
        assert off <= meter.error_bound()
        if exact or decay in ("flat", "1/i", "exp(-i/20)"):
            assert meter.error_bound() < spectrum.TOLERANCE


def test_error_bound_is_needed():
    F = make_matrix("rank 1", 300, 100)
    meter = fill_meter(F)
    assert abs(sve(meter.result()) - measure_by_formula(compute_svd(F))[0]) > spectrum.TOLERANCE
    assert spectrum.TOLERANCE < meter.error_bound() < 1e-2


@pytest.mark.parametrize(
    "F",
    [
        np.ones((50, 20)),
        np.tile(draw_gaussian(1, 30), (25, 1)),
        np.repeat(draw_gaussian(15, 40), 2, axis=0),
        np.repeat(draw_gaussian(100, 8), 3, axis=1),
        draw_gaussian(1, 30),
        draw_gaussian(30, 1),
        np.array([[-3.0]]),
        np.random.default_rng(0).integers(0, 256, (60, 32), dtype=np.uint8),
        np.arange(600).reshape(60, 10),
    ],
    ids=["ones", "one row", "pairs", "columns", "1×D", "N×1", "1×1", "uint8", "int"],
)
def test_degenerate_and_integer(F):
    truth = compute_svd(F)
    for s in (singular_values(F), fill_meter(F, exact=True).result()):
        assert s.shape == truth.shape
        np.testing.assert_allclose(measure(s), measure_by_formula(truth), rtol=0, atol=1e-10)


@pytest.mark.parametrize("scale", [1e-200, 1e-160, 1e-30, 1e30, 1e130])
@pytest.mark.parametrize("mode", PRESETS)
def test_scale_invariance(scale, mode):
    F = make_matrix("1/i", 30, 12)
    expected = measure(singular_values(F, **PRESETS[mode]))
    np.testing.assert_allclose(measure(singular_values(F * scale, **PRESETS[mode])), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("decay", ["1/i", "rank 5"])
def test_row_blocks_do_not_matter(monkeypatch, decay):
    F = make_matrix(decay, 90, 40)
    expected = singular_values(F, normalize="rows", center="features")
    monkeypatch.setattr(meter_module, "BLOCK", 7)
    np.testing.assert_allclose(singular_values(F, normalize="rows", center="features"), expected, atol=1e-13)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("shape", [(30, 12), (12, 30), (1, 30), (30, 1)])
def test_input_is_left_alone(order, shape):
    F = np.array(make_matrix("rank 1", *shape), order=order)
    before = F.copy()
    singular_values(F, normalize="rows", center="features")
    singular_values(F)
    fill_meter(F, exact=True, batch=1).result()
    np.testing.assert_array_equal(F, before)


def test_batch_is_a_loop():
    F = draw_gaussian(2, 3, 20, 7).astype(np.float32)
    s = singular_values(F, **PRESETS["code"])
    assert s.shape == (2, 3, 7)
    for i in np.ndindex(2, 3):
        np.testing.assert_array_equal(s[i], singular_values(F[i], **PRESETS["code"]))


def test_jax_arrays():
    F = draw_gaussian(20, 7).astype(np.float32)
    np.testing.assert_array_equal(singular_values(jnp.asarray(F)), singular_values(F))
    half = jnp.asarray(F, jnp.bfloat16)
    np.testing.assert_array_equal(fill_meter(half).result(), fill_meter(np.asarray(half)).result())


def prepare_as_released(F):
    """Prepare rows as the released code does: scale them to length 1, then subtract each row's own mean."""
    F = F / np.linalg.norm(F, axis=1, keepdims=True)
    return F - F.mean(axis=1, keepdims=True)


MODES = [
    (PRESETS["paper"], lambda F: F),
    (PRESETS["code"], prepare_as_released),
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
    F = draw_gaussian(*shape) + 3
    truth = compute_svd(formula(F))
    for s in (singular_values(F, **mode), fill_meter(F, exact=True, **mode).result()):
        np.testing.assert_allclose(s, truth, rtol=0, atol=1e-12 * truth[0])
    streamed = fill_meter(F, **mode)
    np.testing.assert_allclose(
        measure(streamed.result()), measure_by_formula(truth), rtol=0, atol=streamed.error_bound()
    )


@pytest.mark.parametrize(
    ("F", "mode"),
    [
        (draw_gaussian(90, 40), PRESETS["code"]),  # of rank 39 by its centring
        (draw_gaussian(40, 90), {"center": "features"}),
        (draw_gaussian(90, 40) * (np.arange(40) % 3 > 0), PRESETS["paper"]),  # features that are always zero
    ],
)
def test_known_zeros_stay_on_the_fast_route(monkeypatch, F, mode):
    monkeypatch.delattr(meter_module, "decompose_triangle")
    assert singular_values(F, **mode)[-1] == 0


def test_presets_by_name():
    assert spectrum.find_preset("code") == {"normalize": "rows", "center": "samples"}
    with pytest.raises(UserError, match="'papper' is unknown"):
        spectrum.find_preset("papper")


def test_a_row_of_zeros_stays():
    F = draw_gaussian(20, 6)
    padded = np.vstack([F, np.zeros((2, 6))])
    np.testing.assert_allclose(
        singular_values(padded, **PRESETS["code"]), singular_values(F, **PRESETS["code"]), atol=1e-14
    )


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("mode", [mode for mode, _ in MODES])
def test_merge_is_a_single_pass(mode, exact):
    F = draw_gaussian(60, 12) + 100
    whole = fill_meter(F, batch=60, exact=exact, **mode)
    parts = [fill_meter(F[a:b], exact=exact, **mode) for a, b in ((0, 7), (7, 7), (7, 50), (50, 60))]
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
    F = draw_gaussian(60, 12)
    kind = {"center": "features", "exact": exact}
    backwards = fill_meter(F[::-1], batch=7, **kind)
    np.testing.assert_allclose(backwards.result(), fill_meter(F, **kind).result(), rtol=1e-12)


@pytest.mark.parametrize("exact", [False, True])
def test_large_means_cost_no_digits(exact):
    F = np.random.default_rng(0).integers(-50, 50, (200, 8)).astype(float)
    truth = compute_svd(F - F.mean(axis=0))
    meter = fill_meter(F + 2.0**24 * np.arange(8), center="features", exact=exact)
    np.testing.assert_allclose(meter.result(), truth, rtol=1e-9)


@pytest.mark.parametrize("exact", [False, True])
def test_fewer_rows_than_features(exact):
    F = draw_gaussian(5, 12)
    meter = SpectrumMeter(12, exact=exact)
    for i in range(5):
        meter.update(F[i : i + 1])
        np.testing.assert_allclose(meter.result(), compute_svd(F[: i + 1]), atol=1e-13)
    centred = fill_meter(F, center="features", exact=exact)
    np.testing.assert_allclose(centred.result(), compute_svd(F - F.mean(axis=0)), atol=1e-13)
    assert centred.result()[-1] == 0  # five centred rows span four dimensions


def test_mask():
    F = draw_gaussian(20, 6)
    mask = np.arange(20) % 3 > 0
    padded = np.where(mask[:, None], F, np.nan)
    meter = SpectrumMeter(6)
    meter.update(padded, mask)
    meter.update(padded, mask=np.zeros(20))
    meter.update(padded[:10], jnp.asarray(mask[:10], jnp.float32))
    expected = fill_meter(np.vstack([F[mask], F[:10][mask[:10]]]))
    assert meter.n == expected.n
    np.testing.assert_allclose(meter.result(), expected.result(), rtol=1e-13)


@pytest.mark.parametrize("exact", [False, True])
def test_state(exact):
    kind = {"normalize": "rows", "center": "features", "exact": exact}
    meter = fill_meter(draw_gaussian(20, 6), **kind)
    copy = SpectrumMeter.from_state(meter.state(), **kind)
    for m in (meter, copy):
        m.update(draw_gaussian(9, 6, seed=1))
    np.testing.assert_array_equal(copy.result(), meter.result())
    assert copy.error_bound() == meter.error_bound()


def test_result_follows_updates():
    meter = fill_meter(draw_gaussian(20, 6))
    meter.result()[:] = 0  # the caller's own
    first = meter.result()
    assert first[0] > 0
    meter.update(draw_gaussian(20, 6, seed=1))
    assert meter.result()[0] > first[0]


def test_zero_features_have_zero_singular_values():
    np.testing.assert_array_equal(singular_values(np.zeros((5, 3))), np.zeros(3))
    np.testing.assert_array_equal(singular_values(np.ones((1, 3)), center="features"), [0])
    assert fill_meter(np.zeros((5, 3))).error_bound() == np.inf


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
    meter = fill_meter(draw_gaussian(20, 6))
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
        (lambda: singular_values(np.eye(2), normalize="columns"), "normalize='columns'"),
        (lambda: singular_values(np.ones((1, 2)), normalize="columns"), "normalize='columns'"),
        (lambda: singular_values(np.eye(2), center="rows"), "center='rows'"),
        (lambda: singular_values(np.ones((1, 2)), center="rows"), "center='rows'"),
        (lambda: SpectrumMeter(3).update(np.ones((2, 4))), r"shape \(2, 4\) does not fit"),
        (lambda: SpectrumMeter(3).update(np.ones(3)), r"shape \(3,\) does not fit"),
        (lambda: SpectrumMeter(3).update(np.ones((2, 3)), mask=np.ones(3)), r"mask of shape \(3,\) does not fit"),
        (lambda: SpectrumMeter(3).merge(SpectrumMeter(4)), "'dim': 4.* does not fit one of .*'dim': 3"),
        (lambda: SpectrumMeter(3).merge(SpectrumMeter(3, exact=True)), "'exact': True"),
        (lambda: SpectrumMeter(3).result(), "the meter has no features yet"),
        (lambda: SpectrumMeter(3).error_bound(), "the meter has no features yet"),
    ],
)
def test_bad_calls(call, message):
    with pytest.raises(UserError, match=message):
        call()


@pytest.mark.parametrize("values", [[[1j, 2.0]], [["a", "b"]], [[1, None]]])
def test_features_that_are_not_real_numbers(values):
    with pytest.raises(UserError, match="are not real numbers"):
        singular_values(np.array(values))
