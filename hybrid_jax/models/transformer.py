"""Pre-norm transformer blocks with shared weights for the full and the causal mask; encoder and decoder.

Dimensions: B batch, N positions, D width, H heads, E = D/H, S tokens per patch, Q patches of a stream.
"""

import contextlib
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from hybrid_jax.models import tokens as tokens_lib
from hybrid_jax.models.attention import Attend, Attention, plain

# On accelerators, the gradient of a look-up is a product if the table has at most this many rows per feature.
_MOST_ROWS_A_FEATURE = 4
Constrain = Callable[..., jax.Array]  # (activation, index of its batch axis, by default 0) -> activation


def quick_gelu(x: jax.Array) -> jax.Array:
    """x * sigmoid(1.702 x), the activation of Image GPT (openai/image-gpt, src/model.py: gelu2)."""
    return x * jax.nn.sigmoid(1.702 * x)


# Recomputed in the backward pass from their input: cheaper than reading the intermediates that automatic
# differentiation would store.
ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    name: jax.checkpoint(function)
    for name, function in {"gelu": nn.gelu, "quick_gelu": quick_gelu, "relu": nn.relu}.items()
}


class Dense(nn.Dense):
    """`nn.Dense` on flattened leading axes.

    On CPUs, XLA computes the kernel gradient of a 3-d input, a contraction over two axes, seven times
    slower than for the equal matrix; elsewhere the reshape is free.
    """

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(..., F) -> (..., features)."""
        return super().__call__(x.reshape(-1, x.shape[-1])).reshape(*x.shape[:-1], self.features)


@jax.custom_vjp
def add_positions(x: jax.Array, positions: jax.Array) -> jax.Array:
    """Adds (N, D) float32 positions to (B, N, D) in the dtype of `x`; their gradient is summed over B in float32."""
    return x + positions.astype(x.dtype)


def _positions_gradient(_, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    # The barrier keeps the sum over the first of two axes. Without it XLA's GPU compiler chooses a patch-major layout
    # for all activations of the stack, which suits this sum, and transposes them before every product.
    flat = jax.lax.optimization_barrier(gradient.reshape(len(gradient), -1))
    return gradient, jnp.sum(flat, axis=0, dtype=jnp.float32).reshape(gradient.shape[1:])


add_positions.defvjp(lambda x, positions: (add_positions(x, positions), None), _positions_gradient)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def look_up(table: jax.Array, index: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Looks up rows of a table; the gradient is summed in float32, since long bfloat16 sums lose precision.

    Args:
      table: (V, D) float32.
      index: (...) int32, in [0, V).
      dtype: dtype of the result, static.

    Returns:
      (..., D).
    """
    return table[index].astype(dtype)


def sum_rows(index: jax.Array, rows: jax.Array, size: int) -> jax.Array:
    """Sums (T, D) rows by their (T,) `index`: (size, D) float32."""
    return jnp.zeros((size, rows.shape[-1])).at[index].add(rows.astype(jnp.float32))


def sum_rows_by_product(index: jax.Array, rows: jax.Array, size: int) -> jax.Array:
    """`sum_rows` as a one-hot matrix product: accelerators process a scatter serially."""
    hot = (index[:, None] == jnp.arange(size)).astype(rows.dtype)
    return jnp.matmul(hot.T, rows, precision=jax.lax.Precision.HIGHEST, preferred_element_type=jnp.float32)


def _look_up_gradient(dtype: jnp.dtype, kept, gradient: jax.Array) -> tuple[jax.Array, None]:
    index, size = kept
    rows = gradient.reshape(-1, gradient.shape[-1])
    scatter = functools.partial(sum_rows, size=size)
    if size > _MOST_ROWS_A_FEATURE * rows.shape[-1]:
        return scatter(index.reshape(-1), rows), None
    product = functools.partial(sum_rows_by_product, size=size)
    return jax.lax.platform_dependent(index.reshape(-1), rows, cpu=scatter, default=product), None


look_up.defvjp(lambda table, index, dtype: (look_up(table, index, dtype), (index, len(table))), _look_up_gradient)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def float32_einsum(equation: str, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`jnp.einsum` with factors in the dtype of `x` and a float32 result, for a softmax; also in its gradients.

    Args:
      equation: two operands; each letter occurs in exactly two of the three terms.
      x: array in the dtype of the product.
      kernel: array, rounded to the dtype of `x`.

    Returns:
      float32 array.
    """
    return jnp.einsum(equation, x, kernel.astype(x.dtype), preferred_element_type=jnp.float32)


def _einsum_gradient(equation: str, kept, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = kept
    (left, right), out = equation.split("->")[0].split(","), equation.split("->")[1]
    gradient = gradient.astype(x.dtype)
    for_x = jnp.einsum(f"{out},{right}->{left}", gradient, kernel.astype(x.dtype))
    for_kernel = jnp.einsum(f"{left},{out}->{right}", x, gradient, preferred_element_type=jnp.float32)
    return for_x, for_kernel.astype(kernel.dtype)


float32_einsum.defvjp(lambda equation, x, kernel: (float32_einsum(equation, x, kernel), (x, kernel)), _einsum_gradient)


def exact_products(dtype: str) -> contextlib.AbstractContextManager:
    """Context in which traced float32 products are exact, for inference with a model of `model.dtype`.

    By default GPUs round factors to TF32 and TPUs to bfloat16: enough for training, but not for likelihoods that agree
    across machines to 1e-4 nats. No effect on CPUs or for bfloat16.
    """
    if dtype != "float32" or jax.default_backend() == "cpu":
        return contextlib.nullcontext()
    return jax.default_matmul_precision("highest")


def rms_norm(name: str | None = None) -> nn.RMSNorm:
    """RMSNorm (Zhang & Sennrich 2019, arXiv 1910.07467), eps 1e-5 as in Image GPT, in float32."""
    return nn.RMSNorm(epsilon=1e-5, dtype=jnp.float32, name=name)


def attend_cached(query: jax.Array, keys: jax.Array, values: jax.Array, start: jax.Array) -> jax.Array:
    """Attention of n new positions to all cached ones, with the causal mask.

    Args:
      query: (B, n, H, E), positions start .. start + n - 1.
      keys: (B, H, L, E), filled up to position start + n - 1.
      values: (B, H, L, E), filled up to position start + n - 1.
      start: () int32.

    Returns:
      (B, n, H, E) of the inputs' dtype.
    """
    n, length = query.shape[1], keys.shape[2]
    # Not flattened as in `attention.plain`: for one query, a flat batch axis is four times slower on CPUs.
    scores = jnp.einsum("bnhe,bhle->bhnl", query, keys, preferred_element_type=jnp.float32)
    seen = jnp.arange(length) <= start + jnp.arange(n)[:, None]
    scores = jnp.where(seen, scores * query.shape[-1] ** -0.5, -1e30)
    weights = jnp.exp(scores - scores.max(-1, keepdims=True))
    total = weights.sum(-1, keepdims=True)
    summed = jnp.einsum("bhnl,bhle->bhne", weights.astype(values.dtype), values, preferred_element_type=jnp.float32)
    return (summed / total).astype(values.dtype).swapaxes(1, 2)


class QKV(nn.Module):
    """Projection to queries, keys and values with one kernel.

    Attributes:
      num_heads: H.
      dtype: dtype of the products.
      separate: compute three products instead of slicing the result of one.
    """

    num_heads: int
    dtype: jnp.dtype
    separate: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """(B, N, D) -> three (B, N, H, E)."""
        b, n, d = x.shape
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (d, 3 * d)).astype(self.dtype)
        flat, shape = x.reshape(-1, d), (b, n, self.num_heads, d // self.num_heads)
        if self.separate:
            query, key, value = (flat @ part for part in jnp.split(kernel, 3, axis=1))
        else:
            whole = (flat @ kernel).reshape(b, n, 3, d)
            query, key, value = whole[:, :, 0], whole[:, :, 1], whole[:, :, 2]
        return query.reshape(shape), key.reshape(shape), value.reshape(shape)


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); bias-free, MLP ratio 4, no dropout.

    Attributes:
      num_heads: H; divides D.
      depth: blocks in the stack; output projections start smaller by 1/sqrt(2 depth) (GPT-2).
      activation: a key of `ACTIVATIONS`.
      dtype: dtype of matrix products.
      constrain: shards activations; identity on one device.
      attend: attention function.
    """

    num_heads: int
    depth: int
    activation: str
    dtype: jnp.dtype
    constrain: Constrain
    attend: Attend = plain

    @nn.compact
    def __call__(self, x: jax.Array, causal: bool, start: jax.Array | None = None) -> jax.Array:
        """(B, N, D) -> (B, N, D).

        With `start`, x holds the positions from `start` and attention is causal: keys and values are added to those of
        earlier positions in the `cache` collection.
        """
        b, n, d = x.shape
        in_init = nn.initializers.lecun_normal()
        out_init = nn.initializers.variance_scaling(0.5 / self.depth, "fan_in", "truncated_normal")

        def dense(features, name, init=in_init):
            return Dense(features, use_bias=False, dtype=self.dtype, kernel_init=init, name=name)

        x = self.constrain(x)
        y = rms_norm("attention_norm")(x)
        # Stored only if the caller makes this collection mutable (for Image GPT's features).
        self.sow("intermediates", "normed", y)
        y = y.astype(self.dtype)
        separate = False
        if start is None and isinstance(self.attend, Attention):
            like = jax.ShapeDtypeStruct((b, n, self.num_heads, d // self.num_heads), self.dtype)
            separate = self.attend.wants_whole_arrays(like, causal)
        query, key, value = QKV(self.num_heads, self.dtype, separate, name="qkv")(y)
        if start is None:
            y = self.attend(query, key, value, causal)
        else:
            y = attend_cached(query, self._cached("keys", key, start), self._cached("values", value, start), start)
        x = self.constrain(x + dense(d, "attention_out", out_init)(y.reshape(b, n, d)))
        y = rms_norm("mlp_norm")(x).astype(self.dtype)
        y = ACTIVATIONS[self.activation](dense(4 * d, "mlp_in")(y))
        return self.constrain(x + dense(d, "mlp_out", out_init)(y))

    def _cached(self, name: str, new: jax.Array, start: jax.Array) -> jax.Array:
        """Writes (B, n, H, E) to the cache at `start`; returns the whole cache, (B, H, L, E)."""
        before: jax.Array = self.get_variable("cache", name)
        cached = jax.lax.dynamic_update_slice_in_dim(before, new.swapaxes(1, 2), start, axis=2)
        self.put_variable("cache", name, cached)
        return cached


class Transformer(nn.Module):
    """A stack of blocks.

    Attributes:
      depth: number of blocks.
      num_heads: as in `Block`.
      activation: as in `Block`.
      dtype: as in `Block`.
      constrain: as in `Block`.
      remat: recompute each block in the backward pass.
      scan: compile one block and loop over stacked parameters.
      attend: as in `Block`.
    """

    depth: int
    num_heads: int
    activation: str
    dtype: jnp.dtype
    constrain: Constrain
    remat: bool = False
    scan: bool = False
    attend: Attend = plain

    @nn.compact
    def __call__(
        self, streams: list[jax.Array], causal: list[bool], collect: bool = False, start: jax.Array | None = None
    ) -> tuple[list[jax.Array], list[list[jax.Array]]]:
        """Streams (B, N, D), each with its mask -> their outputs, and with `collect` those of blocks 1..depth.

        All streams pass a block before the next, so that its weights are gathered and its gradients reduced once.
        `start` is as in `Block`; not supported with `scan` or `remat`.
        """
        make = nn.remat(Block, static_argnums=(2,), prevent_cse=not self.scan) if self.remat else Block
        fields = (self.num_heads, self.depth, self.activation, self.dtype, self.constrain, self.attend)
        if not self.scan or self.depth == 0:
            layers = []
            for i in range(self.depth):
                block = make(*fields, name=f"block_{i + 1}")
                streams = [block(x, mask, start) for x, mask in zip(streams, causal, strict=True)]
                layers.append(streams)
            return streams, layers if collect else []

        def body(block, carry):
            carry = [block(x, mask) for x, mask in zip(carry, causal, strict=True)]
            return carry, carry if collect else None

        scan = nn.scan(
            body, variable_axes={"params": 0, "intermediates": 0}, split_rngs={"params": True}, length=self.depth
        )
        streams, stacked = scan(make(*fields, name="blocks"), streams)
        return streams, [list(layer) for layer in zip(*stacked, strict=True)] if collect else []


def cast_block_kernels(params: Any, dtype: jnp.dtype) -> Any:
    """Returns parameters with the blocks' kernels cast to `dtype`, the dtype of their products.

    Cast once, gradients of both passes over the encoder are summed in `dtype` before one reduction over devices; cast
    in each pass, they would be reduced separately. The decoder is used once, so its kernels are not affected.
    """

    def one(path, x: jax.Array) -> jax.Array:
        names = [part.key for part in path]
        return x.astype(dtype) if "transformer" in names and names[-1] == "kernel" else x

    return jax.tree_util.tree_map_with_path(one, params)


def unstacked(params: Any) -> Any:
    """Returns parameters with one subtree per block, if they are stacked as with `scan`."""
    if not isinstance(params, dict):
        return params
    if "blocks" not in params:
        return {name: unstacked(part) for name, part in params.items()}
    depth = jax.tree.leaves(params["blocks"])[0].shape[0]
    return {f"block_{i + 1}": jax.tree.map(lambda x, i=i: x[i], params["blocks"]) for i in range(depth)}


POSITION_INIT = nn.initializers.normal(0.02)


class PatchEmbedding(nn.Module):
    """Linear map of a patch's dequantised values; an embedding table if a patch is one token."""

    spec: tokens_lib.TokenSpec
    width: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, tokens: jax.Array, palette: tokens_lib.Palette | None) -> jax.Array:
        """(B, N, S) int32 -> (B, N, D)."""
        if self.spec.tokens_per_patch == 1:
            table = nn.Embed(self.spec.vocab_size, self.width, name="table").embedding
            return look_up(table, tokens[..., 0], self.dtype)
        values = tokens_lib.dequantise(tokens, self.spec, palette)
        flat = values.reshape(*values.shape[:2], -1).astype(self.dtype)
        return Dense(self.width, dtype=self.dtype, name="linear")(flat)


class Stream(NamedTuple):
    """Encoder input with its mask.

    Attributes:
      tokens: (B, Q, S) int32; all N patches, or the kept ones.
      causal: whether the mask over patches is causal.
      keep: (B, Q) int32, indices of the kept patches; None means all, in order.
    """

    tokens: jax.Array
    causal: bool
    keep: jax.Array | None = None


class Encoded(NamedTuple):
    """Encoder output for a stream.

    Attributes:
      output: (B, Q, D), after the final norm.
      embedding: (B, Q, D), patch embedding without positions.
      layers: {`encoder/1` ..: (B, Q, D) output of a block}, if collected.
    """

    output: jax.Array
    embedding: jax.Array
    layers: dict[str, jax.Array]


class Encoder(nn.Module):
    """Patch embedding, learned positions, blocks, final norm; without blocks only the embedding."""

    spec: tokens_lib.TokenSpec
    width: int
    dtype: jnp.dtype
    stack: dict[str, Any]

    def setup(self) -> None:
        self.patch_embedding = PatchEmbedding(self.spec, self.width, self.dtype)
        if self.stack["depth"] > 0:
            self.positions = self.param("positions", POSITION_INIT, (self.spec.num_patches, self.width))
            self.transformer = Transformer(**self.stack)
            self.norm = rms_norm()

    def __call__(
        self,
        streams: Sequence[Stream],
        palette: tokens_lib.Palette | None,
        collect: bool = False,
        start: jax.Array | None = None,
    ) -> list[Encoded]:
        """Encodes streams in one pass over the blocks.

        Sharded weights are gathered, and gradients reduced, once for all streams.

        Args:
          streams: at least one stream.
          palette: the palette, for palette tokens.
          collect: also return every block's output.
          start: () int32, index of the first patch, with a causal mask and earlier patches in the `cache` collection.

        Returns:
          One `Encoded` per stream.
        """
        embeddings = [self.patch_embedding(stream.tokens, palette) for stream in streams]
        if self.stack["depth"] == 0:
            return [Encoded(embedding, embedding, {}) for embedding in embeddings]
        placed = [self._placed(x, stream.keep, start) for x, stream in zip(embeddings, streams, strict=True)]
        passed, layers = self.transformer(placed, [stream.causal for stream in streams], collect, start)
        outputs = [self.norm(x).astype(self.dtype) for x in passed]
        return [
            Encoded(output, embedding, {f"encoder/{j + 1}": layer[i] for j, layer in enumerate(layers)})
            for i, (output, embedding) in enumerate(zip(outputs, embeddings, strict=True))
        ]

    def _placed(self, embedding: jax.Array, keep: jax.Array | None, start: jax.Array | None) -> jax.Array:
        """Adds positions to (B, Q, D) embeddings; arguments as in `__call__`."""
        if keep is not None:
            return embedding + look_up(self.positions, keep, self.dtype)
        positions = self.positions
        if start is not None:
            positions = jax.lax.dynamic_slice_in_dim(positions, start, embedding.shape[1])
        return add_positions(embedding, positions)


class Decoder(nn.Module):
    """Causal blocks over the encoder's output shifted by one patch."""

    spec: tokens_lib.TokenSpec
    width: int
    dtype: jnp.dtype
    stack: dict[str, Any]
    has_skip: bool

    def setup(self) -> None:
        self.start = self.param("start", POSITION_INIT, (self.width,))
        self.positions = self.param("positions", POSITION_INIT, (self.spec.num_patches, self.width))
        self.skip = Dense(self.width, use_bias=False, dtype=self.dtype)
        self.transformer = Transformer(**self.stack)
        self.norm = rms_norm()

    def first_input(self, batch: int) -> jax.Array:
        """Returns the (B, 1, D) input of the first position, the learned start vector."""
        return jnp.broadcast_to(self.start.astype(self.dtype), (batch, 1, self.width))

    def inputs(self, encoded: jax.Array, embedding: jax.Array) -> jax.Array:
        """(B, Q, D) encoded patches and patch embeddings -> (B, Q, D) inputs of the positions after them."""
        return encoded + self.skip(embedding) if self.has_skip else encoded

    def states(self, inputs: jax.Array, collect: bool = False, start: jax.Array | None = None):
        """(B, Q, D) inputs at the positions from `start` (None = all, no cache) -> states and layers of `__call__`."""
        positions = self.positions
        if start is not None:
            positions = jax.lax.dynamic_slice_in_dim(positions, start, inputs.shape[1])
        (x,), layers = self.transformer([add_positions(inputs, positions)], [True], collect, start)
        x = self.norm(x).astype(self.dtype)
        return x, {f"decoder/{i + 1}": layer for i, (layer,) in enumerate(layers)} | {"decoder": x}

    def __call__(
        self, encoded: jax.Array, embedding: jax.Array, collect: bool = False
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """(B, N, D) encoded patches and patch embeddings -> (B, N, D) states, state i from patches < i.

        Also returns layers by name: `decoder`, and with `collect` every block's output, `decoder/1` ..
        """
        after = self.inputs(encoded[:, :-1], embedding[:, :-1])
        return self.states(jnp.concatenate([self.first_input(encoded.shape[0]), after], axis=1), collect)
