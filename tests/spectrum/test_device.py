"""Spectra of JAX arrays on several devices, in float64 and in the digits of devices without it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from nml_jax.errors import UserError
from nml_jax.spectrum import PRESETS, SpectrumMeter, device, singular_values
from nml_jax.spectrum.rows import Kind
from tests.scenes import process_scenes
from tests.spectrum.spectra import DECAYS, compute_svd, draw_gaussian, make_matrix, measure


@pytest.fixture(params=["float64", "digits"])
def arithmetic(request, monkeypatch):
    """That of CPUs and GPUs, then that of TPUs, both on this CPU."""
    if request.param == "digits":
        monkeypatch.setattr(device, "NO_FLOAT64", ("cpu",))
    return request.param


ROWS = P("data")


def place(F, devices: int = 8, spec: P = ROWS) -> jax.Array:
    """Place float32 rows on the first devices; `spec` names the axes data and fsdp."""
    sizes = (devices, 1) if spec == ROWS else (devices // 2, 2)
    mesh = Mesh(np.array(jax.devices()[:devices]).reshape(sizes), ("data", "fsdp"))
    return jax.device_put(np.float32(F), NamedSharding(mesh, spec))


@pytest.mark.usefixtures("arithmetic")
@pytest.mark.parametrize("decay", DECAYS)
def test_agrees_with_svd(decay):
    F = np.float32(make_matrix(decay, 96, 40))
    s = singular_values(place(F))
    np.testing.assert_allclose(measure(s), measure(compute_svd(F)), rtol=0, atol=1e-6)


@pytest.mark.usefixtures("arithmetic")
@pytest.mark.parametrize("mode", PRESETS)
def test_agrees_with_the_host_for_every_mode(mode):
    F = draw_gaussian(64, 24) * np.exp(-np.arange(24)) + 3
    F[5] = 0  # a row of zeros stays
    for center in (None, "features", "samples"):
        how = {**PRESETS[mode], "center": center}
        want = singular_values(np.float32(F), **how)
        np.testing.assert_allclose(measure(singular_values(place(F, 2), **how)), measure(want), atol=1e-6)


def test_digits_are_the_same_on_any_number_of_devices(monkeypatch):
    monkeypatch.setattr(device, "NO_FLOAT64", ("cpu",))
    F = draw_gaussian(64, 12)
    first, *others = [singular_values(place(F, n)) for n in (2, 4, 8)]
    for other in others:
        np.testing.assert_array_equal(first, other)


@pytest.mark.parametrize("largest", [np.finfo(np.float32).max, 2.0**127, 0.999, 0.99, 1e-30])
def test_digits_at_the_edges_of_their_range_in_several_blocks(largest, monkeypatch):
    monkeypatch.setattr(device, "NO_FLOAT64", ("cpu",))
    monkeypatch.setattr(device, "WHOLE_BLOCK", 5)
    F = draw_gaussian(104, 13)  # 13 rows a device
    F = np.clip(F / np.abs(F).max(0), -0.5, 0.5) * 2 * largest  # many entries of a column are its largest
    np.testing.assert_allclose(measure(singular_values(place(F))), measure(compute_svd(np.float32(F))), atol=1e-6)


@pytest.mark.usefixtures("arithmetic")
@pytest.mark.parametrize("scale", [1e-15, 1e15])
def test_scale(scale):
    F = draw_gaussian(64, 12)
    want = measure(compute_svd(np.float32(F * scale)))
    np.testing.assert_allclose(measure(singular_values(place(F * scale))), want, atol=1e-6)


@pytest.mark.usefixtures("arithmetic")
def test_leading_axes_a_mask_and_any_sharding():
    F = draw_gaussian(2, 3, 50, 8) * 10.0 ** np.arange(3)[:, None, None]
    F[0, 1, 7], F[1, 2, 49] = np.nan, np.inf
    mask = ~np.isin(np.arange(50), [7, 49])
    want = singular_values(F[..., mask, :])
    for spec in (ROWS, P(None, None, None, "data"), P()):
        got = singular_values(place(F, 2, spec) if spec == ROWS else place(F, 4, spec), mask=mask)
        assert got.shape == want.shape
        np.testing.assert_allclose(measure_all(got), measure_all(want), atol=1e-6)


def test_fewer_rows_than_features():
    F = draw_gaussian(8, 40)
    np.testing.assert_array_equal(singular_values(place(F)), singular_values(np.float32(F)))


def measure_all(s: np.ndarray) -> list:
    return [measure(x) for x in s.reshape(-1, s.shape[-1])]


@pytest.mark.usefixtures("arithmetic")
@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("center", [None, "features"])
def test_a_meter_takes_host_and_device_arrays_alike(exact, center):
    F = draw_gaussian(60, 10) + 100
    meter = SpectrumMeter(10, center=center, exact=exact)
    for part, mask in ((place(F[:24]), None), (np.float32(F[24:40]), None), (place(F[40:], 4), np.arange(20) < 15)):
        meter.update(part, mask)
    want = singular_values(np.float32(F[:55]), center=center)
    assert meter.n == 55
    np.testing.assert_allclose(measure(meter.result()), measure(want), atol=1e-6)


@pytest.mark.usefixtures("arithmetic")
def test_bad_rows_are_named():
    F = draw_gaussian(64, 12)
    F[37, 3], F[50, 1] = np.inf, np.nan
    with pytest.raises(UserError, match="row 37 of the features holds inf"):
        singular_values(place(F))
    with pytest.raises(UserError, match="row 50 of the features holds nan"):
        singular_values(place(F), mask=np.arange(64) != 37)


@pytest.mark.usefixtures("arithmetic")
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_bad_rows_of_short_floats(dtype):
    F = place(draw_gaussian(64, 12)).astype(dtype)
    np.testing.assert_allclose(measure(singular_values(F)), measure(compute_svd(np.float32(F))), atol=1e-6)
    with pytest.raises(UserError, match="row 37 of the features holds inf"):
        singular_values(F.at[37, 3].set(np.inf))


def test_steep_spectra_without_float64_go_through_the_host(monkeypatch, capsys):
    monkeypatch.setattr(device, "NO_FLOAT64", ("cpu",))
    F = np.float32(make_matrix("tail 1e-7", 96, 40))
    np.testing.assert_allclose(measure(singular_values(place(F))), measure(compute_svd(F)), atol=1e-6)
    assert "through the host's QR" in capsys.readouterr().err


def test_rows_stay_on_their_devices(arithmetic):
    """What comes to the host is D × D: no output of the program has N."""
    mode = Kind(None, "features", exact=False)
    F = place(draw_gaussian(1, 512, 6), 8, P(None, "data"))
    with jax.enable_x64(arithmetic == "float64"):
        program = device._compile_reduction(device._make_mesh(F), mode, arithmetic == "float64")
        shapes = jax.eval_shape(program, F, np.ones(512, bool))
    assert all(512 not in x.shape for x in jax.tree.leaves(shapes))


def test_bad_masks():
    for F in (draw_gaussian(64, 12), place(draw_gaussian(64, 12))):
        with pytest.raises(UserError, match=r"a mask of shape \(3,\)"):
            singular_values(F, mask=[1, 1, 1])
        with pytest.raises(UserError, match="leaves out all rows"):
            singular_values(F, mask=np.zeros(64))


@pytest.mark.slow
def test_two_processes():
    ended = process_scenes.end(process_scenes.begin(["-m", "tests.scenes.spectrum_scene"]), 120)
    assert [e.code for e in ended] == [0, 0], ended
