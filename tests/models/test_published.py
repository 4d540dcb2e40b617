"""Test what is read from the configs of published folders."""

import json
from pathlib import Path

import pytest

from configs import published as config_file
from configs.common import get_config
from nml_jax import console, settings
from nml_jax.errors import UserError
from nml_jax.models import build
from nml_jax.models.published import read_keys
from nml_jax.training import pretrained

HALF = [0.5, 0.5, 0.5]
OPENAI = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
PRETRAINED = {
    "input_size": [3, 300, 300],
    "interpolation": "bilinear",
    "crop_pct": 0.904,
    "crop_mode": "center",
    "mean": [0.1, 0.2, 0.3],
    "std": [0.4, 0.5, 0.6],
}
VIT_L = {"image_size": 224, "layers": 24, "width": 1024, "patch_size": 14}
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 768, "heads": 12, "layers": 12}
LAION = {
    "model_cfg": {"embed_dim": 768, "vision_cfg": VIT_L, "text_cfg": TEXT},
    "preprocess_cfg": {"mean": HALF, "std": HALF, "interpolation": "bicubic", "resize_mode": "shortest"},
}


@pytest.fixture(autouse=True)
def forget_notices():
    console.notice_once.cache_clear()


@pytest.fixture
def write(tmp_path: Path):
    """Return `write(name=content, ...)`, which makes a folder of JSON files; "__" in a name is its point."""

    def write(**files) -> Path:
        for name, content in files.items():
            (tmp_path / f"{name}.json").write_text(json.dumps(content))
        return tmp_path

    return write


def timm(architecture="tf_efficientnet_b3", **more):
    return {"architecture": architecture, "pretrained_cfg": PRETRAINED, **more}


def test_everything_of_a_timm_folder_is_in_the_config(write):
    config = config_file.get_config(str(write(config=timm())))
    assert config.init_from == str(write())
    assert (config.model.name, config.model.epsilon, config.model.padding) == ("tf_efficientnet_b3", 1e-3, "same")
    assert (config.data.image_size, config.augment.test_crop) == (300, 0.904)
    assert (config.augment.interpolation, config.augment.resize) == ("bilinear", "shortest")
    assert (config.model.mean, config.model.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert config.augment.crop == "random_resized", "another would leave out the crop"
    assert {cell.seed for cell in settings.expand_sweep(config).values()} == {0, 1, 2, 3, 4}


@pytest.mark.parametrize(
    ("config", "keys"),
    [
        (timm("efficientnet_b0"), {"model.epsilon": 1e-5, "model.padding": "symmetric"}),
        (timm("efficientnet_b0", model_args={"bn_eps": 0.01, "pad_type": "same"}), {
            "model.epsilon": 0.01, "model.padding": "same"}),
        (timm("tf_efficientnet_lite0"), {"model.name": "efficientnet_lite0", "model.epsilon": 1e-3}),
        (timm("convnext_tiny", model_args={"depths": [1, 1], "dims": [4, 8], "norm_eps": 1e-5}), {
            "model.blocks": (1, 1), "model.widths": (4, 8), "model.epsilon": 1e-5}),
        (timm("convnext_large_mlp", model_args={"head_hidden_size": 7}), {"model.hidden": 7, "model.epsilon": 1e-6}),
        (timm("vit_base_patch16_224.augreg", model_args={"img_size": 32, "depth": 2, "global_pool": "avg"}), {
            "model.name": "vit_b", "model.patch": 16, "model.depth": 2, "model.pool": "gap", "data.image_size": 32}),
        (timm("efficientnet_lite0"), {
            "model.name": "efficientnet_lite0", "model.epsilon": 1e-5, "model.padding": "symmetric"}),
        (timm("vit_tiny_patch16_384"), {"model.quick_gelu": False, "model.pool": "cls", "model.patch": 16}),
        (timm("vit_base_patch16_clip_quickgelu_224"), {"model.name": "vit_b16_clip", "model.quick_gelu": True}),
        (timm("vit_large_patch14_clip_224"), {"model.name": "vit_l14_clip", "model.quick_gelu": False}),
        (timm("swin_base_patch4_window12_384", model_args={"num_heads": [2, 4], "embed_dim": 16, "depths": [1, 1]}), {
            "model.window": 12, "model.heads": 2, "model.width": 16, "model.blocks": (1, 1), "model.epsilon": 1e-5}),
        ({"architecture": "resnet50", **PRETRAINED, "crop_mode": "squash"}, {"augment.resize": "squash"}),
        (timm("resnet50", model_args={"layers": [1, 2, 1, 1]}), {"model.blocks": (1, 2, 1, 1)}),
    ],
)  # fmt: skip
def test_arguments_of_timm_are_keys_of_ours(write, config, keys):
    read = read_keys(write(config=config))
    assert {key: read[key] for key in keys} == keys


def test_the_large_clip_of_laion_has_its_own_pixels(write):
    read = read_keys(write(open_clip_config=LAION))
    assert read["model.name"] == "clip_vitl14"
    assert read["model.mean"] == read["model.std"] == (0.5, 0.5, 0.5)
    assert read["model.quick_gelu"] is False
    assert (read["augment.resize"], read["augment.interpolation"]) == ("shortest", "bicubic")
    pixels = LAION["preprocess_cfg"] | {"resize_mode": "squash", "interpolation": "bilinear"}
    read = read_keys(write(open_clip_config=LAION | {"preprocess_cfg": pixels}))
    assert (read["augment.resize"], read["augment.interpolation"]) == ("squash", "bilinear")


@pytest.mark.parametrize(
    ("vision", "embed_dim", "text", "keys"),
    [
        ({"timm_model_name": "convnext_large", "timm_pool": "", "timm_proj": "mlp", "image_size": 320}, 768,
         TEXT | {"layers": 16}, {"model.name": "clip_convnext_large_d_320", "model.hidden": 1536}),
        ({"timm_model_name": "convnext_large", "timm_pool": "", "timm_proj": "mlp", "image_size": 256}, 768,
         TEXT | {"layers": 16}, {"model.name": "clip_convnext_large_d", "data.image_size": 256}),
        ({"timm_model_name": "convnext_base", "timm_pool": "", "timm_proj": "linear", "image_size": 256}, 640,
         TEXT | {"width": 640, "heads": 10}, {"model.name": "clip_convnext_base_w", "model.hidden": 0}),
        ({"timm_model_name": "resnet50", "timm_proj": "linear", "image_size": 64}, 640,
         TEXT, {"model.name": "clip", "model.tower": "resnet50", "data.image_size": 64}),
        ({"layers": [3, 4, 6, 3], "width": 64, "patch_size": None, "image_size": 224}, 1024,
         {"width": 512}, {"model.name": "clip_rn50", "model.heads": 32}),
        ({"layers": 2, "width": 64, "head_width": 32, "patch_size": 8, "pool_type": "avg"}, 24,
         {"width": 48, "heads": 3, "layers": 2}, {"model.dim": 64, "model.heads": 2, "model.pool": "gap"}),
    ],
)  # fmt: skip
def test_towers_of_open_clip(write, vision, embed_dim, text, keys):
    model = {"embed_dim": embed_dim, "vision_cfg": vision, "text_cfg": text}
    path = write(open_clip_config={"model_cfg": model})
    read = read_keys(path)
    assert {key: read[key] for key in keys} == keys
    assert (read["model.mean"], read["model.std"]) == OPENAI
    config = get_config()
    config.update_from_flattened_dict(read)
    shapes = build(config.model, num_classes=0, image_size=config.data.image_size).spec
    assert shapes["image"].shape[1] == vision.get("image_size", 224)


def test_transformers_clip(write):
    config = {
        "model_type": "clip",
        "projection_dim": 768,
        "vision_config": {
            **{"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16},
            **{"patch_size": 14, "hidden_act": "gelu"},
        },
        "text_config": {
            **{"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "hidden_act": "gelu"},
        },
    }
    pixels = {"image_mean": HALF, "image_std": HALF, "resample": 3, "size": {"shortest_edge": 256}}
    read = read_keys(write(config=config, preprocessor_config=pixels))
    assert (read["model.name"], read["model.quick_gelu"]) == ("clip_vitl14", False)
    assert (read["model.mean"], read["augment.test_crop"]) == ((0.5, 0.5, 0.5), 224 / 256)
    assert read["augment.interpolation"] == "bicubic"
    assert read_keys(write(preprocessor_config=pixels | {"resample": 2}))["augment.interpolation"] == "bilinear"


def test_what_is_not_said_is_assumed_and_told(write, capsys):
    read = read_keys(write(config={"architecture": "resnet50", "num_classes": 3}))
    assert (read["augment.test_crop"], read["augment.interpolation"]) == (0.875, "bicubic")
    assert (read["model.mean"], read["model.std"]) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    nulls = {"input_size": [3, 224, 224], "crop_pct": None, "mean": None, "std": None, "interpolation": None}
    assert read_keys(write(config={"architecture": "resnet50", "pretrained_cfg": nulls})) == read
    assert "does not say input_size, crop_pct, interpolation, mean, std; assumed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("files", "said", "cure"),
    [
        ({"config": timm("tf_efficientnet_b33")}, "'tf_efficientnet_b33', which is not known", "tf_efficientnet_b3"),
        ({"config": timm(model_args={"aa_layer": "blur"})}, "model_args.aa_layer='blur' is not known", "without"),
        ({"config": timm(model_args={"in_chans": 4})}, "model_args.in_chans is 4", "3"),
        ({"config": {"architecture": "resnet50", "pretrained_cfg": PRETRAINED | {"crop_mode": "border"}}},
         "crop_mode is 'border'", "center or squash"),
        ({"config": {"architecture": "resnet50", "pretrained_cfg": PRETRAINED | {"interpolation": "lanczos"}}},
         "interpolation is 'lanczos'", "bilinear or bicubic"),
        ({"config": {"model_type": "swin"}}, "transformers' own form of a model .swin.", "timm/swin_large"),
        ({"config": {"model_type": "clip", "vision_config": {"hidden_act": "gelu"}}},
         "hidden_act is", "the same in both"),
        ({"config": [1]}, "cannot read .*config.json", "download it again"),
        ({"open_clip_config": {"embed_dim": 3}}, "has no block model_cfg", "model_cfg"),
        ({"open_clip_config": {"model_cfg": LAION["model_cfg"] | {"text_cfg": {"hf_model_name": "roberta-base"}}}},
         "text_cfg.hf_model_name='roberta-base' is not known", "without"),
        ({"open_clip_config": {"model_cfg": LAION["model_cfg"] | {"vision_cfg": VIT_L | {"pool_type": "attn"}}}},
         "pool_type is 'attn'", "tok or avg"),
        ({"open_clip_config": LAION, "config": timm("vit_large_patch14_clip_224")},
         "two configs that disagree: data.image_size is 224 in open_clip_config.json and 300 in config.json", "give"),
        ({}, "holds no config.json or open_clip_config.json", "download"),
    ],
)  # fmt: skip
def test_what_we_do_not_have_is_refused(write, files, said, cure):
    with pytest.raises(UserError, match=said) as e:
        read_keys(write(**files))
    assert cure in e.value.cure
    assert "\n" not in e.value.cause


def test_a_folder_that_does_not_exist(tmp_path: Path):
    with pytest.raises(UserError, match="nowhere does not exist"):
        read_keys(tmp_path / "nowhere")


def test_of_two_configs_open_clips_is_read_or_the_one_that_is_given(write, capsys):
    own = PRETRAINED | {
        "input_size": [3, 224, 224],
        "mean": HALF,
        "std": HALF,
        "interpolation": "bicubic",
        "crop_pct": 1.0,
    }
    path = write(open_clip_config=LAION, config=timm("vit_large_patch14_clip_224") | {"pretrained_cfg": own})
    assert read_keys(path)["model.name"] == "clip_vitl14"
    assert "for the image tower alone give" in capsys.readouterr().err
    assert read_keys(path / "config.json")["model.name"] == "vit_l14_clip"
    (path / "model.safetensors").touch()  # without open_clip's
    assert read_keys(path)["model.name"] == "vit_l14_clip"


def test_the_command_line_wins_and_a_line_says_so(write, capsys):
    folder = write(config=timm())
    config = config_file.get_config(str(folder))
    pretrained.compare_published(str(folder), read_keys(folder), config)
    assert not capsys.readouterr().err
    with config.unlocked():
        config.data.image_size, config.model.epsilon = 224, 1e-5
    pretrained.compare_published(str(folder), read_keys(folder), config)
    said = capsys.readouterr().err
    assert "data.image_size is 300 there and 224 here" in said
    assert "model.epsilon is 0.001 there and 1e-05 here" in said
    assert "what the run says counts" in said


@pytest.mark.parametrize("quick", [True, False])
def test_another_activation_is_refused(write, quick):
    folder = write(open_clip_config={"model_cfg": LAION["model_cfg"] | {"quick_gelu": quick}})
    config = config_file.get_config(str(folder))
    with config.unlocked():
        config.model.quick_gelu = not quick
    with pytest.raises(UserError, match=f"model.quick_gelu is {quick} there and {not quick} here") as e:
        pretrained.compare_published(str(folder), read_keys(folder), config)
    assert e.value.cure == f"set --config.model.quick_gelu={quick}"


def test_a_crop_that_another_key_would_leave_out_is_refused(write):
    folder = write(config=timm())
    config = config_file.get_config(str(folder))
    with config.unlocked():
        config.augment.crop = "none"
    with pytest.raises(UserError, match=r"a centre crop of 0.904, which augment.crop=none leaves out"):
        pretrained.compare_published(str(folder), read_keys(folder), config)
    with config.unlocked():
        config.augment.test_crop = 1.0
    pretrained.compare_published(str(folder), read_keys(folder), config)
