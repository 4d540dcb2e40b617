"""Which test rows heads get right, as the stage tune keeps them; and what it computes once for several heads."""

from pathlib import Path

import numpy as np
import pytest

from configs import features as experiment
from nml_jax import main
from nml_jax.assembly.heads import scores
from nml_jax.assembly.spectra import singular_values
from nml_jax.runs.heads import read_correct
from nml_jax.runs.rows import read_rows
from nml_jax.stages import features, tune

D, K = 6, 3


def blobs(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(n) % K)
    return (rng.normal(size=(n, D)) + 1.5 * np.eye(K, D)[labels]).astype(np.float32), labels


def test_every_method_of_the_config_chooses_among_equally_many_settings():
    tune_config = experiment.get_config().tune
    by_gradient = len(tune_config.lrs) * len(tune_config.weight_decays)
    assert by_gradient == len(tune_config.cs) == len(tune_config.alphas) == len(tune_config.ks) == 3


def launch(folder: Path, force: tuple[str, ...] = ()) -> Path:
    for i, name in enumerate(("train", "test", "far")):
        features, labels = blobs(61 + 20 * i, i)
        np.savez(folder / f"{name}.npz", features=features, labels=labels)
    config = experiment.get_config()
    small = {"sweep.seed": (), "stages": ("features", "tune"), "tune.epochs": 2, "tune.lrs": (0.05,), "tune.ks": (5,),
             "tune.cs": (0.1, 1.0), "tune.methods": ("lbfgs", "knn", "ridge", "linear", "nmtune"), "tune.width": 1,
             "tune.presets": ("paper",), "tune.start": "fresh"}  # fmt: skip
    files = {f"features.{key}": str(folder / f"{name}.npz")
             for key, name in (("train", "train"), ("test", "test"), ("ood", "far"))}  # fmt: skip
    with config.unlocked():
        config.update_from_flattened_dict(small | files)
    main.launch(config, folder / "w", pinned={"seed": 0}, force=force)
    return folder / "w" / "seed=0"


def test_tune_keeps_which_rows_are_right_and_measures_the_inputs_once(tmp_path: Path, monkeypatch):
    measured = []
    whole = singular_values

    def counted(blocks, n: int, dim: int, mode: str) -> np.ndarray:
        measured.append((n, mode))
        return whole(blocks, n, dim, mode)

    for module in (features, scores):
        monkeypatch.setattr(module, "singular_values", counted)
    run = launch(tmp_path)
    assert measured.count((81, "paper")) == 1 + 1 + 1  # the features, the inputs of four heads, and NMTune's Z
    rows = [row for row in read_rows(run) if row.stage == "tune"]
    scored = [row for row in rows if row.metric == "accuracy"]
    assert len(scored) == 5 * 2
    for row in scored:
        right = read_correct(run, row)
        assert right is not None
        assert len(right) == row.n_test
        assert right.mean() == pytest.approx(row.value)
    data, test = (np.load(tmp_path / f"{name}.npz")["features"].astype(float) for name in ("train", "test"))
    s = np.linalg.svd((test - data.mean(0)) / data.std(0), compute_uv=False)
    entropy = -(s / s.sum() * np.log(s / s.sum())).sum()
    found = {row.method: row.value for row in rows if (row.metric, row.split) == ("sve", "test")}
    assert found.pop("nmtune") != pytest.approx(entropy, abs=1e-5)
    assert found == pytest.approx(dict.fromkeys(("lbfgs", "knn", "ridge", "linear"), entropy), abs=1e-5)

    files = sorted((run / "correct").rglob("*.safetensors"))
    before = [path.read_bytes() for path in files]
    assert [path.name for path in files] == ["knn,seed=0.safetensors", "lbfgs,seed=0.safetensors",
                                             "linear,seed=0.safetensors", "nmtune,paper,seed=0.safetensors",
                                             "ridge,seed=0.safetensors"]  # fmt: skip
    assert tune.STAGE.intact(run)
    files[0].unlink()
    assert not tune.STAGE.intact(run)
    launch(tmp_path)  # notices
    assert [path.read_bytes() for path in files] == before
