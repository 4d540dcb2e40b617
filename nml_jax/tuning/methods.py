"""The methods of tuning on frozen features: METHODS lists what each trains and how it chooses settings."""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

from nml_jax import ranges
from nml_jax.errors import UserError
from nml_jax.evals import metrics
from nml_jax.models.heads.mlp import Form
from nml_jax.objectives import nmtune, terms
from nml_jax.tuning import neighbours, probes


class Method(NamedTuple):
    """One method.

    title: its name in tables.
    mlp: whether the head has an MLP. The keys width, depth, residual and norm set its architecture.
    terms: key of TERMS, added to the cross-entropy; "": none.
    probe: for methods without a training loop: (features [N, D], labels [N], grid, ...) -> a probe per value.
    grid: for these: the key of the section `tune` with the values to choose from.
    value: for these: the name of one such value.
    logits: whether its scores are logits. Then their cross-entropy decides between heads of equal accuracy.
    weighted: whether rows can have weights.
    regresses: whether it can predict a number.
    gce: whether it minimises the generalised cross-entropy of `tune.gce_q` in place of the cross-entropy.
    """

    title: str
    mlp: bool = False
    terms: str = ""
    probe: Any = None
    grid: str = ""
    value: str = ""
    logits: bool = True
    weighted: bool = True
    regresses: bool = True
    gce: bool = False


STARTS = ("fresh", "probe")
PATIENT_STEPS = 150  # steps without a lower validation loss that are enough to stop
WIDTHS = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1, 2, 4)  # that `choose_width` knows

METHODS = {
    "linear": Method("linear probe"),
    "lbfgs": Method("L-BFGS probe", probe=probes.solve_once, grid="cs", value="C", regresses=False),
    "ridge": Method("ridge probe", probe=probes.fit_ridge, grid="alphas", value="alpha", logits=False),
    "knn": Method(
        "k-NN", probe=neighbours.fit_knn, grid="ks", value="k", logits=False, weighted=False, regresses=False
    ),
    "mlp": Method("MLP", mlp=True),
    "nmtune": Method("NMTune", mlp=True, terms="nmtune"),
    "skd": Method("SKD", mlp=True, terms="skd"),
    "fgs": Method("FGS", mlp=True, terms="fgs"),
    "lgm": Method("LGM", mlp=True, terms="lgm"),
    "linear_gce": Method("linear probe with GCE", gce=True, regresses=False),
    "mlp_gce": Method("MLP with GCE", mlp=True, gce=True, regresses=False),
    "nmtune_gce": Method("NMTune with GCE", mlp=True, terms="nmtune", gce=True, regresses=False),
}


def check_ranges(config: Any) -> None:
    """Raise UserError if a value of the section `tune` is out of range."""
    ranges.require_names("tune", config, "methods", "presets")
    ranges.require_at_least(1, "tune", config, "batch", "epochs", "seeds", "depth")
    ranges.require_at_least(0, "tune", config, "steps", "noisytune", "neftune", "patience", "width")
    if config.start not in STARTS:
        raise UserError(f"tune.start={config.start!r}", f"choose one of {', '.join(STARTS)}")
    if is_patient(config) and not config.validation:
        raise UserError(
            "tune.validation=0 leaves no rows to stop by or to choose the probe's penalty by",
            "set it above 0, or tune.start=fresh, tune.patience=0 and tune.halving=False",
        )
    if config.calibrate and not config.validation:
        raise UserError("tune.validation=0 leaves no rows to find a temperature by", "set it above 0")
    metrics.check_name(config.metric)
    ranges.require_share("tune", config, "validation", below_one=True)
    ranges.require_share("tune", config, "gce_q")
    ranges.require_distinct("numbers of 0 or more", "tune", config, "lrs", "weight_decays", "alphas")
    ranges.require_distinct("positive numbers", "tune", config, "cs")
    ranges.require_distinct("positive integers", "tune", config, "ks")
    if not any(config.lrs):
        raise UserError(f"tune.lrs must have a rate above 0, got {config.lrs}", "set --config.tune.lrs='(0.1, 0.01)'")


def find(name: str) -> Method:
    """Return the method of this name. Raise UserError if there is none."""
    if name not in METHODS:
        raise UserError(f"there is no method {name!r}", f"choose one of {', '.join(METHODS)}")
    return METHODS[name]


def build_form(method: Method, config: Any, dim: int = 1, rows: int = 1) -> Form:
    """Build the form of the method's head from the keys width, depth, residual and norm of the section `tune`.

    Args:
        method: one of METHODS.
        config: the section `tune`.
        dim, rows: features and training rows, by which the width 0 is chosen.
    """
    if not method.mlp:
        return Form(mlp=False)
    width = config.width or choose_width(dim, rows)
    return Form(True, width, config.depth, config.residual, config.norm)


def choose_width(dim: int, rows: int) -> float:
    """Return the width of the MLP's hidden layer that N rows of D features deserve, as a multiple of D.

    They are 64 to 512 hidden features, one for every 16 rows: on few rows wider heads are slower and no more accurate
    (docs/benchmarks.md). The papers' width is 4.
    """
    wanted = min(512, max(64, rows // 16)) / dim
    return min((w for w in WIDTHS if w >= wanted), default=WIDTHS[-1])


def starts_from_probe(method: Method, config: Any) -> bool:
    """Return whether heads of a method trained by gradient start from the solved probe (`tune.start`)."""
    return config.start == "probe" and not method.probe and (not method.mlp or config.residual)


def is_solved(method: Method, config: Any) -> bool:
    """Return whether heads of a method are solved: a linear head that starts from its probe is that probe."""
    return bool(method.probe) or (starts_from_probe(method, config) and not method.mlp and not method.gce)


def is_patient(config: Any) -> bool:
    """Return whether the section `tune` has heads start from a probe, stop early, or share the steps by halving."""
    return config.start == "probe" or bool(config.patience) or bool(config.halving)


def choose_weights(name: str, preset: str | None, config: Any, views: int) -> tuple[Any, str | None]:
    """Return the numbers in the terms of a method, and the name of its preset in tables.

    Args:
        name: a key of METHODS.
        preset: of methods with NMTune's terms: a key of nmtune.PRESETS; None for the others.
        config: the section `tune`, with a section of changes for each kind of terms.
        views: stored views per example.

    Returns:
        The method's Weights, or None without terms. Then the name of the preset with the changes by the config, such as
        "code,svd=0.5", or "code/1view" if `code` has one view; None if the method has no presets.

    Raises:
        UserError: there is no such method or preset.
    """
    kind = find(name).terms
    if kind == "nmtune":
        return nmtune.resolve_weights(preset, views, **config.nmtune)
    if preset is not None:
        raise UserError(f"preset {preset!r} is given for the method {name!r}", "presets are for NMTune only")
    return (terms.make_weights(kind, **getattr(config, kind)) if kind else None), None


def has_presets(name: str) -> bool:
    """Return whether a method has NMTune's terms, and so its presets."""
    return find(name).terms == "nmtune"


def name_preset(preset: str | None, config: Any) -> str | None:
    """Return what rows call a preset of nmtune under the section `tune`; None for None."""
    return preset and nmtune.name_preset(preset, **config.nmtune)


def count_epochs(n: int, *, batch: int, epochs: int, steps: int) -> tuple[int, int]:
    """Return the schedule of a head that is trained by gradient on n rows.

    Args:
        batch, epochs, steps: as in the section `tune`.

    Returns:
        Passes over the rows, as many as `epochs` and `steps` allow but at least one; and the steps of each.
    """
    each = -(-n // min(batch, n))
    return max(1, min(epochs, steps // each)) if steps else epochs, each


def count_patience(config: Any, each: int) -> float:
    """Return the epochs without a lower validation loss after which training stops; infinity if it never does.

    They are `patience`, or as few as make PATIENT_STEPS: an epoch of a large file has hundreds of steps.
    """
    return max(1, min(config.patience, -(-PATIENT_STEPS // each))) if config.patience else math.inf


def make_grid(name: str) -> tuple[str, ...]:
    """Return the keys of the section `tune` from whose values a method chooses."""
    kind = find(name)
    return (kind.grid,) if kind.probe else ("lrs", "weight_decays")


def list_methods(config: Any) -> Iterator[tuple[str, str | None]]:
    """Yield (method, preset) of every head that the section `tune` asks for."""
    for name in config.methods:
        yield from ((name, preset) for preset in (config.presets if has_presets(name) else (None,)))
