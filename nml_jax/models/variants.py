"""The table of models: a row for each name of `config.model.name`."""

from functools import partial
from typing import Any, NamedTuple

from nml_jax.models import clip
from nml_jax.models.encoders.bit import BiT
from nml_jax.models.encoders.convnext import ConvNeXt
from nml_jax.models.encoders.efficientnet import EfficientNet, scale_blocks, scale_widths
from nml_jax.models.encoders.resnet import ResNet
from nml_jax.models.encoders.swin import Swin
from nml_jax.models.encoders.vit import ViT
from nml_jax.models.text.language import TextEncoder
from nml_jax.models.text.vectors import Vectors

Triple = tuple[float, float, float]

# Per-channel mean and standard deviation of pixels in [0, 1]: of ImageNet, of Inception's range -1 to 1, and OpenAI's.
IMAGENET: tuple[Triple, Triple] = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
INCEPTION: tuple[Triple, Triple] = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
OPENAI: tuple[Triple, Triple] = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class Input(NamedTuple):
    """The preprocessing that most published weights of a variant were evaluated with.

    Fields:
        size: pixels, height = width.
        crop: side of the centre crop, as a share of the image's.
        interpolation, resize: values of the keys of that name in the section augment.
        pixels: mean and standard deviation per channel.
    """

    size: int = 224
    crop: float = 0.875
    interpolation: str = "bicubic"
    pixels: tuple[Triple, Triple] = IMAGENET
    resize: str = "shortest"


class Variant(NamedTuple):
    """A row of the table.

    Fields:
        make: the module, with the fields that define the variant. `config.model` gives the other fields and may
            override these.
        input: what its published weights expect.
    """

    make: partial[Any]
    input: Input = Input()


# Multipliers of channels and blocks, pixels and crop of Google's EfficientNets (table 7 of arXiv 1905.11946, its code).
_EFFICIENTNETS = {
    "b0": (1.0, 1.0, Input(224, 0.875)),
    "b1": (1.0, 1.1, Input(240, 0.882)),
    "b2": (1.1, 1.2, Input(260, 0.89)),
    "b3": (1.2, 1.4, Input(300, 0.904)),
}


def _efficientnet(width: float, depth: float, **fields: Any) -> partial[Any]:
    """Return B0 with more channels and blocks."""
    return partial(EfficientNet, blocks=scale_blocks(depth), widths=scale_widths(width), **fields)


_tensorflow: dict[str, Any] = {"padding": "same", "epsilon": 1e-3}
_swin = Input(crop=0.9)
_bit = Input(interpolation="bilinear", pixels=INCEPTION)
_openai = Input(crop=1.0, pixels=OPENAI)
_dinov2 = Input(518, 1.0)

# Image encoders.
TOWERS: dict[str, Variant] = {
    "resnet18": Variant(partial(ResNet, blocks=(2, 2, 2, 2), bottleneck=False)),
    "resnet50": Variant(partial(ResNet, blocks=(3, 4, 6, 3), bottleneck=True)),
    "resnet101": Variant(partial(ResNet, blocks=(3, 4, 23, 3), bottleneck=True)),
    **{f"efficientnet_{name}": Variant(_efficientnet(w, d), own) for name, (w, d, own) in _EFFICIENTNETS.items()},
    **{
        f"tf_efficientnet_{name}": Variant(_efficientnet(w, d, **_tensorflow), own)
        for name, (w, d, own) in _EFFICIENTNETS.items()
    },
    "efficientnet_lite0": Variant(
        _efficientnet(1.0, 1.0, squeeze=False, **_tensorflow), Input(224, 0.875, pixels=INCEPTION)
    ),
    "convnext_t": Variant(partial(ConvNeXt, blocks=(3, 3, 9, 3), widths=(96, 192, 384, 768))),
    "convnext_s": Variant(partial(ConvNeXt, blocks=(3, 3, 27, 3), widths=(96, 192, 384, 768))),
    "convnext_b": Variant(partial(ConvNeXt, blocks=(3, 3, 27, 3), widths=(128, 256, 512, 1024))),
    "convnext_l": Variant(partial(ConvNeXt, blocks=(3, 3, 27, 3), widths=(192, 384, 768, 1536))),
    "convnext_l_mlp": Variant(
        partial(ConvNeXt, blocks=(3, 3, 27, 3), widths=(192, 384, 768, 1536), hidden=1536),
        Input(256, 1.0, pixels=OPENAI),
    ),
    "bit_50x1": Variant(partial(BiT, blocks=(3, 4, 6, 3), width=64), _bit),
    "bit_152x2": Variant(partial(BiT, blocks=(3, 8, 36, 3), width=128), _bit),
    "swin_t": Variant(partial(Swin, width=96, blocks=(2, 2, 6, 2), heads=3), _swin),
    "swin_s": Variant(partial(Swin, width=96, blocks=(2, 2, 18, 2), heads=3), _swin),
    "swin_b": Variant(partial(Swin, width=128, blocks=(2, 2, 18, 2), heads=4), _swin),
    "swin_l": Variant(partial(Swin, width=192, blocks=(2, 2, 18, 2), heads=6), _swin),
    "vit_ti": Variant(partial(ViT, dim=192, depth=12, heads=3), Input(crop=0.9, pixels=INCEPTION)),
    "vit_s": Variant(partial(ViT, dim=384, depth=12, heads=6), Input(crop=0.9, pixels=INCEPTION)),
    "vit_b": Variant(partial(ViT, dim=768, depth=12, heads=12), Input(crop=0.9, pixels=INCEPTION)),
    "vit_l": Variant(partial(ViT, dim=1024, depth=24, heads=16), Input(crop=0.9, pixels=INCEPTION)),
    "vit_b16_clip": Variant(partial(ViT, dim=768, depth=12, heads=12, patch=16, clip=True), _openai),
    "vit_l14_clip": Variant(partial(ViT, dim=1024, depth=24, heads=16, patch=14, clip=True), _openai),
    "vit_s14_dinov2": Variant(partial(ViT, dim=384, depth=12, heads=6, patch=14, layer_scale=1e-5), _dinov2),
    "vit_b14_dinov2": Variant(partial(ViT, dim=768, depth=12, heads=12, patch=14, layer_scale=1e-5), _dinov2),
    "vit_l14_dinov2": Variant(partial(ViT, dim=1024, depth=24, heads=16, patch=14, layer_scale=1e-5), _dinov2),
}

# An image tower beside a text tower. Without a tower here, `model.tower` names it.
_clip: partial[Any] = partial(clip.make, embed_dim=512, text_width=512, text_depth=12, text_heads=8)
_wide: dict[str, Any] = {"embed_dim": 768, "text_width": 768, "text_heads": 12}


def _tower(name: str, **fields: Any) -> partial[Any]:
    """Return the module of an image encoder with other fields, as CLIP has it."""
    return partial(TOWERS[name].make, **fields)


CLIPS: dict[str, Variant] = {
    "clip": Variant(_clip),
    "clip_rn50": Variant(partial(_clip, tower=_tower("resnet50", clip=True), embed_dim=1024), _openai),
    "clip_vitb16": Variant(partial(_clip, tower=_tower("vit_b", clip=True, patch=16)), _openai),
    "clip_convnext_base_w": Variant(
        partial(_clip, tower=_tower("convnext_b"), embed_dim=640, text_width=640, text_heads=10),
        _openai._replace(size=256),
    ),
    "clip_convnext_large_d": Variant(
        partial(_clip, tower=_tower("convnext_l"), hidden=1536, **_wide, text_depth=16), _openai._replace(size=256)
    ),
    "clip_convnext_large_d_320": Variant(
        partial(_clip, tower=_tower("convnext_l"), hidden=1536, **_wide, text_depth=16), _openai._replace(size=320)
    ),
    "clip_vitl14": Variant(partial(_clip, tower=_tower("vit_l", clip=True, patch=14), **_wide), _openai),
}


# Text encoders, at the sizes of bert-base-uncased, roberta-base and gpt2.
_language: partial[Any] = partial(TextEncoder, dim=768, depth=12, heads=12, hidden=3072)
LANGUAGE: dict[str, Variant] = {
    "bert": Variant(
        partial(_language, family="bert", vocab=30522, context=512, types=2, epsilon=1e-12, activation="gelu")
    ),
    "roberta": Variant(
        partial(_language, family="roberta", vocab=50265, context=512, types=1, epsilon=1e-5, activation="gelu")
    ),
    "gpt2": Variant(
        partial(_language, family="gpt2", vocab=50257, context=1024, types=0, epsilon=1e-5, activation="gelu_tanh")
    ),
}

# An embeddings service, which has no parameters here.
REMOTE: dict[str, Variant] = {"api": Variant(partial(Vectors))}

MODELS = TOWERS | CLIPS | LANGUAGE | REMOTE
