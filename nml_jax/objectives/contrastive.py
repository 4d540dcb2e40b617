"""Contrastive image-text objectives on the global batch: CLIP's symmetric InfoNCE and SigLIP's sigmoid loss.

Each has a plain form, which holds the B × B logits, and a chunked form, which holds chunk × B of them on every device.
There, the devices hold `blocks` equal consecutive blocks of the batch's rows. All devices go through their own blocks
together, `chunk` rows at a time, so that none waits for another. The backward pass recomputes the logits of a chunk.
The logsumexp and the gradient of a column are kept per block, and summed over the blocks once, at the end.

So InfoNCE takes four products of B × B × E operations where the plain form takes three. The sigmoid loss takes three in
both forms: its gradient needs nothing from other chunks and is computed with the value.
"""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from nml_jax.errors import UserError

# The forms of the loss, and the outputs of the model that each needs.
FORMS = {
    "clip": ("embedding", "text_embedding", "logit_scale"),
    "siglip": ("embedding", "text_embedding", "logit_scale", "logit_bias"),
}

_einsum = partial(jnp.einsum, precision="highest")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contrastive:
    """An Objective over batches of image [B, S, S, 3] and text [B, L]; row i of both is a pair.

    The model returns embedding and text_embedding, L2-normalised float32 [B, E], and logit_scale, float32 [].

    Attributes:
        form: "clip", or "siglip", which also needs the model's logit_bias, float32 []. In "clip" a bias would cancel.
        chunk: rows of the logits per device at a time; 0 for the plain form.
        blocks: number of blocks of consecutive rows, one for each device; it divides B.
    """

    form: str = "clip"
    chunk: int = 0
    blocks: int = 1

    def loss(
        self, model: Any, params: Any, model_state: Any, batch: Mapping[str, jax.Array], key: jax.Array
    ) -> tuple[jax.Array, tuple[Any, dict[str, tuple[jax.Array, jax.Array]]]]:
        """Return the loss of the global batch, the new model state, and the metrics as (sum, count).

        `accuracy` is the share of images whose own text has the highest logit among the batch's texts; the first of
        equal logits counts.

        Raises:
            UserError: the model returns no embeddings, or it has no bias and the sigmoid loss needs one.
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
    """Make the objective of the section `objective` of configs/common.py, whose name is the form.

    Raises:
        UserError: a value is out of range.
    """
    if config.chunk < 0:
        raise UserError(
            f"objective.chunk={config.chunk} is out of range", "give a number of rows per device, or 0 for all of them"
        )
    return Contrastive(form=config.name, chunk=config.chunk, blocks=blocks)


def info_nce(
    x: jax.Array, y: jax.Array, scale: jax.Array, *, chunk: int = 0, blocks: int = 1
) -> tuple[jax.Array, jax.Array]:
    """Compute the InfoNCE loss (arXiv 2103.00020, figure 3).

    It is the mean over i of ½ (logsumexp_j l_ij + logsumexp_j l_ji) − l_ii with l = scale · x yᵀ.

    Args:
        x: float32 [B, E], image embeddings.
        y: float32 [B, E], text embeddings.
        scale: float32 [].
        chunk, blocks: as in `Contrastive`.

    Returns:
        float32 [], and bool [B]: whether l_ii is the highest of row i, and the first of equal ones.
    """
    if chunk:
        results: Any = _info_nce(chunk, x.reshape(blocks, -1, x.shape[-1]), y, scale)
        rows, columns, correct = results
        return (rows.mean() + columns.mean()) / 2, correct.reshape(-1)
    logits = _einsum("ie,je->ij", scale * x, y)
    own = jnp.diagonal(logits)
    # Subtract the own logit before the logsumexp, so that a small loss keeps its digits if this logit is the highest.
    zero = jax.lax.stop_gradient(own)
    rows, columns = jax.nn.logsumexp(logits - zero[:, None], 1), jax.nn.logsumexp(logits - zero, 0)
    return ((rows + columns) / 2 + (zero - own)).mean(), logits.argmax(-1) == jnp.arange(len(x))


def sigmoid_loss(
    x: jax.Array, y: jax.Array, scale: jax.Array, bias: jax.Array, *, chunk: int = 0, blocks: int = 1
) -> tuple[jax.Array, jax.Array]:
    """Compute the sigmoid loss (arXiv 2303.15343, eq. 1).

    It is −(1/B) Σ_ij log σ(z_ij (scale · x yᵀ + bias)_ij) with z_ij = 1 for i = j and −1 elsewhere. Arguments and
    results are those of `info_nce`; bias: float32 [].
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
    """Compute the two losses of each pair, and whether its own text is the first of the highest.

    These are logsumexp_j l_ij − l_ii, [blocks, b]; logsumexp_i l_ij − l_jj, [B]; and bool [blocks, b].

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
        logits, own, correct = _compute_logits(scale * x, everywhere, index)
        top = logits.max(-1)
        row_total = jnp.exp(logits - top[..., None]).sum(-1)
        higher = jnp.maximum(high, logits.max(1))
        total = total * jnp.exp(high - higher) + jnp.exp(logits - higher[:, None]).sum(1)
        return (higher, total), (top, row_total, own, correct)

    start = (jnp.full(everywhere.shape[:2], -jnp.inf), jnp.zeros(everywhere.shape[:2]))
    (high, total), (top, row_total, own, correct) = _scan(step, start, (x, _index_rows(x)), chunk)
    highest = high.max(0)
    total = (total * jnp.exp(high - highest)).sum(0)
    rows = top - own + jnp.log(row_total)
    columns = highest - own.reshape(-1) + jnp.log(total)
    return (rows, columns, correct), (x, y, scale, top, row_total, rows, highest, total, columns)


def _info_nce_backward(chunk: int, kept: Any, cotangents: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
    x, y, scale, top, row_total, rows, highest, total, columns = kept
    d_rows, d_columns, _ = cotangents
    everywhere = jnp.broadcast_to(y, (len(x), *y.shape))
    # softmax − 1 of the own logit, computed from the loss: accurate in float32 even if the softmax rounds to 1
    d_own = d_rows * jnp.expm1(-rows) + (d_columns * jnp.expm1(-columns)).reshape(d_rows.shape)
    column_weight = d_columns / total

    def step(dy: jax.Array, rows: Any) -> tuple[jax.Array, Any]:
        x, index, top, weight, d_own = rows
        logits = _einsum("dke,dje->dkj", scale * x, everywhere)
        dl = weight[..., None] * jnp.exp(logits - top[..., None]) + column_weight * jnp.exp(logits - highest)
        dl = jnp.where(_is_own(index, len(y)), d_own[..., None], dl)
        return _apply_gradient(dl, dy, x, everywhere, scale)

    rows = (x, _index_rows(x), top, d_rows / row_total, d_own)
    dy, (dx, d_scale) = _scan(step, jnp.zeros_like(everywhere), rows, chunk)
    return dx, dy.sum(0), d_scale.sum()


_info_nce.defvjp(_info_nce_forward, _info_nce_backward)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _sigmoid_loss(
    chunk: int, x: jax.Array, y: jax.Array, scale: jax.Array, bias: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Compute `sigmoid_loss` of x [blocks, b, E] and y [B, E], and whether l_ii is the first of row i's highest."""
    return _sigmoid_loss_forward(chunk, x, y, scale, bias)[0]


def _sigmoid_loss_forward(chunk: int, x: jax.Array, y: jax.Array, scale: jax.Array, bias: jax.Array) -> tuple[Any, Any]:
    everywhere = jnp.broadcast_to(y, (len(x), *y.shape))

    def step(dy: jax.Array, rows: Any) -> tuple[jax.Array, Any]:
        x, index = rows
        logits, _, correct = _compute_logits(scale * x, everywhere, index)
        minus_z = jnp.where(_is_own(index, len(y)), -1, 1)
        losses = jax.nn.softplus(minus_z * (logits + bias)).sum(-1)
        dl = minus_z * jax.nn.sigmoid(minus_z * (logits + bias)) / len(y)
        dy, (dx, d_scale) = _apply_gradient(dl, dy, x, everywhere, scale)
        return dy, (losses, correct, dx, d_scale, dl.sum(-1))

    dy, (losses, correct, dx, d_scale, d_bias) = _scan(step, jnp.zeros_like(everywhere), (x, _index_rows(x)), chunk)
    return (losses.mean(), correct), (dx, dy.sum(0), d_scale.sum(), d_bias.sum())


def _sigmoid_loss_backward(chunk: int, kept: Any, cotangents: Any) -> Any:
    return jax.tree.map(lambda gradient: cotangents[0] * gradient, kept)


_sigmoid_loss.defvjp(_sigmoid_loss_forward, _sigmoid_loss_backward)


def _compute_logits(x: jax.Array, y: jax.Array, index: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Compute the logits x yᵀ [blocks, k, B] of some rows.

    Args:
        x: [blocks, k, E].
        y: [blocks, B, E].
        index: [blocks, k], positions of the rows in the batch.

    Returns:
        The logits, and, [blocks, k] each, the own logit and whether it is the first of the highest.
    """
    logits = _einsum("dke,dje->dkj", x, y)
    own = jnp.take_along_axis(logits, index[..., None], -1)
    later = jnp.arange(y.shape[1]) >= index[..., None]
    correct = (logits < own) | ((logits == own) & later)  # an argmax is far slower on CPU
    return logits, own[..., 0], correct.all(-1)


def _is_own(index: jax.Array, columns: int) -> jax.Array:
    """Mark the own column of every row."""
    return index[..., None] == jnp.arange(columns)


def _apply_gradient(
    dl: jax.Array, dy: jax.Array, x: jax.Array, y: jax.Array, scale: jax.Array
) -> tuple[jax.Array, Any]:
    """Apply the gradient `dl` of a chunk of logits.

    Returns:
        `dy` with the chunk's gradient added; the gradients of x, [blocks, k, E], and, for each row, of the scale,
        [blocks, k].
    """
    dx = _einsum("dkj,dje->dke", dl, y)
    return dy + _einsum("dkj,dke->dje", dl, scale * x), (scale * dx, (x * dx).sum(-1))


def _index_rows(x: jax.Array) -> jax.Array:
    """Return the position in the batch of each row of x [blocks, b, E]."""
    return jnp.arange(x.shape[0] * x.shape[1]).reshape(x.shape[:2])


def _scan(step: Callable[[Any, Any], tuple[Any, Any]], carry: Any, rows: Any, chunk: int) -> tuple[Any, Any]:
    """Run `lax.scan` over `chunk` rows of every block at a time; the last chunk may be smaller.

    Args:
        step: (carry, rows [blocks, k, ...]) -> (carry, one result per row [blocks, k, ...]).
        carry: its first value.
        rows: tree of [blocks, b, ...].

    Returns:
        The last carry and the results for all rows, [blocks, b, ...].
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
