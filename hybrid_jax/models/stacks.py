"""The two stacks: an encoder of patches and a causal decoder over its output.

Dimensions: B batch, N patches, S tokens per patch, D width, Q patches at hand.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from hybrid_jax.models import tokens as tokens_lib
from hybrid_jax.models.transformer import Dense, Transformer, add_positions, look_up, rms_norm

POSITION_INIT = nn.initializers.normal(0.02)


class PatchEmbedding(nn.Module):
    """Linear map of a patch's dequantised values; a look-up table where a patch is one token."""

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


class Encoder(nn.Module):
    """Patch embedding, learned positions, blocks, final norm; with no blocks only the embedding."""

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
        tokens: jax.Array,
        palette: tokens_lib.Palette | None,
        causal: bool,
        keep: jax.Array | None = None,
        collect: bool = False,
        start: jax.Array | None = None,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Encodes patches.

        Args:
          tokens: (B, Q, S) int32; all N patches, or the kept ones.
          palette: of the palette kind.
          causal: the mask over patches.
          keep: (B, Q) which patches these are; None means all, in order.
          collect: also return every block's output.
          start: () int32; the patches are those from here on, causal, and the `cache` collection knows all earlier.

        Returns:
          (B, Q, D) encoded patches, and intermediates: `embedding` (before positions) and, with
          `collect`, `encoder/1` .. and `encoder`.
        """
        embedding = self.patch_embedding(tokens, palette)
        intermediates = {"embedding": embedding}
        if self.stack["depth"] == 0:
            return embedding, intermediates
        x, layers = self.transformer(self._placed(embedding, keep, start), causal, collect, start)
        x = self.norm(x).astype(self.dtype)
        if collect:
            intermediates |= {f"encoder/{i + 1}": layer for i, layer in enumerate(layers)}
            intermediates["encoder"] = x
        return x, intermediates

    def images_and_views(
        self,
        tokens: jax.Array,
        views: jax.Array,
        palette: tokens_lib.Palette | None,
        causal: bool,
        keep: jax.Array | None,
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Encodes whole images with the causal mask and views with theirs, in one pass over the blocks.

        Args:
          tokens: (L, N, S) int32, of images.
          views: (B, Q, S) int32, patches that views keep.
          palette: of the palette kind.
          causal: the mask over the views' patches.
          keep: (B, Q) int32 which patches these are; None means all N, in order.

        Returns:
          (L, N, D) encoded images, (L, N, D) their embeddings before positions, (B, Q, D) encoded views; each what
          `__call__` gives.
        """
        embedding, view = self.patch_embedding(tokens, palette), self.patch_embedding(views, palette)
        if self.stack["depth"] == 0:
            return embedding, embedding, view
        placed = self._placed(embedding), self._placed(view, keep)
        passed, _ = self.transformer(placed, (True, causal))
        encoded, encoded_view = (self.norm(x).astype(self.dtype) for x in passed)
        return encoded, embedding, encoded_view

    def _placed(self, embedding: jax.Array, keep: jax.Array | None = None, start: jax.Array | None = None) -> jax.Array:
        """Adds to (B, Q, D) embeddings their positions, as in `__call__`."""
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
        """Returns the (B, 1, D) input of the first position, which knows no patch."""
        return jnp.broadcast_to(self.start.astype(self.dtype), (batch, 1, self.width))

    def inputs(self, encoded: jax.Array, embedding: jax.Array) -> jax.Array:
        """(B, Q, D) encoded patches and patch embeddings -> (B, Q, D), inputs of the positions after them."""
        return encoded + self.skip(embedding) if self.has_skip else encoded

    def states(self, inputs: jax.Array, collect: bool = False, start: jax.Array | None = None):
        """(B, Q, D) inputs of positions from `start` (None = all, without a cache) on -> their states, and as below."""
        positions = self.positions
        if start is not None:
            positions = jax.lax.dynamic_slice_in_dim(positions, start, inputs.shape[1])
        x, layers = self.transformer(add_positions(inputs, positions), True, collect, start)
        x = self.norm(x).astype(self.dtype)
        if not collect:
            return x, {}
        return x, {f"decoder/{i + 1}": layer for i, layer in enumerate(layers)} | {"decoder": x}

    def __call__(
        self, encoded: jax.Array, embedding: jax.Array, collect: bool = False
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """(B, N, D) encoded patches and patch embeddings -> (B, N, D) states, state i from patches < i.

        Intermediates, with `collect`: `decoder/1` .. and `decoder`.
        """
        after = self.inputs(encoded[:, :-1], embedding[:, :-1])
        return self.states(jnp.concatenate([self.first_input(encoded.shape[0]), after], axis=1), collect)
