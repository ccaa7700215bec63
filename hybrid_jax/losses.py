"""The two losses: pure functions in float32, per example; the train step reduces and weights them."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp


def token_nll(logits: jax.Array, tokens: jax.Array, axis: int = -1) -> jax.Array:
    """Negative log-likelihood of tokens under categorical logits.

    Args:
      logits: (..., V), any float dtype; the softmax is computed in float32.
      tokens: (...) int, in [0, V).
      axis: axis of the V logits.

    Returns:
      (...) float32, nats.
    """
    logits = logits.astype(jnp.float32)
    codes = jax.lax.broadcasted_iota(jnp.int32, logits.shape, axis % logits.ndim)
    # One-hot instead of a gather: its gradient needs no scatter, and zero logits give exactly log V.
    hit = jnp.expand_dims(tokens, axis) == codes
    return jax.nn.logsumexp(logits, axis=axis) - jnp.sum(jnp.where(hit, logits, 0), axis=axis)


def nt_xent(z1: jax.Array, z2: jax.Array, temperature: float, block_size: int | None = None) -> jax.Array:
    """NT-Xent of SimCLR (Chen et al. 2020, arXiv 2002.05709, eq. 1), one value per anchor.

    loss_i = -cos(i, i') / T + log sum over j != i of exp(cos(i, j) / T), where i' is the other view of i
    and j runs over both views of the global batch, the positive included. The mean over the 2B anchors equals
    lightly's NTXentLoss, solo-learn's simclr_loss_func and optax.losses.ntxent, and exactly half of
    google-research/simclr's add_contrastive_loss, which adds the means over the two views.

    Memory grows with 2B * block_size, forward and backward; no (B, B, D) array is formed. The gradient is a
    `jax.custom_vjp`: only first derivatives in reverse mode (jax.grad, jax.vjp), no jax.jvp.

    Args:
      z1: (B, D) embeddings of the first view, not normalised.
      z2: (B, D) embeddings of the second view; row i is of the same image as row i of z1.
      temperature: T > 0.
      block_size: number of anchors compared with the batch at a time, at least 1; None = automatic.

    Returns:
      (2B,) float32, nats: the anchors of z1, then those of z2.

    Raises:
      ValueError: shapes differ, block_size < 1, or temperature <= 0.
    """
    return nt_xent_and_accuracy(z1, z2, temperature, block_size)[0]


def nt_xent_and_accuracy(
    z1: jax.Array, z2: jax.Array, temperature: float, block_size: int | None = None, devices: int = 1
) -> tuple[jax.Array, jax.Array]:
    """`nt_xent`, and whether each anchor is nearer to its positive than to any negative.

    Args:
      z1: as in `nt_xent`.
      z2: as in `nt_xent`.
      temperature: as in `nt_xent`.
      block_size: as in `nt_xent`.
      devices: number of devices that the batch, and so each block, is sharded over; scales the default block.

    Returns:
      (2B,) float32 losses and (2B,) float32 hits (0 or 1), the anchors of z1, then those of z2.
    """
    if z1.shape != z2.shape or z1.ndim != 2:
        raise ValueError(f"nt_xent: z1 {z1.shape} and z2 {z2.shape} must have one shape (B, D)")
    if not isinstance(temperature, jax.Array) and not temperature > 0:
        raise ValueError(f"nt_xent: temperature={temperature}: must be above 0")
    if block_size is not None and block_size < 1:
        raise ValueError(f"nt_xent: block_size={block_size}: must be at least 1")
    batch, dim = z1.shape
    rows = 2 * batch
    # Row 2i + v is view v of image i: a sharded batch stays on its devices, and i's positive is i ^ 1.
    z = _normalise(jnp.stack([z1, z2], axis=1).reshape(rows, dim).astype(jnp.float32))
    # By default a block's similarities take at most 32 MiB per device.
    block = min(block_size or devices * max(1, 2**23 // rows), rows)
    losses, hits = _interleaved_nt_xent(z / jnp.sqrt(temperature), block)
    return _views_in_order(losses), _views_in_order(hits)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _interleaved_nt_xent(y: jax.Array, block: int) -> tuple[jax.Array, jax.Array]:
    """Losses and hits of rows whose inner products s = y y^T are the similarities, with a custom gradient.

    loss_i = lse_i - s_ii', where i' = i ^ 1 and lse_i = log sum over j != i of exp(s_ij). For weights w_i of the
    losses let G_ij = w_i exp(s_ij - lse_i), and 0 where j = i. As d s_ij = y_j . dy_i + y_i . dy_j,

      d sum(w_i loss_i) / dy_i = sum over j of (G_ij + G_ji) y_j - (w_i + w_i') y_i',

    and since s_ij = s_ji, G_ji follows from row i's similarities: the backward pass multiplies each block with y twice.

    Args:
      y: (2B, D) float32, row 2i + v is view v of image i.
      block: rows at a time, at most 2B.

    Returns:
      (2B,) losses and (2B,) hits.
    """
    return _nt_xent_forward(y, block)[0]


def _nt_xent_forward(y: jax.Array, block: int):
    def one_block(rows):
        anchors, index = rows
        similarity = _similarity(anchors, y)
        # Taken from the product, not summed separately: equal embeddings must tie exactly.
        positive = jnp.take_along_axis(similarity, (index ^ 1)[:, None], axis=1)[:, 0]
        # Read before masking, so that the mask needs no second copy of the block.
        positive, similarity = jax.lax.optimization_barrier((positive, similarity))
        image = jnp.arange(len(y)) // 2
        negatives = jnp.where(image == (index // 2)[:, None], -jnp.inf, similarity)
        hardest = jnp.max(negatives, axis=-1)
        most = jnp.maximum(hardest, positive)
        total = jnp.exp(positive - most) + jnp.sum(jnp.exp(negatives - most[:, None]), axis=-1)
        lse = most + jnp.log(total)
        return lse - positive, (positive > hardest).astype(jnp.float32), lse

    losses, hits, lse = _map_blocks(one_block, block, (y, jnp.arange(len(y))))
    return (losses, hits), (y, lse)


def _nt_xent_backward(block: int, kept, cotangents):
    y, lse = kept
    weight = cotangents[0]

    def one_block(rows):
        anchors, index, own_lse, own_weight = rows
        similarity = _similarity(anchors, y)
        pull = own_weight[:, None] * jnp.exp(similarity - own_lse[:, None]) + weight * jnp.exp(similarity - lse)
        pull = jnp.where(jnp.arange(len(y)) == index[:, None], 0, pull)
        return jnp.matmul(pull, y, precision=jax.lax.Precision.HIGHEST)

    towards_all = _map_blocks(one_block, block, (y, jnp.arange(len(y)), lse, weight))
    return (towards_all - (weight + _partner(weight))[:, None] * _partner(y),)


_interleaved_nt_xent.defvjp(_nt_xent_forward, _nt_xent_backward)


def _similarity(anchors: jax.Array, y: jax.Array) -> jax.Array:
    # By default TPUs would round the factors to bfloat16.
    return jnp.matmul(anchors, y.T, precision=jax.lax.Precision.HIGHEST)


def _map_blocks(function, block: int, arrays):
    """Applies a function to arrays of R rows, `block` rows at a time; results have R rows."""
    rows = len(arrays[0])
    if block == rows:
        return function(arrays)
    blocks = -(-rows // block)

    # Strided, so that each block has rows of every device and all devices work on it.
    def cut(x):
        padded = jnp.pad(x, [(0, blocks * block - rows)] + [(0, 0)] * (x.ndim - 1))
        return padded.reshape(block, blocks, *x.shape[1:]).swapaxes(0, 1)

    results = jax.lax.map(function, jax.tree.map(cut, arrays))
    return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(blocks * block, *x.shape[2:])[:rows], results)


def _partner(x: jax.Array) -> jax.Array:
    """(2B, ...) -> row i holds row i ^ 1."""
    return x.reshape(-1, 2, *x.shape[1:])[:, ::-1].reshape(x.shape)


def _normalise(z: jax.Array) -> jax.Array:
    # The lower bound avoids an infinite gradient at a zero vector.
    return z * jax.lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(z), axis=-1, keepdims=True), 1e-24))


def _views_in_order(rows: jax.Array) -> jax.Array:
    """Interleaved (2B,) -> the anchors of z1, then those of z2."""
    return rows.reshape(-1, 2).T.reshape(-1)


# A contrastive objective maps (z1, z2, temperature, devices=) to (2B,) losses and (2B,) hits.
ContrastiveObjective = Callable[..., tuple[jax.Array, jax.Array]]
CONTRASTIVE: dict[str, ContrastiveObjective] = {"nt_xent": nt_xent_and_accuracy}
