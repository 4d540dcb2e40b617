"""Evaluate a classifier on a whole split: sum on the devices, divide on the host, drop no example."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from nml_jax.evals import collect, metrics


class Sums(NamedTuple):
    """The sums over a batch; rows whose mask is 0 add nothing."""

    confusion: jax.Array  # int32 [K, K], true class by predicted class
    loss: jax.Array  # float32 [], softmax cross-entropy
    wrong: jax.Array  # int32 [], records whose label is not the clean one
    fit: jax.Array  # int32 [], wrong records whose prediction is the noisy label


# A module function, so that all evaluators of one model share its compiled program.
@partial(jax.jit, static_argnames=("apply", "num_classes", "clean"))
def _sum_batch(
    params: Any, model_state: Any, batch: Mapping[str, jax.Array], *, apply: Callable, num_classes: int, clean: bool
) -> Sums:
    logits = apply(params, model_state, batch, train=False, key=None)[0]["logits"]
    predicted, present = logits.argmax(-1), batch["mask"] > 0
    true = batch["label_clean" if clean else "label"]
    wrong = present & (batch["label"] != batch["label_clean"])
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, true)
    return Sums(
        jnp.zeros((num_classes, num_classes), jnp.int32).at[true, predicted].add(present.astype(jnp.int32)),
        jnp.where(present, losses, 0).sum(),
        wrong.sum(),
        (wrong & (predicted == batch["label"])).sum(),
    )


class Classification:
    """An Evaluator of the model's "logits".

    Args:
        apply: that of a Model.
        batches: returns this process's batches of the split, from the start. They are dicts of NumPy arrays:
            the model's inputs, label and label_clean int [B], id, and mask float [B], 0 for rows of padding.
        num_classes: K.
        put: local batch -> global batch on the devices (`runtime.put_batch`).
        fetch: global arrays -> NumPy, whole, on every process (`runtime.fetch`).
        clean: score against `label_clean`, else against `label`.
        more: keys of `metrics.METRICS` that need a confusion matrix, to yield beside the usual ones.
    """

    def __init__(
        self,
        apply: Callable[..., Any],
        batches: Callable[[], Iterable[Mapping[str, np.ndarray]]],
        *,
        num_classes: int,
        put: Callable[[Any], Any] = jax.device_put,
        fetch: Callable[[Any], Any] = jax.device_get,
        clean: bool = True,
        more: Sequence[str] = (),
    ):
        self.batches, self.put, self.fetch, self.more = batches, put, fetch, more
        self.sums = partial(_sum_batch, apply=apply, num_classes=num_classes, clean=clean)

    def run(self, params: Any, model_state: Any) -> Iterator[tuple[str, float]]:
        """Yield accuracy, macro_f1, mean_per_class, those of `more` and loss (softmax cross-entropy, nats per example).

        If some labels are noisy, also yield noisy_fit, the share of these records with the noisy label as prediction.

        Raises:
            UserError: the split is empty.
        """
        total = self.fetch(collect.add_up(self.sums(params, model_state, self.put(local)) for local in self.batches()))
        yield "accuracy", metrics.accuracy(total.confusion)
        yield "macro_f1", metrics.macro_f1(total.confusion)
        yield "mean_per_class", metrics.mean_per_class(total.confusion)
        for name in self.more:
            yield name, metrics.METRICS[name].score(total.confusion)
        yield "loss", float(total.loss / total.confusion.sum())
        if total.wrong:
            yield "noisy_fit", float(total.fit / total.wrong)
