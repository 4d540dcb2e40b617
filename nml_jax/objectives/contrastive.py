"""Contrastive image-text objectives on the global batch: CLIP's symmetric InfoNCE and SigLIP's sigmoid loss.

Each has a plain form, which holds the B × B logits, and a chunked form, which holds chunk × B of them on every device:
the rows of the batch lie on the devices in `blocks` equal consecutive blocks, and all devices go through their own
block together, `chunk` rows at a time, so that none waits for another. The backward pass computes the logits of a chunk
anew. What belongs to a column (its logsumexp, its gradient) is kept per block and summed over the blocks once, at the
end. InfoNCE thus takes four products of B × B × E operations where the plain form takes three; the sigmoid loss takes
three in both, for its gradient needs nothing from other chunks and is made with the value.
"""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from nml_jax.errors import UserError

# The forms of the loss, and what each reads of the model's outputs.
FORMS = {
    "clip": ("embedding", "text_embedding", "logit_scale"),
    "siglip": ("embedding", "text_embedding", "logit_scale", "logit_bias"),
}

_einsum = partial(jnp.einsum, precision="highest")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contrastive:
    """An Objective over batches of image [B, S, S, 3] and text [B, L], where row i of both is a pair.

    The model returns embedding and text_embedding, L2-normalised float32 [B, E], and logit_scale, float32 [].

    Attributes:
        form: "clip", or "siglip", which also needs the model's logit_bias, float32 []. In "clip" a bias would cancel.
        chunk: rows of the logits per device at a time; 0: the plain form.
        blocks: of consecutive rows in which a batch lies on the devices; it divides B.
    """

    form: str = "clip"
    chunk: int = 0
    blocks: int = 1

    def loss(
        self, model: Any, params: Any, model_state: Any, batch: Mapping[str, jax.Array], key: jax.Array
    ) -> tuple[jax.Array, tuple[Any, dict[str, tuple[jax.Array, jax.Array]]]]:
        """The loss of the global batch, the new model state, and the metrics as (sum, count).

        `accuracy` is the share of images whose own text is the first of the highest logits among the batch's texts.

        Raises:
            UserError: the model returns no embeddings, or the sigmoid loss needs a bias and the model has none.
        """
        outputs, new_state = model.apply(params, model_state, batch, train=True, key=key)
        missing = [name for name in FORMS[self.form] if name not in outputs]
        if missing:
            cure = "--config.model.logit_bias=-10.0" if missing == ["logit_bias"] else "--config.model.name=clip"
            raise UserError(f"objective.name={self.form!r}, but the model returns no {missing[0]}", cure)
        x, y, scale, *bias = (outputs[name] for name in FORMS[self.form])
        loss = {"clip": info_nce, "siglip": sigmoid_loss}[self.form]
        value, correct = loss(x, y, scale, *bias, chunk=self.chunk, blocks=self.blocks)
        count = jnp.float32(len(x))
        metrics = {
            "loss": (value * count, count),
            "accuracy": (correct.sum(dtype=jnp.float32), count),
            "logit_scale": (scale, jnp.float32(1)),
        }
        return value, (new_state, metrics)


def make(config: ConfigDict, *, blocks: int) -> Contrastive:
    """The objective of the section `objective` of configs/common.py, whose name is its form.

    Raises:
        UserError: a value is out of range.
    """
    if config.chunk < 0:
        raise UserError(
            f"objective.chunk={config.chunk} is out of range", "give rows of a device, or 0 for all of them"
        )
    return Contrastive(form=config.name, chunk=config.chunk, blocks=blocks)


def info_nce(
    x: jax.Array, y: jax.Array, scale: jax.Array, *, chunk: int = 0, blocks: int = 1
) -> tuple[jax.Array, jax.Array]:
    """mean over i of ½ (logsumexp_j l_ij + logsumexp_j l_ji) − l_ii with l = scale · x yᵀ (arXiv 2103.00020, figure 3).

    Args:
        x: float32 [B, E], image embeddings.
        y: float32 [B, E], text embeddings.
        scale: float32 [].
        chunk, blocks: as in `Contrastive`.

    Returns:
        float32 [], and bool [B]: whether l_ii is the first of the highest of row i.
    """
    if chunk:
        results: Any = _info_nce(chunk, x.reshape(blocks, -1, x.shape[-1]), y, scale)
        rows, columns, correct = results
        return (rows.mean() + columns.mean()) / 2, correct.reshape(-1)
    logits = _einsum("ie,je->ij", scale * x, y)
    own = jnp.diagonal(logits)
    # Less the own logit before the logsumexp: where it is the highest, a small loss keeps its digits.
    zero = jax.lax.stop_gradient(own)
    rows, columns = jax.nn.logsumexp(logits - zero[:, None], 1), jax.nn.logsumexp(logits - zero, 0)
    return ((rows + columns) / 2 + (zero - own)).mean(), logits.argmax(-1) == jnp.arange(len(x))


def sigmoid_loss(
    x: jax.Array, y: jax.Array, scale: jax.Array, bias: jax.Array, *, chunk: int = 0, blocks: int = 1
) -> tuple[jax.Array, jax.Array]:
    """−(1/B) Σ_ij log σ(z_ij (scale · x yᵀ + bias)_ij), z_ij = 1 for i = j and −1 elsewhere (arXiv 2303.15343, eq. 1).

    Args and returns as `info_nce`; bias: float32 [].
    """
    if chunk:
        results: Any = _sigmoid_loss(chunk, x.reshape(blocks, -1, x.shape[-1]), y, scale, bias)
        value, correct = results
        return value, correct.reshape(-1)
    logits = _einsum("ie,je->ij", scale * x, y) + bias
    z = 2 * jnp.eye(len(x)) - 1
    return jax.nn.softplus(-z * logits).sum(1).mean(), logits.argmax(-1) == jnp.arange(len(x))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _info_nce(chunk: int, x: jax.Array, y: jax.Array, scale: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """logsumexp_j l_ij − l_ii, [blocks, b]; logsumexp_i l_ij − l_jj, [B]; is l_ii the first highest of i, [blocks, b].

    Args:
        chunk: rows of a block at a time.
        x: float32 [blocks, b, E].
        y: float32 [B, E] with B = blocks · b.
        scale: float32 [].
    """
    return _info_nce_forward(chunk, x, y, scale)[0]


def _info_nce_forward(chunk: int, x: jax.Array, y: jax.Array, scale: jax.Array) -> tuple[Any, Any]:
    everywhere = jnp.broadcast_to(y, (len(x), *y.shape))

    def step(carry: Any, rows: Any) -> tuple[Any, Any]:
        high, total = carry
        x, index = rows
        logits, own, correct = _logits(scale * x, everywhere, index)
        top = logits.max(-1)
        row_total = jnp.exp(logits - top[..., None]).sum(-1)
        higher = jnp.maximum(high, logits.max(1))
        total = total * jnp.exp(high - higher) + jnp.exp(logits - higher[:, None]).sum(1)
        return (higher, total), (top, row_total, own, correct)

    start = (jnp.full(everywhere.shape[:2], -jnp.inf), jnp.zeros(everywhere.shape[:2]))
    (high, total), (top, row_total, own, correct) = _scan(step, start, (x, _index(x)), chunk)
    highest = high.max(0)
    total = (total * jnp.exp(high - highest)).sum(0)
    rows = top - own + jnp.log(row_total)
    columns = highest - own.reshape(-1) + jnp.log(total)
    return (rows, columns, correct), (x, y, scale, top, row_total, rows, highest, total, columns)


def _info_nce_backward(chunk: int, kept: Any, cotangents: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
    x, y, scale, top, row_total, rows, highest, total, columns = kept
    d_rows, d_columns, _ = cotangents
    everywhere = jnp.broadcast_to(y, (len(x), *y.shape))
    # softmax − 1 of the own logit, by way of the loss: right to float32 where the softmax rounds to 1
    d_own = d_rows * jnp.expm1(-rows) + (d_columns * jnp.expm1(-columns)).reshape(d_rows.shape)
    column_weight = d_columns / total

    def step(dy: jax.Array, rows: Any) -> tuple[jax.Array, Any]:
        x, index, top, weight, d_own = rows
        logits = _einsum("dke,dje->dkj", scale * x, everywhere)
        dl = weight[..., None] * jnp.exp(logits - top[..., None]) + column_weight * jnp.exp(logits - highest)
        dl = jnp.where(_is_own(index, len(y)), d_own[..., None], dl)
        return _products(dl, dy, x, everywhere, scale)

    rows = (x, _index(x), top, d_rows / row_total, d_own)
    dy, (dx, d_scale) = _scan(step, jnp.zeros_like(everywhere), rows, chunk)
    return dx, dy.sum(0), d_scale.sum()


_info_nce.defvjp(_info_nce_forward, _info_nce_backward)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _sigmoid_loss(
    chunk: int, x: jax.Array, y: jax.Array, scale: jax.Array, bias: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """`sigmoid_loss` of x [blocks, b, E] and y [B, E]; whether l_ii is the first highest of i, [blocks, b]."""
    return _sigmoid_loss_forward(chunk, x, y, scale, bias)[0]


def _sigmoid_loss_forward(chunk: int, x: jax.Array, y: jax.Array, scale: jax.Array, bias: jax.Array) -> tuple[Any, Any]:
    everywhere = jnp.broadcast_to(y, (len(x), *y.shape))

    def step(dy: jax.Array, rows: Any) -> tuple[jax.Array, Any]:
        x, index = rows
        logits, _, correct = _logits(scale * x, everywhere, index)
        minus_z = jnp.where(_is_own(index, len(y)), -1, 1)
        losses = jax.nn.softplus(minus_z * (logits + bias)).sum(-1)
        dl = minus_z * jax.nn.sigmoid(minus_z * (logits + bias)) / len(y)
        dy, (dx, d_scale) = _products(dl, dy, x, everywhere, scale)
        return dy, (losses, correct, dx, d_scale, dl.sum(-1))

    dy, (losses, correct, dx, d_scale, d_bias) = _scan(step, jnp.zeros_like(everywhere), (x, _index(x)), chunk)
    return (losses.mean(), correct), (dx, dy.sum(0), d_scale.sum(), d_bias.sum())


def _sigmoid_loss_backward(chunk: int, kept: Any, cotangents: Any) -> Any:
    return jax.tree.map(lambda gradient: cotangents[0] * gradient, kept)


_sigmoid_loss.defvjp(_sigmoid_loss_forward, _sigmoid_loss_backward)


def _logits(x: jax.Array, y: jax.Array, index: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """x yᵀ [blocks, k, B] of rows x [blocks, k, E] that stand at `index` [blocks, k] in the batch, y [blocks, B, E].

    Then, [blocks, k] each: the own logit, and whether it is the first of the highest.
    """
    logits = _einsum("dke,dje->dkj", x, y)
    own = jnp.take_along_axis(logits, index[..., None], -1)
    later = jnp.arange(y.shape[1]) >= index[..., None]
    correct = (logits < own) | ((logits == own) & later)  # an argmax is far slower on CPU
    return logits, own[..., 0], correct.all(-1)


def _is_own(index: jax.Array, columns: int) -> jax.Array:
    return index[..., None] == jnp.arange(columns)


def _products(dl: jax.Array, dy: jax.Array, x: jax.Array, y: jax.Array, scale: jax.Array) -> tuple[jax.Array, Any]:
    """Given dl, the gradient of a chunk of logits: `dy` with what it adds to it; the gradients of x, [blocks, k, E],
    and, row by row, of the scale, [blocks, k]."""
    dx = _einsum("dkj,dje->dke", dl, y)
    return dy + _einsum("dkj,dke->dje", dl, scale * x), (scale * dx, (x * dx).sum(-1))


def _index(x: jax.Array) -> jax.Array:
    """Where each row of x [blocks, b, E] stands in the batch."""
    return jnp.arange(x.shape[0] * x.shape[1]).reshape(x.shape[:2])


def _scan(step: Callable[[Any, Any], tuple[Any, Any]], carry: Any, rows: Any, chunk: int) -> tuple[Any, Any]:
    """`lax.scan` over `chunk` rows of every block at a time; the last chunk has what is left.

    Args:
        step: (carry, rows [blocks, k, ...]) -> (carry, something of each row [blocks, k, ...]).
        carry: its first value.
        rows: tree of [blocks, b, ...].

    Returns:
        The last carry and what `step` gave for all rows, [blocks, b, ...].
    """
    blocks, b = jax.tree.leaves(rows)[0].shape[:2]
    chunk = min(chunk, b)
    n, rest = divmod(b, chunk)

    def take(start: Any, size: int) -> Any:
        return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, start, size, 1), rows)

    carry, out = jax.lax.scan(lambda carry, i: step(carry, take(i * chunk, chunk)), carry, jnp.arange(n))
    out = jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1).reshape(blocks, n * chunk, *x.shape[3:]), out)
    if not rest:
        return carry, out
    carry, last = step(carry, take(n * chunk, rest))
    return carry, jax.tree.map(lambda *parts: jnp.concatenate(parts, 1), out, last)
