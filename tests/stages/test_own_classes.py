"""Test that a classifier is scored as it is, and that its classes are matched to a task's explicitly."""

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

from nml_jax import load_model, runtime
from nml_jax.assembly import own_classes
from nml_jax.assembly.own_classes import map_classes
from nml_jax.data.images.transforms import eval_transform
from nml_jax.errors import UserError
from nml_jax.runs.rows import read_rows
from nml_jax.stages import zeroshot
from nml_jax.tasks.classification import load_task
from tests.scenes import leaving

DIGITS = leaving.TINY["vit"] | {"downstream.tasks": ("digits",), "extract.batch": 64, "runtime.threads": 0}


def task(*classes: str) -> Any:
    return SimpleNamespace(name="pets", train=SimpleNamespace(class_names=classes))


def test_classes_are_matched_by_name_number_order_or_file(tmp_path: Path):
    names, path = ("cat", "dog", "Fox"), tmp_path / "map.json"
    assert map_classes("", names, 3, task("dog", "Fox")) == ((1,), (2,))
    assert map_classes("order", (), 2, task("a", "b")) == ((0,), (1,))
    path.write_text(json.dumps({"pet": ["cat", 1], "wild": "Fox", "more": [0]}))
    assert map_classes(str(path), names, 3, task("wild", "pet")) == ((2,), (0, 1))
    path.write_text(json.dumps({"a": 1, "b": [0, 2]}))
    assert map_classes(str(path), (), 3, task("a", "b")) == ((1,), (0, 2))


@pytest.mark.parametrize(
    ("spec", "names", "classes", "words"),
    [
        ("", (), ("a",), "the weights do not name their classes"),
        ("", ("cat", "dog"), ("cat", "cow"), "the class 'cow' of pets is none of the weights' 2 classes: cat, dog"),
        ("order", ("cat", "dog"), ("a", "b", "c"), "the weights have 2 classes and pets has 3"),
        ({"a": ["cat"]}, ("cat", "dog"), ("a", "b"), "maps nothing to the class 'b'"),
        ({"a": [2]}, ("cat", "dog"), ("a",), "the class 'a' of pets is none of the weights'"),
        ({"a": []}, ("cat", "dog"), ("a",), "the class 'a' of pets is none of the weights'"),
        ("gone.json", ("cat", "dog"), ("a",), "cannot read gone.json"),
    ],
)
def test_what_cannot_be_matched_is_refused(spec: Any, names, classes, words: str, tmp_path: Path):
    if isinstance(spec, dict):
        (tmp_path / "map.json").write_text(json.dumps(spec))
        spec = str(tmp_path / "map.json")
    with pytest.raises(UserError) as e:
        map_classes(spec, names, 2, task(*classes))
    assert words in e.value.cause


def test_a_run_is_scored_by_its_own_head(tmp_path: Path, monkeypatch):
    run = leaving.make_run(tmp_path / "noise=0.3,seed=0", **DIGITS)
    (tmp_path / "map.json").write_text(json.dumps({"5": "ant", "6": ["bee"], "7": [2], "8": [0, 1], "9": [1]}))
    config, mesh = (
        leaving.make_config(**DIGITS, **{"zeroshot.class_map": str(tmp_path / "map.json")}),
        runtime.make_mesh(),
    )
    digits = load_task("digits", config)
    digits = dataclasses.replace(digits, tests=digits.tests[:1])
    monkeypatch.setattr(own_classes.agreement, "open_task", lambda *_: digits)
    zeroshot.check(config, mesh)
    zeroshot.run(config, run, mesh)
    rows = {row.split: row for row in read_rows(run) if (row.stage, row.metric) == ("zeroshot", "accuracy")}
    assert {row.method for row in rows.values()} == {"zero-shot"}
    test, loaded = digits.tests[0].source, load_model(run)
    view = eval_transform(config.augment, 32)
    images = np.stack([view({"image": test.image(i)}, None)["image"] for i in range(len(test))])
    apply = jax.jit(lambda p, s, x: loaded.model.apply(p, s, {"image": x}, train=False, key=None)[0]["logits"])
    logits = np.asarray(apply(loaded.params, loaded.model_state, images))
    best = np.stack([logits[:, 0], logits[:, 1], logits[:, 2], logits[:, :2].max(1), logits[:, 1]], 1).argmax(1)
    assert rows["test"].value == pytest.approx((best == test.labels).mean(), abs=1e-9)
    by_name = leaving.make_config(**DIGITS)
    with pytest.raises(UserError, match="the class '5' of digits is none of the weights' 3 classes: ant, bee"):
        zeroshot.run(by_name, run, mesh)
