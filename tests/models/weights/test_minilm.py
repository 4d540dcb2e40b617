"""Test, by name, the genuine weights of all-MiniLM-L6-v2 on RTE's development set against transformers."""

import os
import runpy
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from configs import text
from nml_jax.data.text.batches import list_buckets, plan_batches
from nml_jax.data.text.folders import TextTokenizer
from nml_jax.models import build
from nml_jax.training import pretrained

golden = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("golden_minilm.py"))))


@pytest.mark.slow
@pytest.mark.parametrize("pool", golden.POOLS)
def test_vectors_are_those_of_transformers(pool: str, shared_data: Path):
    if not os.environ.get("NML_MINILM"):
        pytest.skip("set NML_MINILM to the folder of all-MiniLM-L6-v2")
    folder, want = Path(os.environ["NML_MINILM"]), np.load(golden.FILE)[pool]
    config = text.get_config(str(folder))
    with config.unlocked():
        config.model.pool, config.texts.length = pool, golden.LENGTH
    model = build(config.model, num_classes=1, image_size=8)
    weights = pretrained.load_weights(str(folder), config, model, jax.random.key(0), head_for="features")
    apply = jax.jit(
        lambda params, state, batch: model.apply(params, state, batch, train=False, key=None)[0]["features"]
    )
    table = TextTokenizer(folder, golden.LENGTH)(golden.read_pairs(shared_data))
    found = np.full((len(want), config.model.dim), np.nan, np.float32)
    (window,) = plan_batches(table.lengths, 64, list_buckets(config))
    for rows, size, width in window:
        found[rows] = apply(*weights, table.make_batch(rows, size, width))[: len(rows)]
    np.testing.assert_allclose(found[:, :: golden.STEP], want, rtol=0, atol=1e-5)
    assert np.median(found.std(0)) > 0.01, "the texts matter"
