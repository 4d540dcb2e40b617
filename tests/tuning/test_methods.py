"""The table of methods: what each one trains, and errors for wrong names."""

import math
from types import SimpleNamespace

import pytest

from nml_jax.errors import UserError
from nml_jax.models.heads.mlp import Form
from nml_jax.objectives import fgs, lgm, nmtune, skd, terms
from nml_jax.tuning import methods
from nml_jax.tuning.methods import METHODS

CONFIG = SimpleNamespace(
    methods=("linear", "nmtune", "skd"), presets=("paper", "code"), width=3, depth=2, residual=False, norm="layer",
    gce_q=0.7, nmtune={"svd": 0.5}, skd={"skew": 0.0}, fgs={}, lgm={"noise": 0.2},
)  # fmt: skip


def test_the_table_names_existing_terms_and_grids():
    for name, method in METHODS.items():
        assert method.title
        assert not method.terms or method.terms in terms.TERMS
        assert bool(method.probe) == bool(method.grid) == bool(method.value)
        assert not (method.probe and (method.mlp or method.terms))
        assert method.terms in ("", name.removesuffix("_gce"))
        assert method.gce == name.endswith("_gce")
        assert not (method.gce and method.regresses)
    own = ("linear", "mlp", "nmtune")
    assert {*own, *terms.TERMS, *(f"{name}_gce" for name in own)} == {n for n, m in METHODS.items() if not m.probe}


def test_the_config_keys_set_the_form():
    assert methods.build_form(METHODS["linear"], CONFIG) == Form(mlp=False)
    for name in ("mlp", "nmtune", "skd", "fgs", "lgm"):
        assert methods.build_form(METHODS[name], CONFIG) == Form(True, 3, 2, False, "layer")


def test_weights_come_from_the_preset_and_the_config():
    paper, name = methods.choose_weights("nmtune", "paper", CONFIG, 1)
    assert (paper, name) == (nmtune.PRESETS["paper"]._replace(svd=0.5), "paper,svd=0.5")
    code, name = methods.choose_weights("nmtune", "code", CONFIG, 1)
    assert (code, name) == (nmtune.PRESETS["code"]._replace(svd=0.5), "code/1view,svd=0.5")
    assert methods.choose_weights("nmtune", "code", CONFIG, 2)[1] == "code,svd=0.5"
    assert methods.choose_weights("nmtune_gce", "paper", CONFIG, 1)[0] == paper
    assert methods.choose_weights("skd", None, CONFIG, 1) == (skd.Weights(skew=0.0), None)
    assert methods.choose_weights("fgs", None, CONFIG, 1) == (fgs.Weights(), None)
    assert methods.choose_weights("lgm", None, CONFIG, 1) == (lgm.Weights(noise=0.2), None)
    for name in ("linear", "mlp", "lbfgs", "ridge", "knn", "linear_gce", "mlp_gce"):
        assert methods.choose_weights(name, None, CONFIG, 1) == (None, None)


def test_pairs_are_methods_with_every_preset_they_have():
    assert list(methods.list_methods(CONFIG)) == [
        ("linear", None),
        ("nmtune", "paper"),
        ("nmtune", "code"),
        ("skd", None),
    ]


@pytest.mark.parametrize(
    ("name", "preset", "changes", "cause"),
    [
        ("svm", None, {}, "there is no method 'svm'.*\n.*linear, lbfgs"),
        ("nmtune", "papers", {}, "'papers'"),
        ("nmtune", None, {}, "None"),
        ("skd", "paper", {}, "'paper' is given for the method 'skd'"),
        ("nmtune", "paper", {"nmtune": {"svd": float("nan")}}, "svd is nan"),
        ("nmtune", "paper", {"nmtune": {"top": 0}}, "top is 0"),
        ("skd", None, {"skd": {"axis": "column"}}, "axis is 'column'.*\n.*row, batch"),
        ("fgs", None, {"fgs": {"scale": "two"}}, "scale is 'two'"),
        ("lgm", None, {"lgm": {"match": -0.1}}, r"match is -0\.1"),
    ],
)
def test_unknown_names(name, preset, changes, cause):
    with pytest.raises(UserError, match=cause) as e:
        methods.choose_weights(name, preset, SimpleNamespace(**{**vars(CONFIG), **changes}), 1)
    assert "\n" not in e.value.cause + e.value.cure


def test_a_weight_of_zero_removes_its_term_and_the_others_are_traced():
    found, numbers = terms.split("nmtune", nmtune.PRESETS["code"]._replace(cov=0.0))
    assert numbers == {"mse": 1.0, "cov": 0.0, "svd": 0.001}
    assert found.form == nmtune.Weights(mse=1.0, cov=0.0, svd=1.0, per_dim=True, cross_view=True, top=5)
    assert terms.split("nmtune", nmtune.PRESETS["code"]._replace(cov=0.0, svd=0.3))[0] == found
    hash(found)  # it keys what is compiled


@pytest.mark.parametrize(("patience", "each", "epochs"), [(6, 24, 6), (6, 100, 2), (6, 469, 1), (0, 24, math.inf)])
def test_an_epoch_of_many_steps_needs_less_patience(patience, each, epochs):
    assert methods.count_patience(SimpleNamespace(patience=patience), each) == epochs
