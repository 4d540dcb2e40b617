"""Zero-shot classification: the class of an image is the one whose description it is closest to (arXiv 2103.00020).

Every class is described by several texts, prompts with its name in them. Row k of the class matrix is the mean of the
L2-normalised embeddings of the texts of class k, itself normalised, so that a class with many texts has no advantage.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nml_jax.errors import NonFinite, UserError
from nml_jax.evals import collect, metrics
from nml_jax.evals.mapped import take_best


class Sums(NamedTuple):
    """What a batch of images adds up to; rows whose mask is 0 add nothing."""

    confusion: jax.Array  # int32 [K, K], true class by predicted class
    top5: jax.Array  # int32 [], images whose class is among the five best
    lost: jax.Array  # int32 [], images with a score that is not finite


# Functions of the module, so that all evaluators of one model share what is compiled.
@partial(jax.jit, static_argnames=("apply", "num_classes"))
def _described(
    params: Any, model_state: Any, batch: Mapping[str, jax.Array], *, apply: Callable, num_classes: int
) -> jax.Array:
    """float32 [K, E], the sum of the normalised embeddings of each class's texts."""
    embedding = _normalise(apply(params, model_state, batch, train=False, key=None)[0]["text_embedding"])
    present = batch["mask"] > 0
    # A product and not a scatter: the order of a scatter's sums is not fixed on a GPU.
    member = jnp.where(present[:, None], jax.nn.one_hot(batch["id"], num_classes), 0)
    return jnp.matmul(member.T, jnp.where(present[:, None], embedding, 0), precision="highest")


@partial(jax.jit, static_argnames=("apply", "clean", "class_map"))
def _sums(
    params: Any,
    model_state: Any,
    classes: jax.Array,
    batch: Mapping[str, jax.Array],
    *,
    apply: Callable,
    clean: bool,
    class_map: tuple[tuple[int, ...], ...] | None,
) -> Sums:
    embedding = apply(params, model_state, batch, train=False, key=None)[0]["embedding"]
    scores = jnp.matmul(embedding, classes.T, precision="highest")
    if class_map is not None:
        scores = take_best(scores, class_map)
    present, true = batch["mask"] > 0, batch["label_clean" if clean else "label"]
    # The rank of the true class, ties broken as argmax does it.
    own = jnp.take_along_axis(scores, true[:, None], axis=1)
    lower = jnp.arange(scores.shape[1]) < true[:, None]
    rank = ((scores > own) | ((scores == own) & lower)).sum(-1)
    return Sums(
        jnp.zeros((scores.shape[1],) * 2, jnp.int32).at[true, scores.argmax(-1)].add(present.astype(jnp.int32)),
        (present & (rank < 5)).sum(),
        (present & ~jnp.isfinite(scores).all(-1)).sum(),
    )


@jax.jit
def _normalise(x: jax.Array) -> jax.Array:
    """Rows of L2 norm 1; a row of zeros stays one."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.maximum(jnp.square(x).sum(-1, keepdims=True), jnp.finfo(jnp.float32).tiny))


class ZeroShot:
    """An Evaluator of the model's "embedding" of images against its "text_embedding" of texts.

    Args:
        apply: of a Model.
        batches: returns this process's batches of the split, from the start: dicts of NumPy arrays image [B, H, W, 3],
            label and label_clean int [B], and mask float [B], which is 0 for rows that only fill the last batch.
        texts: returns this process's batches of the texts, from the start, all of one shape: dicts of NumPy arrays
            text int32 [b, L], id int [b], the class that the text describes, and mask float [b]. See
            `data.prompts.texts` and `data.pipeline.texts`.
        num_classes: K; every class has a text.
        put: local batch -> global batch on the devices (`runtime.put_batch`).
        fetch: global arrays -> NumPy, whole, on every process (`runtime.fetch`).
        clean: score against `label_clean`, else against `label`.
        class_map: of each class of the split the ids of the K classes that it stands for, of which the best counts;
            None: the split has the K classes.
    """

    def __init__(
        self,
        apply: Callable[..., Any],
        batches: Callable[[], Iterable[Mapping[str, np.ndarray]]],
        texts: Callable[[], Iterable[Mapping[str, np.ndarray]]],
        *,
        num_classes: int,
        put: Callable[[Any], Any] = jax.device_put,
        fetch: Callable[[Any], Any] = jax.device_get,
        clean: bool = True,
        class_map: tuple[tuple[int, ...], ...] | None = None,
    ):
        self.batches, self.texts, self.put, self.fetch = batches, texts, put, fetch
        self.described = partial(_described, apply=apply, num_classes=num_classes)
        self.sums = partial(_sums, apply=apply, clean=clean, class_map=class_map)

    def class_matrix(self, params: Any, model_state: Any) -> jax.Array:
        """float32 [K, E], one row of norm 1 for every class, on all devices."""
        total: Any = None
        for local in self.texts():
            part = self.described(params, model_state, self.put(local))
            total = part if total is None else total + part
        if total is None:
            raise UserError("there is nothing to compare images with: no class has a text", "name classes and prompts")
        return _normalise(total)

    def run(self, params: Any, model_state: Any, classes: jax.Array | None = None) -> Iterator[tuple[str, float]]:
        """Yields accuracy, top5 (where there are more than five classes), macro_f1 and mean_per_class.

        Args:
            classes: of `class_matrix`, where it is known already.

        Raises:
            UserError: the split is empty, or there are no texts.
            NonFinite: an embedding is not finite.
        """
        if classes is None:
            classes = self.class_matrix(params, model_state)
        sums = (self.sums(params, model_state, classes, self.put(local)) for local in self.batches())
        total = self.fetch(collect.total(sums))
        if total.lost:
            raise NonFinite(f"the embeddings of {total.lost} image(s), or those of the classes, are not finite")
        yield "accuracy", metrics.accuracy(total.confusion)
        if len(total.confusion) > 5:
            yield "top5", float(total.top5 / total.confusion.sum())
        yield "macro_f1", metrics.macro_f1(total.confusion)
        yield "mean_per_class", metrics.mean_per_class(total.confusion)
