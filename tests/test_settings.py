"""Test sweeps, identity, and configs as JSON."""

import pytest
from ml_collections import ConfigDict

from configs import common, digits
from nml_jax import inputs, settings
from nml_jax.assembly import sections
from nml_jax.errors import UserError


def check(config: ConfigDict) -> None:
    """Check a config as every start does."""
    settings.check(config)
    sections.check(config)


def test_a_sweep_is_the_product_of_its_axes():
    cells = settings.expand_sweep(digits.get_config())
    assert len(cells) == 48
    assert list(cells)[:17] == [*(f"noise=0,seed={i}" for i in range(16)), "noise=0.1,seed=0"]
    cell = cells["noise=0.1,seed=2"]
    assert (cell.noise, cell.seed, cell.noise_seed) == (0.1, 2, 2)


def test_a_config_without_sweep_is_one_cell_named_by_noise_and_seed():
    config = common.get_config()
    config.noise, config.seed = 0.1, 7
    assert list(settings.expand_sweep(config)) == ["noise=0.1,seed=7"]


def test_a_pinned_axis_selects_cells():
    config = digits.get_config()
    config.noise = 0.1
    cells = settings.expand_sweep(config, {"noise": 0.1})
    assert list(cells) == [f"noise=0.1,seed={i}" for i in range(16)]
    assert cells["noise=0.1,seed=1"] == settings.expand_sweep(digits.get_config())["noise=0.1,seed=1"]


def test_any_key_can_be_an_axis():
    config = common.get_config()
    config.sweep = ConfigDict({"optimizer": {"lr": (0.1, 0.01)}, "model": {"name": ("resnet18", "vit_ti")}})
    cells = settings.expand_sweep(config)
    assert "noise=0,seed=0,model.name=vit_ti,optimizer.lr=0.01" in cells
    assert len({(c.optimizer.lr, c.model.name) for c in cells.values()}) == 4


@pytest.mark.parametrize(
    ("sweep", "cause"),
    [
        ({"nois": (0.1,)}, "nois is not a key"),
        ({"runtime": {"threads": (1, 2)}}, "not a key that a run can vary"),
        ({"noise": (0.1, 0.1)}, "distinct values"),
        ({"noise": 0.1}, "must be a tuple"),
        ({"noise": ("much",)}, "noise"),
    ],
)
def test_invalid_sweeps(sweep: dict, cause: str):
    config = common.get_config()
    config.sweep = ConfigDict(sweep)
    with pytest.raises(UserError, match=cause):
        settings.expand_sweep(config)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("noise", -0.1),
        ("noise", 1.5),
        ("noise", float("nan")),
        ("train.batch", 0),
        ("train.epochs", 0.0),
        ("tune.validation", 1.0),
        ("extract.weights", "ema"),
        ("extract.weights", "averaged"),
        ("seed", -1),
        ("runtime.max_skipped", 0),
        ("optimizer.lr", float("inf")),
        ("optimizer.lr", 0.0),
        ("optimizer.min_lr", float("nan")),
        ("optimizer.decay", ((".*", float("inf")),)),
        ("tune.nmtune.svd", float("nan")),
        ("tune.noisytune", float("nan")),
        ("tune.noisytune", -0.1),
        ("tune.neftune", -1.0),
        ("finetune.neftune", -1.0),
        ("tune.lrs", (0.0,)),
        ("tune.lrs", ("fast",)),
        ("tune.lrs", (0.1, 0.1)),
        ("tune.weight_decays", (-1e-4,)),
        ("tune.cs", ()),
        ("tune.cs", (0.0, 1.0)),
        ("tune.alphas", (-1.0,)),
        ("tune.ks", (0,)),
        ("tune.ks", (1.5,)),
        ("tune.ks", ()),
    ],
)
def test_values_out_of_range(key: str, value):
    config = common.get_config()
    config.update_from_flattened_dict({key: value})
    with pytest.raises(UserError, match=key.split(".")[-1]):
        check(config)


@pytest.mark.parametrize(
    ("key", "value"),
    [("tune.weight_decays", (0.0,)), ("tune.alphas", (0, 1.0)), ("tune.lrs", (0.0, 0.1)), ("tune.ks", (1,))],
)
def test_valid_grids(key: str, value):
    config = common.get_config()
    config.update_from_flattened_dict({key: value})
    check(config)


CONDITIONS = (
    ("clean", (("noise", 0.0),)),
    ("human", (("noise_kind", "labels"), ("noise_file", "data/human.npy"))),
    ("matched", (("noise_kind", "matched"), ("noise_file", "data/human.npy"))),
)


def test_named_conditions_set_several_keys_at_once():
    config = common.get_config()
    config.noise = 0.1
    config.sweep.seed, config.sweep.conditions = (0, 1), CONDITIONS
    cells = settings.expand_sweep(config)
    assert list(cells) == [
        "noise=0,seed=0", "noise=0,seed=1", "noise=labels,seed=0,noise_file=human",
        "noise=labels,seed=1,noise_file=human", "noise=matched,seed=0,noise_file=human",
        "noise=matched,seed=1,noise_file=human",
    ]  # fmt: skip
    cell = cells["noise=matched,seed=1,noise_file=human"]
    assert (cell.condition, cell.noise, cell.noise_kind, cell.noise_file) == ("matched", 0, "matched", "data/human.npy")
    assert settings.list_axes(config) == ("noise", "seed", "noise_kind", "noise_file")
    plain = common.get_config()
    plain.sweep.seed = (0,)
    one, same = settings.expand_sweep(plain)["noise=0,seed=0"], cells["noise=0,seed=0"]
    assert {k: v for k, v in settings.to_json(same).items() if k not in settings.NOT_IDENTITY} == {
        k: v for k, v in settings.to_json(one).items() if k not in settings.NOT_IDENTITY
    }  # what studies share is one run, whatever they call it


def test_a_name_is_never_too_long_for_a_folder():
    config = common.get_config()
    config.sweep.seed, config.sweep.conditions = (
        (0, 1),
        tuple((end, (("init_from", f"{end}/" + "猫" * 90 + end),)) for end in "ab"),
    )
    names = list(settings.expand_sweep(config))
    assert len(set(names)) == 4
    for name in names:
        assert len(name.encode()) <= 200
        assert name.startswith("noise=0,seed=")


@pytest.mark.parametrize(
    "conditions",
    [
        (("a", (("nois", 0.1),)),), (("a", (("seed", 1),)),), (("a", (("runtime.threads", 1),)),), ("a",),
        (("a", (("noise", 0.1),)), ("a", (("noise", 0.2),))), (("", (("noise", 0.1),)),), (("a", (("noise", "x"),)),),
    ],
)  # fmt: skip
def test_invalid_conditions(conditions: tuple):
    config = common.get_config()
    config.sweep.seed, config.sweep.conditions = (0, 1), conditions
    with pytest.raises(UserError, match="sweep"):
        settings.expand_sweep(config)


def test_json_round_trip():
    config = digits.get_config()
    back = settings.from_json(settings.to_json(config))
    assert back.to_dict() == config.to_dict()
    assert isinstance(back.optimizer.decay[0], tuple)


def test_identity_leaves_out_what_changes_no_number():
    a, b = digits.get_config(), digits.get_config()
    with b.unlocked():
        b.runtime.threads, b.stages, b.noise, b.seed = 7, ("tune",), 0.3, 5
    axes = settings.list_axes(a)
    assert settings.shared_identity(a, axes) == settings.shared_identity(b, axes)
    with b.unlocked():
        b.optimizer.lr = 0.5
    assert settings.shared_identity(a, axes) != settings.shared_identity(b, axes)


def test_frozen_sections_are_equal_when_their_values_are():
    a, b = digits.get_config(), digits.get_config()
    assert settings.freeze_sections(a.model, a.objective) == settings.freeze_sections(b.model, b.objective)
    assert hash(settings.freeze_sections(a.model)) == hash(settings.freeze_sections(b.model))


def test_runs_share_no_seeds():
    runs = [settings.repetition_seeds(seed, 3) for seed in range(4)]
    assert [list(seeds) for seeds in runs[:2]] == [[0, 1, 2], [3, 4, 5]]
    assert list(settings.repetition_seeds(7, 1)) == [7]


def test_files_behind_feature_specs(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("a.npz", "X.npy", "y.npy", "b,c.npz"):
        (tmp_path / name).write_text("")
    assert inputs.list_files("~/a.npz; ~/X.npy,~/y.npy") == [str(tmp_path / n) for n in ("a.npz", "X.npy", "y.npy")]
    assert inputs.list_files(f"{tmp_path}/b,c.npz") == [str(tmp_path / "b,c.npz")]
    assert inputs.list_files("") == []
    assert inputs.split_specs(" a.npz; X.npy,y.npy;;") == ["a.npz", "X.npy,y.npy"]


def make_sweep(**overrides):
    config = digits.get_config()
    with config.unlocked():
        config.update_from_flattened_dict({"sweep.noise": (0.0, 0.1), "sweep.seed": (0, 1)} | overrides)
    return config


def test_noise_that_fixes_its_rate_is_not_swept_and_names_its_runs(capsys):
    cells = settings.expand_sweep(make_sweep(noise_kind="labels", noise_file="human.npy"))
    assert list(cells) == ["noise=labels,seed=0", "noise=labels,seed=1"]
    assert {cell.noise for cell in cells.values()} == {0.0}
    said = capsys.readouterr().err
    assert said.strip() == "noise_kind=labels fixes its own rate: the axis sweep.noise=(0.0, 0.1) is left out"
    both = settings.expand_sweep(make_sweep(**{"sweep.seed": (0,)}), {"noise": 0.0})
    assert list(both) == ["noise=0,seed=0"]


def test_a_sweep_over_kinds_leaves_out_the_rates_of_those_that_fix_it():
    config = make_sweep(**{"sweep.seed": ()})
    with config.unlocked():
        config.sweep.noise_kind = ("symmetric", "labels")
    assert list(settings.expand_sweep(config)) == [
        "noise=0,seed=0,noise_kind=symmetric", "noise=labels,seed=0,noise_kind=labels",
        "noise=0.1,seed=0,noise_kind=symmetric",
    ]  # fmt: skip


def test_a_rate_that_was_asked_for_beside_human_labels_is_refused():
    with pytest.raises(UserError, match=r"noise_kind=labels fixes its own rate, but noise=0\.1"):
        settings.expand_sweep(make_sweep(noise_kind="labels", noise=0.1), {"noise": 0.1})


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        ({"seed": "0"}, "seed is '0'"),
        ({"noise": [1]}, "noise is"),
        ({"model": 3}, "model is '3'"),
        ({"stages": "pretrain"}, "stages is 'pretrain'"),
        ({"model": {"remat": 1}}, "model.remat is '1'"),
        ({"model": {"width": {}}}, "model.width is"),
    ],
)
def test_a_stored_config_of_other_types_is_damaged(change: dict, cause: str):
    assert settings.check_stored({"seed": 3, "noise": 0}, "c.json")["seed"] == 3
    with pytest.raises(UserError) as e:
        settings.check_stored(change, "runs/a/config.json")
    assert e.value.cause.startswith(f"runs/a/config.json is damaged: {cause}")
