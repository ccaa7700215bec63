"""Views for the contrastive loss, made on the device inside the jitted step.

Images are float32 (B, H, W, C) on the 0..255 scale, in colour if C is 3. Random choices are made per image, except the
order of the jitter's steps, which is drawn once per batch and view. All come from one key, and the result is the same
on any number of devices.

Each colour step equals the corresponding torchvision function, but values are not rounded to integers between steps.
Factors are (B, 1, 1, 1).
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

# ITU-R BT.601 luma, the weights of PIL's "L" mode and of torchvision's rgb_to_grayscale.
LUMA = np.array([0.299, 0.587, 0.114], np.float32)
SOLARIZE_FROM = 128
BLUR_SIGMA = (0.1, 2.0)


def luma(images: jax.Array) -> jax.Array:
    """(B, H, W, 3) -> (B, H, W), the ITU-R BT.601 luma."""
    return jnp.matmul(images, LUMA, precision="highest")  # accelerators would round pixels to bfloat16


def to_gray(images: jax.Array) -> jax.Array:
    """(B, H, W, 3) -> the same shape, every channel the ITU-R BT.601 luma (torchvision's rgb_to_grayscale)."""
    return jnp.broadcast_to(luma(images)[..., None], images.shape)


def adjust_brightness(images: jax.Array, factor: jax.Array) -> jax.Array:
    """Multiplies by `factor` and clips, like torchvision's adjust_brightness. TensorFlow's adds a constant instead."""
    return jnp.clip(images * factor, 0, 255)


def adjust_contrast(images: jax.Array, factor: jax.Array) -> jax.Array:
    """Scales differences from each image's mean luma by `factor` and clips, like torchvision's adjust_contrast.

    TensorFlow's uses the mean of each channel instead.
    """
    grey = luma(images) if images.shape[-1] == 3 else images[..., 0]
    mean = jnp.mean(grey, axis=(1, 2))[:, None, None, None]
    return jnp.clip(mean + (images - mean) * factor, 0, 255)


def adjust_saturation(images: jax.Array, factor: jax.Array) -> jax.Array:
    """Scales differences of (B, H, W, 3) from each pixel's luma by `factor` and clips, like torchvision's.

    TensorFlow's adjust_saturation scales S of HSV instead.
    """
    gray = to_gray(images)
    return jnp.clip(gray + (images - gray) * factor, 0, 255)


def shift_hue(images: jax.Array, turns: jax.Array) -> jax.Array:
    """Shifts the hue (H of HSV), like adjust_hue of torchvision and tf.image.

    Without conversion to HSV: the largest and smallest channel values of a pixel stay, and each channel is a piecewise
    linear function of the hue between them (https://en.wikipedia.org/wiki/HSL_and_HSV#HSV_to_RGB_alternative).

    Args:
      images: (B, H, W, 3), any range.
      turns: (B,) in turns of the colour circle; 1/3 maps red to green.
    """
    red, green, blue = images[..., 0], images[..., 1], images[..., 2]
    high = jnp.maximum(jnp.maximum(red, green), blue)
    chroma = high - jnp.minimum(jnp.minimum(red, green), blue)
    inverse = 1 / jnp.where(chroma > 0, chroma, 1.0)
    from_green, from_blue = 2 + (blue - red) * inverse, 4 + (red - green) * inverse
    sixths = jnp.where(high == red, (green - blue) * inverse, jnp.where(high == green, from_green, from_blue))
    sixths += 6 * turns[:, None, None]

    # One channel at a time: twice as fast on CPUs as one array of all three.
    def channel(offset: int) -> jax.Array:
        place = sixths + offset
        place -= 6 * jnp.floor(place / 6)
        return high - chroma * jnp.clip(2 - jnp.abs(place - 3), 0, 1)

    return jnp.stack([channel(0), channel(4), channel(2)], axis=-1)


def solarize(images: jax.Array) -> jax.Array:
    """Inverts values of at least 128 (x -> 255 - x), like PIL's ImageOps.solarize and torchvision's."""
    return jnp.where(images < SOLARIZE_FROM, images, 255 - images)


Step = Callable[[jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Strengths of the steps of one view, in the order of application; 0 (1 for the crop) turns a step off.

    Attributes:
      crop_min_area: the area of a random resized crop is drawn from [this, 1], as a share.
      flip: probability of a horizontal flip.
      brightness: factor drawn from [1 - this, 1 + this].
      contrast: factor drawn from [1 - this, 1 + this].
      saturation: factor drawn from [1 - this, 1 + this].
      hue: shift in turns drawn from [-this, this].
      grayscale: probability of conversion to greyscale.
      blur: probability of a Gaussian blur, sigma from [0.1, 2] pixels.
      solarize: probability of inverting values of at least 128.
      jitter_probability: probability of the jitter (brightness, contrast, saturation, hue).
      random_order: apply the jitter's steps in random order, one order per batch (torchvision draws one per image,
        which under jit would compute every order for every image). Otherwise they are applied in the order above,
        and brightness is not clipped before contrast.
    """

    crop_min_area: float = 1.0
    flip: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    grayscale: float = 0.0
    blur: float = 0.0
    solarize: float = 0.0
    jitter_probability: float = 1.0
    random_order: bool = True


_NONE = Recipe()
# Crop of Szegedy et al. 2015 (arXiv 1409.4842) and flip: standard for supervised ImageNet, torchvision's defaults.
_CROP_FLIP = Recipe(crop_min_area=0.08, flip=0.5)
# Ours, for small grey images: mild crops, and contrast jitter for invariance to illumination.
_GREY_SMALL = Recipe(crop_min_area=0.3, flip=0.5, brightness=0.4, contrast=0.4, blur=0.2, random_order=False)
# SimCLR (arXiv 2002.05709), appendix A: colour distortion of strength 1, for ImageNet.
_SIMCLR = Recipe(
    crop_min_area=0.08, flip=0.5, brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2, grayscale=0.2, blur=0.5,
    jitter_probability=0.8,
)  # fmt: skip
# The same paper on CIFAR-10, appendix B.9: strength 0.5, no blur.
_SIMCLR_CIFAR = dataclasses.replace(_SIMCLR, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, blur=0.0)
# MoCo v2 (arXiv 2003.04297), also SimSiam (2011.10566). Ours: the blur's kernel size, as in SimCLR.
_MOCO_V2 = dataclasses.replace(_SIMCLR_CIFAR, crop_min_area=0.2, blur=0.5)
# MoCo v3 (arXiv 2104.02057), which uses the asymmetric views of BYOL (2006.07733, appendix B). Crop as for its vision
# transformers (its ResNets: 0.2); colour steps as in torchvision (BYOL's code: TensorFlow). Ours: the kernel size.
_MOCO_V3_FIRST = dataclasses.replace(_SIMCLR_CIFAR, saturation=0.2, blur=1.0)
_MOCO_V3_SECOND = dataclasses.replace(_MOCO_V3_FIRST, blur=0.1, solarize=0.2)

# The recipes of both views. Ours in all of them: the jitter's order is drawn per batch, values are not rounded
# between steps, crops that do not fit are clipped (see random_resized_crop).
RECIPES: dict[str, tuple[Recipe, Recipe]] = {
    "none": (_NONE, _NONE),
    "crop_flip": (_CROP_FLIP, _CROP_FLIP),
    "grey_small": (_GREY_SMALL, _GREY_SMALL),
    "simclr": (_SIMCLR, _SIMCLR),
    "simclr_cifar": (_SIMCLR_CIFAR, _SIMCLR_CIFAR),
    "moco_v2": (_MOCO_V2, _MOCO_V2),
    "moco_v3": (_MOCO_V3_FIRST, _MOCO_V3_SECOND),
}


def recipes_from_config(augment) -> tuple[Recipe, Recipe]:
    """Returns the named recipes of both views; strengths set in the config replace those of both."""
    names = [f.name for f in dataclasses.fields(Recipe) if f.name in augment]
    changes = {name: augment[name] for name in names if augment[name] is not None}
    first, second = RECIPES[augment.recipe]
    return dataclasses.replace(first, **changes), dataclasses.replace(second, **changes)


def augment(key: jax.Array, images: jax.Array, recipe: Recipe) -> jax.Array:
    """Makes one random view of each image.

    Args:
      key: typed PRNG key.
      images: (B, H, W, C) uint8 or float32 on the 0..255 scale; colour steps are skipped unless C is 3.
      recipe: strengths; static.

    Returns:
      (B, H, W, C) float32 in [0, 255].
    """
    keys = jax.random.split(key, 8)
    x = images.astype(jnp.float32)
    batch, channels = x.shape[0], x.shape[-1]
    if recipe.crop_min_area < 1 or recipe.flip > 0:
        x = random_resized_crop(keys[0], keys[1], x, recipe.crop_min_area, recipe.flip)
    plain, steps = x, _jitter_steps(keys, recipe, batch, channels)
    # Further keys are folded in, since a longer split would change the first eight.
    x = _in_random_order(jax.random.fold_in(key, 8), x, steps) if recipe.random_order else _in_turn(x, steps)
    if steps and recipe.jitter_probability < 1:
        x = jnp.where(_coin(keys[6], batch, recipe.jitter_probability), x, plain)
    gray_key, blur_key, sigma_key = jax.random.split(keys[7], 3)
    if channels == 3 and recipe.grayscale > 0:
        x = jnp.where(_coin(gray_key, batch, recipe.grayscale), to_gray(x), x)
    if recipe.blur > 0:
        sigma = jax.random.uniform(sigma_key, (batch,), minval=BLUR_SIGMA[0], maxval=BLUR_SIGMA[1])
        x = jnp.where(_coin(blur_key, batch, recipe.blur), gaussian_blur(x, sigma), x)
    if recipe.solarize > 0:
        x = jnp.where(_coin(jax.random.fold_in(key, 9), batch, recipe.solarize), solarize(x), x)
    return jnp.clip(x, 0, 255)


def _jitter_steps(keys: jax.Array, recipe: Recipe, batch: int, channels: int) -> list[Step]:
    """Returns the active steps of torchvision's ColorJitter, in its default order; factors use `keys` 2 to 5."""

    def brightness(x: jax.Array) -> jax.Array:
        factor = _factor(keys[2], batch, recipe.brightness)
        # In the fixed order only contrast clips, to reproduce recorded curves bit by bit.
        return adjust_brightness(x, factor) if recipe.random_order else x * factor

    def hue(x: jax.Array) -> jax.Array:
        return shift_hue(x, jax.random.uniform(keys[5], (batch,), minval=-recipe.hue, maxval=recipe.hue))

    steps: list[tuple[bool, Step]] = [
        (recipe.brightness > 0, brightness),
        (recipe.contrast > 0, lambda x: adjust_contrast(x, _factor(keys[3], batch, recipe.contrast))),
        (
            channels == 3 and recipe.saturation > 0,
            lambda x: adjust_saturation(x, _factor(keys[4], batch, recipe.saturation)),
        ),
        (channels == 3 and recipe.hue > 0, hue),
    ]
    return [step for active, step in steps if active]


def _in_turn(images: jax.Array, steps: Sequence[Step]) -> jax.Array:
    for step in steps:
        images = step(images)
    return images


def _in_random_order(key: jax.Array, images: jax.Array, steps: Sequence[Step]) -> jax.Array:
    """Applies every step once to the batch, in an order drawn from `key`."""
    if len(steps) < 2:
        return _in_turn(images, steps)
    order = jax.random.permutation(key, len(steps))
    one_by_one, all_at_once = (functools.partial(form, steps) for form in (_one_by_one, _all_at_once))
    return jax.lax.platform_dependent(images, order, cpu=one_by_one, default=all_at_once)


def _one_by_one(steps: Sequence[Step], images: jax.Array, order: jax.Array) -> jax.Array:
    # The loop compiles each step once; a switch over all orders would compile it 24 times.
    return jax.lax.scan(lambda x, step: (jax.lax.switch(step, steps, x), None), images, order)[0]


def _all_at_once(steps: Sequence[Step], images: jax.Array, order: jax.Array) -> jax.Array:
    # On GPUs a switch waits for the host; computing every step four times is cheaper.
    for number in order:
        images = jax.lax.select_n(number, *(step(images) for step in steps))
    return images


def _coin(key: jax.Array, batch: int, probability: float) -> jax.Array:
    return jax.random.bernoulli(key, probability, (batch, 1, 1, 1))


def _factor(key: jax.Array, batch: int, strength: float) -> jax.Array:
    return jax.random.uniform(key, (batch, 1, 1, 1), minval=1 - strength, maxval=1 + strength)


def random_resized_crop(
    key: jax.Array, flip_key: jax.Array, images: jax.Array, min_area: float, flip: float
) -> jax.Array:
    """Crop of Szegedy et al. 2015 (arXiv 1409.4842, section 6), resized back to full size, and horizontal flip.

    Like torchvision's RandomResizedCrop: area uniform in [min_area, 1], aspect ratio log-uniform in [3/4, 4/3],
    bilinear. Ours: the aspect ratio is relative to that of the image, positions and sizes are not rounded to pixels,
    and a crop higher or wider than the image is clipped (torchvision draws again).

    Args:
      key: typed PRNG key of the crop.
      flip_key: typed PRNG key of the flip.
      images: (B, H, W, C) float32.
      min_area: smallest share of the area; 1 = no crop.
      flip: probability of a flip.

    Returns:
      (B, H, W, C) float32.
    """
    batch, height, width, _ = images.shape
    flipped = jax.random.bernoulli(flip_key, flip, (batch, 1, 1))
    if min_area >= 1:
        return jnp.where(flipped[..., None], images[:, :, ::-1], images)
    area_key, aspect_key, y_key, x_key = jax.random.split(key, 4)
    area = jax.random.uniform(area_key, (batch,), minval=min_area, maxval=1.0)
    log_aspect = jax.random.uniform(aspect_key, (batch,), minval=np.log(3 / 4), maxval=np.log(4 / 3))
    aspect = jnp.exp(log_aspect / 2)
    crop_h = jnp.minimum(jnp.sqrt(area) / aspect, 1.0) * height
    crop_w = jnp.minimum(jnp.sqrt(area) * aspect, 1.0) * width
    top = jax.random.uniform(y_key, (batch,)) * (height - crop_h)
    left = jax.random.uniform(x_key, (batch,)) * (width - crop_w)
    rows = _interpolation(top, crop_h, height)
    columns = _interpolation(left, crop_w, width)
    columns = jnp.where(flipped, columns[:, ::-1], columns)
    # Enlarging needs no antialiasing. By default accelerators would round pixels to bfloat16.
    x = jnp.einsum("byh,bhwc->bywc", rows, images, precision="highest")
    return jnp.einsum("bxw,bywc->byxc", columns, x, precision="highest")


def _interpolation(start: jax.Array, length: jax.Array, size: int) -> jax.Array:
    """(B,) starts and lengths -> (B, size, size) bilinear weights, output by input pixel."""
    centre = start[:, None] + (jnp.arange(size) + 0.5) / size * length[:, None] - 0.5
    # Clamped to the crop, so that pixels outside do not bleed in.
    low, high = start[:, None], start[:, None] + length[:, None] - 1
    centre = jnp.clip(centre, jnp.minimum(low, high), jnp.maximum(low, high))
    centre = jnp.clip(centre, 0, size - 1)
    return jnp.maximum(0.0, 1.0 - jnp.abs(centre[:, :, None] - jnp.arange(size)))


def gaussian_blur(images: jax.Array, sigma: jax.Array) -> jax.Array:
    """Gaussian blur of SimCLR (arXiv 2002.05709, appendix A): kernel size a tenth of the image's, made odd.

    Borders are reflected, as in torchvision. Ours: the kernel has at least 3 pixels.

    Args:
      images: (B, H, W, C) float32, sides of at least 2.
      sigma: (B,) standard deviations in pixels.

    Returns:
      (B, H, W, C) float32.
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
    """Draws the patches that each view keeps.

    Returns:
      (batch, Q) int32 indices, sorted, without repetition; Q = share * num_patches rounded, at least one.
      None if all are kept.
    """
    kept = max(1, round(share * num_patches))
    if kept >= num_patches:
        return None
    noise = jax.random.uniform(key, (batch, num_patches))
    return jnp.sort(jnp.argsort(noise, axis=-1)[:, :kept], axis=-1)
