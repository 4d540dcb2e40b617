"""Checkpoints are read as they were written, on any mesh; a damaged or different one raises an error that names it."""

import re
import shutil
import subprocess

import jax
import numpy as np
import pytest

from nml_jax import load_model, models, runtime
from nml_jax.errors import UserError
from nml_jax.models.weights import timm
from nml_jax.training import checkpoint, loop, pretrained
from tests.scenes.meshes import mesh_of
from tests.training.tiny import host, step_batch


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Save a run after 4 and 5 steps on a mesh of 2 × 4; yield it and its last state on the host."""
    from tests.training.tiny import Run, tiny_config

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runtime, "SHARD_FROM", 64)
        loop._build.cache_clear()
        run = Run(tmp_path_factory.mktemp("saved") / "run", tiny_config(), runtime.make_mesh(2, 4))
        state = run.program.init(jax.random.key(0))
        checkpoints = run.checkpoints()
        for step in range(5):
            state, _ = run.program.step(state, *step_batch(run, step))
            if step >= 3:
                checkpoints.save(state)
        checkpoints.close()
        loop._build.cache_clear()
        yield run, host(state)


def restore(run, mesh, folder=None):
    program = loop.build(run.config, run.plan, mesh, num_classes=3)
    checkpoints = checkpoint.Checkpoints(folder or run.folder / "checkpoints", every=1, keep=2, keep_every=0, meta={})
    try:
        return checkpoints.restore(program.shapes)
    finally:
        checkpoints.close()


@pytest.mark.parametrize(("data", "fsdp"), [(2, 2), (1, 2), (1, 1)])
def test_saved_on_eight_devices_restored_on_fewer(saved, data: int, fsdp: int):
    run, expected = saved
    state = restore(run, mesh_of(data, fsdp))
    for name, array in host(state).items():
        np.testing.assert_array_equal(array, expected[name], err_msg=name)
    assert {d for x in jax.tree.leaves(state.params) for d in x.sharding.device_set} == set(
        jax.devices()[: data * fsdp]
    )


def test_sha256sum_verifies_the_folder(saved):
    run, _ = saved
    done = subprocess.run(
        ["sha256sum", "-c", "--quiet", checkpoint.SUMS], cwd=run.folder / "checkpoints" / "5", check=False
    )
    assert done.returncode == 0


def test_each_of_a_thousand_flipped_bits_raises_an_error(saved, tmp_path):
    """They may be anywhere in a checkpoint, also in the file of hashes."""
    run, _ = saved
    folder = tmp_path / "5"
    shutil.copytree(run.folder / "checkpoints" / "5", folder)
    rng = np.random.default_rng(0)
    files = [p for p in sorted(folder.rglob("*")) if p.is_file() and p.stat().st_size]
    sizes = np.array([p.stat().st_size for p in files])
    # Half are spread evenly over bytes, half over files: most files are small.
    chosen = [*rng.choice(len(files), 500, p=sizes / sizes.sum()), *rng.integers(0, len(files), 500)]
    for path in (files[i] for i in chosen):
        original = path.read_bytes()
        flipped = bytearray(original)
        flipped[rng.integers(len(original))] ^= 1 << int(rng.integers(8))
        path.write_bytes(flipped)
        with pytest.raises(UserError, match=re.escape(str(folder))):
            checkpoint.verify(folder)
        path.write_bytes(original)
    checkpoint.verify(folder)


def test_hashes_are_written_for_a_committed_folder_without_them(saved, tmp_path):
    """A kill between Orbax's commit and the hashes leaves such a folder."""
    run, _ = saved
    folder = tmp_path / "checkpoints" / "5"
    shutil.copytree(run.folder / "checkpoints" / "5", folder)
    (folder / checkpoint.SUMS).unlink()
    assert restore(run, mesh_of(1, 1), folder.parent).step == 5
    assert (folder / checkpoint.SUMS).exists()


def test_a_checkpoint_of_another_model_is_an_error(saved, make_run):
    run, _ = saved
    other = make_run(**{"model.width": 8})
    with pytest.raises(UserError, match="does not fit"):
        restore(other, mesh_of(1, 1), run.folder / "checkpoints")


@pytest.mark.parametrize("weights", ["raw", "ema"])
def test_load_model_runs_without_the_loop(saved, weights: str):
    run, expected = saved
    loaded = load_model(run.folder, weights=weights)
    assert loaded.step == 5
    kind = "params" if weights == "raw" else "ema"
    kernel = loaded.params["head"]["kernel"]
    np.testing.assert_array_equal(kernel, expected[f".{kind}['head']['kernel']"])
    batch = {"image": np.zeros((2, 8, 8, 3), np.uint8)}
    outputs, _ = loaded.model.apply(loaded.params, loaded.model_state, batch, train=False, key=None)
    assert outputs["logits"].shape == (2, 3)


def test_load_model_names_the_checkpoints_that_exist(saved, tmp_path):
    run, _ = saved
    with pytest.raises(UserError, match="no checkpoint 3") as error:
        load_model(run.folder, step=3)
    assert "4, 5" in error.value.cure
    assert load_model(run.folder, step=4).step == load_model(run.folder / "checkpoints" / "4").step == 4
    with pytest.raises(UserError, match="no checkpoint"):
        load_model(tmp_path)
    with pytest.raises(UserError, match="'best'"):
        load_model(run.folder, weights="best")


def test_warm_start_keeps_a_fresh_head_for_other_classes(saved, capsys):
    run, expected = saved
    model = models.build(run.config.model, num_classes=7, image_size=8)
    key = jax.random.key(1)
    fresh = model.init(key, model.spec)
    params, model_state = pretrained.load_weights(str(run.folder), run.config, model, key)
    assert params["head"]["kernel"].shape[1] == 7
    np.testing.assert_array_equal(params["head"]["kernel"], fresh[0]["head"]["kernel"])
    np.testing.assert_array_equal(params["stem_conv"]["kernel"], expected[".params['stem_conv']['kernel']"])
    name = next(n for n in expected if n.startswith(".model_state"))
    flat = {jax.tree_util.keystr(p): x for p, x in jax.tree_util.tree_leaves_with_path(model_state)}
    np.testing.assert_array_equal(flat[name.removeprefix(".model_state")], expected[name])
    assert "head starts fresh" in capsys.readouterr().err


def test_warm_start_refuses_another_model(saved):
    run, _ = saved
    config = make_other(run)
    model = models.build(config.model, num_classes=3, image_size=8)
    with pytest.raises(UserError, match="does not fit"):
        pretrained.load_weights(str(run.folder), config, model, jax.random.key(1))


def make_other(run):
    config = run.config.copy_and_resolve_references()
    with config.unlocked():
        config.model.width = 8
    return config


def test_warm_start_from_timm_names(saved, tmp_path):
    import safetensors.numpy

    run, expected = saved
    loaded = load_model(run.folder)
    file = tmp_path / "weights.safetensors"
    safetensors.numpy.save_file(timm.export_weights(loaded.params, loaded.model_state), file)
    params, _ = pretrained.load_weights(str(file), run.config, loaded.model, jax.random.key(9))
    np.testing.assert_array_equal(params["head"]["kernel"], expected[".params['head']['kernel']"])
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(UserError, match=r"weights\.safetensors"):
        pretrained.load_weights(str(file), run.config, loaded.model, jax.random.key(9))


def test_hashes_differ_for_any_difference():
    tree = {"a": np.arange(3.0), "b": {"c": np.zeros(2, np.int32)}}
    digest = checkpoint.hash_tree(tree)
    assert digest == checkpoint.hash_tree({"a": np.arange(3.0), "b": {"c": np.zeros(2, np.int32)}})
    for other in (
        {"a": np.arange(3.0), "b": {"d": np.zeros(2, np.int32)}},
        {"a": np.arange(3.0), "b": {"c": np.zeros(2, np.int64)}},
        {"a": np.nextafter(np.arange(3.0), 9), "b": {"c": np.zeros(2, np.int32)}},
    ):
        assert digest != checkpoint.hash_tree(other)
