"""The methods of tuning on frozen features: METHODS says of each what is trained, and how it is chosen."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from nml_jax.errors import UserError
from nml_jax.models.heads.mlp import Form
from nml_jax.objectives import nmtune, terms
from nml_jax.tuning import neighbours, probes


class Method(NamedTuple):
    """One method.

    title: as tables call it.
    mlp: the head has an MLP, of the architecture that the keys width, depth, residual and norm describe.
    terms: key of TERMS, beside the cross-entropy; "": none.
    probe: of those without a training loop: (features [N, D], labels [N], grid, ...) -> a probe per value of the grid.
    grid: of these: the key of the section `tune` with the values to choose from.
    value: of these: what one such value is called.
    logits: whether its scores are logits, whose cross-entropy says which of two heads of one accuracy is better.
    """

    title: str
    mlp: bool = False
    terms: str = ""
    probe: Any = None
    grid: str = ""
    value: str = ""
    logits: bool = True


METHODS = {
    "linear": Method("linear probe"),
    "lbfgs": Method("L-BFGS probe", probe=probes.fit_lbfgs, grid="cs", value="C"),
    "ridge": Method("ridge probe", probe=probes.fit_ridge, grid="alphas", value="alpha", logits=False),
    "knn": Method("k-NN", probe=neighbours.fit_knn, grid="ks", value="k", logits=False),
    "mlp": Method("MLP", mlp=True),
    "nmtune": Method("NMTune", mlp=True, terms="nmtune"),
    "skd": Method("SKD", mlp=True, terms="skd"),
    "fgs": Method("FGS", mlp=True, terms="fgs"),
    "lgm": Method("LGM", mlp=True, terms="lgm"),
}


def find(name: str) -> Method:
    """Raises UserError if there is no such method."""
    if name not in METHODS:
        raise UserError(f"there is no method {name!r}", f"choose one of {', '.join(METHODS)}")
    return METHODS[name]


def build_form(method: Method, config: Any) -> Form:
    """The architecture of the method's head, by the keys width, depth, residual and norm of the section `tune`."""
    if not method.mlp:
        return Form(mlp=False)
    return Form(True, config.width, config.depth, config.residual, config.norm)


def choose_weights(name: str, preset: str | None, config: Any, views: int) -> tuple[Any, str | None]:
    """The numbers in the terms of a method, and what tables call its preset.

    Args:
        name: a key of METHODS.
        preset: of nmtune: a key of nmtune.PRESETS; None for the others.
        config: the section `tune`; read is its section of the terms' name.
        views: stored views per example.

    Returns:
        Its Weights, None without terms; and the name, "code/1view" where `code` has one view, with what the config
        changes, None where the method has no presets.

    Raises:
        UserError: there is no such method or preset.
    """
    own = find(name).terms
    if name == "nmtune":
        return nmtune.weights(preset, views, **config.nmtune)
    if preset is not None:
        raise UserError(f"preset {preset!r} is given for the method {name!r}", "presets are for nmtune only")
    return (terms.defaults(own, **getattr(config, own)) if own else None), None


def name_preset(preset: str | None, config: Any) -> str | None:
    """Return what rows call a preset of nmtune under the section `tune`; None for None."""
    return preset and nmtune.name_preset(preset, **config.nmtune)


def count_epochs(n: int, *, batch: int, epochs: int, steps: int) -> tuple[int, int]:
    """The schedule of a head that is trained by gradient on n rows.

    Args:
        batch, epochs, steps: as in the section `tune`.

    Returns:
        Passes over the rows, as many as `epochs` and `steps` allow and one at least; and steps of each.
    """
    each = -(-n // min(batch, n))
    return max(1, min(epochs, steps // each)) if steps else epochs, each


def make_grid(name: str) -> tuple[str, ...]:
    """The keys of the section `tune` among whose values a method chooses."""
    kind = find(name)
    return (kind.grid,) if kind.probe else ("lrs", "weight_decays")


def list_methods(config: Any) -> Iterator[tuple[str, str | None]]:
    """(method, preset) of every head that the section `tune` asks for."""
    for name in config.methods:
        yield from ((name, preset) for preset in (config.presets if name == "nmtune" else (None,)))
