"""Heads in one program over all devices: the same bits as one after another, and no word between the devices."""

import re

import jax
import numpy as np
import pytest

from nml_jax.tuning import descent, select, spread
from nml_jax.tuning.descent import Setting, Spec
from nml_jax.tuning.holdout import Demands
from tests.tuning.test_select import MLP, PAPER, PAPER_NUMBERS, K, N, bank, blobs, config

GROUPS = np.repeat(np.arange(12), np.arange(12)[::-1] + 1)[:72]  # of different sizes, so that seeds hold out as many


def train(method: str, groups: np.ndarray | None = None, **changes) -> list[select.HeadResult]:
    features, labels = blobs(72)
    preset = "paper" if method == "nmtune" else None
    demands = Demands(groups=groups)
    how = {"num_classes": K, "config": config(standardize=True, **changes), "seeds": (0, 1), "demands": demands}
    return select.fit_seeds(features, labels, method=method, preset=preset, **how)


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ("mlp", {}),
        ("nmtune", {"start": "probe", "patience": 1, "halving": True, "epochs": 8, "lrs": (0.001, 0.1, 3.0)}),
        ("linear", {"start": "probe", "patience": 2}),
        ("linear_gce", {"start": "probe", "patience": 2}),
        ("mlp", {"groups": GROUPS, "patience": 2, "epochs": 4, "lrs": (0.01, 0.1), "widen": True, "calibrate": True}),
    ],
)
def test_spread_over_eight_devices_is_one_after_another_bit_by_bit(method: str, changes: dict, monkeypatch):
    alone = train(method, **changes)
    monkeypatch.setattr(spread, "is_spread", lambda: True)
    together = train(method, **changes)
    for got, want in zip(together, alone, strict=True):
        assert (got.hyper, got.validation) == (want.hyper, want.validation)
        jax.tree.map(
            np.testing.assert_array_equal, (got.head.params, got.head.state), (want.head.params, want.head.state)
        )
    if "groups" in changes:
        demands, how = Demands(groups=GROUPS), config(**{k: v for k, v in changes.items() if k != "groups"})
        counts = {select.divide_rows(demands, blobs(72)[1], how, seed)[1] for seed in (0, 1)}
        assert len(counts) == 2  # rows to train on
    if changes.get("patience") == 1:  # some heads stopped early, and others went on
        assert len({v["epochs"] for result in alone for v in result.validation}) > 1


def test_an_epoch_of_several_heads_sends_nothing():
    spec, rows = Spec(MLP, PAPER, K, 16, standardize=False), np.arange(N)
    settings = [descent.to_arrays(Setting(rows, 1e-2, 0.0, seed, PAPER_NUMBERS)) for seed in range(4)]
    carries = [jax.device_get(descent.begin(spec, setting, 8, None)) for setting in settings]
    stacked = [jax.tree.map(lambda *xs: np.stack(xs), *trees) for trees in (carries, settings)]
    heads, n = np.zeros(4, np.int32), np.int32(N)
    program = spread.compile_advance(spec, tuple(jax.devices()[:2]))
    lowered = program.lower(stacked[0], bank(*blobs()), stacked[1], n, heads, n, heads)
    text = lowered.compile({"xla_backend_optimization_level": 0}).as_text()
    assert "num_partitions=2" in text
    assert not re.search(r"all-reduce|all-gather|all-to-all|collective|reduce-scatter", text)
