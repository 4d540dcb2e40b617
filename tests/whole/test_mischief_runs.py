"""Mischief for what belongs to runs: checkpoints, the values of a command, and the newer formats of features.

More of it by name: MISCHIEF_SECONDS=600 pytest -m slow tests/whole/test_mischief_runs.py
"""

import functools
import gzip
import json
import os
import shutil
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
import optax
import pyarrow as pa
import pytest
from absl import flags

from configs import digits
from nml_jax import load_model, main, models, settings
from nml_jax.stages import dry_run
from nml_jax.training import checkpoint, state
from nml_jax.training.leaves import name_leaves
from tests.scenes import mischief
from tests.scenes.mischief import Scene
from tests.whole.test_mischief import DIM, ROWS, draw, features, work

# ---- checkpoints


@functools.cache
def save_tiny() -> tuple[Path, dict[str, np.ndarray]]:
    """Save the checkpoint of a tiny model; return its run's folder and the leaves of the model."""
    config = digits.get_config()
    with config.unlocked():
        config.update_from_flattened_dict({"model.width": 4, "model.blocks": (1, 1)})
    config = next(iter(settings.expand_sweep(config).values()))
    model = models.build(config.model, num_classes=3, image_size=config.data.image_size)
    rng = np.random.default_rng(0)
    params, model_state = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(x.dtype), model.shapes)
    one = jax.local_devices()[0]
    made = state.TrainState(
        *jax.device_put((np.int32(7), params, model_state, params if config.train.ema else None), one),
        optax.identity().init(params), jax.device_put(jax.random.key(0), one),
        jax.device_put(np.zeros(2, np.int32), one),
    )  # fmt: skip
    folder = Path(tempfile.mkdtemp())
    meta = {"config": settings.to_json(config), "ledger": None, "num_classes": 3}
    checkpoints = checkpoint.Checkpoints(folder / "checkpoints", every=1, keep=1, keep_every=0, meta=meta)
    checkpoints.save(made, must=True)
    checkpoints.close()
    return folder, {name: np.asarray(x) for name, x in name_leaves((params, model_state)).items()}


@pytest.fixture(scope="module", autouse=True)
def remove_saved():
    yield
    if save_tiny.cache_info().currsize:
        shutil.rmtree(save_tiny()[0])
        save_tiny.cache_clear()


def write_checkpoint(folder: Path, rng: mischief.Rng) -> list[Path]:
    shutil.copytree(save_tiny()[0], folder, dirs_exist_ok=True)
    return [path for path in sorted(folder.rglob("*")) if path.is_file()]


def read_checkpoint(folder: Path) -> None:
    """A checkpoint is the very same, or refused."""
    loaded = load_model(folder)
    found = name_leaves((loaded.params, loaded.model_state))
    assert loaded.meta["num_classes"] == 3
    assert found.keys() == save_tiny()[1].keys()
    for name, array in save_tiny()[1].items():
        np.testing.assert_array_equal(np.asarray(found[name]), array)


# ---- newer formats of features


def write_lines(suffix: str):
    def write(folder: Path, rng: mischief.Rng) -> list[Path]:
        labels = mischief.pick(rng, (["ant", "bee"] * 6, rng.integers(0, 3, ROWS).tolist()))
        rows = [{"id": f"row {i}", "embedding": x, "label": label}
                for i, (x, label) in enumerate(zip(draw(rng).tolist(), labels, strict=True))]  # fmt: skip
        text = "".join(json.dumps(row) + "\n" for row in rows).encode()
        (folder / f"x{suffix}").write_bytes(gzip.compress(text, mtime=0) if suffix.endswith(".gz") else text)
        return [folder / f"x{suffix}"]

    return write


def write_arrow(folder: Path, rng: mischief.Rng) -> list[Path]:
    kinds = (pa.list_(pa.float32()), pa.list_(pa.float32(), DIM), pa.large_list(pa.float64()))
    table = pa.table({
        "embedding": pa.array(draw(rng).tolist(), mischief.pick(rng, kinds)),
        "label": mischief.pick(rng, (pa.array(["ant", "bee"] * 6), pa.array(rng.integers(0, 3, ROWS)))),
    })  # fmt: skip
    kind = mischief.pick(rng, (pa.ipc.new_file, pa.ipc.new_stream))
    with pa.OSFile(str(folder / "x.arrow"), "wb") as file, kind(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=5)
    return [folder / "x.arrow"]


JSON = (mischief.change_json,) * 3
SCENES = {
    Scene("checkpoint", write_checkpoint, read_checkpoint, JSON): 12,
    features("jsonl", write_lines(".jsonl"), *JSON, *mischief.TEXT): 40,
    features("jsonl.gz", write_lines(".jsonl.gz")): 20,
    features("arrow", write_arrow): 40,
}


def test_the_undamaged_checkpoint_is_read():
    read_checkpoint(save_tiny()[0])


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.name)
def test_whatever_is_read_is_right_or_refused(scene: Scene, tmp_path: Path):
    outcomes = work(scene, tmp_path, 0, 0, SCENES[scene])
    assert outcomes["refused"] > 0
    assert outcomes["right"] > 0 or scene.name == "checkpoint"  # whose every file is proved


@pytest.mark.slow
@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.name)
def test_more_mischief(scene: Scene, tmp_path: Path):
    seconds = float(os.environ.get("MISCHIEF_SECONDS", "600")) / len(SCENES)
    work(scene, tmp_path, 1_000_000 * int(os.environ.get("MISCHIEF_SEED", "1")), seconds)


# ---- the values of a command

WHOLE = ("0", "-1", "1", "2", "7", "1000000000", "None")
REAL = ("0", "-1.0", "1", "0.5", "3.5", "1e9", "1e-30", "-0.0", "nan", "inf", "-inf", "None")
TUPLES = ("()", "(0,)", "(1, 2)", "(0.5, -1.0)", "('a',)", "('',)", "(None,)", "((1,),)", "(0, 0)", "(1e400,)", "None")
ODD = ("[1]", "{}", "'", "(", "9" * 30, "1e400", "nan", "True")
FITTING = {bool: ("True", "False"), int: WHOLE, float: REAL, tuple: TUPLES, str: ("", *mischief.WORDS)}


def give_odd_values(rng: mischief.Rng) -> list[str]:
    """Return odd values for one to three keys, mostly of the type of the key."""
    keys = dict(settings.flatten(settings.default_config()))
    chosen = [sorted(keys)[int(rng.integers(len(keys)))] for _ in range(int(rng.integers(1, 4)))]
    anything = (*WHOLE, *REAL, *TUPLES, *ODD, *mischief.WORDS)
    values = [ODD if rng.random() < 0.1 else FITTING.get(type(keys[key]), anything) for key in chosen]
    return [f"--config.{key}={mischief.pick(rng, of)}" for key, of in zip(chosen, values, strict=True)]


def play_command(seed: int, folder: Path, capsys) -> int:
    """Run a dry run with odd values, up to its plan. It ends with 0, or with 2 and one line of cause and of cure."""
    args = give_odd_values(np.random.default_rng(seed))
    for name in [name for name in flags.FLAGS if name.startswith("config.")]:
        delattr(flags.FLAGS, name)  # a command that was refused leaves its flags behind
    try:
        code = main.run(["nml_jax.main", "--dry_run", f"--workdir={folder}", *args])
    except BaseException as e:
        raise AssertionError(f"seed {seed}: {args}") from e
    told = capsys.readouterr().err.splitlines()
    assert code in (0, 2), f"seed {seed}: {args}: {code}"
    if code:
        at = next((i for i, line in enumerate(told) if line.startswith("error: ")), None)
        assert at is not None, f"seed {seed}: {args}: {told}"
        assert [line.strip().split(":")[0] for line in told[at + 1 :]] == ["cure"], f"seed {seed}: {args}: {told}"
    assert not list(folder.iterdir()), f"seed {seed}: {args}: a dry run left a file"
    return code


LOADS = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # ml_collections'


@pytest.fixture
def without_plan(monkeypatch):
    monkeypatch.setattr(dry_run, "describe_plan", lambda *args, **kwargs: dry_run.Plan("", ()))


@LOADS
def test_odd_values_of_keys_are_taken_or_refused(tmp_path: Path, without_plan, capsys):
    assert {play_command(seed, tmp_path, capsys) for seed in range(40)} == {0, 2}


@LOADS
@pytest.mark.slow
def test_more_odd_values(tmp_path: Path, without_plan, capsys):
    end = time.monotonic() + float(os.environ.get("MISCHIEF_SECONDS", "600")) / len(SCENES)
    seed = 1_000_000
    while time.monotonic() < end:
        play_command(seed := seed + 1, tmp_path, capsys)
