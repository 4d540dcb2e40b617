"""Columns of arrays in Python: Series, frames with one column, Arrow, arrays of objects."""

import re

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

import nml_jax
from nml_jax.data.features.frames import check_filled, to_matrix
from nml_jax.errors import UserError

X = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
Y = (X[:, 0] > 0).astype(int)


class Polars:
    """A column or frame as polars gives it: no index, and cells that are columns themselves."""

    def __init__(self, values: np.ndarray, shape: tuple[int, ...]):
        self._values, self.shape = values, shape

    def to_numpy(self) -> np.ndarray:
        return self._values


class Stream:
    """A table of a library that offers nothing but Arrow's interface."""

    def __init__(self, table: pa.Table):
        self._table = table

    def __arrow_c_stream__(self, requested_schema=None):
        return self._table.__arrow_c_stream__(requested_schema)


def pack(cells: list) -> np.ndarray:
    out = np.empty(len(cells), object)
    out[:] = cells
    return out


COLUMNS = {
    "arrays": pd.Series(list(X)),
    "lists": pd.Series(X.tolist()),
    "of one list": pd.Series([[row] for row in X.tolist()]),
    "text": pd.Series([str(row) for row in X.tolist()]),
    "frame": pd.DataFrame({"embedding": list(X)}),
    "objects": pack(list(X)),
    "objects [N, 1]": pack(list(X))[:, None],
    "arrow": pa.array(list(X)),
    "chunked": pa.chunked_array([pa.array(list(X[:7])), pa.array(list(X[7:]))]),
    "stream of lists": Stream(pa.table({"e": list(X)})),
    "stream of numbers": Stream(pa.table({f"f{i}": X[:, i] for i in range(3)})),
    "polars lists": Polars(pack([pd.Series(row) for row in X]), (40,)),
    "polars arrays": Polars(X, (40,)),
    "polars frame": Polars(pack(list(X))[:, None], (40, 1)),
}


@pytest.mark.parametrize("name", COLUMNS)
def test_a_column_of_arrays_is_a_matrix(name: str):
    found = to_matrix(COLUMNS[name])
    assert found.shape == (40, 3)
    np.testing.assert_array_equal(np.float32(found), X)


class Lazy:
    """A frame of polars that was not collected."""

    columns = ("e",)

    def collect(self) -> None: ...


@pytest.mark.parametrize(
    ("given", "words", "cure"),
    [
        (pd.DataFrame({"id": ["a"] * 40, "e": list(X)}), "'e' of X holds an array in each row", r"np\.stack"),
        (pd.DataFrame({"a": X[:, 0], "word": ["a"] * 40}), "'word' of X holds words, such as 'a'", "leave it out"),
        (pd.Series([np.array2string(np.arange(30.0), threshold=5)]), r"shortened with \.\.\.", "arrays themselves"),
        (pd.Series([None, *X[1:]]), "row 0 of X holds nothing", r"np\.stack"),
        (pd.Series([np.nan, *X[1:]]), "row 0 of X holds nothing", r"np\.stack"),
        (Lazy(), "lazy", "collect"),
    ],
)
def test_what_is_no_matrix_is_named(given, words: str, cure: str):
    with pytest.raises(UserError, match=words) as e:
        to_matrix(given)
    assert re.search(cure, e.value.cure)


def test_missing_labels_are_named():
    labels = pd.Series(["a", None, "b", np.nan])
    with pytest.raises(UserError, match="in 2 rows, such as row 1"):
        check_filled(labels)
    for whole in (labels.fillna("c"), Y, Y.tolist()):
        assert check_filled(whole) is whole


def test_other_input_stays_what_it_is():
    frame = pd.DataFrame(X, columns=["a", "b", "c"])
    for given in (X, X.tolist(), frame, frame[["a"]], frame["a"], pd.Series(["cat", "dog"]), None, X[:, 0]):
        assert to_matrix(given) is given


@pytest.mark.parametrize(
    ("cells", "words"),
    [([[1.0, 2.0], [1.0]], "row 1 of X has shape"), ([[1.0], None], "row 1 of X holds nothing"),
     ([[1.0], ["cat"]], "not a list of numbers")],
)  # fmt: skip
def test_cells_that_do_not_fit_are_named(cells: list, words: str):
    with pytest.raises(UserError, match=words) as e:
        to_matrix(pd.Series(cells))
    assert "np.stack" in e.value.cure


def test_the_classifier_takes_them():
    settings = {"method": "linear", "epochs": 2, "random_state": 0}
    plain = nml_jax.NMTuneClassifier(**settings).fit(X, Y)
    head = nml_jax.NMTuneClassifier(**settings).fit(pd.Series(list(X)), pd.Series(Y))
    np.testing.assert_array_equal(head.predict_proba(COLUMNS["frame"]), plain.predict_proba(X))
    np.testing.assert_allclose(np.exp(head.predict_log_proba(X)), plain.predict_proba(X), rtol=1e-12)
    far = head.predict_log_proba(1e5 * X)
    assert np.isfinite(far).all()
    assert far.min() < -1000
    with pytest.raises(ValueError, match=r"np\.stack"):
        head.predict(pd.Series([[1.0, 2.0, 3.0], [1.0]]))
