"""Views for the contrastive loss, made on the device inside the jitted step.

Images are float32 (B, H, W, C) on the 0..255 scale. Every random choice is drawn per image from one key,
so the same key gives the same bits on any number of devices.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

# ITU-R BT.601 luma, the weights of PIL's "L" mode and of torchvision's rgb_to_grayscale.
LUMA = np.array([0.299, 0.587, 0.114], np.float32)
BLUR_SIGMA = (0.1, 2.0)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Strengths of the steps, which are applied in this order; 0 (and a crop of 1) means never.

    Attributes:
      crop_min_area: share of the area that a random resized crop keeps, drawn from [this, 1].
      flip: probability of a horizontal flip.
      brightness, contrast, saturation: factors drawn from [1 - this, 1 + this].
      hue: rotation in turns drawn from [-this, this].
      grayscale: probability that colour is removed.
      blur: probability of a Gaussian blur, sigma from [0.1, 2] pixels.
      jitter_probability: probability that the four colour steps happen at all.
    """

    crop_min_area: float = 1.0
    flip: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    grayscale: float = 0.0
    blur: float = 0.0
    jitter_probability: float = 1.0


RECIPES: dict[str, Recipe] = {
    "none": Recipe(),
    # Small grey images: gentle crops, and contrast jitter so that features survive a change of light.
    "grey_small": Recipe(crop_min_area=0.3, flip=0.5, brightness=0.4, contrast=0.4, blur=0.2),
    # SimCLR (arXiv 2002.05709, appendix A) at its CIFAR-10 strength 0.5, without blur; ours: steps in fixed order.
    "simclr": Recipe(0.08, 0.5, 0.4, 0.4, 0.4, 0.1, 0.2, 0.0, jitter_probability=0.8),
}


def recipe_from_config(augment) -> Recipe:
    """Returns the named recipe with the strengths that the config overrides."""
    names = [f.name for f in dataclasses.fields(Recipe) if f.name in augment]
    return dataclasses.replace(RECIPES[augment.recipe], **{n: augment[n] for n in names if augment[n] is not None})


def augment(key: jax.Array, images: jax.Array, recipe: Recipe) -> jax.Array:
    """One random view of each image.

    Args:
      key: typed PRNG key.
      images: (B, H, W, C) uint8 or float32 on the 0..255 scale.
      recipe: strengths; static.

    Returns:
      (B, H, W, C) float32 in [0, 255].
    """
    keys = jax.random.split(key, 8)
    x = images.astype(jnp.float32)
    batch, channels = x.shape[0], x.shape[-1]
    if recipe.crop_min_area < 1 or recipe.flip > 0:
        x = random_resized_crop(keys[0], keys[1], x, recipe.crop_min_area, recipe.flip)
    plain = x
    if recipe.brightness > 0:
        x = x * _factor(keys[2], batch, recipe.brightness)
    if recipe.contrast > 0:
        x = adjust_contrast(x, _factor(keys[3], batch, recipe.contrast))
    if channels == 3 and recipe.saturation > 0:
        grey = to_gray(x)
        x = jnp.clip(grey + (x - grey) * _factor(keys[4], batch, recipe.saturation), 0, 255)
    if channels == 3 and recipe.hue > 0:
        turns = jax.random.uniform(keys[5], (batch,), minval=-recipe.hue, maxval=recipe.hue)
        x = rotate_hue(x, turns)
    if recipe.jitter_probability < 1:
        x = jnp.where(_coin(keys[6], batch, recipe.jitter_probability), x, plain)
    gray_key, blur_key, sigma_key = jax.random.split(keys[7], 3)
    if channels == 3 and recipe.grayscale > 0:
        x = jnp.where(_coin(gray_key, batch, recipe.grayscale), to_gray(x), x)
    if recipe.blur > 0:
        sigma = jax.random.uniform(sigma_key, (batch,), minval=BLUR_SIGMA[0], maxval=BLUR_SIGMA[1])
        x = jnp.where(_coin(blur_key, batch, recipe.blur), gaussian_blur(x, sigma), x)
    return jnp.clip(x, 0, 255)


def _coin(key: jax.Array, batch: int, probability: float) -> jax.Array:
    return jax.random.bernoulli(key, probability, (batch, 1, 1, 1))


def _factor(key: jax.Array, batch: int, strength: float) -> jax.Array:
    return jax.random.uniform(key, (batch, 1, 1, 1), minval=1 - strength, maxval=1 + strength)


def random_resized_crop(
    key: jax.Array, flip_key: jax.Array, images: jax.Array, min_area: float, flip: float
) -> jax.Array:
    """Inception-style crop (Szegedy et al. 2015): area from [min_area, 1], aspect 3/4..4/3, back to full size.

    Bilinear samples at positions inside the crop, as two small matrix products; a flip reverses the columns.
    """
    batch, height, width, _ = images.shape
    area_key, aspect_key, y_key, x_key = jax.random.split(key, 4)
    area = jax.random.uniform(area_key, (batch,), minval=min_area, maxval=1.0)
    log_aspect = jax.random.uniform(aspect_key, (batch,), minval=np.log(3 / 4), maxval=np.log(4 / 3))
    # A crop that would be higher or wider than the image is clipped to it.
    aspect = jnp.exp(log_aspect / 2)
    crop_h = jnp.minimum(jnp.sqrt(area) / aspect, 1.0) * height
    crop_w = jnp.minimum(jnp.sqrt(area) * aspect, 1.0) * width
    if min_area >= 1:
        crop_h, crop_w = jnp.full((batch,), float(height)), jnp.full((batch,), float(width))
    top = jax.random.uniform(y_key, (batch,)) * (height - crop_h)
    left = jax.random.uniform(x_key, (batch,)) * (width - crop_w)
    rows = _interpolation(top, crop_h, height)
    columns = _interpolation(left, crop_w, width)
    flipped = jax.random.bernoulli(flip_key, flip, (batch, 1, 1))
    columns = jnp.where(flipped, columns[:, ::-1], columns)
    x = jnp.einsum("byh,bhwc->bywc", rows, images)
    return jnp.einsum("bxw,bywc->byxc", columns, x)


def _interpolation(start: jax.Array, length: jax.Array, size: int) -> jax.Array:
    """(B,) starts and lengths -> (B, size, size) bilinear weights of output pixel by input pixel."""
    centre = start[:, None] + (jnp.arange(size) + 0.5) / size * length[:, None] - 0.5
    # Clamped to the crop, so that nothing outside it bleeds in at the border.
    low, high = start[:, None], start[:, None] + length[:, None] - 1
    centre = jnp.clip(centre, jnp.minimum(low, high), jnp.maximum(low, high))
    centre = jnp.clip(centre, 0, size - 1)
    return jnp.maximum(0.0, 1.0 - jnp.abs(centre[:, :, None] - jnp.arange(size)))


def to_gray(images: jax.Array) -> jax.Array:
    """(B, H, W, 3) -> the same shape, every channel the ITU-R BT.601 luma."""
    return jnp.broadcast_to((images @ LUMA)[..., None], images.shape)


def adjust_contrast(images: jax.Array, factor: jax.Array) -> jax.Array:
    """Moves values from each image's mean luma by `factor`, as torchvision's adjust_contrast; clipped."""
    luma = images @ LUMA if images.shape[-1] == 3 else images[..., 0]
    mean = jnp.mean(luma, axis=(1, 2))[:, None, None, None]
    return jnp.clip(mean + (images - mean) * factor, 0, 255)


def rotate_hue(images: jax.Array, turns: jax.Array) -> jax.Array:
    """Rotates chroma in the YIQ plane by `turns` of a full circle, luma kept; (B, H, W, 3), (B,); clipped."""
    to_yiq = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]], np.float32)
    angle = 2 * jnp.pi * turns[:, None, None]
    y, i, q = jnp.moveaxis(images @ to_yiq.T, -1, 0)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    turned = jnp.stack([y, i * cos - q * sin, i * sin + q * cos], axis=-1)
    return jnp.clip(turned @ np.linalg.inv(to_yiq).T.astype(np.float32), 0, 255)


def gaussian_blur(images: jax.Array, sigma: jax.Array) -> jax.Array:
    """Separable Gaussian blur with reflected borders; kernel side a tenth of the image's, odd, as SimCLR.

    Args:
      images: (B, H, W, C).
      sigma: (B,) standard deviations in pixels.
    """
    radius = max(1, min(images.shape[1:3]) // 20)
    offsets = jnp.arange(-radius, radius + 1)
    weights = jnp.exp(-0.5 * jnp.square(offsets / sigma[:, None]))
    weights = (weights / weights.sum(-1, keepdims=True))[:, :, None, None, None]
    for axis in (1, 2):
        pad = [(radius, radius) if a == axis else (0, 0) for a in range(4)]
        padded = jnp.pad(images, pad, mode="reflect")
        size = images.shape[axis]
        shifted = [jax.lax.slice_in_dim(padded, i, i + size, axis=axis) for i in range(2 * radius + 1)]
        images = jnp.sum(jnp.stack([weights[:, i] * x for i, x in enumerate(shifted)]), axis=0)
    return images


def keep_patches(key: jax.Array, batch: int, num_patches: int, share: float) -> jax.Array | None:
    """Which patches each view keeps.

    Returns:
      (batch, Q) int32, sorted, drawn without repetition; Q = share * num_patches rounded, at least one.
      None where all are kept.
    """
    kept = max(1, round(share * num_patches))
    if kept >= num_patches:
        return None
    noise = jax.random.uniform(key, (batch, num_patches))
    return jnp.sort(jnp.argsort(noise, axis=-1)[:, :kept], axis=-1)
