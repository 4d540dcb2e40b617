"""Measure features, and test whether NMTune helps on them: `diagnose`."""

import dataclasses
import math
import warnings
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import stdtrit

from nml_jax import ranges, spectrum
from nml_jax.data.features.checks import check_finite, check_varied
from nml_jax.data.features.frames import check_filled, to_matrix
from nml_jax.data.stratify import check_groups, count_groups, draw_per_class, draw_stratified, split_rows
from nml_jax.errors import UserError
from nml_jax.evals.separability import measure_separability
from nml_jax.processes.forks import refuse_fork
from nml_jax.tuning import methods, select
from nml_jax.tuning.holdout import Demands

NAMES = {
    "sve": "SVE (entropy of the singular values)",
    "lsvr": "LSVR (\N{MINUS SIGN}log of the top share)",
    "top_share": "top share",
    "effective_rank": "effective rank",
    "stable_rank": "stable rank",
    "alpha_req": "α-ReQ exponent",
    "fisher_ratio": "Fisher ratio (between / within classes)",
    "class_mean_accuracy": "nearest class mean, leave-one-out accuracy",
}


CS = (1e-4, 1e-3, 0.01, 0.1, 1.0, 10.0)  # the penalties from which the probe chooses
BUDGET = f"the probe chose among {len(CS)} settings, NMTune had one, the released one"
FROM_PROBE = f"the probe chose among {len(CS)} settings; NMTune started from it and stopped by validation"
NOT_ASKED = "diagnose.folds is 0"
PER_FOLD = 2  # rows of a class in every fold, if it has them; if there are many classes, some are left out for this


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """The result of `diagnose`.

    measures: by name, see NAMES; NaN if one does not apply.
    probe, nmtune: accuracy on each held-out fold of the tuned linear probe (L-BFGS) and of NMTune (`paper`).
    interval: 95 % interval of the mean difference NMTune − probe, by the corrected resampled t-test, as folds share
        their training rows (Nadeau and Bengio 2003).
    n, dim, num_classes: size of the features. rows, classes: how many were cross-validated.
    untold: why the features could not be cross-validated, or "". If so, there are no folds and the interval is NaN.
    """

    measures: Mapping[str, float]
    probe: tuple[float, ...]
    nmtune: tuple[float, ...]
    interval: tuple[float, float]
    n: int
    dim: int
    num_classes: int
    rows: int
    classes: int
    untold: str = ""
    start: str = "fresh"

    @property
    def difference(self) -> float:
        """Return the mean accuracy of NMTune minus that of the probe."""
        return float(np.mean(self.nmtune) - np.mean(self.probe)) if self.probe else math.nan

    @property
    def verdict(self) -> str:
        """Return in words what the interval shows. An interval of length 0, from few rows, shows nothing."""
        if self.untold:
            return f"cannot be cross-validated: {self.untold}"
        low, high = self.interval
        name, budget = ("NMTune as released", BUDGET) if self.start == "fresh" else ("NMTune", FROM_PROBE)
        finding = f"no difference shown between {name} and the tuned linear probe"
        if 0 < low < high:
            finding = f"{name} is better than the tuned linear probe"
        elif low < high < 0:
            finding = f"the tuned linear probe is better than {name}"
        return f"{finding} on held-out rows of these features ({budget})"

    def __str__(self) -> str:
        width = max(map(len, NAMES.values())) + 2
        low, high = (f"{100 * x:+.2f}" for x in self.interval)
        lines = [
            f"{self.n:,} rows × {self.dim:,} features, {self.num_classes} classes",
            *(f"  {NAMES[name]:<{width}}{value:.4g}" for name, value in self.measures.items()),
        ]
        if self.untold:
            return "\n".join([*lines, self.verdict])
        part = f" of {self.classes} classes" if self.classes < self.num_classes else ""
        return "\n".join(
            [
                *lines,
                f"{len(self.probe)}-fold cross-validation on {self.rows:,} rows{part}, accuracy: linear probe "
                f"{100 * np.mean(self.probe):.2f} %, NMTune {100 * np.mean(self.nmtune):.2f} %",
                f"difference {100 * self.difference:+.2f} points, 95 % interval {low} to {high}: {self.verdict}",
            ]
        )


def check_ranges(config: Any) -> None:
    """Raise UserError if a value of the section `diagnose` is out of range."""
    if config.folds:  # without, features are measured only
        ranges.require_at_least(2, "diagnose", config, "folds")
    ranges.require_at_least(20, "diagnose", config, "rows")
    if config.start not in methods.STARTS:
        raise UserError(f"diagnose.start={config.start!r}", f"choose one of {', '.join(methods.STARTS)}")


def diagnose(
    F: ArrayLike,
    y: ArrayLike,
    *,
    folds: int = 5,
    rows: int = 2000,
    seed: int = 0,
    groups: ArrayLike | None = None,
) -> Diagnosis:
    """Measure features, and compare NMTune with a linear probe on them by cross-validation.

    The spectrum is measured in raw mode, as in the papers' formulas; α-ReQ on centred features. For the
    cross-validation features are standardised, and both methods see the same folds. The probe chooses its penalty from
    six on 20 % of its training folds. NMTune has the released setting: 30 epochs, batch 64, learning rate 1e-3, weight
    decay 1e-4, and at most 400 steps. It has no choice, because each further setting takes up to a minute on wide
    features. So the verdict is about this setting, and a tuned one may do better. A gain on rows like the training rows
    says nothing about other domains.

    Args:
        F: [N, D], finite real numbers. Or a column of N arrays: a Series of pandas or polars.
        y: [N], labels of any dtype that sorts.
        folds: number of folds; fewer if all classes but one have fewer rows. Classes with fewer rows are left out.
        rows: rows to cross-validate, at most. They are a stratified part of the N, from classes drawn at random: so
            many that each has two rows in every fold, or all its rows.
        seed: of the folds, the part, and the heads.
        groups: [N], of any dtype that sorts; rows of one value stay in one fold, and in one part where settings are
            chosen. None: each row is its own.

    Raises:
        ValueError: the data do not fit, a value is not finite, every feature is constant, labels are not classes, there
            is one class, fewer than two classes have three rows, or `folds` is below 2 or `rows` below 20.
    """
    try:
        refuse_fork()
        for name, value, low in (("folds", folds, 2), ("rows", rows, 20)):
            if not isinstance(value, int | np.integer) or value < low:
                raise UserError(f"{name}={value!r}", f"give an integer of {low} or more")
        X, labels = check_arguments(F, y)
        how: dict[str, Any] = {"folds": int(folds), "rows": int(rows), "seed": seed % 2**31}
        found = diagnose_checked(X, labels, **how, groups=check_groups(groups, len(labels)))
        if found.untold:
            raise UserError(found.untold, "give more rows of each class, and features of similar scale")
        return found
    except UserError as e:
        raise ValueError(f"{e.cause}; {e.cure}") from e


def check_arguments(F: ArrayLike, y: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Return features float32 [N, D] and labels [N] that scikit-learn accepts as classes."""
    from sklearn.utils.multiclass import check_classification_targets  # takes a second; every run checks the ranges
    from sklearn.utils.validation import check_X_y

    kinds: Any = [np.float32, np.float64]
    F, y = to_matrix(F), check_filled(y)
    try:
        shapes = np.shape(F), np.shape(y)
        if len(shapes[0]) != 2 or shapes[1] != shapes[0][:1]:
            cause = f"features {shapes[0]} and labels {shapes[1]} do not fit"
            raise UserError(cause, "give features [N, D] and labels [N]")
        with warnings.catch_warnings(action="ignore", category=UserWarning):  # about many classes
            X, labels = check_X_y(F, y, dtype=kinds, ensure_all_finite=False)
            check_classification_targets(labels)
    except (TypeError, ValueError) as e:
        cure = "give features [N, D], real numbers, and labels [N]: integers, text or booleans"
        raise UserError((str(e).splitlines() or [type(e).__name__])[0], cure) from e
    X = check_finite(X)
    check_varied([X], "F")
    return X, labels


def diagnose_checked(
    F: np.ndarray,
    y: np.ndarray,
    *,
    folds: int,
    rows: int,
    seed: int,
    start: str = "fresh",
    groups: np.ndarray | None = None,
) -> Diagnosis:
    """Diagnose checked arguments. Features that cannot be cross-validated are measured, and `untold` says why.

    Without folds they are only measured.

    Raises:
        UserError: the data do not fit, a value is not finite, or there is one class.
    """
    found, codes = np.unique(y, return_inverse=True)
    features, codes = select.check_features(F, codes, len(found))
    features = features[:, 0]
    part, untold = np.empty(0, np.int64), NOT_ASKED
    if folds:
        folds, part = _choose_rows(codes, folds, rows, seed, groups)
        needed = f"{_count_needed(folds)} {'rows' if groups is None else 'groups'}"
        untold = "" if len(part) else f"fewer than two classes have {needed}: nothing can be held out"
    accuracies: dict[str, list[float]] = {"lbfgs": [], "nmtune": []}
    try:
        own = None if groups is None else groups[part]
        accuracies = _compare_methods(features[part], codes[part], folds, seed, start, own) if len(part) else accuracies
    except UserError as e:  # training diverged, or groups are too large to be split up
        part, untold = part[:0], e.cause
    gains = np.subtract(accuracies["nmtune"], accuracies["lbfgs"])
    return Diagnosis(
        measures=measure_features(features, codes),
        probe=tuple(accuracies["lbfgs"]),
        nmtune=tuple(accuracies["nmtune"]),
        interval=compute_interval(gains) if len(part) else (math.nan, math.nan),
        n=len(codes),
        dim=features.shape[1],
        num_classes=len(found),
        rows=len(part),
        classes=len(np.unique(codes[part])),
        untold=untold,
        start=start,
    )


def _count_needed(folds: int) -> int:
    """Return how many rows a class needs so that each fold leaves two to train on, one of which may be held out."""
    return max(folds, 3 if folds > 2 else 4)


def _choose_rows(
    codes: np.ndarray, folds: int, rows: int, seed: int, groups: np.ndarray | None = None
) -> tuple[int, np.ndarray]:
    """Return the number of folds and the rows to cross-validate; no rows if classes are too small."""
    if groups is not None:
        return _choose_groups(codes, folds, rows, seed, groups)
    counts = np.bincount(codes)
    folds = max(2, min(folds, rows // 2, int(np.sort(counts)[-2])))  # at least two classes have so many rows
    large = np.flatnonzero(counts >= _count_needed(folds))
    if len(large) < 2:
        return folds, np.empty(0, np.int64)
    each = min(PER_FOLD * folds, rows // 2)
    chosen = np.random.default_rng(seed).permutation(large)[: rows // min(each, int(counts[large].max()))]
    pool = np.flatnonzero(np.isin(codes, chosen))
    first = draw_per_class(codes[pool], each, seed)
    part, rest = pool[first], pool[~first]
    if len(rest) and rows - len(part) >= len(chosen):
        more = draw_stratified(codes[rest], min(1.0, (rows - len(part)) / len(rest)), seed)
        part = np.concatenate([part, rest[more]])
    return folds, np.sort(part)


def _choose_groups(codes: np.ndarray, folds: int, rows: int, seed: int, groups: np.ndarray) -> tuple[int, np.ndarray]:
    """Do the same for groups: take rows of classes that enough groups have, stratified."""
    folds = max(2, min(folds, rows // 2, int(np.sort(count_groups(codes, groups))[-2])))
    large = np.flatnonzero(count_groups(codes, groups) >= _count_needed(folds))
    pool = np.flatnonzero(np.isin(codes, large))
    if len(large) < 2:
        return folds, pool[:0]
    part = pool[draw_stratified(codes[pool], min(1.0, rows / len(pool)), seed)]
    kept = np.flatnonzero(count_groups(codes[part], groups[part]) >= _count_needed(folds))
    part = part[np.isin(codes[part], kept)]
    return folds, part if len(kept) >= 2 else part[:0]


def _compare_methods(
    F: np.ndarray,
    codes: np.ndarray,
    folds: int,
    seed: int,
    start: str = "fresh",
    groups: np.ndarray | None = None,
) -> dict[str, list[float]]:
    """Return the accuracies of the probe and of NMTune on every fold."""
    known, codes = np.unique(codes, return_inverse=True)
    accuracies: dict[str, list[float]] = {"lbfgs": [], "nmtune": []}
    config = make_config(start)
    for train, test in split_rows(codes, folds, seed, groups):
        demands = Demands(groups=None if groups is None else groups[train])
        for method, each in accuracies.items():
            preset = "paper" if method == "nmtune" else None
            head = select.fit(F[train], codes[train], method=method, preset=preset,
                             num_classes=len(known), config=config, seed=seed, demands=demands)  # fmt: skip
            _, logits = head.outputs(F[test])
            each.append(float((logits.argmax(1) == codes[test]).mean()))
    return accuracies


def measure_features(F: np.ndarray, codes: np.ndarray) -> dict[str, float]:
    """Compute the measures in NAMES on finite features [N, D] with labels [N] in [0, K)."""
    s = spectrum.singular_values(F)
    centred = spectrum.singular_values(F, center="features")
    out = {
        name: float(getattr(spectrum, name)(s))
        for name in ("sve", "lsvr", "top_share", "effective_rank", "stable_rank")
    }
    out["alpha_req"] = float(spectrum.alpha_req(centred)) if (centred > 0).sum() > 1 else math.nan
    return {**out, **measure_separability(F, codes)}


def compute_interval(differences: np.ndarray) -> tuple[float, float]:
    """Compute the 95 % interval of the mean over k folds: variance × (1/k + 1/(k − 1)), Student's t with k − 1."""
    k = len(differences)
    spread = float(np.std(differences, ddof=1)) * math.sqrt(1 / k + 1 / (k - 1))
    half = float(stdtrit(k - 1, 0.975)) * spread
    return float(np.mean(differences)) - half, float(np.mean(differences)) + half


def make_config(start: str) -> Any:
    """Make a section `tune`, as in configs/common.py, for both methods."""
    fresh = {"batch": 64, "width": 4, "patience": 0, "lrs": (1e-3,)}
    own = fresh if start == "fresh" else {"batch": 128, "width": 0, "patience": 6, "lrs": (1e-4,)}
    return SimpleNamespace(
        **own, start=start, halving=False, widen=False, refit=True, calibrate=False, standardize=True,
        epochs=30, steps=400, weight_decays=(1e-4,), validation=0.2,
        cs=CS, depth=1, residual=True, norm="batch", noisytune=0.0,
        neftune=0.0, nmtune={},
    )  # fmt: skip
