"""Find wrong labels among rows of features: `find_label_errors`.

The tuned L-BFGS probe predicts every row from folds that do not hold it. A mixture (noise/mixture.py) tells from these
predictions how likely each label is wrong. Then the probe is fitted again without the rows that are more likely wrong
than right, and predicts every row once more: a probe that has learned from fewer wrong labels finds more of the rest.
"""

import csv
import dataclasses
import io
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtri

from nml_jax.data.stratify import check_groups, count_groups, draw_stratified, split_rows
from nml_jax.errors import UserError, report_disk_errors
from nml_jax.noise.mixture import FEW, Mixture, count_pairs, fit_mixture
from nml_jax.processes.forks import refuse_fork
from nml_jax.processes.limits import limit_blas
from nml_jax.runs.files import write_atomic
from nml_jax.spreadsheet import escape_cell
from nml_jax.tuning import diagnosis, patient, probes

CS = (1e-4, 1e-3, 0.01, 0.1, 1.0)  # the penalties from which the probe chooses
TUNED = 2000  # held-out rows that are enough to choose by; folds beyond them are left out
MOST = 20_000  # rows that a probe is fitted on, stratified; more would take longer and change little
PASSING = 0.1  # share of the probe's errors that may pass for wrong labels: 2 to 9 % did where none was wrong
LIMIT = 0.5  # probability above which a label is a suspect
CLOSE = 1e-4  # the probe's tolerance: predictions need not be as exact as weights that are kept
COLUMNS = ("row", "id", "given_label", "likely_label", "confidence")


class Suspect(NamedTuple):
    """A row whose label is more likely wrong than right.

    row: its number in the file, from 0.
    id: its own id, or None.
    given, likely: the label that it has, and the class that it most likely belongs to instead.
    confidence: probability that the given label is wrong, above 0.5.
    """

    row: int
    id: Any
    given: Any
    likely: Any
    confidence: float


@dataclasses.dataclass(frozen=True)
class LabelErrors:
    """The result of `find_label_errors`.

    Attributes:
        share: estimated share of wrong labels among the judged rows. Where none is wrong it is above 0 by the rows
            that look like another class than their own: by a percent or two where a linear probe errs on a fifth.
        interval: 95 % interval of the share of wrong labels where these rows come from. It allows for that.
        classes: [K], sorted.
        joint: share of rows by given label (down) and likely true class (across), float64 [K, K]; its sum is 1.
        suspects: the rows whose labels are more likely wrong than right, the surest first.
        wrong: probability that the given label is wrong, float64 [N]; 0 for rows that were not judged.
        likely: number in `classes` of the most likely other class, int [N].
        judged: whether a row was judged, bool [N]. Rows are left out whose class has fewer rows than there are folds.
    """

    share: float
    interval: tuple[float, float]
    classes: np.ndarray
    joint: NDArray[np.float64]
    suspects: tuple[Suspect, ...]
    wrong: NDArray[np.float64]
    likely: NDArray[np.integer]
    judged: NDArray[np.bool_]

    def __str__(self) -> str:
        left = int((~self.judged).sum())
        return (
            f"{len(self.suspects):,} of {int(self.judged.sum()):,} labels are suspects; "
            f"{describe_share(self.share, *self.interval)}" + (f"; {left:,} rows are not judged" if left else "")
        )

    def place(self, rows: np.ndarray, n: int) -> "LabelErrors":
        """Return the same of `n` rows, where these are the rows `rows` of them and the others were not judged."""
        wrong, likely, judged = np.zeros(n), np.zeros(n, np.int64), np.zeros(n, bool)
        wrong[rows], likely[rows], judged[rows] = self.wrong, self.likely, self.judged
        suspects = tuple(suspect._replace(row=int(rows[suspect.row])) for suspect in self.suspects)
        return dataclasses.replace(self, suspects=suspects, wrong=wrong, likely=likely, judged=judged)

    def to_csv(self) -> str:
        """Return the suspects as CSV: row, id, given_label, likely_label, confidence. Formulas are escaped."""
        return format_suspects((suspect, ()) for suspect in self.suspects)

    def save(self, path: str | Path) -> None:
        """Write `to_csv` to a file, whole or not at all.

        Raises:
            ValueError: the file cannot be written.
        """
        try:
            with report_disk_errors(Path(path)):
                write_atomic(Path(path), self.to_csv())
        except UserError as e:
            raise ValueError(f"{e.cause}; {e.cure}") from e


def describe_share(share: float, low: float, high: float) -> str:
    """Return an estimate of the share of wrong labels and its interval in words."""
    if not low:
        return f"it is not shown that some are wrong: at most {100 * high:.1f} % are (95 % interval)"
    return f"about {100 * share:.1f} % are wrong (95 % interval {100 * low:.1f} to {100 * high:.1f} %)"


def format_suspects(lines: Iterable[tuple[Suspect, Sequence[str]]], more: Sequence[str] = ()) -> str:
    """Return suspects as CSV. Words that a spreadsheet would take for formulas are escaped (spreadsheet.py).

    Args:
        lines: each suspect with its cells of the columns `more`.
        more: names of columns after those of COLUMNS.
    """
    out = io.StringIO()
    table = csv.writer(out, lineterminator="\n")
    table.writerow([*COLUMNS, *more])
    for suspect, others in lines:
        words = ("" if cell is None else str(cell) for cell in suspect[1:4])
        table.writerow([suspect.row, *map(escape_cell, words), f"{suspect.confidence:.4f}", *map(escape_cell, others)])
    return out.getvalue()


def find_label_errors(
    F: ArrayLike,
    y: ArrayLike,
    *,
    ids: Sequence[Any] | None = None,
    groups: ArrayLike | None = None,
    folds: int = 5,
    seed: int = 0,
) -> LabelErrors:
    """Estimate how many labels are wrong, and find those that are more likely wrong than right.

    Features are standardised. The probe chooses its penalty from five by cross-validated accuracy on the given labels.
    A row is judged by probes that were fitted without it. An estimate near 0 means that labels and features agree;
    labels that are wrong for a reason which the features hold, too, are not found.

    Args:
        F: [N, D], finite real numbers.
        y: [N], labels of any dtype that sorts.
        ids: [N], what rows are called in `suspects`; None: nothing.
        groups: [N], of any dtype that sorts; rows of one value, such as a patient, stay in one fold, so that none is
            judged by its like. None: each row is its own.
        folds: of the cross-validation. Rows of classes with fewer rows (or groups) are not judged.
        seed: of the folds.

    Raises:
        ValueError: the data do not fit, a value is not finite, every feature is constant, labels are not classes,
            fewer than two classes have `folds` rows, or `folds` is below 2.
    """
    try:
        refuse_fork()
        if not isinstance(folds, int | np.integer) or folds < 2:
            raise UserError(f"folds={folds!r}", "give an integer of 2 or more")
        X, labels = diagnosis.check_arguments(F, y)
        if ids is not None and len(ids) != len(labels):
            raise UserError(f"{len(ids)} ids for {len(labels)} rows", "give one for each row")
        named = check_groups(groups, len(labels))
        classes, codes = np.unique(labels, return_inverse=True)
        return find_checked(X, codes, classes, ids=ids, folds=int(folds), seed=seed % 2**31, groups=named)
    except UserError as e:
        raise ValueError(f"{e.cause}; {e.cure}") from e


def find_checked(
    F: np.ndarray,
    codes: np.ndarray,
    classes: Any,
    *,
    ids: Sequence[Any] | None = None,
    folds: int,
    seed: int,
    groups: np.ndarray | None = None,
) -> LabelErrors:
    """Run `find_label_errors` with checked arguments.

    Args:
        F: finite, float32 [N, D].
        codes: int [N] in 0..K-1.
        classes: [K], what the codes stand for.
        groups: as for `find_label_errors`.

    Raises:
        UserError: fewer than two classes have `folds` rows, or groups.
    """
    judged = np.isin(codes, np.flatnonzero(count_groups(codes, groups) >= folds))
    present, own = np.unique(codes[judged], return_inverse=True)
    if len(present) < 2:
        what = "rows" if groups is None else "groups"
        raise UserError(f"fewer than two classes have {folds} {what}: nothing can be held out", f"give more {what}")
    parts = split_folds(own, folds, seed, None if groups is None else groups[judged])
    with limit_blas():  # a second thread waits more than it works on matrices of this size
        first, last = _judge_twice(standardize(F[judged]), own, len(present), parts, seed)
    before, share = (float(_get_wrong(mixture, own).mean()) for mixture in (first, last))
    joint = np.zeros((len(classes), len(classes)))
    joint[np.ix_(present, present)] = count_pairs(last.posterior, own).T / len(own)
    wrong, likely = np.zeros(len(codes)), codes.copy()
    wrong[judged] = _get_wrong(last, own)
    likely[judged] = present[_find_others(last, own)]
    bounds = compute_interval(share, last.error, len(own))
    interval = widen_interval(bounds, abs(share - before), 1 - float(last.predicted.max(1).mean()))
    suspects = tuple(_list_suspects(codes, classes, ids, wrong, likely))
    return LabelErrors(share, interval, np.asarray(classes), joint, suspects, wrong, likely, judged)


def _list_suspects(
    codes: np.ndarray, classes: Any, ids: Sequence[Any] | None, wrong: np.ndarray, likely: np.ndarray
) -> Iterator[Suspect]:
    """Yield the rows that are more likely wrong than right, the surest first."""
    names, rows = np.asarray(classes).tolist(), np.flatnonzero(wrong > LIMIT)
    for row in rows[np.argsort(-wrong[rows], kind="stable")].tolist():
        name = None if ids is None else ids[row]
        yield Suspect(row, name, names[codes[row]], names[likely[row]], float(wrong[row]))


def compute_interval(share: float, error: float, n: int) -> tuple[float, float]:
    """Compute the 95 % interval of a share of n rows: Wilson's, for as many sure rows as have this standard error."""
    z, spread = float(ndtri(0.975)), max(share, FEW / n)
    n_sure = min(n, spread * (1 - spread) / error**2)
    middle = (share + z**2 / (2 * n_sure)) / (1 + z**2 / n_sure)
    half = z / (1 + z**2 / n_sure) * math.sqrt(share * (1 - share) / n_sure + z**2 / (4 * n_sure**2))
    low, high = middle - half, middle + half
    return low if low > 1e-9 else 0.0, min(1.0, high)


def widen_interval(bounds: tuple[float, float], doubt: float, errors: float) -> tuple[float, float]:
    """Widen an interval by what the model leaves open.

    Args:
        doubt: how far the two estimates of the share are apart, as much depends on which rows the probe has seen then.
        errors: share of the rows on which the probe is expected to err. It errs now and then where it is sure, and such
            a row passes for one with a wrong label; so the lower end goes down by PASSING of them.
    """
    middle, half = sum(bounds) / 2, math.hypot((bounds[1] - bounds[0]) / 2, doubt)
    return max(0.0, middle - half - PASSING * errors), min(1.0, middle + half)


class Fold(NamedTuple):
    """The rows that a probe is fitted on, and those that it predicts, int64 each."""

    train: np.ndarray
    test: np.ndarray


def _judge_twice(
    X: np.ndarray, codes: np.ndarray, k: int, everything: Sequence[Fold], seed: int
) -> tuple[Mixture, Mixture]:
    """Return the mixtures of the probe's predictions, first from all rows, then from those that are likely right."""
    c, known = choose_penalty(X, codes, k, everything)
    first = fit_mixture(predict_held_out(X, codes, k, everything, c, known), codes)
    kept = _get_wrong(first, codes) <= LIMIT
    few = np.bincount(codes[kept], minlength=k) < len(everything)  # a class must not vanish from a probe's rows
    cleaned = [fold._replace(train=fold.train[(kept | few[codes])[fold.train]]) for fold in everything]
    return first, fit_mixture(predict_held_out(X, codes, k, _even_out(cleaned, codes, seed), c), codes)


def split_folds(codes: np.ndarray, folds: int, seed: int, groups: np.ndarray | None = None) -> list[Fold]:
    """Split the rows by class into folds, groups as a whole."""
    return _even_out([Fold(*part) for part in split_rows(codes, folds, seed, groups)], codes, seed)


def _even_out(folds: Sequence[Fold], codes: np.ndarray, seed: int) -> list[Fold]:
    """Leave out a few rows so that all probes are fitted on as many, and share a compiled program; MOST at most."""
    least = min(MOST, *(len(fold.train) for fold in folds))
    shares = [least / len(fold.train) for fold in folds]
    return [
        fold._replace(train=fold.train[draw_stratified(codes[fold.train], share, seed)])
        for fold, share in zip(folds, shares, strict=True)
    ]


def choose_penalty(
    X: np.ndarray, codes: np.ndarray, k: int, folds: Sequence[Fold]
) -> tuple[float, list[probes.Linear]]:
    """Return the C of highest accuracy on held-out rows, of a tie as `patient.pick_penalty` says, and its probes.

    These are of the first folds, as many as have TUNED held-out rows.
    """
    seen: list[np.ndarray] = []
    logits, fitted = [], []
    for train, test in folds:
        fitted.append(probes.fit_lbfgs(X[train], codes[train], CS, num_classes=k, tol=CLOSE))
        logits.append([probe(X[test]) for probe in fitted[-1]])
        seen.append(test)
        if sum(map(len, seen)) >= TUNED:
            break
    labels, of = codes[np.concatenate(seen)], [np.concatenate(each) for each in zip(*logits, strict=True)]
    best = patient.pick_penalty([np.mean(each.argmax(1) == labels) for each in of], of, labels)
    return CS[best], [each[best] for each in fitted]


def predict_held_out(
    X: np.ndarray, codes: np.ndarray, k: int, folds: Sequence[Fold], c: float, known: Sequence[probes.Linear] = ()
) -> np.ndarray:
    """Return the logits of every row by a probe that was fitted without its fold, float32 [N, K].

    Args:
        known: probes of the first folds that are already fitted.
    """
    out = np.empty((len(codes), k), np.float32)
    for i, (train, test) in enumerate(folds):
        probe = (
            known[i] if i < len(known) else probes.fit_lbfgs(X[train], codes[train], (c,), num_classes=k, tol=CLOSE)[0]
        )
        out[test] = probe(X[test])
    return out


def standardize(F: np.ndarray) -> np.ndarray:
    """Return features of mean 0 and variance 1, float32 [N, D]; constant ones become 0."""
    mean = F.mean(0, dtype=np.float64)
    X = np.asarray(F - mean.astype(np.float32), np.float32)
    sd = np.sqrt(np.einsum("nd,nd->d", X, X, dtype=np.float64) / len(X))
    constant = sd <= 1e-5 * abs(mean)  # rounding of the mean leaves this much
    X *= np.where(constant, 0, 1 / np.where(constant, 1, sd)).astype(np.float32)
    return X


def _get_wrong(mixture: Mixture, codes: np.ndarray) -> NDArray[np.float64]:
    """Return the probability that each label is wrong, [N]."""
    return 1 - mixture.posterior[np.arange(len(codes)), codes]


def _find_others(mixture: Mixture, codes: np.ndarray) -> NDArray[np.integer]:
    """Return the most likely class of each row apart from the given one, [N]."""
    others = mixture.posterior.copy()
    others[np.arange(len(codes)), codes] = -1
    return others.argmax(1)
