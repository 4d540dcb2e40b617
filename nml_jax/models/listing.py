"""What models there are: a table of all, and a page about one. No weights are drawn."""

import difflib
import functools
import re
from functools import partial
from typing import Any

import jax

from nml_jax import models, settings
from nml_jax.errors import UserError
from nml_jax.models.architectures import OPEN_CLIP, TIMM, TRANSFORMERS
from nml_jax.models.overview import describe_parameters
from nml_jax.models.variants import CLIPS, IMAGENET, INCEPTION, LANGUAGE, MODELS, OPENAI, REMOTE, TOWERS

COLUMNS = ("model", "parameters", "features", "input", "published weights that fit")
PIXELS = {IMAGENET: "ImageNet", INCEPTION: "0.5", OPENAI: "OpenAI"}
COUNTS = ("blocks", "depth", "text_depth")
BLOCK = re.compile(r"(?:(image|text)/)?(?:stage(\d+)_)?block(\d+)/")


def list_models() -> str:
    """List all models as a Markdown table.

    Parameters are those without a head, or of both towers. Features is the width of that output.
    """
    rows = [COLUMNS, *map(_make_row, MODELS)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(COLUMNS))]
    rows.insert(1, tuple("-" * width for width in widths))
    return "\n".join(f"| {' | '.join(map(str.ljust, row, widths))} |" for row in rows)


def describe_model(name: str) -> str:
    """Describe a model: its row of the table, its outputs, and its parameters.

    Raises:
        UserError: there is no such model; the nearest names are given.
    """
    if name not in MODELS:
        near = [TIMM[name].name] if name in TIMM else difflib.get_close_matches(name, MODELS, cutoff=0.5)
        raise UserError(
            f"there is no model {name!r}", f"give {' or '.join(near)}" if near else f"give one of {', '.join(MODELS)}"
        )
    model = _build(name, 0)
    params, model_state = model.shapes
    apply = partial(model.apply, train=False, key=None)
    outputs, _ = jax.eval_shape(apply, params, model_state, dict(model.spec))
    lines = [f"{column}: {cell}" for column, cell in zip(COLUMNS, _make_row(name), strict=True)]
    shapes = [f"{key} {list(x.shape)}" for key, x in sorted(outputs.items())]
    return "\n".join([*lines, f"outputs for one input: {', '.join(shapes)}", describe_parameters(params)])


def _make_row(name: str) -> tuple[str, ...]:
    """Make the cells of a model."""
    if name in REMOTE:
        return name, "-", "-", "texts, as the service likes", "any service like OpenAI's /v1/embeddings"
    count, width = measure_model(name)
    fits = [theirs for theirs, architecture in TIMM.items() if architecture.name == name]
    fits += [*OPEN_CLIP.get(name, ()), *TRANSFORMERS.get(name, ())]
    return name, f"{count:,}", f"{width:,}", _describe_input(name), ", ".join(fits) or "-"


def measure_model(name: str) -> tuple[int, int]:
    """Return the number of parameters without a head, and the width of the features.

    Variants of equal shapes are traced once, and only two blocks of a stage: all after the first are of one size.
    """
    return _measure(next(other for other in MODELS if _identify(other) == _identify(name)))


def _identify(name: str) -> tuple[str, int]:
    """Return what the shapes of a model depend on."""
    make, own = MODELS[name]
    shaping = {key: value for key, value in make.keywords.items() if key not in ("padding", "epsilon")}
    return repr(partial(make.func, **shaping)), own.size


@functools.cache
def _measure(name: str) -> tuple[int, int]:
    counts, fields = _find_counts(name), MODELS[name].make.keywords
    params, _ = _build(name, 1, **{key: _cut(count) for key, count in counts.items()}).shapes
    image = params.get("image", params)
    width = next((image[layer]["kernel"].shape[0] for layer in ("hidden", "projection", "head") if layer in image), 0)
    leaves = jax.tree_util.tree_leaves_with_path({key: value for key, value in params.items() if key != "head"})
    named = ((jax.tree_util.keystr(path, simple=True, separator="/"), leaf.size) for path, leaf in leaves)
    return sum(size * _count_equal(path, counts) for path, size in named), width or fields["dim"]


def _build(name: str, num_classes: int, **keys: Any) -> models.Model:
    """Build a model at the size of its published weights; `keys` are those of config.model."""
    config = settings.from_json(settings.default_config()).model
    config.update({"name": name, **keys})
    return models.build(config, num_classes=num_classes, image_size=MODELS[name].input.size)


def _find_counts(name: str) -> dict[str, Any]:
    """Return the numbers of blocks of a model, by key."""
    fields = MODELS[name].make.keywords
    if name in CLIPS:
        fields = {
            **(fields.get("tower") or TOWERS[settings.default_config()["model"]["tower"]].make).keywords,
            **fields,
        }
    return {key: fields[key] for key in COUNTS if key in fields}


def _cut(count: Any) -> Any:
    """Return at most two blocks, of a stage or of each."""
    return tuple(min(n, 2) for n in count) if isinstance(count, tuple) else min(count, 2)


def _count_equal(path: str, counts: dict[str, Any]) -> int:
    """Return for how many parameters of the whole model one of the cut model stands."""
    found = BLOCK.match(path)
    if not found or found[3] == "0":
        return 1
    if found[2]:
        return counts["blocks"][int(found[2]) - 1] - 1
    return counts["text_depth" if found[1] == "text" else "depth"] - 1


def _describe_input(name: str) -> str:
    """Describe the preprocessing that published weights expect."""
    if name in LANGUAGE:
        return f"{LANGUAGE[name].make.keywords['context']} tokens"
    own = MODELS[name].input
    return f"{own.size} px, crop {own.crop}, {own.interpolation}, {PIXELS[own.pixels]}"
