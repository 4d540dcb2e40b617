from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest

from nml_jax import runtime
from nml_jax.errors import NonFinite, UserError
from nml_jax.evals import EVALUATORS
from nml_jax.evals.probe import ProbeSpectrum
from nml_jax.evals.retrieval import Retrieval
from nml_jax.evals.zeroshot import ZeroShot

N, D = 24, 6


def lookup(params, model_state, batch, *, train, key):
    """Look the features up by the first pixel; a batch of the probe has images and no labels."""
    assert not train
    assert key is None
    assert set(batch) == {"image", "mask"}
    features = params[batch["image"][:, 0, 0, 0]] * model_state["scale"]
    return {"features": features, "embedding": features[:, :2]}, model_state


def probe(n=N, size=10):
    for start in range(0, n, size):
        ids = np.arange(start, start + size)
        shown = np.where(ids < n, ids + 1, 0).astype(np.uint8)
        yield {
            "image": shown[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8),
            "label": ids,
            "mask": (ids < n).astype(np.float32),
        }


@pytest.fixture
def params():
    """Draw features with a steep spectrum and a large mean; row 0 belongs to padding."""
    rng = np.random.default_rng(0)
    return np.float32(np.r_[np.full((1, D), np.nan), 2 + rng.normal(size=(N, D)) * 0.3 ** np.arange(D)])


STATE = {"scale": jnp.float32(1)}


def measure_by_definition(features):
    """Compute SVE, LSVR and top share of the features, neither centred nor normalised."""
    p = np.linalg.svd(np.float64(features), compute_uv=False)
    p /= p.sum()
    return {"sve": -(p * np.log(p)).sum(), "lsvr": -np.log(p[0]), "top_share": p[0]}


@pytest.mark.parametrize("size", [1, 10, 24, 64])
def test_the_spectrum_of_the_probe(params, size):
    got = dict(ProbeSpectrum(lookup, partial(probe, size=size)).run(params, STATE))
    assert list(got) == ["sve", "lsvr", "top_share"]
    assert got == pytest.approx(measure_by_definition(params[1:]), rel=1e-6)
    assert all(type(value) is float for value in got.values())


def test_by_hand():
    params = np.float32([[0, 0], [3, 0], [0, 1]])
    got = dict(ProbeSpectrum(lookup, partial(probe, n=2)).run(params, STATE))  # singular values 3 and 1
    assert got["top_share"] == pytest.approx(3 / 4)
    assert got["lsvr"] == pytest.approx(np.log(4 / 3))
    assert got["sve"] == pytest.approx(np.log(4) - 3 / 4 * np.log(3))


def test_another_layer(params):
    got = dict(ProbeSpectrum(lookup, probe, layer="embedding").run(params, STATE))
    assert got == pytest.approx(measure_by_definition(params[1:, :2]), rel=1e-6)


def test_eight_devices_count_as_one(params, mesh):
    placed = ProbeSpectrum(
        lookup, partial(probe, size=8), put=runtime.put_batch(mesh), fetch=partial(runtime.fetch, mesh=mesh)
    )
    alone = dict(ProbeSpectrum(lookup, probe).run(params, STATE))
    assert dict(placed.run(params, STATE)) == pytest.approx(alone, rel=1e-9)


def test_the_images_are_read_once_and_the_model_is_the_one_of_the_moment(params):
    reads, traces = [], []

    def apply(*args, **kwargs):
        traces.append(1)
        return lookup(*args, **kwargs)

    def batches():
        reads.append(1)
        return probe()

    followed, steeper = ProbeSpectrum(apply, batches), np.float32(params * 0.5 ** np.arange(D))
    first, second = dict(followed.run(params, STATE)), dict(followed.run(steeper, STATE))
    assert first == dict(followed.run(params, STATE))
    assert len(reads) == len(traces) == 1
    assert second == pytest.approx(measure_by_definition(steeper[1:]), rel=1e-6)


def test_what_has_no_spectrum(params, mesh):
    with pytest.raises(UserError, match="nothing to probe"):
        list(ProbeSpectrum(lookup, lambda: iter(())).run(params, STATE))
    with pytest.raises(UserError, match="zero"):
        list(ProbeSpectrum(lookup, probe).run(0 * np.nan_to_num(params), STATE))
    params[5, 0] = np.inf
    for probed in (
        ProbeSpectrum(lookup, probe),
        ProbeSpectrum(lookup, partial(probe, size=8), put=runtime.put_batch(mesh)),
    ):
        with pytest.raises(NonFinite, match="1 image"):
            list(probed.run(params, STATE))


def test_the_table():
    assert EVALUATORS["spectrum"] is ProbeSpectrum
    assert EVALUATORS["retrieval"] is Retrieval
    assert EVALUATORS["zeroshot"] is ZeroShot
