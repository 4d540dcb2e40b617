"""The tables of names: what other projects call the tensors of our models. A row serves every size of a family.

The paths in our trees determine the names: `stage2_block0/conv1/kernel` is timm's `layer2.0.conv1.weight`. Files of
further projects are read by giving their tensors the names of timm or open_clip first.
"""

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from nml_jax.models.weights.state_dict import LEAVES, Rules


class Layout(NamedTuple):
    """The names of a family's tensors in a state dict of timm or open_clip.

    Fields:
        marks: regexes; the paths of this family's parameters begin with each of them, and of no row below.
        rules: see `state_dict.rename`. A result that ends with "@conv" is a linear layer kept as a 1x1 convolution; one
            that ends with "@grid" are position embeddings, which are read for images of another size too.
        prefix: goes before every name.
    """

    marks: tuple[str, ...]
    rules: Rules
    prefix: str = ""


class Alias(NamedTuple):
    """A layout of files that is read as one of timm's or open_clip's.

    Fields:
        mark: a regex for the start of a tensor's name that only these files have.
        rules: pairs of a regex and its replacement, as `re.sub` takes it, applied in turn to every name. A result that
            ends with "@T" is transposed. Results that differ only after "@0", "@1", ... are joined along the first
            axis.
    """

    mark: str
    rules: Rules


TIMM = (
    Layout(
        (r"stage1_block0/bn1/",),  # ResNet
        (
            (r"^stem_(conv|bn)/", r"\g<1>1/"),
            (r"^stage(\d+)_block(\d+)", r"layer\1/\2"),
            (r"/downsample_conv", "/downsample/0"),
            (r"/downsample_bn", "/downsample/1"),
            (r"^head/", "fc/"),
            *LEAVES,
        ),
    ),
    Layout(
        (r"stage1_block0/norm3/",),  # BiT
        (
            (r"^stem_conv/", "stem/conv/"),
            (r"^stage(\d+)_block(\d+)", lambda m: f"stages/{int(m[1]) - 1}/blocks/{m[2]}"),
            (r"/downsample_conv/", "/downsample/conv/"),
            (r"^head/kernel$", "head/fc/weight@conv"),
            (r"^head/bias$", "head/fc/bias"),
            *LEAVES,
        ),
    ),
    Layout(
        (r"head_conv/",),  # EfficientNet; its first blocks, which have no expansion, call their layers otherwise
        (
            (r"^stem_conv/", "conv_stem/"),
            (r"^stem_bn/", "bn1/"),
            (r"^head_conv/", "conv_head/"),
            (r"^head_bn/", "bn2/"),
            (r"^(stage1_block\d+)/depthwise_bn/", r"\1/bn1/"),
            (r"^(stage1_block\d+)/project_conv/", r"\1/conv_pw/"),
            (r"^(stage1_block\d+)/project_bn/", r"\1/bn2/"),
            (r"^stage(\d+)_block(\d+)", lambda m: f"blocks/{int(m[1]) - 1}/{m[2]}"),
            (r"/depthwise_conv/", "/conv_dw/"),
            (r"/expand_conv/", "/conv_pw/"),
            (r"/project_conv/", "/conv_pwl/"),
            (r"/expand_bn/", "/bn1/"),
            (r"/depthwise_bn/", "/bn2/"),
            (r"/project_bn/", "/bn3/"),
            (r"/squeeze/(reduce|expand)/kernel$", r"/se/conv_\1/weight@conv"),
            (r"/squeeze/", "/se/conv_"),
            (r"^head/", "classifier/"),
            *LEAVES,
        ),
    ),
    Layout(
        (r"stage1_block0/layer_scale/",),  # ConvNeXt
        (
            (r"^stem_conv/", "stem/0/"),
            (r"^stem_norm/", "stem/1/"),
            (r"^stage(\d+)_norm/", lambda m: f"stages/{int(m[1]) - 1}/downsample/0/"),
            (r"^stage(\d+)_conv/", lambda m: f"stages/{int(m[1]) - 1}/downsample/1/"),
            (r"^stage(\d+)_block(\d+)", lambda m: f"stages/{int(m[1]) - 1}/blocks/{m[2]}"),
            (r"/layer_scale/scale$", "/gamma"),
            (r"/depthwise_conv/", "/conv_dw/"),
            (r"^norm/", "head/norm/"),
            (r"^hidden/", "head/pre_logits/fc/"),
            (r"^head/(kernel|bias)$", r"head/fc/\1"),
            *LEAVES,
        ),
    ),
    Layout(
        (r"patch_norm/",),  # Swin
        (
            (r"^patch/", "patch_embed/proj/"),
            (r"^patch_norm/", "patch_embed/norm/"),
            (r"^stage(\d+)_block(\d+)", lambda m: f"layers/{int(m[1]) - 1}/blocks/{m[2]}"),
            (r"^stage(\d+)_merge", lambda m: f"layers/{int(m[1]) - 1}/downsample"),
            (r"/position/bias$", "/relative_position_bias_table"),
            (r"^head/", "head/fc/"),
            *LEAVES,
        ),
    ),
    Layout(
        (r"block0/layer_scale1/",),  # ViT of DINOv2
        (
            (r"^block(\d+)", r"blocks/\1"),
            (r"/layer_scale(\d)/scale$", r"/ls\1/gamma"),
            (r"^patch/", "patch_embed/proj/"),
            (r"^cls$", "cls_token"),
            (r"^pos_embed$", "pos_embed@grid"),
            *LEAVES,
        ),
    ),
    Layout(
        (r"block0/norm1/",),  # ViT
        (
            (r"^block(\d+)", r"blocks/\1"),
            (r"^patch/", "patch_embed/proj/"),
            (r"^cls$", "cls_token"),
            *LEAVES,
        ),
    ),
)

_TRANSFORMER = (
    (r"^block(\d+)", r"transformer/resblocks/\1"),
    (r"/norm([12])/", r"/ln_\1/"),
    (r"/qkv/kernel$", "/in_proj_weight"),
    (r"/qkv/bias$", "/in_proj_bias"),
    (r"/attn/proj/", "/attn/out_proj/"),
    (r"/fc1/", "/c_fc/"),
    (r"/fc2/", "/c_proj/"),
    (r"^cls$", "class_embedding"),
    (r"^pos_embed$", "positional_embedding"),
    *LEAVES,
)

OPEN_CLIP_TEXT = (
    (r"^tokens/", "token_embedding/"),
    (r"^norm/", "ln_final/"),
    (r"^projection/kernel$", "text_projection"),
    *_TRANSFORMER,
)

# The head of timm's towers in open_clip: an MLP if there is a hidden layer, else linear. Marks, and rules.
_PROJECTIONS = (
    (("hidden/",), ((r"^hidden/(.*)$", r"HEAD/mlp/fc1/\1"), (r"^projection/", "HEAD/mlp/fc2/"))),
    ((), ((r"^projection/", "HEAD/proj/"),)),
)

# The image towers: open_clip's own, or below "trunk" one of timm's with a projection.
OPEN_CLIP_IMAGE = (
    Layout(
        (r"norm_pre/",),  # ViT
        (
            (r"^patch/", "conv1/"),
            (r"^norm_pre/", "ln_pre/"),
            (r"^norm/", "ln_post/"),
            (r"^projection/kernel$", "proj"),
            *_TRANSFORMER,
        ),
        "visual.",
    ),
    Layout(
        (r"pool/",),  # ModifiedResNet
        (
            (r"^stem_(conv|bn)(\d)", r"\1\2"),
            (r"^pool/([qkv])/", r"attnpool/\1_proj/"),
            (r"^pool/pos_embed$", "attnpool/positional_embedding"),
            (r"^projection/", "attnpool/c_proj/"),
            *TIMM[0].rules,
        ),
        "visual.",
    ),
    *(
        Layout(
            (*timm.marks, *marks),
            (*projection, *timm.rules, (r"^(?!HEAD/)", "trunk/"), (r"^HEAD/", "head/")),
            "visual.",
        )
        for timm in TIMM
        for marks, projection in _PROJECTIONS
    ),
)

# The first row whose marks are there counts.
ALIASES = (
    Alias(
        r"layers\.0\.downsample\.",  # Microsoft's Swin merges at the end of a stage
        (
            (r"^layers\.(\d+)\.downsample\.", lambda m: f"layers.{int(m[1]) + 1}.downsample."),
            (r"^head\.", "head.fc."),
        ),
    ),
    Alias(
        r"downsample_layers\.0\.0\.",  # Facebook's ConvNeXt
        (
            (r"^stages\.(\d+)\.(\d+)\.", r"stages.\1.blocks.\2."),
            (r"^downsample_layers\.0\.", "stem."),
            (r"^downsample_layers\.(\d+)\.", r"stages.\1.downsample."),
            (r"\.dwconv\.", ".conv_dw."),
            (r"\.pwconv([12])\.", r".mlp.fc\1."),
            (r"^norm\.", "head.norm."),
            (r"^head\.(weight|bias)$", r"head.fc.\1"),
        ),
    ),
    Alias(
        r"text_model\.embeddings\.",  # transformers' CLIPModel
        (
            (r"^(vision|text)_model\.encoder\.layers\.", r"\1_model.transformer.resblocks."),
            (r"^(vision|text)_model\.embeddings\.position_embedding\.weight$", r"\1_model.positional_embedding"),
            (r"^text_model\.embeddings\.", "text_model."),
            (r"^vision_model\.embeddings\.patch_embedding\.", "vision_model.conv1."),
            (r"^vision_model\.embeddings\.", "vision_model."),
            (r"\.layer_norm([12])\.", r".ln_\1."),
            *((rf"\.self_attn\.{x}_proj\.(weight|bias)$", rf".attn.in_proj_\1@{i}") for i, x in enumerate("qkv")),
            (r"\.self_attn\.out_proj\.", ".attn.out_proj."),
            (r"\.mlp\.fc1\.", ".mlp.c_fc."),
            (r"\.mlp\.fc2\.", ".mlp.c_proj."),
            (r"\.pre_layrnorm\.", ".ln_pre."),
            (r"\.post_layernorm\.", ".ln_post."),
            (r"\.final_layer_norm\.", ".ln_final."),
            (r"^text_model\.", ""),
            (r"^vision_model\.", "visual."),
            (r"^visual_projection\.weight$", "visual.proj@T"),
            (r"^text_projection\.weight$", "text_projection@T"),
        ),
    ),
)


def find_layout(paths: Iterable[str], table: Sequence[Layout]) -> Layout:
    """Return the first row all of whose marks some paths of our parameters have."""
    paths = list(paths)
    return next(row for row in table if all(any(re.match(mark, path) for path in paths) for mark in row.marks))


def find_alias(names: Iterable[str]) -> Alias | None:
    """Return the first row of ALIASES whose mark some name has; None if the names are timm's or open_clip's."""
    names = list(names)
    return next((row for row in ALIASES if any(re.match(row.mark, name) for name in names)), None)


_BERT: Rules = (
    (r"^(words|positions|types)/", lambda m: f"embeddings/{_EMBEDDINGS[m[1]]}/"),
    (r"^embed_norm/", "embeddings/LayerNorm/"),
    (r"^pooler/", "pooler/dense/"),
    (r"^block(\d+)", r"encoder/layer/\1"),
    (r"/attn/proj/", "/attention/output/dense/"),
    (r"/attn/", "/attention/self/"),
    (r"/norm1/", "/attention/output/LayerNorm/"),
    (r"/fc1/", "/intermediate/dense/"),
    (r"/fc2/", "/output/dense/"),
    (r"/norm2/", "/output/LayerNorm/"),
    *LEAVES,
)
_EMBEDDINGS = {"words": "word_embeddings", "positions": "position_embeddings", "types": "token_type_embeddings"}

# Transformers' text encoders, without the prefix of a model with a head.
LANGUAGE = (
    Layout(
        (r"block0/attn/qkv/",),  # GPT-2, whose kernels are [in, out] as ours
        (
            (r"^words/", "wte/"),
            (r"^positions/", "wpe/"),
            (r"^norm/", "ln_f/"),
            (r"^block(\d+)", r"h/\1"),
            (r"/norm([12])/", r"/ln_\1/"),
            (r"/qkv/", "/c_attn/"),
            (r"/attn/proj/", "/attn/c_proj/"),
            (r"/fc1/", "/mlp/c_fc/"),
            (r"/fc2/", "/mlp/c_proj/"),
            (r"/kernel$", "/weight@same"),
            *LEAVES,
        ),
    ),
    Layout((r"block0/attn/query/",), _BERT),  # BERT, RoBERTa
)
