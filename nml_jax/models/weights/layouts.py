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
        mark: a regex that the start of a path of this family's parameters matches, and of no row below.
        rules: see `state_dict.rename`. A result that ends with "@conv" is a linear layer kept as a 1x1 convolution; one
            that ends with "@grid" are position embeddings, which are read for images of another size too.
        prefix: goes before every name.
    """

    mark: str
    rules: Rules
    prefix: str = ""


class Alias(NamedTuple):
    """A layout of files that is read as one of timm's or open_clip's.

    Fields:
        mark: a regex for the start of a tensor's name that only these files have.
        rules: pairs of a regex and its replacement (a string or function, as `re.sub` takes), applied in turn to every
            name. A result that ends with "@T" is transposed; results that differ only after "@0", "@1", ... are joined
            along the first axis.
        clip: whether the files hold CLIP's two towers.
    """

    mark: str
    rules: Rules
    clip: bool = False


TIMM = (
    Layout(
        r"stage1_block0/bn1/",  # ResNet
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
        r"stage1_block0/norm3/",  # BiT
        (
            (r"^stem_conv/", "stem/conv/"),
            (r"^stage(\d+)_block(\d+)", lambda m: f"stages/{int(m[1]) - 1}/blocks/{m[2]}"),
            (r"/downsample_conv/", "/downsample/conv/"),
            (r"^head/kernel$", "head/fc/weight@conv"),
            (r"^head/", "head/fc/"),
            *LEAVES,
        ),
    ),
    Layout(
        r"patch_norm/",  # Swin
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
        r"block0/layer_scale1/",  # ViT of DINOv2
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
        r"block0/norm1/",  # ViT
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

# The image towers: open_clip's own, or below "trunk" one of timm's with a projection.
OPEN_CLIP_IMAGE = (
    Layout(
        r"norm_pre/",  # ViT
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
        r"pool/",  # ModifiedResNet
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
            timm.mark,
            ((r"^projection/", "HEAD/proj/"), *timm.rules, (r"^(?!HEAD/)", "trunk/"), (r"^HEAD/", "head/")),
            "visual.",
        )
        for timm in TIMM
    ),
)

# Of several rows whose marks are there, the first counts.
ALIASES: tuple[Alias, ...] = (
    Alias(
        r"layers\.0\.downsample\.",  # Microsoft's Swin merges at the end of a stage
        (
            (r"^layers\.(\d+)\.downsample\.", lambda m: f"layers.{int(m[1]) + 1}.downsample."),
            (r"^head\.", "head.fc."),
        ),
    ),
)


def find_layout(paths: Iterable[str], table: Sequence[Layout]) -> Layout:
    """Return the first row whose mark some path of our parameters has."""
    paths = list(paths)
    return next(row for row in table if any(re.match(row.mark, path) for path in paths))


def find_alias(names: Iterable[str], *, clip: bool) -> Alias | None:
    """Return the first row of ALIASES whose mark some name has; None if the names are timm's or open_clip's."""
    names = list(names)
    rows = (row for row in ALIASES if row.clip == clip)
    return next((row for row in rows if any(re.match(row.mark, name) for name in names)), None)
