"""NMTune, its relatives and ridge regression as a scikit-learn regressor on features: `NMTuneRegressor`."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import RegressorMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import validate_data

from nml_jax.data.features.checks import check_finite, check_varied
from nml_jax.data.features.frames import to_matrix
from nml_jax.errors import UserError, raise_value_errors
from nml_jax.evals import correlations
from nml_jax.objectives.terms import TERMS
from nml_jax.processes.forks import refuse_fork
from nml_jax.tuning import head_file, methods, regression, select
from nml_jax.tuning.classifier.fitted import FittedHead
from nml_jax.tuning.head_file import TunedHead
from nml_jax.tuning.holdout import Demands

ALPHAS = (0.1, 1.0, 10.0, 100.0, 1000.0, 10000.0)
NAME = "target"  # of the predicted number in a file, where y has no name


class NMTuneRegressor(RegressorMixin, FittedHead):
    """A head on frozen features that predicts a number; it is what the stage `tune` trains for regressions.

    A ridge regression is solved first, on standardised targets, with the penalty that validation chooses. `linear` and
    `ridge` are that probe, solved on all rows. Other heads start from it, and AdamW trains them on half the squared
    error, at each learning rate, until `metric` on held-out rows no longer improves; the best is trained again on all
    rows for as long.

    Args:
        method: ridge | linear | mlp | nmtune | skd | fgs | lgm.
        preset: of nmtune: paper | code.
        weights: numbers by name, such as {"svd": 0.1}, that replace those of the preset or of the method's terms.
        metric: r2 | pearson | spearman | rmse: what chooses penalty, learning rate and epochs.
        alphas: strengths of the ridge penalty, as scikit-learn's, to choose from.
        learning_rates: rates at the start of the cosine, to choose from.
        weight_decay: decoupled, on every parameter.
        epochs, batch_size: passes over the rows, at most, and rows per step.
        patience: epochs without a better head after which training stops.
        width: hidden width of the MLP over the number of features; None: chosen, see `tuning.methods.choose_width`.
        depth, residual, norm: of the MLP, see `models.heads.Form`. Without a residual it starts from random weights.
        standardize: scale every feature to mean 0 and variance 1.
        validation_fraction: share of the rows held out to choose by, stratified over the range of y.
        random_state: seed of the initialisation, the order and the validation part.

    Attributes:
        n_features_in_: D. hyper_: the chosen settings by name.
        head_: the `TunedHead`; `head_.params` and `head_.state` are NumPy arrays.
    """

    def __init__(
        self,
        method: str = "nmtune",
        preset: str = "paper",
        *,
        weights: dict[str, Any] | None = None,
        metric: str = "r2",
        alphas: Sequence[float] = ALPHAS,
        learning_rates: Sequence[float] = (1e-3, 3e-4, 1e-4),
        weight_decay: float = 1e-4,
        epochs: int = 60,
        batch_size: int = 128,
        patience: int = 6,
        width: float | None = None,
        depth: int = 1,
        residual: bool = True,
        norm: str = "batch",
        standardize: bool = True,
        validation_fraction: float = 0.2,
        random_state: Any = None,
    ):
        self.method = method
        self.preset = preset
        self.weights = weights
        self.metric = metric
        self.alphas = alphas
        self.learning_rates = learning_rates
        self.weight_decay = weight_decay
        self.epochs = epochs
        self.batch_size = batch_size
        self.patience = patience
        self.width = width
        self.depth = depth
        self.residual = residual
        self.norm = norm
        self.standardize = standardize
        self.validation_fraction = validation_fraction
        self.random_state = random_state

    def fit(self, X: ArrayLike, y: ArrayLike) -> "NMTuneRegressor":
        """Train the head.

        Args:
            X: [N, D], finite real numbers; converted to float32. Or a column of N arrays: a Series of pandas or polars.
            y: [N], finite real numbers, of which two differ.

        Raises:
            ValueError: an argument is out of range, the data do not fit, or a value is not finite.
        """
        refuse_fork()
        name = getattr(y, "name", None)
        with raise_value_errors():
            given: Any = to_matrix(X)
        how: dict[str, Any] = {"dtype": [np.float32, np.float64], "ensure_all_finite": False, "y_numeric": True}
        given, targets = validate_data(self, given, y, **how)  # type: ignore[arg-type]
        with raise_value_errors():
            given = check_finite(given)
            config, seed = self._make_config(), int(check_random_state(self.random_state).randint(2**31 - 1))
            if len(given) < 2:
                raise UserError("X has 1 sample", "give two or more, with different targets")
            check_varied([given], "X")
            preset = self.preset if self.method == "nmtune" else None
            what: dict[str, Any] = {"method": self.method, "preset": preset, "num_classes": 1, "seed": seed}
            result = select.fit(
                given, np.asarray(targets, np.float64), **what, config=config, demands=Demands(self.metric)
            )
        head: Any = result.head
        about = {"method": self.method, "preset": preset}
        columns = tuple(getattr(self, "feature_names_in_", ()))
        self.head_ = TunedHead(head.form, head.params, head.state, (str(name or NAME),), about, columns)
        self.hyper_ = result.hyper
        return self

    def _make_config(self) -> Any:
        """Return the arguments as a section `tune`; see configs/common.py.

        Raises:
            UserError: one is out of range.
        """
        regression.check_methods([self.method], "method")
        if self.metric not in correlations.SCORES:
            raise UserError(f"metric={self.metric!r} is unknown", f"choose one of {', '.join(correlations.SCORES)}")
        for name in ("epochs", "batch_size", "patience", "depth"):
            if not (isinstance(value := getattr(self, name), int | np.integer) and value >= 1):
                raise UserError(f"{name}={value!r}", "give an integer of 1 or more")
        if not 0 < self.validation_fraction < 1:
            raise UserError(f"validation_fraction={self.validation_fraction!r}", "give a share between 0 and 1")
        for name in ("alphas", "learning_rates"):
            if not len(values := getattr(self, name)) or not all(0 < value < np.inf for value in values):
                raise UserError(f"{name}={values!r}", "give numbers above 0")
        changes = {kind: dict(self.weights or {}) if kind == methods.find(self.method).terms else {} for kind in TERMS}
        return SimpleNamespace(
            lrs=tuple(self.learning_rates), weight_decays=(self.weight_decay,), alphas=tuple(self.alphas),
            epochs=int(self.epochs), steps=0, batch=int(self.batch_size), patience=int(self.patience),
            width=0 if self.width is None else self.width, depth=int(self.depth), residual=bool(self.residual),
            norm=self.norm, standardize=bool(self.standardize), validation=self.validation_fraction,
            start="probe", halving=False, widen=False, refit=True, calibrate=False, noisytune=0.0, neftune=0.0,
            **changes,
        )  # fmt: skip

    def predict(self, X: ArrayLike) -> np.ndarray:
        """Return the predicted number of every row, float32 [M]."""
        return self._outputs(X)[1][:, 0]

    @classmethod
    def load(cls, path: str | Path) -> "NMTuneRegressor":
        """Load a saved regressor, or the head of a run. Arguments that the file does not hold get their defaults.

        Raises:
            ValueError: there is no such file, it is damaged, or it predicts classes.
        """
        with raise_value_errors():
            head = head_file.load(Path(path))
            if not head.predicts_numbers:
                raise UserError(f"{path} predicts classes, not a number", "load it with NMTuneClassifier")
        form = {name: value for name, value in head.form._asdict().items() if name != "mlp"}
        preset = (head.about.get("preset") or "paper").split("/")[0]
        self = cls(head.about.get("method") or "nmtune", preset, standardize="input" in head.state, **form)
        self.head_, self.n_features_in_, self.hyper_ = head, head.dim, dict(head.about.get("hyper") or {})
        if head.columns:
            self.feature_names_in_ = np.array(head.columns, object)
        return self
