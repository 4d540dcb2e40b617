"""`python -m tests.scenes.spectrum_scene` is one process of several that hold features together and measure them."""

import shutil
import tempfile
from pathlib import Path

import jax
import numpy as np
from jax.sharding import NamedSharding

from nml_jax import runtime
from nml_jax.assembly import spectra
from nml_jax.data.features import banks
from nml_jax.processes import peers
from nml_jax.spectrum import SpectrumMeter, device, singular_values, sve

TOLERANCE = 1e-9


def share(F: np.ndarray) -> jax.Array:
    """Spread rows over the devices of all processes; each process keeps its own."""
    sharding = NamedSharding(runtime.make_mesh(), runtime.BATCH_SPEC)
    return jax.make_array_from_callback(F.shape, sharding, lambda index: F[index])


def main() -> None:
    """Compare the spectra of shared features with those of the same features on the host."""
    peers.start(120)
    rng = np.random.default_rng(0)
    tall, wide = (rng.normal(size=shape).astype(np.float32) for shape in ((64, 10), (8, 30)))
    for without in ((), ("cpu",)):
        device.NO_FLOAT64 = without
        assert abs(sve(singular_values(share(tall))) - sve(singular_values(tall))) < TOLERANCE
        meter = SpectrumMeter(10, center="features", exact=True)
        meter.update(share(tall))
        assert abs(sve(meter.result()) - sve(singular_values(tall, center="features"))) < TOLERANCE
    np.testing.assert_array_equal(singular_values(share(wide)), singular_values(wide))
    measure_a_kept_bank(np.pad(tall, ((0, 3), (0, 0))), rng)
    peers.finish()


def measure_a_kept_bank(F: np.ndarray, rng: np.random.Generator) -> None:
    """Compare the bits of spectra in an extraction with those of the bank that it has left to the first process."""
    mesh, batch, modes = runtime.make_mesh(), 16, ("paper", "code")
    written = spectra.DeviceSpectra(modes, len(F))
    for start in range(0, len(F), batch):
        rows = F[start : start + batch]
        padding = rng.normal(size=(batch - len(rows), F.shape[1])).astype(np.float32)  # features of no image
        placed = jax.make_array_from_process_local_data(
            runtime.replicated_sharding(mesh), np.concatenate([rows, padding])
        )
        written.add({"features": placed}, np.arange(batch) < len(rows))
    folder = Path(tempfile.mkdtemp()) if jax.process_index() == 0 else Path("/missing")
    if jax.process_index() == 0:
        number = np.arange(len(F), dtype=np.int32)
        blocks = [{"features": F[:, None], "label": number % 2, "id": number}]
        banks.write(folder / "bank", blocks, key="key", num_classes=2, class_names=("a", "b"))
    found, expected = spectra.measure_written(folder / "bank", ["features"], modes, mesh, batch), written.finish()
    assert set(found) == ({("features", mode) for mode in modes} if jax.process_index() == 0 else set())
    for key in found:
        np.testing.assert_array_equal(found[key], expected[key])
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
