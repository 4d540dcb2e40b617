"""Tell wrong labels from hard rows: a model of what classifier and labels say of the same rows.

A row of true class y has the given label g with probability T[y, g]. A classifier that has not seen the row says
q = softmax(logits / τ) of its true class. The likelihood of the labels is then

    Π_i Σ_y q_i(y) · T[y, g_i]

and EM finds T and the temperature τ that maximise it. With T the identity the labels are all right and τ is the usual
calibration. Wrong labels show where q is sure of another class, more often than a calibrated q would be.

How much is known of the share of wrong labels follows from the information that rows hold on it and on τ together. A
row of which q is sure says whether its label is wrong. A hard one says little, as the probe may err as well.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import softmax

START = 0.1  # share of wrong labels that EM starts from
ROUNDS, STEPS = 20, 5  # most rounds; steps of EM in a round, which begins with the temperature
SETTLED = 1e-5  # change of the share of wrong labels in a round that ends EM
SEEN = 10_000  # rows that the temperature is fitted on, at most
TINY = 1e-12
STEP = 0.02  # of log τ, in a derivative
FEW = 2  # wrong labels that the error of a share of none is computed for: right ones never show that there are none


class Mixture(NamedTuple):
    """A fitted model.

    posterior: P(true class | row, given label), float64 [N, K].
    predicted: q, P(true class | row) before the label is seen, float64 [N, K].
    transition: T, P(given label | true class), float64 [K, K].
    temperature: τ.
    error: standard error of the share of wrong labels where these rows come from.
    """

    posterior: NDArray[np.float64]
    predicted: NDArray[np.float64]
    transition: NDArray[np.float64]
    temperature: float
    error: float


def fit_mixture(logits: np.ndarray, labels: np.ndarray) -> Mixture:
    """Fit the model. Rare confusions are drawn to the mean one, as if K labels of each class had shown it.

    Args:
        logits: of rows that the classifier was not trained on, finite [N, K], K ≥ 2.
        labels: the given labels, int [N] in 0..K-1.
    """
    k = logits.shape[1]
    logits = np.asarray(logits, np.float64)
    transition, share = _mix_evenly(START, k), START
    every = max(1, len(logits) // SEEN)
    temperature, posterior = 1.0, np.empty(0)
    for _ in range(ROUNDS):
        before = share
        temperature = _fit_temperature(logits[::every], labels[::every], transition)
        q = softmax(logits / temperature, axis=1)
        for _ in range(STEPS):
            posterior = _weigh(q, transition, labels)
            counts = count_pairs(posterior, labels)
            share = 1 - np.trace(counts) / len(labels)
            transition = (counts + k * _mix_evenly(share, k)) / (counts.sum(1, keepdims=True) + k)
        if abs(share - before) < SETTLED:
            break
    error = _find_error(logits, q, temperature, transition if share * len(q) > FEW else _mix_evenly(FEW / len(q), k))
    return Mixture(_weigh(q, transition, labels), q, transition, temperature, error)


def _mix_evenly(share: float, k: int) -> NDArray[np.float64]:
    """Return the T of symmetric noise, [K, K]."""
    return np.full((k, k), share / (k - 1)) + (1 - share - share / (k - 1)) * np.eye(k)


def _weigh(q: NDArray, transition: NDArray, labels: np.ndarray) -> NDArray[np.float64]:
    """Return P(true class | row, given label), [N, K]."""
    joint = q * transition[:, labels].T
    return joint / np.maximum(joint.sum(1, keepdims=True), TINY)


def count_pairs(posterior: NDArray, labels: np.ndarray) -> NDArray[np.float64]:
    """Return the expected number of rows by true class and given label, [K, K]."""
    out = np.zeros((posterior.shape[1],) * 2)
    order = np.argsort(labels, kind="stable")
    present, starts = np.unique(labels[order], return_index=True)
    out[:, present] = np.add.reduceat(posterior[order], starts, axis=0).T
    return out


def _fit_temperature(logits: NDArray, labels: np.ndarray, transition: NDArray) -> float:
    """Return the τ under which the labels are most likely, in a wide range around the spread of the logits."""
    spread = np.log(max(float((logits - logits.mean(1, keepdims=True)).std()), TINY))

    def compute_loss(log_temperature: float) -> float:
        q = softmax(logits / np.exp(log_temperature), axis=1)
        return -float(np.log(np.maximum((q * transition[:, labels].T).sum(1), TINY)).mean())

    bounds = spread - np.log(100), spread + np.log(10)
    found: Any = minimize_scalar(compute_loss, bounds=bounds, method="bounded", options={"xatol": 0.02})
    return float(np.exp(found.x))


def _find_error(logits: NDArray, q: NDArray, temperature: float, transition: NDArray) -> float:
    """Return the standard error of the share, from the expected information on the share and log τ together.

    It is never below that of a share of as many labels which are known to be right or wrong.
    """
    wrong = transition * (1 - np.eye(q.shape[1]))
    shift = wrong / np.maximum(wrong.sum(1, keepdims=True), TINY) - np.eye(q.shape[1])
    more, less = (softmax(logits / (temperature * np.exp(step)), axis=1) for step in (STEP, -STEP))
    slopes = [q @ shift, (more - less) @ transition / (2 * STEP)]
    likely = np.maximum(q @ transition, TINY)
    information = np.array([[float((a * b / likely).sum()) for b in slopes] for a in slopes])
    share = float((q @ wrong.sum(1)).mean())
    return float(np.sqrt(max(np.linalg.pinv(information)[0, 0], share * (1 - share) / len(q))))
