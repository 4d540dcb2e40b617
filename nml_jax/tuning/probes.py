"""Probes that need no gradient loop over minibatches: logistic regression and ridge on frozen features.

Each `fit_*` takes features [N, D], labels [N] and a grid of its one hyper-parameter. It returns a probe per value, in
the grid's order. A probe is a callable, features [M, D] -> scores float32 [M, K]; the largest score is the predicted
class. Those of this file hold the kernel and bias of a linear head; k-NN is in neighbours.py.

Both fits work on the principal axes of the centred features, found in float64 (32 bytes per feature). A rotation
changes neither ‖W‖ nor the loss. If the scales of features differ by more than 1e7, the axes of the smallest are lost
to rounding: standardise such features.
"""

import collections
import hashlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import eigh
from scipy.optimize import minimize

from nml_jax.arithmetic.bits import in_32_bits
from nml_jax.console import notice
from nml_jax.errors import UserError
from nml_jax.processes.limits import limit_blas

Array = NDArray[np.float64]
Probe = Callable[[np.ndarray], np.ndarray]

ABSENT = -1e4  # bias of a class without rows; the other scores sum to zero, so one of them is always above it
EPS = float(np.finfo(np.float64).eps)
REMEMBERED = 8  # results that `solve_once` keeps


class Linear(NamedTuple):
    """A linear probe: scores = F W + b."""

    kernel: np.ndarray  # float32 [D, K]
    bias: np.ndarray  # float32 [K]

    def __call__(self, features: np.ndarray) -> np.ndarray:
        return np.asarray(features, np.float32) @ self.kernel + self.bias


def fit_lbfgs(
    features: ArrayLike,
    labels: ArrayLike,
    cs: Sequence[float],
    *,
    num_classes: int,
    tol: float = 1e-6,
    max_iter: int = 1000,
    weights: np.ndarray | None = None,
) -> list[Linear]:
    """Fit multinomial logistic regression for each C, as scikit-learn's LogisticRegression defines it:

        C Σᵢ CE(xᵢ W + b, yᵢ) + ½ ‖W‖²

    With two classes ‖W‖ is the norm of the difference of their columns. C is solved from the strongest penalty to the
    weakest. Each solution starts from the last two, extrapolated in log C. L-BFGS runs on the host, in variables in
    which the Hessian is near the identity, because its diagonal blocks on the principal axes, λⱼ · mean p(1−p) +
    penalty, are known. So a badly scaled feature costs no iterations. The device computes the loss and its gradient, in
    float32.

    Args:
        features: real [N, D].
        labels: int [N] in [0, num_classes). A class without rows gets weights of zero and a bias of −10⁴.
        cs: C > 0, in any order.
        num_classes: K.
        tol: stop when half the squared gradient in these variables is at most this share of the objective. It estimates
            the distance to the minimum. Also stop when float32 shows no further descent.
        max_iter: iterations of L-BFGS for each C.
        weights: of the rows in the cross-entropy, real [N], 0 or more; None: 1 each.

    Raises:
        UserError: the arguments do not fit each other, a row is not finite, or C ≤ 0.
    """
    X, y = check_values(features, labels, num_classes)
    check_grid("C", cs, lambda c: c > 0)
    present, y = np.unique(y, return_inverse=True)
    mean, basis, variances, X = _rotate(X)
    sigma = np.sqrt(np.maximum(variances, EPS * variances.max()))
    sigma[sigma == 0] = 1
    Z, target = jax.device_put(((X / sigma).astype(np.float32), y.astype(np.int32)))
    del X
    halves = 2 if len(present) == 2 else 1

    ordered = np.unique(np.asarray(cs, np.float64))
    u = np.zeros((len(sigma) + 1, len(present)))
    u[-1] = np.log(np.maximum(np.bincount(y, weights), EPS) / len(y))
    last, solved = None, {}
    for i, c in enumerate(ordered):
        start = u
        if last is not None:
            step = np.log(c / ordered[i - 1]) / np.log(ordered[i - 1] / ordered[i - 2]) if i > 1 else 0
            start = u + min(step, 1) * (u - last)
        penalty = np.append(halves / (c * len(y) * sigma**2), 0)[:, None]
        how: dict[str, Any] = {"tol": tol, "max_iter": max_iter, "name": f"C={c:g}", "weights": weights}
        last, u = u, _minimise(start, penalty, Z, target, **how)
        centred = u - u.mean(axis=1, keepdims=True)
        W = np.zeros((len(mean), num_classes))
        b = np.full(num_classes, ABSENT)
        W[:, present] = basis @ (centred[:-1] / sigma[:, None])
        b[present] = centred[-1] - mean @ W[:, present]
        solved[c] = Linear(W.astype(np.float32), b.astype(np.float32))
    return [solved[np.float64(c)] for c in cs]


_solved: collections.OrderedDict[str, list[Linear]] = collections.OrderedDict()


def solve_once(
    features: ArrayLike,
    labels: ArrayLike,
    cs: Sequence[float],
    *,
    num_classes: int,
    weights: np.ndarray | None = None,
) -> list[Linear]:
    """Do as `fit_lbfgs`, and remember the result: the methods and seeds of a run start from the same few probes."""
    X, y = np.ascontiguousarray(features), np.ascontiguousarray(labels)
    key = hashlib.blake2b(repr((X.shape, X.dtype, y.dtype, tuple(cs), num_classes, weights is None)).encode())
    for array in (X, y, *([] if weights is None else [np.ascontiguousarray(weights)])):
        key.update(array.data)
    if (name := key.hexdigest()) not in _solved:
        _solved[name] = fit_lbfgs(X, y, cs, num_classes=num_classes, weights=weights)
        if len(_solved) > REMEMBERED:
            _solved.popitem(last=False)
    _solved.move_to_end(name)
    return _solved[name]


def fit_ridge(
    features: ArrayLike,
    labels: ArrayLike,
    alphas: Sequence[float],
    *,
    num_classes: int,
    weights: np.ndarray | None = None,
) -> list[Linear]:
    """Fit least squares on targets −1 and +1, one column per class, with penalty α‖W‖² for each α.

    With `num_classes` 1 it is a regression, and the labels are its targets, real [N]. The bias is not penalised. The
    result is that of scikit-learn's RidgeClassifier and Ridge. All α share one eigendecomposition:
    of the covariance, or on the span of the rows if N < D. Arguments and errors are as for `fit_lbfgs`; α ≥ 0, where 0
    gives the shortest W of least error. `weights` [N], above 0, are those of the rows in the squared error.
    """
    X, y = check_values(features, labels, num_classes)
    check_grid("alpha", alphas, lambda alpha: alpha >= 0)
    mean, basis, variances, X = _rotate(X, weights)
    if num_classes == 1:
        targets = np.asarray(y, np.float64)[:, None]
    else:
        targets = np.where(y[:, None] == np.arange(num_classes), 1.0, -1.0)
    average = np.average(targets, axis=0, weights=weights)
    errors = targets - average
    slopes = X.T @ (errors if weights is None else errors * np.sqrt(weights)[:, None]) / len(y)
    positive = variances > EPS * max(X.shape) * variances.max()
    probes = []
    for alpha in alphas:
        shrunk = np.divide(1, variances + alpha / len(y), out=np.zeros_like(variances), where=positive)
        W = basis @ (shrunk[:, None] * slopes)
        probes.append(Linear(W.astype(np.float32), (average - mean @ W).astype(np.float32)))
    return probes


def _rotate(X: np.ndarray, weights: np.ndarray | None = None) -> tuple[Array, Array, Array, Array]:
    """Return the mean [D], the principal axes [D, r], the variances [r] along them, and the rows on them [N, r].

    With `weights` [N], mean and axes are weighted, and rows are multiplied by the roots of their weights.
    """
    mean = X.mean(0, dtype=np.float64) if weights is None else np.average(np.float64(X), axis=0, weights=weights)
    X = X - mean
    if weights is not None:
        X = X * np.sqrt(weights)[:, None]
    span = None
    if len(X) < X.shape[1]:  # coordinates on the span of the rows
        span, r = np.linalg.qr(X.T)
        X = r.T
    variances, axes = eigh(X.T @ X / len(X), check_finite=False, driver="evd")
    return mean, axes if span is None else span @ axes, np.maximum(variances, 0), X @ axes


def _minimise(
    start: Array,
    penalty: Array,
    Z: jax.Array,
    labels: jax.Array,
    *,
    tol: float,
    max_iter: int,
    name: str,
    weights: np.ndarray | None = None,
) -> Array:
    """Return the u [r + 1, K] that minimises mean CE + ½ Σ penalty·u², for logits Z u[:-1] + u[-1]."""
    if start.shape[1] == 1:  # one class
        return start
    spread = np.asarray(_measure_spread(np.float32(start), Z), np.float64)
    scale = 1 / np.sqrt(np.maximum(spread, EPS) + penalty)
    latest = np.inf, np.zeros(0)  # value and gradient
    shares = None if weights is None else np.float32(weights / len(weights))

    def objective(v: Array) -> tuple[float, Array]:
        nonlocal latest
        u = v.reshape(scale.shape) * scale
        losses, gradient = _compute_losses(np.float32(u), Z, labels, shares)
        each = np.asarray(losses, np.float64) if weights is None else np.asarray(losses, np.float64) * weights
        value = each.mean() + np.sum(penalty * u**2) / 2
        latest = float(value), ((np.asarray(gradient, np.float64) + penalty * u) * scale).ravel()
        return latest

    def stop_if_converged(intermediate_result: Any) -> None:
        value, gradient = latest
        if gradient @ gradient / 2 <= tol * value:
            raise StopIteration

    options = {"maxiter": max_iter, "maxfun": 20 * max_iter, "ftol": 0, "gtol": 1e-12}
    with limit_blas():  # a second thread gains little on vectors, and takes a core from XLA
        result = minimize(
            objective, (start / scale).ravel(), jac=True, method="L-BFGS-B", callback=stop_if_converged, options=options
        )
    if result.nit >= max_iter:
        notice(f"logistic regression with {name} has not converged after {max_iter} iterations")
    return result.x.reshape(scale.shape) * scale


def _compute_logits(u: jax.Array, Z: jax.Array) -> jax.Array:
    return jnp.matmul(Z, u[:-1], precision="highest") + u[-1]


@in_32_bits
@jax.jit
def _compute_losses(
    u: jax.Array, Z: jax.Array, labels: jax.Array, shares: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """Return the CE of each row [N], to be averaged in float64, and the gradient [r + 1, K] of their mean.

    With `shares` [N] the gradient is that of the sum of share · CE.

    CE = log(1 + Σ exp(z_k − z_y)) over the other classes. In this form small values of CE and of 1 − p keep their
    digits.
    """

    def ce(u: jax.Array) -> jax.Array:
        logits = _compute_logits(u, Z)
        own = labels[:, None] == jnp.arange(logits.shape[1])
        margins = logits - jnp.where(own, logits, 0).sum(axis=1, keepdims=True)
        return jax.nn.softplus(jax.nn.logsumexp(jnp.where(own, -jnp.inf, margins), axis=1))

    losses, pull = jax.vjp(ce, u)
    return losses, pull(jnp.full_like(losses, 1 / len(losses)) if shares is None else shares)[0]


@in_32_bits
@jax.jit
def _measure_spread(u: jax.Array, Z: jax.Array) -> jax.Array:
    """Return the mean of p(1 − p) for each class, [K]: the curvature of the loss."""
    p = jax.nn.softmax(_compute_logits(u, Z))
    return (p * (1 - p)).mean(0)


def check_values(features: ArrayLike, labels: ArrayLike, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return features and labels as arrays. Raise UserError as `fit_lbfgs` does."""
    X, y = np.asarray(features), np.asarray(labels)
    if X.ndim != 2 or not X.size or y.shape != X.shape[:1]:
        raise UserError(
            f"features {X.shape} and labels {y.shape} do not fit", "give [N, D] and [N] with N and D at least 1"
        )
    if not np.isfinite(sums := X.sum(axis=1, dtype=np.float64)).all():
        raise UserError(f"row {np.isfinite(sums).argmin()} of the features is not finite", "leave such rows out")
    if num_classes == 1 and y.dtype.kind in "fiu" and np.isfinite(y).all():
        return X, y
    if y.dtype.kind not in "iu" or y.min() < 0 or y.max() >= num_classes:
        raise UserError(
            f"labels of dtype {y.dtype} from {y.min()} to {y.max()}", f"give integers from 0 to {num_classes - 1}"
        )
    return X, y


def check_grid(name: str, grid: Sequence[float], valid: Callable[[Any], bool]) -> None:
    """Raise UserError if the grid is empty or has a value that is not finite and valid."""
    wrong = [value for value in grid if not (np.isfinite(value) and valid(value))]
    if wrong or not len(grid):
        raise UserError(f"{name}={wrong[0] if wrong else grid} is not a valid value", f"change the grid of {name}")
