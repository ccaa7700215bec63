"""Heads: the contrastive projection, and two pixel heads that map decoder states to token likelihoods.

Dimensions: B batch, N patches, P = B N, S tokens per patch, V vocabulary, D width, M hidden units per token.
"""

import math

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from hybrid_jax.losses import token_nll
from hybrid_jax.models.tokens import TokenSpec
from hybrid_jax.models.transformer import ACTIVATIONS, Constrain, Dense, float32_einsum, look_up


class Projection(nn.Module):
    """The contrastive head g(.) of SimCLR (Chen et al. 2020, arXiv 2002.05709): an MLP.

    Attributes:
      dims: widths of the layers; the last is the size of the embedding.
      activation: activation between layers.
      dtype: dtype of matrix products.
    """

    dims: tuple[int, ...]
    activation: str
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, features: jax.Array) -> jax.Array:
        """(B, D) -> (B, dims[-1]) float32, not normalised."""
        x = features.astype(self.dtype)
        for i, dim in enumerate(self.dims):
            x = ACTIVATIONS[self.activation](x) if i else x
            x = Dense(dim, dtype=self.dtype, name=f"layer_{i + 1}")(x)
        return x.astype(jnp.float32)


class LinearHead(nn.Module):
    """Pixel head for S = 1: a bias-free linear map to V logits, initialised to zero (the uniform distribution)."""

    spec: TokenSpec
    dtype: jnp.dtype

    def setup(self) -> None:
        product = lambda x, kernel, *_, **__: float32_einsum("pd,dv->pv", x, kernel)
        self.logits = Dense(
            self.spec.vocab_size,
            use_bias=False,
            dtype=self.dtype,
            kernel_init=nn.initializers.zeros,
            dot_general=product,
        )

    def __call__(self, states: jax.Array, tokens: jax.Array, values: jax.Array) -> jax.Array:
        """(B, N, D) states, (B, N, 1) tokens -> (B, N, 1) float32 log-probabilities, nats."""
        del values
        return -token_nll(self.logits(states)[..., None, :], tokens)

    def init_state(self, states: jax.Array) -> jax.Array:
        """(B, D) states of one patch -> the progress that `log_probs` reads."""
        return nn.log_softmax(self.logits(states))

    def log_probs(self, progress: jax.Array, j: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Log-probabilities of a patch's only token: (B, V) float32, nats, and the progress."""
        del j
        return progress, progress

    def update(self, progress: jax.Array, j: jax.Array, token: jax.Array, value: jax.Array) -> jax.Array:
        """Returns the progress unchanged: the patch has no other token."""
        del j, token, value
        return progress


# Input features per token for later tokens of its patch: its value(s) and a learned embedding, this many in total.
TOKEN_FEATURES = 8


def factor_sizes(vocab_size: int) -> tuple[int, int]:
    """Returns (high_size, low_size), both near sqrt(V): a token is high * low_size + low.

    The low size is a power of two; high_size * low_size >= V, and codes >= V are invalid.
    """
    low = 2 ** math.ceil(math.log2(vocab_size) / 2)
    return math.ceil(vocab_size / low), low


def hidden_units(width: int, tokens_per_patch: int) -> int:
    """Returns M, the hidden units per token of a patch: 2 D in total, at least 8 per token."""
    return max(8, 2 * width // tokens_per_patch)


class MaskedMLPHead(nn.Module):
    """Pixel head for S > 1: an autoregressive network within the patch, conditioned on the decoder's state.

    Token j's distribution depends on the state (all earlier patches) and on tokens < j of its patch: a
    two-layer masked MLP after MADE (Germain et al. 2015, arXiv 1502.03509) with M hidden units per token
    and weights that are block-triangular over tokens. Each token is factorised exactly into a high and a
    low part, p(token) = p(high) p(low | high), which needs 2 sqrt(V) logits instead of V. Codes >= V are
    masked, and the log of the number of valid low parts is added to the high logits, so that zero logits give the
    uniform distribution over V. The last layers are initialised to zero.

    Attributes:
      spec: how images become tokens.
      width: D.
      activation: a key of `ACTIVATIONS`.
      dtype: dtype of matrix products.
      constrain: shards activations over the batch.
    """

    spec: TokenSpec
    width: int
    activation: str
    dtype: jnp.dtype
    constrain: Constrain

    def setup(self) -> None:
        spec, s = self.spec, self.spec.tokens_per_patch
        units, zeros = hidden_units(self.width, s), nn.initializers.zeros
        high_size, low_size = factor_sizes(spec.vocab_size)
        self.token_features = nn.Embed(spec.vocab_size, TOKEN_FEATURES - spec.values_per_token)
        self.from_state = Dense(s * units, dtype=self.dtype)
        self.from_tokens_kernel = self._triangular_param("from_tokens", TOKEN_FEATURES, units)
        self.hidden_bias = self.param("hidden_bias", zeros, (s, units))
        self.hidden_kernel = self._triangular_param("hidden", units, units)
        # The last layers have one matrix per token.
        self.high_kernel = self.param("high_kernel", zeros, (s, units, high_size))
        self.high_embedding = self.param("high_embedding", nn.initializers.normal(0.5), (s, high_size, units))
        self.low_kernel = self.param("low_kernel", zeros, (s, units, low_size))
        self.valid = jnp.clip(spec.vocab_size - low_size * jnp.arange(high_size), 0, low_size)

    def _triangular_param(self, name: str, features: int, units: int) -> jax.Array:
        s = self.spec.tokens_per_patch
        return self.param(f"{name}_kernel", nn.initializers.normal((s * features) ** -0.5), (s, features, s, units))

    def __call__(self, states: jax.Array, tokens: jax.Array, values: jax.Array) -> jax.Array:
        """Log-probability of each token given all earlier ones.

        From the second layer, P is the last axis: the 2 sqrt(V) logits of a token would not fill
        vector registers or TPU lanes.

        Args:
          states: (B, N, D) decoder outputs.
          tokens: (B, N, S) int32.
          values: (B, N, S, values_per_token) float32, the dequantised tokens.

        Returns:
          (B, N, S) float32, nats.
        """
        high_size, low_size = self.high_kernel.shape[-1], self.low_kernel.shape[-1]
        high, low = (self._pin(part.reshape(-1, tokens.shape[-1]).T) for part in jnp.divmod(tokens, low_size))
        hidden = self._hidden(states, tokens, values)
        act = ACTIVATIONS[self.activation]
        high_logits = _per_token(act(hidden), self.high_kernel) + jnp.log(self.valid)[:, None]
        # One-hot product instead of a gather, whose gradient would be a scatter.
        is_high = (high[:, None] == jnp.arange(high_size)[:, None]).astype(self.dtype)
        given_high = self._pin(jnp.einsum("shm,shp->smp", self.high_embedding.astype(self.dtype), is_high))
        low_logits = _per_token(act(hidden + given_high), self.low_kernel)
        if high_size * low_size > self.spec.vocab_size:
            allowed = jnp.arange(low_size)[:, None] < self.valid[high][:, None]
            low_logits = jnp.where(allowed, low_logits, -1e30)
        log_prob = -token_nll(high_logits, high, axis=1) - token_nll(low_logits, low, axis=1)
        return log_prob.T.reshape(tokens.shape)

    def _hidden(self, states: jax.Array, tokens: jax.Array, values: jax.Array) -> jax.Array:
        """(B, N, D) states, (B, N, S) tokens and their values -> (S, M, P) pre-activations."""
        b, n, s = tokens.shape
        earlier, up_to = jnp.tril(jnp.ones((s, s)), -1), jnp.tril(jnp.ones((s, s)))
        seen = self._seen(tokens, values).reshape(b * n, -1)
        x = self.from_state(states).reshape(b * n, -1) + seen @ self._triangular(self.from_tokens_kernel, earlier)
        x = ACTIVATIONS[self.activation](x)
        second = jnp.einsum("pf,fu->up", x, self._triangular(self.hidden_kernel, up_to))
        return self._pin(second.reshape(s, -1, b * n)) + self.hidden_bias.astype(self.dtype)[..., None]

    def _pin(self, x: jax.Array) -> jax.Array:
        return self.constrain(x, axis=-1)

    def _seen(self, tokens: jax.Array, values: jax.Array) -> jax.Array:
        """Input features of tokens: (...) tokens, (..., values_per_token) -> (..., TOKEN_FEATURES)."""
        found = look_up(self.token_features.embedding, tokens, self.dtype)
        return jnp.concatenate([found, values.astype(self.dtype)], axis=-1)

    def _triangular(self, kernel: jax.Array, mask: jax.Array) -> jax.Array:
        """(S, F, S, M) -> (S F, S M) matrix in which output token j reads only the input tokens that mask[j] allows."""
        s, f = kernel.shape[:2]
        return (kernel * mask.T[:, None, :, None]).reshape(s * f, -1).astype(self.dtype)

    def init_state(self, states: jax.Array) -> "Progress":
        """(B, D) states of one patch without known tokens -> the progress that `log_probs` and `update` read."""
        b, (s, units) = len(states), self.hidden_bias.shape
        first = self.from_state(states).reshape(b, s, units)
        return Progress(first, jnp.broadcast_to(self.hidden_bias.astype(self.dtype), (b, s, units)))

    def log_probs(self, progress: "Progress", j: jax.Array) -> tuple[jax.Array, "Progress"]:
        """Distribution of token j; call once per token, after `update` with all earlier ones.

        Args:
          progress: progress of the patch.
          j: () int32.

        Returns:
          (B, V) float32 log-probabilities, nats; the progress.
        """
        act = ACTIVATIONS[self.activation]
        unit = act(progress.first[:, j])
        # Units of tokens before j are not read again, so no mask is needed.
        second = progress.second + jnp.einsum("bm,msu->bsu", unit, self.hidden_kernel[j].astype(self.dtype))
        hidden = second[:, j]
        high = nn.log_softmax(float32_einsum("bm,mf->bf", act(hidden), self.high_kernel[j]) + jnp.log(self.valid))
        given_high = act(hidden[:, None] + self.high_embedding[j].astype(self.dtype))
        allowed = jnp.arange(self.low_kernel.shape[-1]) < self.valid[:, None]
        low_logits = float32_einsum("bhm,mf->bhf", given_high, self.low_kernel[j])
        low = nn.log_softmax(jnp.where(allowed, low_logits, -1e30))
        log_probs = (high[:, :, None] + low).reshape(len(high), -1)[:, : self.spec.vocab_size]
        return log_probs, progress.replace(second=second)

    def update(self, progress: "Progress", j: jax.Array, token: jax.Array, value: jax.Array) -> "Progress":
        """Adds token j, (B,) int32, and its dequantised value, (B, values_per_token) float32."""
        seen = self._seen(token, value)
        told = jnp.einsum("bf,fsu->bsu", seen, self.from_tokens_kernel[j].astype(self.dtype))
        return progress.replace(first=progress.first + told)


class Progress(flax.struct.PyTreeNode):
    """Partial pre-activations of `MaskedMLPHead` after the first tokens of a patch.

    Those of token j are complete once all earlier tokens are known.

    Attributes:
      first: (B, S, M) pre-activations of the first layer.
      second: (B, S, M) pre-activations of the second layer.
    """

    first: jax.Array
    second: jax.Array


def _per_token(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """(S, M, P) and one (M, features) matrix per token -> (S, features, P) float32."""
    return float32_einsum("smp,smf->sfp", x, kernel)
