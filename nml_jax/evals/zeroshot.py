"""Zero-shot classification: predict for an image the class with the closest description (arXiv 2103.00020).

Several texts describe every class: prompts with its name. Row k of the class matrix is the mean of the L2-normalised
embeddings of the texts of class k. It is normalised too, so that a class with many texts has no advantage.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nml_jax.errors import NonFinite
from nml_jax.evals import collect, metrics
from nml_jax.evals.mapped import take_best


class Sums(NamedTuple):
    """The sums over a batch of images; rows whose mask is 0 add nothing."""

    confusion: jax.Array  # int32 [K, K], true class by predicted class
    top5: jax.Array  # int32 [], images whose class is among the five best
    lost: jax.Array  # int32 [], images with a score that is not finite


# Module functions, so that all evaluators of one model share their compiled programs.
@partial(jax.jit, static_argnames=("apply", "num_classes"))
def _sum_texts(
    params: Any, model_state: Any, batch: Mapping[str, jax.Array], *, apply: Callable, num_classes: int
) -> jax.Array:
    """Return the sum of the normalised embeddings of each class's texts, float32 [K, E]."""
    embedding = _normalise(apply(params, model_state, batch, train=False, key=None)[0]["text_embedding"])
    present = batch["mask"] > 0
    # A product instead of a scatter, because on a GPU a scatter adds in no fixed order.
    member = jnp.where(present[:, None], jax.nn.one_hot(batch["id"], num_classes), 0)
    return jnp.matmul(member.T, jnp.where(present[:, None], embedding, 0), precision="highest")


@partial(jax.jit, static_argnames=("apply", "clean", "class_map"))
def _sum_images(
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
    # The rank of the true class; ties are broken as in argmax.
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
    """Scale rows to L2 norm 1; a row of zeros stays zero."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.maximum(jnp.square(x).sum(-1, keepdims=True), jnp.finfo(jnp.float32).tiny))


class ZeroShot:
    """An Evaluator of the model's "embedding" of images against its "text_embedding" of texts.

    Args:
        apply: that of a Model.
        batches: returns this process's batches of the split, from the start. They are dicts of NumPy arrays:
            image [B, H, W, 3], label and label_clean int [B], and mask float [B], 0 for rows of padding.
        texts: returns this process's batches of the texts, from the start, all of one shape. They are dicts of NumPy
            arrays: text int32 [b, L], id int [b], the class that the text describes, and mask float [b].
        num_classes: K; every class has a text.
        put: local batch -> global batch on the devices (`runtime.put_batch`).
        fetch: global arrays -> NumPy, whole, on every process (`runtime.fetch`).
        clean: score against `label_clean`, else against `label`.
        class_map: for each class of the split, those of the K classes that it stands for; the best one counts. None:
            the split has the K classes.
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
        self.sum_texts = partial(_sum_texts, apply=apply, num_classes=num_classes)
        self.sums = partial(_sum_images, apply=apply, clean=clean, class_map=class_map)

    def embed_classes(self, params: Any, model_state: Any) -> jax.Array:
        """Return the class matrix, float32 [K, E], one row of norm 1 for every class, on all devices."""
        return _normalise(collect.add_up(self.sum_texts(params, model_state, self.put(t)) for t in self.texts()))

    def run(self, params: Any, model_state: Any, classes: jax.Array | None = None) -> Iterator[tuple[str, float]]:
        """Yield accuracy, top5 (if there are more than five classes), macro_f1 and mean_per_class.

        Args:
            classes: the result of `embed_classes`, if it is known already.

        Raises:
            UserError: the split is empty, or there are no texts.
            NonFinite: an embedding is not finite.
        """
        if classes is None:
            classes = self.embed_classes(params, model_state)
        sums = (self.sums(params, model_state, classes, self.put(local)) for local in self.batches())
        total = self.fetch(collect.add_up(sums))
        if total.lost:
            raise NonFinite(f"the embeddings of {total.lost} image(s), or those of the classes, are not finite")
        yield "accuracy", metrics.accuracy(total.confusion)
        if len(total.confusion) > 5:
            yield "top5", float(total.top5 / total.confusion.sum())
        yield "macro_f1", metrics.macro_f1(total.confusion)
        yield "mean_per_class", metrics.mean_per_class(total.confusion)
