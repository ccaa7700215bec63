"""Synthetic outliers to choose a score by; none of them is among those that results are reported on.

Every function makes one outlier of each image: (n, H, W, C) uint8 and a generator -> (n, H, W, C) uint8.

Dimensions: n images, H W C image.
"""

from collections.abc import Callable

import numpy as np
import scipy.ndimage

Maker = Callable[[np.ndarray, np.random.Generator], np.ndarray]

SALT = 0.05  # share of pixels
BEND = 0.08  # of the image's side, standard deviation of a displacement


def pasted(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Puts a rectangle of half the height and width of the next image into each, somewhere."""
    n, height, width, _ = images.shape
    down, across = -(-height // 2), -(-width // 2)
    made = images.copy()
    for i in range(n):
        top, left = rng.integers(height - down + 1), rng.integers(width - across + 1)
        window = np.s_[top : top + down, left : left + across]
        made[i][window] = images[(i + 1) % n][window]
    return made


def salted(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Makes 5 % of the pixels black or white."""
    shape = (*images.shape[:3], 1)
    return np.where(rng.random(shape) < SALT, rng.choice(np.array([0, 255], np.uint8), shape), images)


def bent(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Moves pixels by smooth random displacements."""
    n, height, width, _ = images.shape
    side = max(height, width)
    field = scipy.ndimage.gaussian_filter(rng.normal(size=(n, 2, height, width)), (0, 0, side / 7, side / 7))
    field *= BEND * side / np.maximum(field.std(axis=(2, 3), keepdims=True), 1e-9)
    grid = np.indices((height, width))
    made = np.empty_like(images)
    for i, image in enumerate(images):
        for channel in range(image.shape[2]):
            moved = scipy.ndimage.map_coordinates(image[..., channel], grid + field[i], np.float64, 1, mode="nearest")
            made[i, ..., channel] = np.rint(moved)
    return made


def mixed(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Takes the mean of each image and the next."""
    return ((images.astype(np.uint16) + np.roll(images, 1, axis=0)) // 2).astype(np.uint8)


def rolled(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Shifts each image by half its height and width; what leaves at one side enters at the other."""
    return np.roll(images, (images.shape[1] // 2, images.shape[2] // 2), axis=(1, 2))


def faded(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Halves the contrast around the image's own mean."""
    mean = images.mean(axis=(1, 2, 3), keepdims=True)
    return np.rint(mean + 0.5 * (images - mean)).astype(np.uint8)


SYNTHETIC: dict[str, Maker] = {
    "pasted": pasted,
    "salted": salted,
    "bent": bent,
    "mixed": mixed,
    "rolled": rolled,
    "faded": faded,
}
