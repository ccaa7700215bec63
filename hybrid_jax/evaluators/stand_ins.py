"""Images that take the samples' place, so that every number about samples has something to stand beside.

Dimensions: n images, H W C image.
"""

import functools

import jax
import numpy as np

from hybrid_jax.models import tokens as tokens_lib
from hybrid_jax.models.tokens import TokenSpec

IMAGES_AT_ONCE = 500


def is_lossy(spec: TokenSpec) -> bool:
    """Returns whether tokens keep less than the 8-bit image."""
    return not (spec.kind == "intensity" and spec.vocab_size == 256)


def as_tokens_show(images: np.ndarray, spec: TokenSpec, palette) -> np.ndarray:
    """Returns what is left of images in a model's tokens: the best that its samples can look like.

    Args:
      images: (n, H, W, C) uint8.
      spec: how images become tokens.
      palette: of the palette kind, else None.

    Returns:
      (n, H, W, C) uint8, the images themselves where tokens lose nothing.
    """
    if not is_lossy(spec) or not len(images):
        return images
    # On one device of this process: others may not call this.
    palette = jax.device_put(jax.device_get(palette))
    # Filled up, so that one shape is compiled.
    padded = np.pad(images, [(0, -len(images) % IMAGES_AT_ONCE), (0, 0), (0, 0), (0, 0)])
    chunks = padded.reshape(-1, IMAGES_AT_ONCE, *images.shape[1:])
    return np.concatenate([np.asarray(_shown(chunk, spec, palette)) for chunk in chunks])[: len(images)]


@functools.partial(jax.jit, static_argnums=1)
def _shown(images: jax.Array, spec: TokenSpec, palette) -> jax.Array:
    return tokens_lib.decode(tokens_lib.encode(images, spec, palette), spec, palette)


def histogram_samples(images: np.ndarray, num: int, spec: TokenSpec, palette, seed: int) -> np.ndarray:
    """Draws every token from the training images' histogram of its position, independently of all others.

    It is the likelihood's floor as a sampler, without that one's smoothing: each token is that of an image drawn anew.

    Args:
      images: (n, H, W, C) uint8, the training images.
      num: how many to draw.
      spec: how images become tokens.
      palette: of the palette kind, else None.
      seed: of the draws.

    Returns:
      (num, H, W, C) uint8, as the tokens show it.
    """
    _, height, width, channels = images.shape
    # A palette's token is a whole pixel, an intensity's one channel of it.
    drawn = 1 if spec.kind == "palette" else channels
    which = np.random.default_rng(seed).integers(0, len(images), (num, height, width, drawn))
    rows, columns, channel = np.ogrid[:height, :width, :channels]
    return as_tokens_show(images[which, rows, columns, channel], spec, palette)
