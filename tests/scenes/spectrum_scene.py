"""`python -m tests.scenes.spectrum_scene` is one process of several that hold features together and measure them."""

import jax
import numpy as np
from jax.sharding import NamedSharding

from nml_jax import runtime
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
    peers.finish()


if __name__ == "__main__":
    main()
