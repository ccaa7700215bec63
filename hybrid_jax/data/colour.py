"""Colour steps of a view: pure functions of float32 (B, H, W, C) images on the 0..255 scale.

Each equals torchvision's function of the same purpose, but for its rounding to whole levels between steps: ours keeps
fractions. A factor is (B, 1, 1, 1). Where a step needs colour, C is 3.
"""

import jax
import jax.numpy as jnp
import numpy as np

# ITU-R BT.601 luma, the weights of PIL's "L" mode and of torchvision's rgb_to_grayscale.
LUMA = np.array([0.299, 0.587, 0.114], np.float32)
SOLARIZE_FROM = 128


def luma(images: jax.Array) -> jax.Array:
    """(B, H, W, 3) -> (B, H, W), the ITU-R BT.601 luma."""
    return jnp.matmul(images, LUMA, precision="highest")  # accelerators would round pixels to bfloat16


def to_gray(images: jax.Array) -> jax.Array:
    """(B, H, W, 3) -> the same shape, every channel the ITU-R BT.601 luma (torchvision's rgb_to_grayscale)."""
    return jnp.broadcast_to(luma(images)[..., None], images.shape)


def adjust_brightness(images: jax.Array, factor: jax.Array) -> jax.Array:
    """Multiplies by `factor` and clips, as torchvision's adjust_brightness. TensorFlow's adds a constant instead."""
    return jnp.clip(images * factor, 0, 255)


def adjust_contrast(images: jax.Array, factor: jax.Array) -> jax.Array:
    """Moves values from each image's mean luma by `factor` and clips, as torchvision's adjust_contrast.

    TensorFlow's takes each channel's own mean.
    """
    grey = luma(images) if images.shape[-1] == 3 else images[..., 0]
    mean = jnp.mean(grey, axis=(1, 2))[:, None, None, None]
    return jnp.clip(mean + (images - mean) * factor, 0, 255)


def adjust_saturation(images: jax.Array, factor: jax.Array) -> jax.Array:
    """Moves (B, H, W, 3) from each pixel's luma by `factor` and clips, as torchvision's adjust_saturation.

    TensorFlow's scales S of HSV instead.
    """
    gray = to_gray(images)
    return jnp.clip(gray + (images - gray) * factor, 0, 255)


def shift_hue(images: jax.Array, turns: jax.Array) -> jax.Array:
    """Shifts H of HSV, S and V kept, as torchvision's adjust_hue and tf.image's.

    Never converts to HSV: a pixel's largest and smallest channel stay what they are, and each channel lies between
    them by a trapezium over the hue (https://en.wikipedia.org/wiki/HSL_and_HSV#HSV_to_RGB_alternative).

    Args:
      images: (B, H, W, 3), any range.
      turns: (B,) in turns of the colour circle; 1/3 takes red to green.
    """
    red, green, blue = images[..., 0], images[..., 1], images[..., 2]
    high = jnp.maximum(jnp.maximum(red, green), blue)
    chroma = high - jnp.minimum(jnp.minimum(red, green), blue)
    inverse = 1 / jnp.where(chroma > 0, chroma, 1.0)
    from_green, from_blue = 2 + (blue - red) * inverse, 4 + (red - green) * inverse
    sixths = jnp.where(high == red, (green - blue) * inverse, jnp.where(high == green, from_green, from_blue))
    sixths += 6 * turns[:, None, None]

    # Channel by channel: in one array of all three, two times slower on a CPU.
    def channel(offset: int) -> jax.Array:
        place = sixths + offset
        place -= 6 * jnp.floor(place / 6)
        return high - chroma * jnp.clip(2 - jnp.abs(place - 3), 0, 1)

    return jnp.stack([channel(0), channel(4), channel(2)], axis=-1)


def solarize(images: jax.Array) -> jax.Array:
    """Inverts every value from 128 up (x -> 255 - x), as PIL's ImageOps.solarize and torchvision's."""
    return jnp.where(images < SOLARIZE_FROM, images, 255 - images)
