"""CIFAR-10-C-style corruptions of images, in memory.

Kinds and constants are those of CIFAR-10-C (Hendrycks & Dietterich 2019, arXiv 1903.12261; its `make_cifar_c.py`, not
ImageNet-C's stronger ones). The images are not CIFAR-10-C: that set is a fixed set of files, made with other random
numbers, OpenCV and ImageMagick. Differences:

- the frost is drawn, not photographed: CIFAR-10-C overlays crops of five photographs of real frost, which are not
  shipped here (`weather.frost_texture`);
- `spatter` finds edges and distances with scipy, not with OpenCV; `saturate` exists for colour only;
- results are rounded to whole grey levels; CIFAR-10-C truncates them;
- in a grey image brightness is the pixel itself.

Lengths in pixels (blurs, the streaks of snow) are those for 32x32 and do not grow with the image, so that blurs are
weaker on larger images; `elastic_transform`, `pixelate` and `zoom_blur` scale with it. The random numbers of an image
depend on the seed, its index, the kind and the severity alone, not on the other images.

Dimensions: n images, H W C image.
"""

import io
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import ndimage

from hybrid_jax.corruptions import ops as tools
from hybrid_jax.corruptions import weather
from hybrid_jax.corruptions.ops import Draws

SEVERITIES = (1, 2, 3, 4, 5)
_PIXELS_AT_ONCE = 2**19
# Most memory that `corrupt` needs besides the images: a dozen float32 arrays of so many colour pixels.
BYTES_AT_ONCE = 144 * _PIXELS_AT_ONCE

# Takes (n, H, W, C) float32 in [0, 1], its constant and a random generator per image.
Corruption = Callable[[np.ndarray, Any, Draws], np.ndarray]


def corrupt(images: np.ndarray, name: str, severity: int, seed: int = 0, first: int = 0) -> np.ndarray:
    """Corrupts images.

    Args:
      images: (n, H, W, C) uint8, grey or colour, of any size.
      name: one of `kinds`.
      severity: 1 to 5.
      seed: the seed of all random numbers.
      first: index of the first image; `corrupt(x)[i:]` is `corrupt(x[i:], first=i)`.

    Returns:
      (n, H, W, C) uint8.

    Raises:
      ValueError: no such kind for these images, or no such severity.
    """
    if name not in kinds(images.shape[-1]) or severity not in SEVERITIES:
        raise ValueError(f"{name!r} of severity {severity!r}: must be one of {kinds(images.shape[-1])}, 1 to 5")
    function, constants = _TABLE[name]
    size = max(1, _PIXELS_AT_ONCE // (images.shape[1] * images.shape[2]))
    parts = [images[:0]]
    for start in range(0, len(images), size):
        x = images[start : start + size].astype(np.float32) / 255
        found = function(x, constants[severity - 1], tools.generators(seed, name, severity, first + start, len(x)))
        parts.append(np.round(np.clip(found, 0, 1) * 255).astype(np.uint8))
    return np.concatenate(parts)


def kinds(channels: int) -> tuple[str, ...]:
    """Returns the names of all corruptions of images with this many channels: `MAIN`, then the others."""
    return tuple(name for name in _TABLE if channels == 3 or name != "saturate")


def _gaussian_noise(x, c, draws):
    return x + c * tools.normal(draws, x.shape[1:])


def _shot_noise(x, c, draws):
    return np.stack([draw.poisson(image * c) for draw, image in zip(draws, x, strict=True)]) / c


def _impulse_noise(x, c, draws):
    chance = tools.uniform(draws, (2, *x.shape[1:]))
    return np.where(chance[:, 0] <= c, chance[:, 1] <= 0.5, x)


def _speckle_noise(x, c, draws):
    return x + c * x * tools.normal(draws, x.shape[1:])


def _defocus_blur(x, c, draws):
    radius, sigma = c
    offsets = np.arange(-8, 9) ** 2
    disk = (offsets[:, None] + offsets <= radius**2).astype(np.float32)
    edge = np.exp(-1 / (2 * sigma**2))
    soft = np.array([edge, 1, edge]) / (1 + 2 * edge)
    kernel = ndimage.convolve(disk / disk.sum(), np.outer(soft, soft), mode="constant")[6:11, 6:11]
    return ndimage.correlate(x, kernel[None, :, :, None], mode="mirror")


def _glass_blur(x, c, draws):
    sigma, repeats = c
    x = np.floor(tools.gaussian(x, sigma) * 255) / 255
    n, height, width, _ = x.shape
    image, rows, columns = np.ogrid[:n, 2:height, 2:width]
    for _ in range(repeats if min(height, width) > 2 else 0):
        # As in CIFAR-10-C, a pixel takes a neighbour's value: a swap was meant, but numpy's views made it a copy.
        back = np.stack([draw.integers(0, 2, (2, height - 2, width - 2)) for draw in draws])
        x[:, 2:, 2:] = x[image, rows - back[:, 0], columns - back[:, 1]]
    return tools.gaussian(x, sigma)


def _motion_blur(x, c, draws):
    radius, sigma = c
    return tools.motion(x, radius, sigma, tools.uniform(draws, (), -45, 45))


def _zoom_blur(x, c, draws):
    factors = np.arange(1, c, 0.01)
    return (x + sum(tools.zoomed(x, float(factor)) for factor in factors)) / (len(factors) + 1)


def _gaussian_blur(x, c, draws):
    return tools.gaussian(x, c)


def _brightness(x, c, draws):
    value = x.max(axis=-1, keepdims=True)
    brighter = np.minimum(value + c, 1)
    # One factor for all channels keeps hue and saturation; black has neither.
    return np.where(value > 0, x * (brighter / np.where(value > 0, value, 1)), brighter)


def _saturate(x, c, draws):
    factor, more = c
    value = x.max(axis=-1, keepdims=True)
    span = value - x.min(axis=-1, keepdims=True)
    saturation = span / np.where(value > 0, value, 1)
    wanted = np.clip(saturation * factor + more, 0, 1)
    # A grey pixel has hue 0, red: it keeps its first channel.
    grey = np.array([0, 1, 1], np.float32) * value * wanted
    return value - np.where(span > 0, (value - x) * wanted / np.where(span > 0, saturation, 1), grey)


def _contrast(x, c, draws):
    mean = x.mean(axis=(1, 2), keepdims=True)
    return (x - mean) * c + mean


def _elastic_transform(x, c, draws):
    n, height, width, _ = x.shape
    side = min(height, width)
    amount, sigma, shift = (share * side for share in c)
    middle = np.array([width // 2, height // 2], np.float32)
    corner = side // 3 * np.array([[1, 1], [1, -1], [-1, -1]])
    before = np.concatenate([middle + corner, np.ones((3, 1))], axis=1)
    after = before[:, :2] + tools.uniform(draws, (3, 2), -shift, shift)
    # The inverse affine map, from three moved points to their old positions.
    moved = np.concatenate([after, np.ones((n, 3, 1))], axis=2)
    back = np.linalg.solve(moved, np.broadcast_to(before[:, :2], (n, 3, 2)))
    rows, columns = np.mgrid[:height, :width]
    at = np.stack([columns, rows, np.ones_like(rows)], axis=-1).reshape(-1, 3) @ back
    x = tools.bilinear(x, at[..., 1].reshape(n, height, width), at[..., 0].reshape(n, height, width), False)
    fields = tools.gaussian(np.moveaxis(tools.uniform(draws, (2, height, width), -1, 1), 1, -1), sigma, "reflect", 3)
    return tools.bilinear(x, rows + amount * fields[..., 0], columns + amount * fields[..., 1], True)


def _pixelate(x, c, draws):
    from PIL import Image

    height, width = x.shape[1:3]
    small = max(1, int(width * c)), max(1, int(height * c))
    box = Image.Resampling.BOX
    return _with_pil(x, lambda image: image.resize(small, box).resize((width, height), box))


def _jpeg_compression(x, c, draws):
    from PIL import Image

    def pressed(image):
        file = io.BytesIO()
        image.save(file, "jpeg", quality=c)
        return Image.open(file)

    return _with_pil(x, pressed)


def _with_pil(x: np.ndarray, change: Callable) -> np.ndarray:
    """Applies `change`, which takes and returns a PIL image."""
    from PIL import Image

    pixels = np.round(x * 255).astype(np.uint8)
    # PIL expects grey images without a channel axis.
    changed = [np.asarray(change(Image.fromarray(p[..., 0] if p.shape[-1] == 1 else p))) for p in pixels]
    return np.stack(changed).reshape(x.shape).astype(np.float32) / 255


# The function, and its constant at severities 1 to 5; first CIFAR-10-C's test corruptions, then its validation ones.
_TABLE: dict[str, tuple[Corruption, tuple]] = {
    "gaussian_noise": (_gaussian_noise, (0.04, 0.06, 0.08, 0.09, 0.10)),
    "shot_noise": (_shot_noise, (500, 250, 100, 75, 50)),
    "impulse_noise": (_impulse_noise, (0.01, 0.02, 0.03, 0.05, 0.07)),
    "defocus_blur": (_defocus_blur, ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1))),
    "glass_blur": (_glass_blur, ((0.05, 1), (0.25, 1), (0.4, 1), (0.25, 2), (0.4, 2))),
    "motion_blur": (_motion_blur, ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5))),
    "zoom_blur": (_zoom_blur, (1.06, 1.11, 1.16, 1.21, 1.26)),
    "snow": (
        weather.snow,
        (
            (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
            (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
        ),
    ),
    "frost": (weather.frost, ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45))),
    "fog": (weather.fog, ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75))),
    "brightness": (_brightness, (0.05, 0.1, 0.15, 0.2, 0.3)),
    "contrast": (_contrast, (0.75, 0.5, 0.4, 0.3, 0.15)),
    "elastic_transform": (
        _elastic_transform,
        ((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)),
    ),
    "pixelate": (_pixelate, (0.95, 0.9, 0.85, 0.75, 0.65)),
    "jpeg_compression": (_jpeg_compression, (80, 65, 58, 50, 40)),
    "speckle_noise": (_speckle_noise, (0.06, 0.1, 0.12, 0.16, 0.2)),
    "gaussian_blur": (_gaussian_blur, (0.4, 0.6, 0.7, 0.8, 1)),
    "spatter": (
        weather.spatter,
        (
            (0.62, 0.1, 0.7, 0.7, 0.5, False),
            (0.65, 0.1, 0.8, 0.7, 0.5, False),
            (0.65, 0.3, 1, 0.69, 0.5, False),
            (0.65, 0.1, 0.7, 0.69, 0.6, True),
            (0.65, 0.1, 0.5, 0.68, 0.6, True),
        ),
    ),
    "saturate": (_saturate, ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2))),
}
MAIN = tuple(_TABLE)[:15]
