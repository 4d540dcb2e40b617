"""Retrieval between images and captions, recall@k both ways, and the share of caption noise that a model has learned.

The rank of a query is the number of items of the gallery before its best right item. Items are sorted by score, and
ties by their position in the gallery. So an encoder that maps everything to one point scores 1/N; if the rank counted
only strictly better items, it would score 1.

No device holds all scores: each takes `chunk` queries at a time against the whole gallery, in O(chunk · M) memory.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from nml_jax import runtime
from nml_jax.errors import NonFinite, UserError
from nml_jax.evals import collect

KS = (1, 5, 10)
CHUNK = 256  # queries that a device scores at a time

Batches = Callable[[], Iterable[Mapping[str, np.ndarray]]]


@jax.jit
def _rank_block(queries: jax.Array, asked: jax.Array, gallery: jax.Array, answers: jax.Array) -> jax.Array:
    """Return the rank of the best item m with answers[m] == asked[b], int32 [B]."""
    scores = jnp.matmul(queries, gallery.T, precision="highest")
    right = jnp.where(asked[:, None] == answers, scores, -jnp.inf)
    best, position = right.max(-1, keepdims=True), right.argmax(-1, keepdims=True)
    before = (scores > best) | ((scores == best) & (jnp.arange(len(gallery)) < position))
    return before.sum(-1)


def rank_pairs(
    queries: np.ndarray,
    asked: np.ndarray,
    gallery: np.ndarray,
    answers: np.ndarray,
    *,
    mesh: Mesh | None = None,
    chunk: int = CHUNK,
) -> np.ndarray:
    """Return the rank of every query's best right item; 0 is the first. Scores are inner products in full float32.

    Args:
        queries: float32 [Q, E].
        asked: int [Q]: item m is right for query q if answers[m] == asked[q]; every query has a right item.
        gallery: float32 [M, E].
        answers: int [M].
        mesh: its devices share the queries, `chunk` to each at a time; None: one device.

    Returns:
        int32 [Q], the same for any mesh, because a query's scores are always computed by the same product.
    """
    mesh = mesh or Mesh(np.array(jax.local_devices()[:1]).reshape(1, 1), ("data", "fsdp"))
    rows, whole = NamedSharding(mesh, runtime.BATCH_SPEC), runtime.replicated_sharding(mesh)
    replicated = _to_devices(gallery, np.float32, whole), _to_devices(answers, np.int32, whole)
    step = chunk * mesh.size
    ranks = []
    for start in range(0, len(queries), step):
        own = slice(start, start + step)
        short = max(start + step - len(queries), 0)  # padding of the last block, without right items
        block = np.pad(queries[own], ((0, short), (0, 0))), np.pad(asked[own], (0, short), constant_values=-1)
        sharded = _to_devices(block[0], np.float32, rows), _to_devices(block[1], np.int32, rows)
        ranks.append(_rank_block(*sharded, *replicated))
    return np.concatenate(runtime.fetch(ranks, mesh))[: len(queries)]


def measure_recalls(
    image: np.ndarray, text: np.ndarray, owner: np.ndarray, *, mesh: Mesh | None = None, chunk: int = CHUNK
) -> dict[str, float]:
    """Return recall@1, @5 and @10, image to text and text to image.

    Args:
        image: float32 [N, E], embeddings of the images; with rows of norm 1 the scores are cosines.
        text: float32 [M, E], embeddings of the captions; an image may have several.
        owner: int [M], the image of each caption, in [0, N). Images without a caption only compete with others.
        mesh, chunk: as in `rank_pairs`.

    Returns:
        i2t_recall@k: share of the images with one of their own captions among the k best of all captions;
        t2i_recall@k: share of the captions with their image among the k best of all images.
        A k larger than the gallery is left out.

    Raises:
        UserError: there are no images or no captions.
        NonFinite: an embedding is not finite.
    """
    image, text, owner = np.asarray(image), np.asarray(text), np.asarray(owner)
    if not len(image) or not len(text):
        raise UserError(
            f"there is nothing to retrieve: {len(image)} images, {len(text)} captions", "choose a split with both"
        )
    for name, rows in {"image": image, "caption": text}.items():
        if lost := int((~np.isfinite(rows).all(1)).sum()):
            raise NonFinite(f"the embeddings of {lost} {name}(s) are not finite")
    captioned = np.unique(owner)
    find = partial(rank_pairs, mesh=mesh, chunk=chunk)
    directions = {
        "i2t": (find(image[captioned], captioned, text, owner), len(text)),
        "t2i": (find(text, owner, image, np.arange(len(image))), len(image)),
    }
    return {
        f"{direction}_recall@{k}": float((rank < k).mean())
        for direction, (rank, size) in directions.items()
        for k in KS
        if k <= size
    }


def _to_devices(rows: np.ndarray, dtype: type, sharding: NamedSharding) -> jax.Array:
    """Make a global array from rows that every process holds whole."""
    host = np.asarray(rows, dtype)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


class Retrieval:
    """An Evaluator of the model's "embedding" of images against its "text_embedding" of captions.

    Args:
        apply: that of a Model.
        batches: returns this process's batches of the images, from the start. They are dicts of NumPy arrays:
            image [B, H, W, 3] and mask float [B], 0 for rows of padding.
        texts: returns this process's batches of the captions, from the start. They are dicts of NumPy arrays:
            text int32 [b, L], id int [b], the position of the caption's image in `batches`, and mask float [b].
        mesh: its devices share the queries; None: one device.
        chunk: captions or images that a device scores at a time.
        put: local batch -> global batch on the devices (`runtime.put_batch`).
        fetch: global arrays -> NumPy, whole, on every process (`runtime.fetch`).
    """

    def __init__(
        self,
        apply: Callable[..., Any],
        batches: Batches,
        texts: Batches,
        *,
        mesh: Mesh | None = None,
        chunk: int = CHUNK,
        put: Callable[[Any], Any] = jax.device_put,
        fetch: Callable[[Any], Any] = jax.device_get,
    ):
        self.batches, self.texts, self.put, self.fetch = batches, texts, put, fetch
        self.output = partial(collect.get_output, apply=apply)
        self.recalls = partial(measure_recalls, mesh=mesh, chunk=chunk)

    def run(self, params: Any, model_state: Any) -> Iterator[tuple[str, float]]:
        """Yield the results of `measure_recalls`; the errors are the same."""
        image, _ = self._embed(params, model_state, self.batches, "embedding", "mask")
        text, owner = self._embed(params, model_state, self.texts, "text_embedding", "id")
        yield from self.recalls(image, text, owner).items()

    def _embed(
        self, params: Any, model_state: Any, batches: Batches, output: str, key: str
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the output [N, E] and the key [N] of all rows that count, in order, on the host."""
        parts = []
        for local in batches():
            batch = self.put(local)
            parts.append((self.output(params, model_state, batch, name=output), batch[key], batch["mask"]))
        return collect.collect_rows(parts, self.fetch) or (np.zeros((0, 1), np.float32), np.zeros(0, np.int32))


class Fit(NamedTuple):
    """The sums over a batch of pairs; rows whose mask is 0 add nothing."""

    wrong: jax.Array  # int32 [], records whose caption is not the clean one
    fit: jax.Array  # int32 [], wrong records whose image is closer to the noisy caption than to the clean one
    lost: jax.Array  # int32 [], records with a score that is not finite


@partial(jax.jit, static_argnames="apply")
def _sum_fit(params: Any, model_state: Any, batch: Mapping[str, jax.Array], *, apply: Callable) -> Fit:
    outputs = apply(params, model_state, batch, train=False, key=None)[0]
    clean = apply(params, model_state, {"text": batch["text_clean"]}, train=False, key=None)[0]["text_embedding"]
    near = (outputs["embedding"] * outputs["text_embedding"]).sum(-1)
    near_clean = (outputs["embedding"] * clean).sum(-1)
    present = batch["mask"] > 0
    wrong = present & (batch["text"] != batch["text_clean"]).any(-1)
    finite = jnp.isfinite(near) & jnp.isfinite(near_clean)
    return Fit(wrong.sum(), (wrong & (near > near_clean)).sum(), (present & ~finite).sum())


class CaptionFit:
    """An Evaluator of the share of wrong captions that a model has memorised.

    Args:
        apply: that of a Model.
        batches: returns this process's batches of the records, from the start. They are dicts of NumPy arrays:
            image [B, H, W, 3], text and text_clean int32 [B, L], and mask float [B]. Records whose two captions have
            the same tokens do not count.
        put, fetch: as in `Retrieval`.
    """

    def __init__(
        self,
        apply: Callable[..., Any],
        batches: Batches,
        *,
        put: Callable[[Any], Any] = jax.device_put,
        fetch: Callable[[Any], Any] = jax.device_get,
    ):
        self.batches, self.put, self.fetch = batches, put, fetch
        self.fit = partial(_sum_fit, apply=apply)

    def run(self, params: Any, model_state: Any) -> Iterator[tuple[str, float]]:
        """Yield noisy_nearer, if some captions are noisy.

        It is the share of these records whose image is closer to the noisy caption than to the clean one.

        Raises:
            UserError: there are no records.
            NonFinite: an embedding is not finite.
        """
        total = self.fetch(collect.add_up(self.fit(params, model_state, self.put(local)) for local in self.batches()))
        if total.lost:
            raise NonFinite(f"the embeddings of {total.lost} record(s) are not finite")
        if total.wrong:
            yield "noisy_nearer", float(total.fit / total.wrong)
