"""Floating-point operations of a train step, counted analytically.

A multiply-add is two operations. Only matrix products count (as in an accelerator's peak rate); table look-ups do not,
even if computed as one-hot products. Attention counts as dense under both masks, even if masked blocks are skipped.
The backward pass costs twice the forward pass (Kaplan et al. 2020, arXiv 2001.08361, section 2.1).

Dimensions: N patches, Q kept patches, S tokens per patch, V vocabulary, D width.
"""

import itertools
import math

from hybrid_jax.config import likelihood_batch
from hybrid_jax.models.heads import TOKEN_FEATURES, factor_sizes, hidden_units
from hybrid_jax.models.tokens import TokenSpec

BACKWARD_AND_FORWARD = 3


def blocks(config, depth: int, positions: int) -> float:
    """Returns the operations of `depth` blocks over one image's `positions`, forward."""
    width = config.model.width
    dense = 2 * positions * 12 * width**2
    attention = 2 * 2 * positions**2 * width
    return depth * (dense + attention)


def patch_embedding(config, positions: int) -> float:
    """Returns the operations of one image's patch embedding, forward; 0 for a table look-up."""
    spec = TokenSpec.from_config(config)
    if spec.tokens_per_patch == 1:
        return 0
    return 2 * positions * spec.tokens_per_patch * spec.values_per_token * config.model.width


def pixel_head(config) -> float:
    """Returns the operations of one image's pixel head, forward."""
    spec, width = TokenSpec.from_config(config), config.model.width
    s, n = spec.tokens_per_patch, spec.num_patches
    if s == 1:
        return 2 * n * width * spec.vocab_size
    hidden = s * hidden_units(width, s)
    logits = sum(factor_sizes(spec.vocab_size))
    return 2 * n * hidden * (width + s * TOKEN_FEATURES + hidden + logits)


def train_step(config) -> dict[str, float]:
    """Counts one step of a resolved config, forward and backward.

    Returns:
      {part: operations per step}: `view_encoder`, `likelihood_encoder`, `decoder`, `pixel_head`, `losses`, without
      absent branches. Recomputation (`model.remat`, `train.microbatches`) is not counted.
    """
    model, batch = config.model, config.train.batch_size
    n = TokenSpec.from_config(config).num_patches
    found = {}
    if config.objective.contrastive_weight > 0:
        kept = max(1, round(config.augment.view_keep * n))
        widths = (model.width, *model.projection_dims)
        projection = sum(2 * a * b for a, b in itertools.pairwise(widths))
        view = patch_embedding(config, kept) + blocks(config, model.encoder_layers, kept) + projection
        found["view_encoder"] = 2 * batch * view
        found["losses"] = 2 * (2 * batch) ** 2 * model.projection_dims[-1]
    if config.objective.generative_weight > 0:
        images = likelihood_batch(config)
        skip = 2 * (n - 1) * model.width**2 if model.decoder_skip and model.encoder_layers else 0
        encoder = patch_embedding(config, n) + blocks(config, model.encoder_layers, n)
        found["likelihood_encoder"] = images * encoder
        found["decoder"] = images * (blocks(config, model.decoder_layers, n) + skip)
        found["pixel_head"] = images * pixel_head(config)
    return {part: float(BACKWARD_AND_FORWARD * count) for part, count in found.items()}


def total(config) -> float:
    """Returns the operations of one step of a resolved config."""
    return math.fsum(train_step(config).values())
