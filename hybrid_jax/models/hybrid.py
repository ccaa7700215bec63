"""The hybrid encoder-decoder: one encoder with two masks, a contrastive head and a causal decoder.

Dimensions: B batch, N patches, S tokens per patch, D width, V vocabulary, Q kept patches of a view.
"""

from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections

from hybrid_jax.models import tokens as tokens_lib
from hybrid_jax.models.attention import Attend, plain
from hybrid_jax.models.heads import LinearHead, MaskedMLPHead, Projection
from hybrid_jax.models.transformer import Constrain, Decoder, Encoded, Encoder, Stream

NORMED = ":normed"  # suffix of layers that are read after the next norm


def _identity(x: jax.Array, axis: int = 0) -> jax.Array:
    del axis
    return x


class HybridModel(nn.Module):
    """One encoder with a contrastive head and an autoregressive decoder (GCRL, arXiv 2106.06162).

    Only the paper's abstract was available: other choices are this project's (docs/method.md).
    Parameters exist only for branches whose weight is above 0.

    Attributes:
      config: frozen `model` section of the resolved config.
      spec: how images become tokens.
      generative: whether the generative branch exists.
      contrastive: whether the contrastive branch exists.
      constrain: shards activations over the mesh; identity on one device.
      attend: attention function for calls without a cache.
    """

    config: Any
    spec: tokens_lib.TokenSpec
    generative: bool
    contrastive: bool
    constrain: Constrain = _identity
    attend: Attend = plain

    def setup(self) -> None:
        c, dtype = self.config, jnp.dtype(self.config.dtype)
        common = {
            "num_heads": c.num_heads,
            "activation": c.activation,
            "dtype": dtype,
            "constrain": self.constrain,
            "attend": self.attend,
            "remat": c.remat,
            "scan": c.scan_layers,
        }
        self.encoder = Encoder(self.spec, c.width, dtype, {"depth": c.encoder_layers, **common})
        skip = c.decoder_skip and c.encoder_layers > 0
        self.decoder = Decoder(self.spec, c.width, dtype, {"depth": c.decoder_layers, **common}, skip)
        linear = self.spec.tokens_per_patch == 1
        self.head = (
            LinearHead(self.spec, dtype)
            if linear
            else MaskedMLPHead(self.spec, c.width, c.activation, dtype, self.constrain)
        )
        self.projection = Projection(tuple(c.projection_dims), c.activation, dtype)

    def __call__(
        self,
        images: jax.Array | None,
        views: jax.Array | None,
        palette: tokens_lib.Palette | None,
        keep: jax.Array | None = None,
    ) -> tuple[jax.Array | None, jax.Array | None]:
        """Likelihood of images and embedding of views in one pass of the encoder; None for absent inputs.

        Args:
          images: (L, N, S) int32 tokens; their likelihood depends on nothing else.
          views: (B, Q, S) int32 tokens of the kept patches.
          palette: the palette, for palette tokens.
          keep: (B, Q) int32, indices of the kept patches; None means all N, in order.

        Returns:
          (L, N, S) float32, the exact log-likelihood of each token, nats, in generation order;
          (B, projection_dims[-1]) float32, the contrastive embedding, not normalised.
        """
        of_images = [] if images is None else [Stream(images, causal=True)]
        of_views = [] if views is None else [Stream(views, self.config.view_attention == "causal", keep)]
        encoded = self.encoder(of_images + of_views, palette)
        log_prob = None if images is None else self._log_prob(images, palette, encoded[0])
        return log_prob, None if views is None else self._embedding(encoded[-1])

    def _log_prob(self, tokens: jax.Array, palette: tokens_lib.Palette | None, encoded: Encoded) -> jax.Array:
        chex.assert_shape(tokens, (None, self.spec.num_patches, self.spec.tokens_per_patch))
        states, _ = self.decoder(encoded.output, encoded.embedding)
        return self.head(states, tokens, tokens_lib.dequantise(tokens, self.spec, palette))

    def _embedding(self, encoded: Encoded) -> jax.Array:
        return self.projection(self.constrain(jnp.mean(encoded.output, axis=1, dtype=jnp.float32)))

    def token_log_prob(self, tokens: jax.Array, palette: tokens_lib.Palette | None) -> jax.Array:
        """(B, N, S) int32 -> (B, N, S) float32, only the likelihood of `__call__`."""
        log_prob, _ = self(tokens, None, palette)
        assert log_prob is not None
        return log_prob

    def view_embedding(
        self, views: jax.Array, palette: tokens_lib.Palette | None, keep: jax.Array | None = None
    ) -> jax.Array:
        """(B, Q, S) int32 -> (B, projection_dims[-1]) float32, only the embedding of `__call__`."""
        _, embedding = self(None, views, palette, keep)
        assert embedding is not None
        return embedding

    def first_input(self, batch: int) -> jax.Array:
        """Returns the decoder's (B, 1, D) input at the first position."""
        return self.decoder.first_input(batch)

    def read(self, tokens: jax.Array, palette: tokens_lib.Palette | None, start: jax.Array) -> jax.Array:
        """Encodes consecutive patches with a cache of earlier ones.

        Args:
          tokens: (B, Q, S) int32, tokens of the patches from `start`.
          palette: the palette, for palette tokens.
          start: () int32, index of the first patch.

        Returns:
          (B, Q, D), the decoder's inputs at the positions after these patches.
        """
        (encoded,) = self.encoder([Stream(tokens, causal=True)], palette, start=start)
        return self.decoder.inputs(encoded.output, encoded.embedding)

    def states(self, inputs: jax.Array, start: jax.Array) -> jax.Array:
        """The decoder's (B, Q, D) states at the positions from `start`, with a cache of earlier ones."""
        return self.decoder.states(inputs, start=start)[0]

    def init_state(self, states: jax.Array) -> Any:
        """(B, D) states of one position -> the head's progress in that patch."""
        return self.head.init_state(states)

    def log_probs(self, progress: Any, j: jax.Array) -> tuple[jax.Array, Any]:
        """Returns the log-probabilities of token j of the patch, (B, V) float32, nats, and the progress."""
        return self.head.log_probs(progress, j)

    def update(self, progress: Any, j: jax.Array, token: jax.Array, palette: tokens_lib.Palette | None) -> Any:
        """Adds token j of the patch, (B,) int32, to the progress."""
        return self.head.update(progress, j, token, tokens_lib.dequantise(token, self.spec, palette))

    def features(self, tokens: jax.Array, palette: tokens_lib.Palette | None) -> dict[str, jax.Array]:
        """Mean over positions of every layer, by name.

        Names: `embedding`, `encoder/1` .., `encoder`, and with a decoder `decoder/1` .., `decoder`. If the collection
        `intermediates` is mutable, also `encoder/l:normed` and `decoder/l:normed`, the output of block l (l = 0: the
        input of the stack) after the first norm of block l + 1, or after the final norm for the last block, as in
        Image GPT's probes.

        The mask is that of training: the view mask with a contrastive branch, else the causal mask. Decoder layers
        always read causally encoded patches.

        Args:
          tokens: (B, N, S) int32.
          palette: the palette, for palette tokens.

        Returns:
          {name: (B, D) float32}.
        """
        causal = not self.contrastive or self.config.view_attention == "causal"
        (encoded,) = self.encoder([Stream(tokens, causal)], palette, collect=True)
        found = {"embedding": encoded.embedding, **encoded.layers}
        if self.config.encoder_layers > 0:
            found["encoder"] = encoded.output
        if self.generative:
            if not causal:
                (encoded,) = self.encoder([Stream(tokens, causal=True)], palette)
            found |= self.decoder(encoded.output, encoded.embedding, collect=True)[1]
        if self.is_mutable_collection("intermediates"):
            for name, stack in [("encoder", self.encoder), ("decoder", self.decoder)]:
                if name in found:
                    found |= _normed(name, stack, found[name])
        return {name: jnp.mean(x, axis=1, dtype=jnp.float32) for name, x in found.items()}


def _normed(name: str, stack: nn.Module, last: jax.Array) -> dict[str, jax.Array]:
    """Returns the outputs of the blocks' first norms in the first pass, and `last`, that of the final norm, by name."""
    kept = stack.variables["intermediates"]["transformer"]
    if "blocks" in kept:
        values = list(kept["blocks"]["normed"][0])
    else:
        values = [kept[f"block_{i + 1}"]["normed"][0] for i in range(len(kept))]
    return {f"{name}/{i}{NORMED}": value for i, value in enumerate([*values, last])}


def image_features(
    model: HybridModel, params: Any, images: jax.Array, palette: tokens_lib.Palette | None, normed: bool = False
) -> dict[str, jax.Array]:
    """Returns `HybridModel.features` of (B, H, W, C) uint8 images; with `normed` also those after a norm."""
    return token_features(model, params, tokens_lib.encode(images, model.spec, palette), palette, normed)


def token_features(
    model: HybridModel, params: Any, tokens: jax.Array, palette: tokens_lib.Palette | None, normed: bool = False
) -> dict[str, jax.Array]:
    """As `image_features`, of (B, N, S) tokens; intensities may be float32, for gradients."""
    mutable = ["intermediates"] if normed else False
    found: Any = model.apply({"params": params}, tokens, palette, method="features", mutable=mutable)
    return found[0] if normed else found


def measures(
    model: HybridModel, params: Any, images: jax.Array, palette: tokens_lib.Palette | None, layers: tuple[str, str]
) -> dict[str, jax.Array]:
    """Inputs of the joint anomaly score, of (B, H, W, C) uint8 images.

    Returns:
      `default` and `last`, (B, D) features of the two layers; `shown`, (B, H, W, C) uint8, the images decoded from
      their tokens; and with a likelihood `patch_log_prob`, (B, N) float32, nats.
    """
    tokens = tokens_lib.encode(images, model.spec, palette)
    features: Any = model.apply({"params": params}, tokens, palette, method="features")
    found = {"default": features[layers[0]], "last": features[layers[1]]}
    found["shown"] = tokens_lib.decode(tokens, model.spec, palette)
    if model.generative:
        log_prob: Any = model.apply({"params": params}, tokens, palette, method="token_log_prob")
        found["patch_log_prob"] = jnp.sum(log_prob, axis=-1)
    return found


def default_layer(config) -> str:
    """Returns the name of the layer `embed` uses: the encoder's output, or the decoder's middle."""
    if config.model.encoder_layers > 0:
        return "encoder"
    return f"decoder/{max(1, config.model.decoder_layers // 2)}"


def build_model(config, constrain: Constrain = _identity, attend: Attend = plain) -> HybridModel:
    """Returns the model of a resolved config; get `attend` from `attention.choose` if the devices are known."""
    return HybridModel(
        config=ml_collections.FrozenConfigDict(config.model),
        spec=tokens_lib.TokenSpec.from_config(config),
        generative=config.objective.generative_weight > 0,
        contrastive=config.objective.contrastive_weight > 0,
        constrain=constrain,
        attend=attend,
    )


def init_params(model: HybridModel, key: jax.Array, palette: tokens_lib.Palette | None) -> Any:
    """Returns fresh float32 parameters; those of a module depend only on `key` and its name."""
    spec = model.spec
    tokens = jnp.zeros((1, spec.num_patches, spec.tokens_per_patch), jnp.int32)
    # One compilation is several times faster than one per operation.
    branches = tokens if model.generative else None, tokens if model.contrastive else None
    return jax.jit(model.init)(key, *branches, palette)["params"]
