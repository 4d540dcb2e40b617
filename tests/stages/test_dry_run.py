"""Test the cost of a run: its size from config or data, and the operations of its step."""

from pathlib import Path

import numpy as np
import pytest

from configs import clip_vitb16, digits, features, resnet50_in1k
from nml_jax import runtime, settings
from nml_jax.errors import UserError
from nml_jax.stages.dry_run import count_flop, find_sizes, find_wanting


def test_sizes_are_those_that_the_config_states():
    assert find_sizes(resnet50_in1k.get_config()) == (1_281_167, 1000)


def test_what_is_expected_counts_only_while_the_data_are_not_there(tmp_path: Path, capsys):
    config = clip_vitb16.get_config()
    with config.unlocked():
        config.data.path, config.data.mixture, config.data.weights = str(tmp_path / "none"), (), ()
    assert find_sizes(config) == (15_388_848 + 12_423_374, 0)
    assert "planning with data.expected=27812222" in capsys.readouterr().err
    with config.unlocked():
        config.data.expected = None
    with pytest.raises(UserError, match="none"):
        find_sizes(config)
    config = next(iter(settings.expand_sweep(digits.get_config()).values()))
    seen = find_sizes(config)
    with config.unlocked():
        config.data.expected, config.data.num_classes = 7, seen[1]
    assert find_sizes(config) == seen
    assert seen[0] > 7


def test_the_count_of_operations_is_that_of_a_step_without_loops_or_recomputation():
    config = clip_vitb16.get_config()
    with config.unlocked():
        config.update_from_flattened_dict(
            {"model.dim": 64, "model.heads": 2, "model.depth": 2, "model.text_width": 64, "model.text_depth": 2,
             "model.text_heads": 2, "model.text_vocab": 300, "data.image_size": 32, "train.batch": 16,
             "train.micro_batches": 4, "objective.chunk": 2, "model.remat": True}
        )  # fmt: skip
    flop = {name: count_flop(config, 100_000, 0, recomputed=name == "executed") for name in ("model", "executed")}
    # Two operations for each product in the two towers; one forward pass, and backward passes for weights and inputs.
    tokens, texts, width = 16 * 5, 16 * 77, 64
    blocks = 2 * (12 * width**2 * (tokens + texts) + 2 * width * (tokens * 5 + texts * 77))
    assert flop["model"] == pytest.approx(3 * 2 * blocks, rel=0.25)
    # Gradients of a block compute it again, and gradients of a micro-batch compute the forward pass again.
    assert 4 / 3 * 1.2 < flop["executed"] / flop["model"] < 4 / 3 * 1.4


def test_every_wrong_feature_file_is_named_at_once(tmp_path: Path):
    for name in ("a", "b"):
        np.savez(tmp_path / f"{name}.npz", X=np.eye(4), y=np.arange(4) % 2)
    config = features.get_config()
    with config.unlocked():
        config.features.train, config.features.test = f"{tmp_path}/a.npz", f"{tmp_path}/b.npz"
        config.features.ood, config.features.label = f"{tmp_path}/c.csv", "klass"
    cells = settings.expand_sweep(config, {"seed": 0})
    found = find_wanting(config, cells, tmp_path / "runs", runtime.make_mesh(), {"features.ood": "c.csv"})
    assert all(item.wrong for item in found)
    assert [item.text.split(";")[0] for item in found] == [
        f"features.ood: {tmp_path}/c.csv does not exist",
        f"{tmp_path}/a.npz has no 'klass'",
        f"{tmp_path}/b.npz has no 'klass'",
    ]
