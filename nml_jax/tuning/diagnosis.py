"""What features look like, and whether NMTune is worth its trouble on them: `diagnose`."""

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
from nml_jax.data.features.checks import are_finite, check_varied
from nml_jax.data.stratify import draw_per_class, draw_stratified
from nml_jax.errors import UserError
from nml_jax.evals.separability import measure_separability
from nml_jax.tuning import select

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


CS = (1e-4, 1e-3, 0.01, 0.1, 1.0, 10.0)  # the penalties that the probe chooses among
BUDGET = f"the probe chose among {len(CS)} settings, NMTune had one, the released one"
PER_FOLD = 2  # rows of a class in every fold, at least, if it has them: of many classes some stay out


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """What `diagnose` found.

    measures: by name, see NAMES; NaN where one does not apply.
    probe, nmtune: accuracy on each held-out fold of the tuned linear probe (L-BFGS) and of NMTune (`paper`).
    interval: 95 % of the mean difference NMTune − probe, by the corrected resampled t-test, as folds share their
        training rows (Nadeau and Bengio 2003).
    n, dim, num_classes: of the features. rows, classes: that were cross-validated.
    untold: why nothing could be; "" where it was. Then there are no folds, and the interval is NaN.
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

    @property
    def difference(self) -> float:
        """Mean accuracy of NMTune less that of the probe."""
        return float(np.mean(self.nmtune) - np.mean(self.probe)) if self.probe else math.nan

    @property
    def verdict(self) -> str:
        """In words, what the interval allows. One without length, of few rows, allows nothing."""
        if self.untold:
            return f"cannot be cross-validated: {self.untold}"
        low, high = self.interval
        said = "no difference shown between NMTune as released and the tuned linear probe"
        if 0 < low < high:
            said = "NMTune as released is better than the tuned linear probe"
        elif low < high < 0:
            said = "the tuned linear probe is better than NMTune as released"
        return f"{said} on held-out rows of these features ({BUDGET})"

    def __str__(self) -> str:
        width = max(map(len, NAMES.values())) + 2
        low, high = (f"{100 * x:+.2f}" for x in self.interval)
        measured = [
            f"{self.n:,} rows × {self.dim:,} features, {self.num_classes} classes",
            *(f"  {NAMES[name]:<{width}}{value:.4g}" for name, value in self.measures.items()),
        ]
        if self.untold:
            return "\n".join([*measured, self.verdict])
        of = f" of {self.classes} classes" if self.classes < self.num_classes else ""
        return "\n".join(
            [
                *measured,
                f"{len(self.probe)}-fold cross-validation on {self.rows:,} rows{of}, accuracy: linear probe "
                f"{100 * np.mean(self.probe):.2f} %, NMTune {100 * np.mean(self.nmtune):.2f} %",
                f"difference {100 * self.difference:+.2f} points, 95 % interval {low} to {high}: {self.verdict}",
            ]
        )


def check_ranges(config: Any) -> None:
    """Refuse values of the section `diagnose` that are out of range."""
    ranges.require_at_least(2, "diagnose", config, "folds")
    ranges.require_at_least(20, "diagnose", config, "rows")


def diagnose(
    F: ArrayLike,
    y: ArrayLike,
    *,
    folds: int = 5,
    rows: int = 2000,
    seed: int = 0,
) -> Diagnosis:
    """Measure features, and compare NMTune with a linear probe on them by cross-validation.

    The measures of the spectrum are in raw mode, as the papers' formulas have it; α-ReQ is of the centred features. In
    the cross-validation features are standardised, both methods see the same folds, the probe chooses its penalty among
    six on 20 % of its training folds, and NMTune is trained by the released setting (30 epochs, batch 64, learning rate
    1e-3, weight decay 1e-4), in at most 400 steps. That is less of a choice than the probe has, for each further
    setting takes up to a minute on wide features: the verdict is about this setting, and a tuned one may do better. A
    gain on rows like those trained on says nothing about other domains.

    Args:
        F: [N, D], finite real numbers.
        y: [N], labels of any dtype that sorts.
        folds: of the cross-validation; fewer where all classes but one have fewer rows. Classes of fewer stay out.
        rows: cross-validated, at most: a stratified part of the N, of so many classes, drawn at random, that each has
            two rows in every fold (or all that it has).
        seed: of the folds, the part, and the heads.

    Raises:
        ValueError: the data do not fit, a value is not finite, every feature is constant, labels are no classes, there
            is one class, fewer than two classes have three rows, or `folds` is below 2 or `rows` below 20.
    """
    try:
        for name, value, low in (("folds", folds, 2), ("rows", rows, 20)):
            if not isinstance(value, int | np.integer) or value < low:
                raise UserError(f"{name}={value!r}", f"give a whole number of {low} or more")
        found = diagnose_checked(*_checked(F, y), folds=int(folds), rows=int(rows), seed=seed % 2**31)
        if found.untold:
            raise UserError(found.untold, "give more rows of each class, and features of like scale")
        return found
    except UserError as e:
        raise ValueError(f"{e.cause}; {e.cure}") from e


def _checked(F: ArrayLike, y: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Features float32 [N, D] and labels [N] that scikit-learn takes for classes."""
    from sklearn.utils.multiclass import check_classification_targets  # takes a second; every run checks the ranges
    from sklearn.utils.validation import check_X_y

    kinds: Any = [np.float32, np.float64]
    try:
        shapes = np.shape(F), np.shape(y)
        if len(shapes[0]) != 2 or shapes[1] != shapes[0][:1]:
            cause = f"features {shapes[0]} and labels {shapes[1]} do not fit"
            raise UserError(cause, "give features [N, D] and labels [N]")
        with warnings.catch_warnings(action="ignore", category=UserWarning):  # of many classes: they are counted below
            X, labels = check_X_y(F, y, dtype=kinds, ensure_all_finite=False)
            check_classification_targets(labels)
    except (TypeError, ValueError) as e:
        cure = "give features [N, D], real numbers, and labels [N]: whole numbers, text or booleans"
        raise UserError((str(e).splitlines() or [type(e).__name__])[0], cure) from e
    X = are_finite(X)
    check_varied([X], "F")
    return X, labels


def diagnose_checked(F: np.ndarray, y: np.ndarray, *, folds: int, rows: int, seed: int) -> Diagnosis:
    """`diagnose` of checked arguments, which measures also what cannot be cross-validated, and says why (`untold`).

    Raises:
        UserError: the data do not fit, a value is not finite, or there is one class.
    """
    found, codes = np.unique(y, return_inverse=True)
    features, codes = select.check_features(F, codes, len(found))
    features = features[:, 0]
    folds, part = _part(codes, folds, rows, seed)
    untold = "" if len(part) else f"fewer than two classes have {_least(folds)} rows: nothing can be held out"
    accuracies: dict[str, list[float]] = {"lbfgs": [], "nmtune": []}
    try:
        accuracies = _compare_methods(features[part], codes[part], folds, seed) if len(part) else accuracies
    except select.Diverged as e:
        part, untold = part[:0], e.cause
    gains = np.subtract(accuracies["nmtune"], accuracies["lbfgs"])
    return Diagnosis(
        measures=measures(features, codes),
        probe=tuple(accuracies["lbfgs"]),
        nmtune=tuple(accuracies["nmtune"]),
        interval=interval(gains) if len(part) else (math.nan, math.nan),
        n=len(codes),
        dim=features.shape[1],
        num_classes=len(found),
        rows=len(part),
        classes=len(np.unique(codes[part])),
        untold=untold,
    )


def _least(folds: int) -> int:
    """Rows that a class needs so that each fold leaves two of them to train on, one of which a setting is chosen by."""
    return max(folds, 3 if folds > 2 else 4)


def _part(codes: np.ndarray, folds: int, rows: int, seed: int) -> tuple[int, np.ndarray]:
    """The number of folds, and the rows to cross-validate; none where classes are too small."""
    counts = np.bincount(codes)
    folds = max(2, min(folds, rows // 2, int(np.sort(counts)[-2])))  # of two classes at least
    able = np.flatnonzero(counts >= _least(folds))
    if len(able) < 2:
        return folds, np.empty(0, np.int64)
    each = min(PER_FOLD * folds, rows // 2)
    taken = np.random.default_rng(seed).permutation(able)[: rows // min(each, int(counts[able].max()))]
    pool = np.flatnonzero(np.isin(codes, taken))
    own = draw_per_class(codes[pool], each, seed)
    part, rest = pool[own], pool[~own]
    if len(rest) and rows - len(part) >= len(taken):
        more = draw_stratified(codes[rest], min(1.0, (rows - len(part)) / len(rest)), seed)
        part = np.concatenate([part, rest[more]])
    return folds, np.sort(part)


def _compare_methods(F: np.ndarray, codes: np.ndarray, folds: int, seed: int) -> dict[str, list[float]]:
    """Accuracy on every fold of the probe and of NMTune."""
    from sklearn.model_selection import StratifiedKFold

    known, codes = np.unique(codes, return_inverse=True)
    accuracies: dict[str, list[float]] = {"lbfgs": [], "nmtune": []}
    config = _settings()
    for train, test in StratifiedKFold(folds, shuffle=True, random_state=seed % 2**32).split(F, codes):
        for method, each in accuracies.items():
            preset = "paper" if method == "nmtune" else None
            head = select.fit(F[train], codes[train], method=method, preset=preset,
                             num_classes=len(known), config=config, seed=seed)  # fmt: skip
            _, logits = head.outputs(F[test])
            each.append(float((logits.argmax(1) == codes[test]).mean()))
    return accuracies


def measures(F: np.ndarray, codes: np.ndarray) -> dict[str, float]:
    """The keys of NAMES, of finite features [N, D] with labels [N] in [0, K)."""
    s = spectrum.singular_values(F)
    centred = spectrum.singular_values(F, center="features")
    out = {
        name: float(getattr(spectrum, name)(s))
        for name in ("sve", "lsvr", "top_share", "effective_rank", "stable_rank")
    }
    out["alpha_req"] = float(spectrum.alpha_req(centred)) if (centred > 0).sum() > 1 else math.nan
    return {**out, **measure_separability(F, codes)}


def interval(differences: np.ndarray) -> tuple[float, float]:
    """95 % interval of the mean difference over k folds: variance × (1/k + 1/(k − 1)), Student's t with k − 1."""
    k = len(differences)
    spread = float(np.std(differences, ddof=1)) * math.sqrt(1 / k + 1 / (k - 1))
    half = float(stdtrit(k - 1, 0.975)) * spread
    return float(np.mean(differences)) - half, float(np.mean(differences)) + half


def _settings() -> Any:
    """Of both methods, as the section `tune` of configs/common.py has them."""
    return SimpleNamespace(
        epochs=30, steps=400, batch=64, lrs=(1e-3,), weight_decays=(1e-4,), validation=0.2, standardize=True,
        cs=CS, width=4, depth=1, residual=True, norm="batch", noisytune=0.0,
        neftune=0.0, nmtune={},
    )  # fmt: skip
