"""The two losses: pure, float32, per example; reduction and weights belong to the train step."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from hybrid_jax.errors import UserError


def token_nll(logits: jax.Array, tokens: jax.Array, axis: int = -1) -> jax.Array:
    """Negative log-likelihood of tokens under categorical logits.

    Args:
      logits: (..., V), any float dtype; the softmax is computed in float32.
      tokens: (...) int, in [0, V).
      axis: where the V logits are instead of last.

    Returns:
      (...) float32, nats.
    """
    logits = logits.astype(jnp.float32)
    codes = jax.lax.broadcasted_iota(jnp.int32, logits.shape, axis % logits.ndim)
    # A one-hot product, not a gather: its gradient is no scatter, and zero logits give exactly log V.
    hit = jnp.expand_dims(tokens, axis) == codes
    return jax.nn.logsumexp(logits, axis=axis) - jnp.sum(jnp.where(hit, logits, 0), axis=axis)


def nt_xent(z1: jax.Array, z2: jax.Array, temperature: float, block_size: int | None = None) -> jax.Array:
    """NT-Xent of SimCLR (Chen et al. 2020, arXiv 2002.05709, eq. 1), one value per anchor.

    loss_i = -cos(i, i') / T + log sum over j != i of exp(cos(i, j) / T), where i' is the other view of i
    and j runs over both views of the global batch, the positive included. The mean over the 2B anchors is
    lightly's NTXentLoss, solo-learn's simclr_loss_func and optax.losses.ntxent, and exactly half of
    google-research/simclr's add_contrastive_loss, which adds the means over the two views.

    Memory grows with 2B * block_size forward and backward; no (B, B, D) array is formed.

    Args:
      z1, z2: (B, D) embeddings of the two views, not normalised; row i of both is one image.
      temperature: T > 0.
      block_size: anchors that are compared with the batch at once, at least 1; None picks one.

    Returns:
      (2B,) float32, nats: the anchors of z1, then those of z2.

    Raises:
      UserError: shapes that differ, a block size below 1, a temperature that is not above 0.
    """
    return nt_xent_and_accuracy(z1, z2, temperature, block_size)[0]


def nt_xent_and_accuracy(
    z1: jax.Array, z2: jax.Array, temperature: float, block_size: int | None = None, devices: int = 1
) -> tuple[jax.Array, jax.Array]:
    """`nt_xent`, and whether each anchor is nearer to its positive than to any negative.

    Args:
      z1, z2, temperature, block_size: as of `nt_xent`.
      devices: that share the batch, each of which takes its part of a block; the default block grows with them.

    Returns:
      (2B,) float32 losses and (2B,) float32 hits (0 or 1), the anchors of z1, then those of z2.
    """
    if z1.shape != z2.shape or z1.ndim != 2:
        raise UserError(f"nt_xent: z1 {z1.shape} and z2 {z2.shape} must have one shape (B, D)")
    if not isinstance(temperature, jax.Array) and not temperature > 0:
        raise UserError(f"nt_xent: temperature={temperature}: must be above 0")
    if block_size is not None and block_size < 1:
        raise UserError(f"nt_xent: block_size={block_size}: must be at least 1")
    batch, dim = z1.shape
    rows = 2 * batch
    # Row 2i + v is view v of image i: a sharded batch stays on its devices, and i's positive is i ^ 1.
    z = _normalise(jnp.stack([z1, z2], axis=1).reshape(rows, dim).astype(jnp.float32))
    # The default keeps a block's similarities within 32 MiB a device.
    block = min(block_size or devices * max(1, 2**23 // rows), rows)
    blocks = -(-rows // block)
    padded = jnp.pad(z, ((0, blocks * block - rows), (0, 0)))

    # Recomputing a block in the backward pass is what keeps memory at one block.
    @jax.checkpoint
    def one_block(anchors_and_index):
        anchors, index = anchors_and_index
        # Float32 products also on TPUs, whose default would round them to bfloat16.
        cosine = jnp.matmul(anchors, z.T, precision=jax.lax.Precision.HIGHEST)
        similarity = cosine / temperature
        column = jnp.arange(rows)
        similarity = jnp.where(column == index[:, None], -jnp.inf, similarity)
        is_positive = column == (index ^ 1)[:, None]
        positive = jnp.sum(jnp.where(is_positive, similarity, 0), axis=-1)
        hardest = jnp.max(jnp.where(is_positive, -jnp.inf, similarity), axis=-1)
        return jax.nn.logsumexp(similarity, axis=-1) - positive, (positive > hardest).astype(jnp.float32)

    # Strided blocks: every block holds rows of every device, so that all of them work on each.
    anchors = padded.reshape(block, blocks, dim).swapaxes(0, 1)
    index = jnp.arange(blocks * block).reshape(block, blocks).T
    if blocks == 1:
        losses, hits = one_block((anchors[0], index[0]))
    else:
        losses, hits = jax.tree.map(lambda x: x.T.reshape(-1), jax.lax.map(one_block, (anchors, index)))
    return _views_in_order(losses[:rows]), _views_in_order(hits[:rows])


def _normalise(z: jax.Array) -> jax.Array:
    # The floor guards a zero vector, whose gradient would be infinite.
    return z * jax.lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(z), axis=-1, keepdims=True), 1e-24))


def _views_in_order(rows: jax.Array) -> jax.Array:
    """Interleaved (2B,) -> the anchors of z1, then those of z2."""
    return rows.reshape(-1, 2).T.reshape(-1)


# A contrastive objective maps (z1, z2, temperature, devices=) to (2B,) losses and (2B,) hits.
ContrastiveObjective = Callable[..., tuple[jax.Array, jax.Array]]
CONTRASTIVE: dict[str, ContrastiveObjective] = {"nt_xent": nt_xent_and_accuracy}
