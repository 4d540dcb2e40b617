"""Test the estimate of what stages on features cost: one sum for the start of a run and for the dry run."""

from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import features as experiment
from nml_jax import settings
from nml_jax.assembly.heads import tune_cost


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("files") / "rows.npz"
    np.savez(path, features=rng.normal(size=(90, 12)).astype(np.float32), labels=np.arange(90) % 3)
    return path


@pytest.fixture(autouse=True)
def rate(monkeypatch):
    monkeypatch.setattr(tune_cost, "measure_rate", lambda: 1e11)


def plan(file: Path, **changes) -> dict[str, tune_cost.Part]:
    config: ConfigDict = experiment.get_config()
    with config.unlocked():
        config.update_from_flattened_dict({"features.train": str(file), "features.test": str(file), **changes})
    return tune_cost.estimate_parts(config, settings.expand_sweep(config, {}))


def count(parts: dict[str, tune_cost.Part]) -> int:
    return sum(part.trainings for part in parts.values())


def test_the_parts_are_those_that_the_stages_name(file: Path):
    parts = plan(file, **{"sweep.seed": (0, 1)})
    names = [
        f"seed={seed}: {what}"
        for seed in (0, 1)
        for what in ("features", "lbfgs", "mlp", "nmtune paper", "nmtune code")
    ]
    assert set(parts) == {*names, "seed=0: diagnose", "report"}
    followed = {name for name, part in parts.items() if part.epochs}
    assert followed == {name for name in parts if "mlp" in name or "nmtune" in name or "diagnose" in name}
    assert all(part.seconds >= 0 for part in parts.values())
    # Seeds share settings and the probe: 3 settings and a head to calibrate for each of 4 methods, one rate more for 3,
    # one probe, and 3 heads for each of 2 seeds.
    assert count(parts) == 4 * (3 + 1) + 3 + 1 + 3 * 2
    plain = plan(file, **{"sweep.seed": (0, 1), "tune.calibrate": False})
    assert count(plain) == 4 * 3 + 3 + 1 + 3 * 2
    narrow = plan(file, **{"sweep.seed": (0, 1), "tune.widen": False})
    assert count(narrow) == 4 * (3 + 1) + 1 + 3 * 2
    assert narrow["seed=0: mlp"].seconds < parts["seed=0: mlp"].seconds
    assert all(part.seconds < parts[name].seconds for name, part in plain.items() if "seed=0: mlp" in name)
    assert parts["seed=1: lbfgs"].trainings == 0


def test_seeds_choose_for_themselves_without_a_test_file(file: Path):
    assert count(plan(file, **{"sweep.seed": (0, 1), "features.test": ""})) == 2 * (4 * (3 + 1 + 1) + 3)


def test_treated_suspects_double_the_heads(file: Path):
    once, twice = plan(file), plan(file, **{"tune.suspects": "drop"})
    assert twice["seed=0: mlp"] == twice["seed=0: mlp on version 2 of the rows"]
    assert count(twice) == 2 * count(once)
    assert twice["seed=0: suspects"].seconds > 0
    for name, part in once.items():
        if "diagnose" not in name and "features" not in name and name != "report":
            assert (
                twice[name].seconds == twice[f"{name} on version 2 of the rows"].seconds == pytest.approx(part.seconds)
            )


def test_shares_and_noises_multiply_heads_and_steps(file: Path):
    once, more = plan(file), plan(file, **{"tune.shares": (0.5, 1.0), "tune.noises": (0.0, 0.1)})
    assert count(more) == 4 * count(once)
    names = [name for name in more if name.startswith("seed=0: mlp")]
    assert [name[11:] for name in names] == ["", *(f" on version {i} of the rows" for i in (2, 3, 4))]
    seconds = [more[name].seconds / once["seed=0: mlp"].seconds for name in names]
    assert seconds == pytest.approx([0.5, 0.5, 1, 1])


def test_patience_and_halving_leave_a_part_of_the_budget():
    """60 epochs of 24 steps. From a probe validation is best after BEST steps, and training stops six epochs later."""
    tune = experiment.get_config().tune.copy_and_resolve_references()
    with tune.unlocked():
        best = tune_cost.BEST / 24
        stopped = best + tune.patience
        assert stopped < 60 / 4  # then halving saves nothing
        assert tune_cost._expect_epochs(tune, 60, 24) == (stopped, best)
        assert tune_cost._expect_epochs(tune, 20, 24) == ((5 + stopped) / 2, best)
        tune.halving = False
        assert tune_cost._expect_epochs(tune, 20, 24) == (stopped, best)
        tune.patience = 0
        assert tune_cost._expect_epochs(tune, 60, 24) == (60, 60)
