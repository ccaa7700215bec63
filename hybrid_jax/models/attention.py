"""Scaled dot-product attention (Vaswani et al. 2017, arXiv 1706.03762) with one implementation per platform and shape.

| platform | implementation |
|---|---|
| default | `plain`: two matrix products with a softmax in between, scores in memory |
| CPU, causal, from `BLOCKS_LENGTH` positions | `causal_blocks`: `plain` in blocks of queries, skipping masked keys |
| TPU, from `KERNEL_LENGTH` positions | `splash`: JAX's Pallas kernel, scores in VMEM, block by block |
| GPU, if cuDNN supports shape and dtype | `cudnn`: flash attention through `jax.nn.dot_product_attention` |

All compute the softmax in float32 and agree up to rounding. `jax.nn.dot_product_attention` without cuDNN is not used:
it is slower than `plain` on CPUs and takes more memory on TPUs (benchmarks/README.md).

Dimensions: B batch, N positions, H heads, E features of a head.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from hybrid_jax.sharding import GPU_PLATFORMS

# (B, N, H, E) query, key, value, and whether position i attends to positions <= i only -> (B, N, H, E).
Attend = Callable[[jax.Array, jax.Array, jax.Array, bool], jax.Array]

# Scores of shorter sequences are small; the length where the kernel becomes faster was not measured on a TPU.
KERNEL_LENGTH = 512
# From this length blocks of queries are faster (benchmarks/README.md), unless they are smaller than below.
BLOCKS_LENGTH = 64
_FEWEST_QUERIES = 32
# Block sizes of the TPU kernel; multiples of 128, the register width.
_BLOCKS = (512, 384, 256)


def plain(query: jax.Array, key: jax.Array, value: jax.Array, causal: bool) -> jax.Array:
    """Attention with all scores in memory: (B, H, N, N) float32.

    Args:
      query: (B, N, H, E).
      key: (B, N, H, E).
      value: (B, N, H, E).
      causal: position i attends to positions <= i only.

    Returns:
      (B, N, H, E) of the inputs' dtype.
    """
    n = query.shape[1]
    mask = jnp.tril(jnp.ones((n, n), bool)) if causal else None
    return _unflat(_attended(_flat(query), _flat(key), _flat(value), mask), query.shape)


def causal_blocks(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """`plain` with the causal mask, for blocks of N/8 queries (at least 32) and the keys up to the end of the block.

    It computes and stores 9/16 of the N^2 scores from N = 256, and 3/4 for N = 64; the mask needs about 1/2.

    Args:
      query: (B, N, H, E).
      key: (B, N, H, E).
      value: (B, N, H, E).

    Returns:
      (B, N, H, E) of the inputs' dtype.
    """
    n = query.shape[1]
    rows = max(_FEWEST_QUERIES, -(-n // 8))
    flat_query, flat_key, flat_value = _flat(query), _flat(key), _flat(value)
    found = []
    for start in range(0, n, rows):
        end = min(start + rows, n)
        mask = jnp.tril(jnp.ones((end - start, end), bool), k=start)
        found.append(_attended(flat_query[:, start:end], flat_key[:, :end], flat_value[:, :end], mask))
    return _unflat(jnp.concatenate(found, axis=1), query.shape)


def _attended(query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array | None) -> jax.Array:
    """(batch, queries, E), twice (batch, keys, E), (queries, keys) bool -> (batch, queries, E)."""
    scores = jnp.einsum("bqe,bke->bqk", query, key, preferred_element_type=jnp.float32) * query.shape[-1] ** -0.5
    if mask is not None:
        scores = jnp.where(mask, scores, -1e30)
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True)))
    total = weights.sum(-1, keepdims=True)
    summed = jnp.einsum("bqk,bke->bqe", weights.astype(value.dtype), value, preferred_element_type=jnp.float32)
    return (summed / total).astype(value.dtype)


# One flat batch axis and division after the sum: three times faster on CPUs than a 4-d einsum.
def _flat(x: jax.Array) -> jax.Array:
    b, n, h, e = x.shape
    return x.swapaxes(1, 2).reshape(b * h, n, e)


def _unflat(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    b, n, h, e = shape
    return x.reshape(b, h, n, e).swapaxes(1, 2)


def cudnn(query: jax.Array, key: jax.Array, value: jax.Array, causal: bool) -> jax.Array:
    """`plain` with cuDNN's flash attention, on NVIDIA GPUs if `cudnn_accepts` the inputs."""
    return jax.nn.dot_product_attention(query, key, value, is_causal=causal, implementation="cudnn")


def cudnn_accepts(query: jax.Array | jax.ShapeDtypeStruct) -> bool:
    """Returns whether JAX can use cuDNN for (B, N, H, E): half precision, small enough E, cuDNN installed."""
    like = jax.ShapeDtypeStruct(query.shape, query.dtype)
    try:
        jax.eval_shape(lambda x: cudnn(x, x, x, True), like)
    except (NotImplementedError, RuntimeError, ValueError):
        return False
    return True


def splash(query: jax.Array, key: jax.Array, value: jax.Array, causal: bool, interpret: bool = False) -> jax.Array:
    """`plain` as a Pallas TPU kernel, forward and backward, that never writes scores to HBM.

    Args:
      query: (B, N, H, E) on one device; any N, padded to whole blocks.
      key: as `query`.
      value: as `query`.
      causal: as in `plain`; fully masked blocks are skipped.
      interpret: run the kernel in interpret mode, on any platform.
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    n, h, e = query.shape[1:]
    block = block_size(n)
    padded = -(-n // block) * block
    mask = (masks.CausalMask if causal else masks.FullMask)((padded, padded))
    parts = ("q", "kv", "kv_compute", "q_dkv", "kv_dkv", "kv_dkv_compute", "q_dq", "kv_dq")
    sizes: dict[str, Any] = dict.fromkeys((f"block_{part}" for part in parts), block)
    kernel = kernels.make_splash_mha_single_device(
        masks.MultiHeadMask([mask] * h),
        block_sizes=kernels.BlockSizes(**sizes),
        interpret=interpret,
    )
    # No position attends to padding: it comes last under the causal mask, and is a separate segment otherwise.
    segment = (jnp.arange(padded) >= n).astype(jnp.int32)
    segments = None if causal or padded == n else kernels.SegmentIds(segment, segment)
    query = (query.astype(jnp.float32) * e**-0.5).astype(query.dtype)
    ready = [jnp.pad(x.swapaxes(1, 2), ((0, 0), (0, 0), (0, padded - n), (0, 0))) for x in (query, key, value)]
    found = jax.vmap(kernel, in_axes=(0, 0, 0, None))(*ready, segments)
    return found[:, :, :n].swapaxes(1, 2)


def block_size(length: int) -> int:
    """Returns the block size of the TPU kernel: the one with the least padding, the largest of equals."""
    return 128 if length <= 128 else min(_BLOCKS, key=lambda block: -(-length // block) * block)


@dataclasses.dataclass(frozen=True)
class Attention:
    """Chooses the implementation at trace time, by the platform of the target devices.

    Attributes:
      mesh: target devices, present or not; the batch is sharded over all axes, heads are not.
      interpret: whether to run Pallas kernels in interpret mode.
    """

    mesh: Mesh
    interpret: bool = False

    def wants_whole_arrays(self, query: jax.ShapeDtypeStruct, causal: bool) -> bool:
        """Returns whether inputs that are slices of one array would be copied, as in calls of cuDNN."""
        return self.form(query, causal) == "cudnn"

    def form(self, query: jax.Array | jax.ShapeDtypeStruct, causal: bool) -> str:
        """Returns the name of the implementation for (B, N, H, E)."""
        platform = self.mesh.devices.flat[0].platform
        if platform == "cpu" and causal and query.shape[1] >= BLOCKS_LENGTH:
            return "causal_blocks"
        if platform == "tpu" and query.shape[1] >= KERNEL_LENGTH:
            return "splash"
        if platform in GPU_PLATFORMS and cudnn_accepts(query):
            return "cudnn"
        return "plain"

    def __call__(self, query: jax.Array, key: jax.Array, value: jax.Array, causal: bool) -> jax.Array:
        """Computes attention; see `plain`."""
        form = self.form(query, causal)
        if form == "plain":
            return plain(query, key, value, causal)
        if form == "causal_blocks":
            return causal_blocks(query, key, value)

        def local(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
            if form == "cudnn":
                return cudnn(query, key, value, causal)
            return splash(query, key, value, causal, self.interpret)

        if self.mesh.size == 1:
            return local(query, key, value)
        # The partitioner cannot split a kernel: each device calls it on its part of the batch.
        cut = P(self.mesh.axis_names)
        mapped = jax.shard_map(local, mesh=self.mesh, in_specs=(cut,) * 3, out_specs=cut, check_vma=False)
        return mapped(query, key, value)


def choose(setting: str, mesh: Mesh | None) -> Attend:
    """Returns the attention function.

    Args:
      setting: `model.attention`.
      mesh: mesh of the target devices; None if unknown at trace time.
    """
    return plain if mesh is None or setting == "plain" else Attention(mesh)


def default_device() -> Mesh:
    """Returns a mesh of the default device, for programs without a mesh."""
    return Mesh(np.array(jax.devices()[:1]), ("data",))
