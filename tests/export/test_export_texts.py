"""Test the export of text encoders; `golden_texts.json` is what transformers said of such folders."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from nml_jax import models
from nml_jax.assembly.fingerprint import describe_inputs
from nml_jax.errors import UserError
from nml_jax.export.__main__ import main
from nml_jax.export.formats import choose_format, make_package
from nml_jax.export.origin import Origin
from nml_jax.models import published
from nml_jax.models.describe import describe_tower
from nml_jax.models.weights import language
from nml_jax.training.pretrained import Loaded, load_weights
from tests.export import golden_texts
from tests.scenes import leaving

GOLDEN = json.loads(golden_texts.FILE.read_text("utf-8"))["cases"]


def make_origin(case: str, folder: Path, **overrides) -> Origin:
    """Make random weights of a case, without a folder."""
    config = leaving.make_config(**golden_texts.make_case(case, folder) | overrides)
    model = models.build(config.model, num_classes=3, image_size=config.data.image_size)
    loaded = Loaded(model, *leaving.make_weights(model), 3, {"num_classes": 3})
    return Origin(loaded, config, "raw", Path("run"), Path("run"), leaving.CLASSES, None)


@pytest.mark.parametrize("case", golden_texts.CASES)
def test_a_folder_is_what_transformers_opened_and_the_bits_come_back(case: str, tmp_path: Path):
    origin, golden = make_origin(case, tmp_path), GOLDEN[case]
    package = make_package(origin, choose_format(origin.config))
    assert package.config == golden["config"]
    assert {name: "x".join(map(str, x.shape)) for name, x in sorted(package.tensors.items())} == golden["keys"]
    assert {package.config_name, package.weights_name, *package.files} <= {*golden["files"]}
    assert golden["difference"] <= golden_texts.BAR
    params, _ = language.import_weights(package.tensors, origin.loaded.model.shapes, "it")
    encoder = {name: x for name, x in origin.loaded.params.items() if name != "head"}
    assert jax.tree.all(jax.tree.map(lambda a, b: np.asarray(a).tobytes() == b.tobytes(), encoder, params))


@pytest.mark.parametrize("kind", ["transformers", "nml"])
@pytest.mark.parametrize("case", golden_texts.CASES)
def test_an_exported_folder_is_the_same_encoder_of_the_same_tokens(case: str, kind: str, tmp_path: Path):
    """What configs/text.py reads of the folder: sizes, pool, tokenizer; with nml also the head."""
    run = leaving.make_run(tmp_path / "noise=0.3,seed=0", **golden_texts.make_case(case, tmp_path))
    assert main([str(run), str(tmp_path / "out"), f"--format={kind}"]) == 0
    before = leaving.make_config(**golden_texts.make_case(case, tmp_path))
    keys = published.read_keys(tmp_path / "out") | {"init_from": str(tmp_path / "out")}
    again = leaving.make_config(**keys)
    assert describe_tower(before.model, 8) == describe_tower(again.model, 8)
    model = models.build(again.model, num_classes=3 if kind == "nml" else 0, image_size=8)
    assert describe_inputs(before, model) == describe_inputs(again, model)
    params, _ = load_weights(str(tmp_path / "out"), again, model, jax.random.key(0))
    assert ("head" in params) == (kind == "nml")
    card = (tmp_path / "out" / "README.md").read_text("utf-8")
    assert "configs/text.py:FOLDER" in card
    assert "| rate asked | 0.3 |" in card
    assert ("AutoModel.from_pretrained" in card) == (kind == "transformers")
    assert (tmp_path / "out" / "noise.json").is_file()
    assert load_file(tmp_path / "out" / "model.safetensors")


@pytest.mark.parametrize(
    ("case", "change", "kind", "words"),
    [
        ("bert", {"model.types": 0}, "transformers", "model.types is 0"),
        ("gpt2", {"model.types": 2}, "transformers", "model.types is 2"),
        ("gpt2", {"texts.separator": "<|endoftext|>"}, "transformers", "texts.separator="),
        ("bert", {}, "timm", "is a text encoder"),
        ("bert", {"texts.tokenizer": "/nowhere"}, "nml", "is no folder with a tokenizer"),
    ],
)
def test_what_transformers_has_not_is_refused_by_its_key(
    case: str, change: dict, kind: str, words: str, tmp_path: Path
):
    with pytest.raises(UserError, match=words):
        make_package(make_origin(case, tmp_path, **change), kind)
    if "model.types" in change:
        assert make_package(make_origin(case, tmp_path, **change), "nml").config["keys"]["model.types"] is not None
