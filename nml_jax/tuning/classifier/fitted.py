"""What the fitted estimators share: a head that is applied to features, described to scikit-learn, and saved."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from nml_jax.data.features.checks import check_finite
from nml_jax.data.features.frames import to_matrix
from nml_jax.errors import FREE, UserError, raise_value_errors
from nml_jax.tuning.head_file import TunedHead


class FittedHead(TransformerMixin, BaseEstimator):
    """An estimator whose `fit` sets `head_`."""

    head_: TunedHead
    n_features_in_: int  # set by scikit-learn, as are the names
    feature_names_in_: np.ndarray

    def transform(self, X: ArrayLike) -> np.ndarray:
        """Return Z float32 [M, D], the input of the head's last layer; of a probe the (standardised) features."""
        return self._outputs(X)[0]

    def _outputs(self, X: Any) -> tuple[np.ndarray, np.ndarray]:
        """Return Z float32 [M, D] and what the last layer makes of it, float32 [M, K]."""
        check_is_fitted(self)
        with raise_value_errors():
            X = to_matrix(X)
        X = validate_data(self, X, dtype=[np.float32, np.float64], ensure_all_finite=False, reset=False)
        with raise_value_errors():
            return self.head_.outputs(check_finite(X))

    def __sklearn_tags__(self) -> Any:
        tags: Any = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float32"]  # Z is float32, whatever X is
        return tags

    @property
    def _n_features_out(self) -> int:
        return self.n_features_in_

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """Return the names of the columns of `transform`: z0, z1, ..."""
        check_is_fitted(self)
        return np.array([f"z{i}" for i in range(self.n_features_in_)], object)

    def save(self, path: str | Path) -> None:
        """Write the head as one safetensors file for `load`, predict.py or plain NumPy.

        Raises:
            ValueError: the file cannot be written.
        """
        check_is_fitted(self)
        try:
            self.head_.save(Path(path))
        except UserError as e:
            cure = "give a path in a folder that can be written to" if e.cure == FREE else e.cure  # not --workdir
            raise ValueError(f"{e.cause}; {cure}") from e
