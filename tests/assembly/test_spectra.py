"""Spectra of features where the encoder has left them, batch by batch."""

from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from nml_jax import runtime, spectrum
from nml_jax.assembly import spectra
from tests.scenes import spectrum_scene
from tests.spectrum.spectra import draw_gaussian, make_matrix, measure

MODES = ("paper", "code")


def feed(F: np.ndarray, mesh: Mesh, *, batch: int = 16) -> dict[tuple[str, str], np.ndarray]:
    """Measure rows in padded batches on all devices of a mesh."""
    measured = spectra.DeviceSpectra(MODES, len(F))
    for start in range(0, len(F), batch):
        rows = F[start : start + batch]
        mask = np.arange(batch) < len(rows)
        padded = np.full((batch, F.shape[1]), np.nan, np.float32)
        padded[: len(rows)] = rows
        measured.add({"features": jax.device_put(padded, runtime.replicated_sharding(mesh))}, mask)
    return measured.finish()


@pytest.mark.parametrize("held", [2**28, 100])
def test_agrees_with_the_host(mesh: Mesh, monkeypatch, held: int):
    monkeypatch.setattr(spectra, "HELD", held)
    F = np.float32(draw_gaussian(41, 6))
    found = feed(F, mesh)
    assert set(found) == {("features", mode) for mode in MODES}
    for mode in MODES:
        want = spectrum.singular_values(F, **spectrum.PRESETS[mode])
        np.testing.assert_allclose(measure(found["features", mode]), measure(want), rtol=0, atol=1e-9)


def test_what_the_host_measures_instead(mesh: Mesh):
    """A steep spectrum, fewer rows than features, a row that is not finite, and the features of one CPU."""
    assert ("features", "paper") not in feed(np.float32(make_matrix("tail 1e-7", 48, 12)), mesh)
    assert feed(np.float32(draw_gaussian(5, 6)), mesh) == {}
    bad = np.float32(draw_gaussian(41, 6))
    bad[3, 2] = np.inf
    assert feed(bad, mesh) == {}
    assert feed(np.float32(draw_gaussian(41, 6)), runtime.make_mesh(devices=jax.devices()[:1])) == {}


def test_a_kept_bank_is_measured_as_its_extraction():
    """Bit by bit, on one process and its devices; the scene does so with two processes."""
    spectrum_scene.measure_a_kept_bank(np.float32(draw_gaussian(41, 6)), np.random.default_rng(1))
    one = runtime.make_mesh(devices=jax.devices()[:1])
    assert spectra.measure_written(Path("missing"), ["features"], MODES, one, 16) == {}  # the host measures it
