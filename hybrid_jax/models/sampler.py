"""Exact sampling and completion, one token at a time, with cached keys and values.

Dimensions: B batch, N patches, S tokens per patch, D width, V vocabulary, K known patches, L cached positions.
"""

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import ml_collections

from hybrid_jax.models import tokens as tokens_lib
from hybrid_jax.models.hybrid import HybridModel
from hybrid_jax.models.transformer import unstacked

# The cache grows in steps, since attention to empty entries costs as much as to filled ones; each size is compiled.
_GROWS_BY, _MOST_PIECES = 128, 8


class Draw(flax.struct.PyTreeNode):
    """How a token is drawn from its distribution: temperature, then top-k, then top-p.

    Attributes:
      temperature: () float32, divides log-probabilities; unused if `greedy`.
      top_p: () float32 or None; keep the smallest set of tokens whose probabilities sum to at least this
        (Holtzman et al. 2020, arXiv 1904.09751).
      top_k: keep the k likeliest tokens, and those as likely as the k-th; None = all.
      greedy: take the likeliest token, the first of equals (temperature 0).
    """

    temperature: Any
    top_p: Any = None
    top_k: int | None = flax.struct.field(pytree_node=False, default=None)
    greedy: bool = flax.struct.field(pytree_node=False, default=False)

    def __call__(self, keys: jax.Array, log_probs: jax.Array) -> jax.Array:
        """(B,) keys, (B, V) log-probabilities -> (B,) int32."""
        if self.greedy:
            return jnp.argmax(log_probs, axis=-1).astype(jnp.int32)
        return jax.vmap(jax.random.categorical)(keys, self.logits(log_probs)).astype(jnp.int32)

    def logits(self, log_probs: jax.Array) -> jax.Array:
        """(B, V) log-probabilities -> (B, V) logits to draw from, -inf for excluded tokens."""
        logits = log_probs / self.temperature
        if self.top_k is not None:
            least = jax.lax.top_k(logits, min(self.top_k, logits.shape[-1]))[0][:, -1:]
            logits = jnp.where(logits >= least, logits, -jnp.inf)
        if self.top_p is not None:
            falling = -jnp.sort(-logits, axis=-1)
            shares = jax.nn.softmax(falling)
            # A token is kept if the likelier ones do not reach the sum; the likeliest is always kept.
            stays = (jnp.cumsum(shares, axis=-1) - shares < self.top_p).at[:, 0].set(True)
            least = jnp.min(jnp.where(stays, falling, jnp.inf), axis=-1, keepdims=True)
            logits = jnp.where(logits >= least, logits, -jnp.inf)
        return logits


@dataclasses.dataclass(frozen=True)
class IncrementalModel:
    """The generative branch in generation order: `open` a patch, `log_probs` and `update` its tokens, `close` it.

    Made inside a jitted function, from traced parameters.

    Attributes:
      model: a model with `scan_layers` and `remat` off (see `incremental_model`).
      params: its parameters.
      palette: the palette, for palette tokens.
    """

    model: HybridModel
    params: Any
    palette: tokens_lib.Palette | None

    def empty_cache(self, batch: int, length: int | None = None) -> dict[str, Any]:
        """Returns empty keys and values, (B, heads, L, D / heads), for every block; by default L = N."""
        c, length = self.model.config, length or self.model.spec.num_patches
        shape = (batch, c.num_heads, length, c.width // c.num_heads)
        stacks = {"encoder": c.encoder_layers, "decoder": c.decoder_layers}
        empty = {"keys": jnp.zeros(shape, c.dtype), "values": jnp.zeros(shape, c.dtype)}
        return {name: {"transformer": {f"block_{i + 1}": empty for i in range(n)}} for name, n in stacks.items()}

    def start(self, cache: dict[str, Any], prompt: jax.Array) -> tuple[jax.Array, dict[str, Any]]:
        """Reads the first K patches at once.

        Args:
          cache: an empty cache.
          prompt: (B, K, S) int32, K from 0 to N - 1.

        Returns:
          (B, 1, D), the decoder's input at position K; the cache.
        """
        first = self._apply("first_input", None, len(prompt))[0]
        if prompt.shape[1] == 0:
            return first, cache
        inputs, cache = self.close(cache, prompt, 0)
        _, cache = self._apply("states", cache, jnp.concatenate([first, inputs[:, :-1]], axis=1), 0)
        return inputs[:, -1:], cache

    def open(self, cache: dict[str, Any], inputs: jax.Array, i: jax.Array) -> tuple[Any, dict[str, Any]]:
        """(B, 1, D) input at position i -> the head's progress at the start of patch i, and the cache."""
        states, cache = self._apply("states", cache, inputs, i)
        return self._apply("init_state", None, states[:, 0])[0], cache

    def log_probs(self, progress: Any, j: jax.Array) -> tuple[jax.Array, Any]:
        """Returns the (B, V) float32 log-probabilities (nats) of token j of the open patch, and the progress."""
        return self._apply("log_probs", None, progress, j)[0]

    def update(self, progress: Any, j: jax.Array, token: jax.Array) -> Any:
        """Adds token j of the open patch, (B,) int32, to the progress."""
        return self._apply("update", None, progress, j, token, self.palette)[0]

    def close(self, cache: dict[str, Any], patches: jax.Array, i: jax.Array | int) -> tuple[jax.Array, dict[str, Any]]:
        """(B, Q, S) tokens of the patches from i -> (B, Q, D) inputs of the positions after them, and the cache."""
        return self._apply("read", cache, patches, self.palette, i)

    def _apply(self, method: str, cache: dict[str, Any] | None, *args: Any) -> tuple[Any, Any]:
        if cache is None:
            return self.model.apply({"params": self.params}, *args, method=method), None
        variables = {"params": self.params, "cache": cache}
        found, changed = self.model.apply(variables, *args, method=method, mutable=["cache"])
        # A stack without blocks has no cache entry to update.
        return found, cache | changed["cache"]


def incremental_model(model: HybridModel, params: Any, palette: tokens_lib.Palette | None) -> IncrementalModel:
    """Returns an `IncrementalModel`, whether or not the blocks of `model` are scanned or recomputed."""
    frozen = ml_collections.FrozenConfigDict({**model.config.to_dict(), "scan_layers": False, "remat": False})
    return IncrementalModel(model.clone(config=frozen), unstacked(params), palette)


def sample_tokens(
    steps: IncrementalModel, keys: jax.Array, prompt: jax.Array, draw: Draw
) -> tuple[jax.Array, jax.Array]:
    """Draws the tokens that follow the first K patches, each from its exact distribution given all before.

    Args:
      steps: the model.
      keys: (B,) PRNG keys; each image depends only on its own.
      prompt: (B, K, S) int32, K from 0 to N; the given first patches.
      draw: how each token is drawn.

    Returns:
      (B, N, S) int32 tokens; and (B, N, S) float32 log-probabilities under the model, before `draw` changes the
      distribution, nats, zero for given tokens.
    """
    spec = steps.model.spec
    batch, known, size = prompt.shape
    missing = ((0, 0), (0, spec.num_patches - known), (0, 0))
    tokens, log_probs = jnp.pad(prompt, missing), jnp.zeros((batch, spec.num_patches, size))
    if known == spec.num_patches:
        return tokens, log_probs

    def patch(i: jax.Array, carry):
        cache, inputs, tokens, log_probs = carry
        progress, cache = steps.open(cache, inputs, i)
        drawn, found = _sample_patch(steps, progress, jax.vmap(lambda key: jax.random.fold_in(key, i))(keys), draw)
        tokens = jax.lax.dynamic_update_slice_in_dim(tokens, drawn[:, None], i, axis=1)
        log_probs = jax.lax.dynamic_update_slice_in_dim(log_probs, found[:, None], i, axis=1)
        inputs, cache = steps.close(cache, drawn[:, None], i)
        return cache, inputs, tokens, log_probs

    piece = max(_GROWS_BY, -(-(spec.num_patches - known) // _MOST_PIECES))
    ends = [*range(known + piece, spec.num_patches, piece), spec.num_patches]
    inputs, cache = steps.start(steps.empty_cache(batch, ends[0]), prompt)
    start, carry = known, (cache, inputs, tokens, log_probs)
    for end in ends:
        carry = jax.lax.fori_loop(start, end, patch, (_grown(carry[0], end), *carry[1:]))
        start = end
    return carry[2], carry[3]


def _sample_patch(steps: IncrementalModel, progress: Any, keys: jax.Array, draw: Draw) -> tuple[jax.Array, jax.Array]:
    """Draws the (B, S) tokens of the open patch; returns them and their log-probabilities, nats."""
    shape = (len(keys), steps.model.spec.tokens_per_patch)

    def token(j: jax.Array, carry):
        progress, tokens, log_probs = carry
        found, progress = steps.log_probs(progress, j)
        chosen = draw(jax.vmap(lambda key: jax.random.fold_in(key, j))(keys), found)
        its_log_prob = jnp.take_along_axis(found, chosen[:, None], axis=1)
        tokens = jax.lax.dynamic_update_slice_in_dim(tokens, chosen[:, None], j, axis=1)
        log_probs = jax.lax.dynamic_update_slice_in_dim(log_probs, its_log_prob, j, axis=1)
        return steps.update(progress, j, chosen), tokens, log_probs

    _, tokens, log_probs = jax.lax.fori_loop(0, shape[1], token, (progress, jnp.zeros(shape, int), jnp.zeros(shape)))
    return tokens, log_probs


def _grown(cache: dict[str, Any], length: int) -> dict[str, Any]:
    """Lengthens (B, H, l, E) keys and values to (B, H, length, E)."""
    return jax.tree.map(lambda x: jnp.pad(x, ((0, 0), (0, 0), (0, length - x.shape[2]), (0, 0))), cache)
