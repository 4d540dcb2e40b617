"""NMTune, its relatives and plain probes as a scikit-learn classifier on features: `NMTuneClassifier`."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import ClassifierMixin
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, validate_data

from nml_jax import spectrum
from nml_jax.data.class_weights import find_class_weights
from nml_jax.data.features.checks import check_exact, check_finite, check_varied
from nml_jax.data.features.frames import check_filled, to_matrix
from nml_jax.errors import UserError, raise_value_errors
from nml_jax.models.heads.mlp import standardize
from nml_jax.processes.forks import refuse_fork
from nml_jax.tuning import head_file, methods
from nml_jax.tuning.classifier.arguments import check_arguments
from nml_jax.tuning.classifier.fitted import FittedHead
from nml_jax.tuning.classifier.fitting import Fitted, Fitting, Rows, split_rows
from nml_jax.tuning.head_file import TunedHead
from nml_jax.tuning.holdout import Demands


class NMTuneClassifier(ClassifierMixin, FittedHead):
    """A head on frozen features, on standardised inputs.

    By default a logistic regression is solved first, with the penalty that validation chooses. A linear head is that
    probe, refitted on all rows. Other heads start from it, and AdamW with a cosine to zero trains them. Training stops
    when the validation loss has not fallen for `patience` epochs; the head has as many as were best, perhaps none.
    `epochs=30, batch_size=64, width=4` is the released schedule (arXiv 2309.17002), from random weights.

    Args:
        method: linear | mlp | nmtune | skd | fgs | lgm, or linear_gce | mlp_gce | nmtune_gce. We know skd, fgs and lgm
            only from their papers' abstracts (objectives/skd.py, fgs.py, lgm.py). Those with `gce` minimise the
            generalised cross-entropy, for wrong labels, where the others minimise the cross-entropy.
        preset: of nmtune and nmtune_gce: paper | code.
        weights: numbers by name, such as {"svd": 0.1}, that replace those of the preset or of the method's terms.
        epochs: passes over the training part, at most. None: 10, or as many as make 300 steps, from the probe (see
            `learning_rate`); 5, or as many as make 200 steps, from random weights.
        batch_size: rows per step. None: 128 from the probe, else 256. If the training part is smaller, the largest
            power of two in it, so that sets of similar size share one compiled program.
        learning_rate: rate at the start of the cosine. None: from the probe √(6/D) / 700, where larger rates lose
            accuracy in other domains (docs/benchmarks.md), unless √(6/D) / 100, for up to three times as long, lowers
            the probe's validation loss by two standard errors; from random weights √(6/D) / 10 for linear, / 50 for the
            others. √(6/D) bounds the classifier's initial weights, and AdamW moves every weight by its rate in a step.
        weight_decay: decoupled, on every parameter.
        standardize: scale every feature to mean 0 and variance 1, by the rows given to `fit`.
        early_stopping: hold out `validation_fraction` of the rows, stratified, if these are 20 or more. A head from the
            probe is then trained again on all rows, for as long as validation chose.
        validation_fraction: share of the rows. None: 0.2 for heads from the probe, else 0.1.
        patience: epochs. None: 3, or as many as make 75 steps.
        width: hidden width of the MLP over the number of features. None: chosen by rows and features, see
            `tuning.methods.choose_width`. The papers' is 4.
        depth, residual, norm: of the MLP, see `models.heads.Form`.
        warm_start: continue from the last `fit`, if it was on the same classes and features.
        random_state: seed of the initialisation, the order and the validation part.
        start: probe | fresh (random weights). A linear head that starts from the probe is the probe. A head without a
            residual cannot start from it. None: the probe where it can be, and none of `epochs`, `learning_rate` and
            `warm_start` is given.
        gce_q: q of the generalised cross-entropy (1 − p^q)/q: 0 is the cross-entropy, 1 the absolute error.
        C: inverse strength of the probe's L2 penalty, as scikit-learn's. None: chosen among 10⁻⁴ to 10 in powers of ten
            by the accuracy on held-out rows, with the weights of rows and classes; of a tie see
            `tuning.patient.pick_penalty`.
        class_weight: weights of the classes in the cross-entropy, as in scikit-learn: None, 1 each; "balanced", rows /
            (classes · rows of the class); or a mapping of labels to weights, 1 for those that it lacks; or a weight for
            each class of `classes_`. The terms of a method ignore them. Validation losses are weighted, too.
        calibrate: divide logits by a temperature for `predict_proba` and `predict_log_proba`. It is found on rows held
            out from heads that are trained in the same way; the one that is kept is trained on all rows. Predictions
            and `decision_function` stay. None: where `fit` chooses C and rows can be held out, because a penalty that
            is chosen by accuracy says nothing about the scale of logits.
        verbose: 0, or 1 to print progress to stderr.
        compute_spectrum: also set `spectrum_`. It takes longer than a linear fit.

    Attributes:
        classes_: [K], sorted. n_features_in_: D. n_iter_: epochs that were trained; 0 for a solved head.
        C_: that of the probe; None where there is none.
        validation_loss_: loss of every epoch, in nats, of methods with `gce` their own; empty without validation.
        spectrum_: {"F": ..., "Z": ...}: SVE, LSVR, top share and effective rank, in raw mode, of the training features
            (standardised with `standardize`) and of the head's output Z. Only with `compute_spectrum`.
        head_: the `TunedHead`; `head_.params` and `head_.state` are NumPy arrays.
    """

    n_features_in_: int  # set by scikit-learn, as are the names
    feature_names_in_: np.ndarray

    def __init__(
        self,
        method: str = "nmtune",
        preset: str = "paper",
        *,
        weights: dict[str, Any] | None = None,
        epochs: int | None = None,
        batch_size: int | None = None,
        learning_rate: float | None = None,
        weight_decay: float = 1e-4,
        standardize: bool = True,
        early_stopping: bool = True,
        validation_fraction: float | None = None,
        patience: int | None = None,
        width: float | None = None,
        depth: int = 1,
        residual: bool = True,
        norm: str = "batch",
        warm_start: bool = False,
        random_state: Any = None,
        start: str | None = None,
        gce_q: float = 0.7,
        C: float | None = None,
        class_weight: Any = None,
        calibrate: bool | None = None,
        verbose: int = 0,
        compute_spectrum: bool = False,
    ):
        self.method = method
        self.preset = preset
        self.weights = weights
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.standardize = standardize
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.patience = patience
        self.width = width
        self.depth = depth
        self.residual = residual
        self.norm = norm
        self.warm_start = warm_start
        self.random_state = random_state
        self.start = start
        self.gce_q = gce_q
        self.C = C
        self.class_weight = class_weight
        self.calibrate = calibrate
        self.verbose = verbose
        self.compute_spectrum = compute_spectrum

    def fit(self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None) -> "NMTuneClassifier":
        """Train the head.

        Args:
            X: [N, D], finite real numbers; converted to float32. Or a column of N arrays: a Series of pandas or polars.
            y: [N], labels of any dtype that sorts.
            sample_weight: [N], weights of the rows in the cross-entropy; rows of weight 0 are left out. The other terms
                ignore weights.

        Raises:
            ValueError: an argument is out of range, the data do not fit, a value is not finite, or there is one class.
        """
        before = dict(vars(self))
        try:
            with raise_value_errors():
                return self._fit(X, y, sample_weight)
        except BaseException:  # keep the previous fit
            vars(self).clear()
            vars(self).update(before)
            raise

    def _fit(self, X: Any, y: Any, sample_weight: Any) -> "NMTuneClassifier":
        refuse_fork()
        before = (list(self.classes_), self.n_features_in_) if self.warm_start and hasattr(self, "head_") else None
        X, y = validate_data(
            self, to_matrix(X), check_filled(y), dtype=[np.float32, np.float64], ensure_all_finite=False
        )
        X = check_finite(X)
        try:
            check_classification_targets(y)
        except TypeError as e:
            raise UserError(f"y: {e}", "give text, such as y.astype(str), or integers") from e
        if y.dtype.kind == "f":
            check_exact(y, "y: ")
        make_spec, numbers = check_arguments(self)
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        weights = _check_sample_weight(sample_weight, X, dtype=np.float32, ensure_non_negative=True)
        X, y, weights = X[weights > 0], y[weights > 0], weights[weights > 0]
        self.classes_, codes = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise UserError(f"y has one class: {self.classes_.tolist()}", "give examples of at least two classes")
        check_varied([X], "X")
        start = self.head_ if before == (list(self.classes_), X.shape[1]) else None
        of_classes = find_class_weights(self.class_weight, codes, self.classes_.tolist(), weights=weights)
        demands = Demands(class_weights=of_classes, q=self.gce_q if methods.find(self.method).gce else 0.0)
        rows = Rows(X, codes, weights, demands, *split_rows(self, codes, seed))
        self._keep(Fitting(self, rows, len(self.classes_), seed).run(make_spec, numbers, start))
        if hasattr(self, "spectrum_"):
            del self.spectrum_
        if self.compute_spectrum:
            standard = self.head_.state.get("input")
            F = standardize(X, standard) if standard else X
            self.spectrum_ = {name: _measure(rows) for name, rows in (("F", F), ("Z", self.head_.outputs(X)[0]))}
        return self

    def _keep(self, fitted: Fitted) -> None:
        """Set head_, with its classes, columns, origin and temperature, and C_, n_iter_ and validation_loss_."""
        head, temperature, self.n_iter_, self.validation_loss_, self.C_ = fitted
        if not all(np.isfinite(x).all() for x in jax.tree.leaves((head.params, head.state))):
            raise UserError(f"training of the {self.method} head diverged", "lower learning_rate, or set standardize")
        about = {"method": self.method, "preset": self.preset if methods.has_presets(self.method) else None}
        classes, columns = head_file.classes_to_json(self.classes_), tuple(getattr(self, "feature_names_in_", ()))
        self.head_ = TunedHead(head.form, head.params, head.state, classes, about, columns, temperature)

    def decision_function(self, X: ArrayLike) -> np.ndarray:
        """Return logits float32 [M, K]; for two classes their difference [M], positive for `classes_[1]`."""
        logits = self._outputs(X)[1]
        return logits[:, 1] - logits[:, 0] if len(self.classes_) == 2 else logits

    def predict_proba(self, X: ArrayLike) -> np.ndarray:
        """Return probabilities float64 [M, K], columns as in `classes_`."""
        logits = self._outputs(X)[1]
        with raise_value_errors():
            return self.head_.probabilities(logits)

    def predict_log_proba(self, X: ArrayLike) -> np.ndarray:
        """Return the logarithms of `predict_proba`, float64 [M, K]; finite where a probability rounds to zero."""
        logits = self._outputs(X)[1].astype(np.float64)
        with raise_value_errors():
            return self.head_.log_probabilities(logits)

    def predict(self, X: ArrayLike) -> np.ndarray:
        """Return the most probable class of every row, [M]."""
        logits = self._outputs(X)[1]
        return self.classes_[logits.argmax(1)]

    @classmethod
    def load(cls, path: str | Path) -> "NMTuneClassifier":
        """Load a saved classifier, or the head of a run.

        The file holds the method, the preset, the architecture and whether inputs are standardised. The other arguments
        get their defaults.

        Raises:
            ValueError: there is no such file, or it is damaged.
        """
        with raise_value_errors():
            head = head_file.load(Path(path))
            if head.predicts_numbers:
                raise UserError(f"{path} predicts numbers, not classes", "load it with NMTuneRegressor")
        about, form = head.about, head.form._asdict()
        form.pop("mlp")
        preset = (about.get("preset") or "paper").split("/")[0]  # a run may call it "code/1view"
        method = about.get("method") or "nmtune"
        if method in methods.METHODS and not methods.find(method).mlp:
            form.pop("width")
        self = cls(method, preset, standardize="input" in head.state, **form)
        self.head_, self.classes_, self.n_features_in_ = head, np.array(head.classes), head.dim
        if head.columns:
            self.feature_names_in_ = np.array(head.columns, object)
        return self


def _measure(F: np.ndarray) -> dict[str, float]:
    s = spectrum.singular_values(F)
    if not s.any():
        return {}
    measures = {**spectrum.MEASURES, "effective_rank": spectrum.effective_rank}
    return {name: float(measure(s)) for name, measure in measures.items()}
