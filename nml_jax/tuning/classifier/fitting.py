"""Fit the head of `NMTuneClassifier`: solve its probe, train it from there or from random weights, and calibrate it."""

import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from nml_jax.console import format_seconds, notice
from nml_jax.data.stratify import hold_out
from nml_jax.errors import UserError
from nml_jax.evals.calibration import find_temperature
from nml_jax.models.heads.mlp import Tree, standardize
from nml_jax.processes.limits import limit_blas
from nml_jax.tuning import descent, methods, patient
from nml_jax.tuning.classifier.arguments import starts_from_probe
from nml_jax.tuning.descent import Setting, Spec, TrainingSet
from nml_jax.tuning.head_file import TunedHead
from nml_jax.tuning.holdout import Demands, multiply
from nml_jax.tuning.patient import compute_error
from nml_jax.tuning.probes import Linear

BATCH, PROBE_BATCH = 256, 128  # from random weights, and from the probe: NMTune's terms are cubic in the batch
ERRORS = 2.0  # standard errors by which a fast training must lower the loss of the probe
FEWEST = 20  # rows to validate on
PATIENCE, PATIENT_STEPS = 3, 75  # defaults: 3 epochs, or as many as make 75 steps
NOTHING_HELD_OUT = (
    "calibrate=True needs rows to validate on, and none are held out",
    "leave early_stopping on, raise validation_fraction, or give more rows of each class",
)


class Rows(NamedTuple):
    """Training rows: features [N, D], classes [N], weights [N], and which rows to train on and to validate on.

    demands: holds the weights of the classes, and q of the generalised cross-entropy.
    """

    X: np.ndarray
    codes: np.ndarray
    weights: np.ndarray
    demands: Demands
    train: np.ndarray
    held_out: np.ndarray

    @property
    def own(self) -> Any:
        """Return the weights for a solver, None if all are equal."""
        return None if (self.weights == self.weights[0]).all() else np.float64(self.weights)

    def take_all(self) -> "Rows":
        """Return the same rows, all of them to train on."""
        return self._replace(train=np.arange(len(self.X)), held_out=np.arange(0))


class Pace(NamedTuple):
    """A learning rate, and the budget of a training: so many epochs, or as many as make so many steps."""

    rate: float
    epochs: int
    steps: int


class Fitted(NamedTuple):
    """A head, the temperature of its logits, the epochs it was trained for, and the validation loss of each."""

    head: TunedHead
    temperature: float
    epochs: int
    losses: list[float]
    c: float | None


def split_rows(asked: Any, codes: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return rows to train on and rows to validate on; none of the latter if they would be too few."""
    everything = np.arange(len(codes))
    share = asked.validation_fraction or (patient.HELD_OUT if starts_from_probe(asked) else 0.1)
    if not asked.early_stopping or share * len(codes) < FEWEST or np.bincount(codes).max() < 2:
        return everything, everything[:0]
    return hold_out(codes, share, seed)


class Fitting:
    """The fit of one head.

    Args:
        asked: the estimator, whose arguments were checked.
        rows: those to train on.
        num_classes: K.
        seed: of everything that is drawn.
    """

    def __init__(self, asked: Any, rows: Rows, num_classes: int, seed: int):
        self.asked, self.rows, self.num_classes, self.seed = asked, rows, num_classes, seed
        self.c: float | None = None

    @property
    def calibrates(self) -> bool:
        asked = self.asked
        return starts_from_probe(asked) and asked.C is None if asked.calibrate is None else asked.calibrate

    def run(self, make_spec: Callable[[int, int], Spec], numbers: dict[str, float], start: TunedHead | None) -> Fitted:
        """Solve or train the head.

        Args:
            make_spec, numbers: of `arguments.check_arguments`.
            start: a head to go on from, if its form is the same.
        """
        solved = starts_from_probe(self.asked)
        if solved and self.asked.method == "linear":
            return self._solve()
        rows, X = self.rows, self.rows.X
        spec = self._make_spec(make_spec, solved)
        bank = _make_training_set(X, rows.codes, rows.weights)
        standard = descent.get_standard(bank.features, len(X)) if self.asked.standardize else None
        F = standardize(X, standard) if standard and solved else X
        probe = self._solve_probe(rows, F) if solved else None
        setting = Setting(None, 0.0, self.asked.weight_decay, self.seed, numbers, q=rows.demands.q)
        first = (start if start and start.form == spec.form else None) or probe
        *faster, last = self._list_paces(spec, X.shape[1])
        for pace in (*faster, last):
            training, head = self._train(spec, bank, setting, standard, first, rows, pace)
            if pace is not last and self._is_better(head.outputs(X[rows.held_out])[1], probe(F[rows.held_out])):  # pyright: ignore[reportOptionalCall]
                break
        temperature = self._find_temperature(head)
        if probe and len(rows.held_out):
            probe = self._solve_probe(rows.take_all(), F, self.c)
            _, head = self._train(spec, bank, setting, standard, probe, rows.take_all(), pace, until=training.best)
        return Fitted(head, temperature, training.done, training.losses, self.c)

    def _make_spec(self, make_spec: Callable[[int, int], Spec], solved: bool) -> Spec:
        n = len(self.rows.train)
        batch = self.asked.batch_size or (PROBE_BATCH if solved else BATCH)
        spec = make_spec(self.num_classes, min(int(batch), 1 << (n.bit_length() - 1)))
        if self.asked.width is None and spec.form.mlp:
            spec = spec._replace(form=spec.form._replace(width=methods.choose_width(self.rows.X.shape[1], n)))
        return spec._replace(penalised=solved)

    def _list_paces(self, spec: Spec, dim: int) -> list[Pace]:
        """Return the trainings to try, see `NMTuneClassifier.learning_rate`; all but the last must be shown better."""
        rate, unit = self.asked.learning_rate, math.sqrt(6 / dim)
        if not spec.penalised:
            return [Pace(unit / (50 if spec.form.mlp else 10) if rate is None else rate, 5, 200)]
        careful = Pace(unit / 700 if rate is None else rate, 10, 300)
        fast = [Pace(unit / 100, 30, 900)] if rate is None and len(self.rows.held_out) else []
        return [*fast, careful]

    def _is_better(self, logits: np.ndarray, first: np.ndarray) -> bool:
        """Return whether logits of the held-out rows have a lower loss than the first ones, beyond chance.

        Losses are those at the best temperature, since a strong penalty shrinks logits, and training undoes that.
        """
        held_out = self.rows.held_out
        codes, own = self.rows.codes[held_out], self.rows.demands.weigh(self.rows.codes[held_out])
        weights: Any = multiply(self.rows.weights[held_out], own)
        lose = self.rows.demands.compute_losses
        before, after = (lose(z / find_temperature(z, codes), codes) for z in (first, logits))
        return float(np.average(before - after, weights=weights)) > ERRORS * compute_error(before - after, weights)

    def _solve(self) -> Fitted:
        """Choose penalty and temperature on parts of the rows, and solve the probe on all of them."""
        X = self.rows.X
        standard = descent.get_standard(X[:, None]) if self.asked.standardize else None
        F = standardize(X, standard) if standard else X
        temperature, c = None, None
        if self.calibrates:
            c, temperature = self._choose_penalty(self.rows, F)
            if temperature is None and self.asked.calibrate:
                raise UserError(*NOTHING_HELD_OUT)
        probe = self._solve_probe(self.rows.take_all(), F, c)
        head = patient.make_linear(probe, {"input": standard} if standard else {})
        return Fitted(head, temperature or 1.0, 0, [], self.c)

    def _find_temperature(self, head: TunedHead) -> float:
        """Return the temperature of a head by the rows held out; 1 where heads are not calibrated."""
        held_out = self.rows.held_out
        if not self.calibrates:
            return 1.0
        if len(held_out):
            return find_temperature(head.outputs(self.rows.X[held_out])[1], self.rows.codes[held_out])
        if not self.asked.calibrate:  # it is not asked for
            return 1.0
        raise UserError(*NOTHING_HELD_OUT)

    def _solve_probe(self, rows: Rows, F: np.ndarray, c: float | None = None) -> Linear:
        """Solve the probe on the rows to train on, with a C that is given, or that all rows choose; set `c`."""
        own, how = rows.own, {"num_classes": self.num_classes, "demands": rows.demands}
        c = float(self.asked.C) if c is None and self.asked.C is not None else c
        self.c = c = self._choose_penalty(rows, F)[0] if c is None else c
        probe, _ = patient.choose_probe(F, rows.codes, (rows.train, rows.train[:0]), cs=(c,), weights=own, **how)
        self._tell(f"probe solved, C={c:g}")
        return probe

    def _choose_penalty(self, rows: Rows, F: np.ndarray) -> tuple[float, float | None]:
        cs = patient.CS if self.asked.C is None else (float(self.asked.C),)
        how: dict[str, Any] = {"num_classes": self.num_classes, "weights": rows.own, "demands": rows.demands}
        return patient.choose_penalty(F, rows.codes, seed=self.seed, cs=cs, **how)

    def _train(
        self,
        spec: Spec,
        bank: TrainingSet,
        setting: Setting,
        standard: Tree | None,
        start: TunedHead | Linear | None,
        rows: Rows,
        pace: Pace,
        until: int | None = None,
    ) -> tuple[patient.Training, TunedHead]:
        """Train epoch by epoch, until validation no longer improves, or for `until` epochs of the same schedule."""
        X, train, n = rows.X, rows.train, len(rows.train)
        own = multiply(bank.weights / rows.weights[train].mean(), rows.demands.weigh(bank.labels))
        bank = jax.device_put(bank._replace(weights=np.float32(own)))
        order = np.concatenate([train, rows.held_out, np.arange(len(X), len(bank.labels))])
        penalty = patient.compute_penalty(self.c, n, self.num_classes) if self.c else 0.0
        setting = descent.to_arrays(setting._replace(rows=order, penalty=penalty, lr=pace.rate))
        epochs, patience = self._count_epochs(-(-n // spec.batch), pace)
        last = epochs if until is None else until
        with limit_blas():
            carry = _start_at(descent.begin(spec, setting, X.shape[1], standard), start)
            score, tell = self._make_score(rows), self._make_tell(last, until is None, bool(len(rows.held_out)))
            training = patient.Training(
                spec, carry, bank, setting, n, horizon=epochs, score=score, tell=tell, started=isinstance(start, Linear)
            )
            return training, training.run(last, patience)

    def _count_epochs(self, steps: int, pace: Pace) -> tuple[int, int]:
        """Return the most epochs of so many steps, and those without a lower loss after which training stops."""
        epochs, patience = self.asked.epochs, self.asked.patience
        return (
            max(pace.epochs, -(-pace.steps // steps)) if epochs is None else int(epochs),
            max(PATIENCE, -(-PATIENT_STEPS // steps)) if patience is None else int(patience),
        )

    def _make_score(self, rows: Rows) -> Callable[[TunedHead], tuple[float, ...]] | None:
        """Return the function by which heads are compared while they are trained; None without rows held out."""
        if not len(rows.held_out):
            return None
        weights: Any = multiply(rows.weights, rows.demands.weigh(rows.codes))
        X, codes, weights = (x[rows.held_out] for x in (rows.X, rows.codes, weights))
        return lambda head: (_compute_loss(head, X, codes, weights, rows.demands),)

    def _make_tell(self, last: int, chosen: bool, known: bool) -> Callable[[int, float], None]:
        """Return the function that prints an epoch of at most `last`, and its loss if that is known."""
        begun = time.perf_counter()

        def tell(i: int, loss: float) -> None:
            ahead = format_seconds((time.perf_counter() - begun) / i * (last - i))
            what = "epoch" if chosen else "on all rows: epoch"
            self._tell(f"{what} {i} of {last}{f', validation loss {loss:.4f}' if known else ''}, at most {ahead} left")

        return tell

    def _tell(self, message: str) -> None:
        if self.asked.verbose:
            notice(f"{self.asked.method}: {message}")


def _start_at(carry: descent.Carry, start: TunedHead | Linear | None) -> descent.Carry:
    """Return a start that has the weights of a head, or computes what the probe does."""
    if start is None:
        return carry
    if isinstance(start, Linear):
        return patient.start_at(carry, start)
    state = {**carry.state, **{k: v for k, v in start.state.items() if k != "input"}}
    return carry._replace(params=jax.device_put(start.params), state=jax.device_put(state))


def _make_training_set(X: np.ndarray, codes: np.ndarray, weights: Any) -> TrainingSet:
    """Pad the rows with zeros so that sets of similar size share one compiled program."""
    step = max(64, 1 << max(len(X).bit_length() - 3, 0))
    fill = -len(X) % step
    features = np.pad(X, ((0, fill), (0, 0)))[:, None]
    return TrainingSet(
        features, np.pad(codes.astype(np.int32), (0, fill)), np.pad(weights.astype(np.float32), (0, fill))
    )


def _compute_loss(head: TunedHead, X: np.ndarray, codes: np.ndarray, weights: np.ndarray, demands: Demands) -> float:
    """Compute the weighted mean loss; infinite if training diverged."""
    _, logits = head.outputs(X)
    if not np.isfinite(logits).all():
        return float("inf")
    return float(np.average(demands.compute_losses(logits, codes), weights=weights))
