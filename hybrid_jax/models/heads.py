"""Heads: the contrastive projection, and the two that turn decoder states into token likelihoods.

Dimensions: B batch, N patches, S tokens per patch, V vocabulary, D width, M hidden units per token.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from hybrid_jax.losses import token_nll
from hybrid_jax.models.transformer import ACTIVATIONS, Dense


class Projection(nn.Module):
    """The contrastive head g(.) of SimCLR (Chen et al. 2020, arXiv 2002.05709): an MLP.

    Attributes:
      dims: widths of its layers; the last is the embedding's.
      activation: between layers.
      dtype: of matrix products.
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
    """S = 1: a bias-free linear map to V logits that starts at zero, so at the uniform distribution."""

    vocab_size: int

    @nn.compact
    def __call__(self, states: jax.Array, tokens: jax.Array, values: jax.Array) -> jax.Array:
        """(B, N, D) states, (B, N, 1) tokens -> (B, N, 1) float32 log-probabilities, nats."""
        del values
        # Logits are not rounded to `dtype`: a softmax would see it.
        dense = Dense(self.vocab_size, use_bias=False, kernel_init=nn.initializers.zeros, name="logits")
        return -token_nll(dense(states.astype(jnp.float32))[..., None, :], tokens)


# What a token tells those after it in its patch: its value(s) and a learned look-up, this many in all.
TOKEN_FEATURES = 8


def factor_sizes(vocab_size: int) -> tuple[int, int]:
    """Returns (high, low): a token is high * low_size + low, with both sizes near sqrt(V).

    The low size is a power of two; high * low >= V, and codes >= V are invalid.
    """
    low = 2 ** math.ceil(math.log2(vocab_size) / 2)
    return math.ceil(vocab_size / low), low


def hidden_units(width: int, tokens_per_patch: int) -> int:
    """Returns M, the hidden units that each token of a patch has: 2 D units in all, at least 8 a token."""
    return max(8, 2 * width // tokens_per_patch)


class MaskedMLPHead(nn.Module):
    """S > 1: an autoregressive network inside the patch, conditioned on the decoder's state.

    Token j's distribution depends on the state (all earlier patches) and on tokens < j of its patch: a
    two-layer masked MLP after MADE (Germain et al. 2015, arXiv 1502.03509) with M hidden units per token
    and weights that are block-triangular over tokens. Each token is factorised exactly into a high and a
    low part, p(token) = p(high) p(low | high), which needs 2 sqrt(V) logits instead of V. Codes >= V are
    masked and the high logits carry the log of their valid completions, so zero logits mean uniform over V;
    the last layers start at zero.
    """

    vocab_size: int
    activation: str
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, states: jax.Array, tokens: jax.Array, values: jax.Array) -> jax.Array:
        """Log-probability of each token given everything before it.

        Args:
          states: (B, N, D) decoder outputs.
          tokens: (B, N, S) int32.
          values: (B, N, S, values_per_token) float32, the tokens dequantised.

        Returns:
          (B, N, S) float32, nats.
        """
        high_size, low_size = factor_sizes(self.vocab_size)
        high, low = tokens // low_size, tokens % low_size
        hidden = self._hidden(states, tokens, values)
        act = ACTIVATIONS[self.activation]
        valid = jnp.clip(self.vocab_size - low_size * jnp.arange(high_size), 0, low_size)
        high_logits = self._per_token("high", act(hidden), high_size) + jnp.log(valid)
        s, units = hidden.shape[-2:]
        table = self.param("high_embedding", nn.initializers.normal(0.5), (s, high_size, units))
        given_high = table.astype(self.dtype)[jnp.arange(s), high]
        low_logits = self._per_token("low", act(hidden + given_high), low_size)
        allowed = jnp.arange(low_size) < valid[high][..., None]
        low_logits = jnp.where(allowed, low_logits, -1e30)
        return -token_nll(high_logits, high) - token_nll(low_logits, low)

    def _hidden(self, states: jax.Array, tokens: jax.Array, values: jax.Array) -> jax.Array:
        """(B, N, D) states, (B, N, S) tokens and their values -> (B, N, S, M) pre-activations."""
        b, n, d = states.shape
        s = tokens.shape[2]
        units = hidden_units(d, s)
        learned = TOKEN_FEATURES - values.shape[-1]
        table = nn.Embed(self.vocab_size, learned, dtype=self.dtype, name="token_features")
        seen = jnp.concatenate([table(tokens), values.astype(self.dtype)], axis=-1)
        x = Dense(s * units, dtype=self.dtype, name="from_state")(states)
        earlier, up_to = jnp.tril(jnp.ones((s, s)), -1), jnp.tril(jnp.ones((s, s)))
        x = x + self._triangular("from_tokens", seen, units, earlier).reshape(b, n, -1)
        x = ACTIVATIONS[self.activation](x).reshape(b, n, s, units)
        bias = self.param("hidden_bias", nn.initializers.zeros, (s, units))
        return self._triangular("hidden", x, units, up_to) + bias.astype(self.dtype)

    def _triangular(self, name: str, x: jax.Array, units: int, mask: jax.Array) -> jax.Array:
        """(B, N, S, F) -> (B, N, S, units): output token j reads the input tokens that mask[j] allows."""
        b, n, s, f = x.shape
        init = nn.initializers.normal((s * f) ** -0.5)
        kernel = self.param(f"{name}_kernel", init, (s, f, s, units)) * mask.T[:, None, :, None]
        y = x.reshape(b * n, s * f) @ kernel.reshape(s * f, s * units).astype(self.dtype)
        return y.reshape(b, n, s, units)

    def _per_token(self, name: str, x: jax.Array, features: int) -> jax.Array:
        """(B, N, S, M) -> (B, N, S, features) float32: token j has its own matrix j, which starts at zero."""
        kernel = self.param(f"{name}_kernel", nn.initializers.zeros, (x.shape[-2], x.shape[-1], features))
        return jnp.einsum("bnsm,smf->bnsf", x.astype(jnp.float32), kernel)
