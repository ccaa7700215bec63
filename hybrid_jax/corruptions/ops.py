"""Building blocks of corruptions: blurs and zooms as matrices, motion, warps, plasma, random numbers per image.

Dimensions: n images, H W C image.
"""

import functools
import zlib

import numpy as np
from scipy import ndimage

Draws = list[np.random.Generator]


def generators(seed: int, name: str, severity: int, first: int, count: int) -> Draws:
    """Returns one random generator for each of the images `first` to `first` + `count` - 1."""
    key = (seed, zlib.crc32(name.encode()), severity)
    return [np.random.default_rng((*key, index)) for index in range(first, first + count)]


def normal(draws: Draws, shape: tuple[int, ...]) -> np.ndarray:
    """(n, *shape) float32, standard normal."""
    return np.stack([draw.standard_normal(shape, np.float32) for draw in draws])


def uniform(draws: Draws, shape: tuple[int, ...], low: float = 0, high: float = 1) -> np.ndarray:
    """(n, *shape) float32, uniform in [low, high)."""
    return low + (high - low) * np.stack([draw.random(shape, np.float32) for draw in draws])


def separable(x: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Applies an (H', H) matrix to the rows and a (W', W) one to the columns of (n, H, W, C)."""
    return np.moveaxis(rows @ (np.moveaxis(x, -1, 1) @ columns.T), 1, -1)


@functools.lru_cache(maxsize=64)
def gaussian_matrix(size: int, sigma: float, mode: str, truncate: float) -> np.ndarray:
    """(size, size) float32: scipy's Gaussian filter along an axis, including its border mode."""
    return ndimage.gaussian_filter1d(np.eye(size), sigma, axis=0, mode=mode, truncate=truncate).astype(np.float32)


def gaussian(x: np.ndarray, sigma: float, mode: str = "nearest", truncate: float = 4.0) -> np.ndarray:
    """Blurs (n, H, W, C); sigma in pixels, 0 changes nothing."""
    if sigma == 0:
        return x
    rows, columns = (gaussian_matrix(size, sigma, mode, truncate) for size in x.shape[1:3])
    return separable(x, rows, columns)


@functools.lru_cache(maxsize=256)
def _zoom_matrix(size: int, factor: float) -> np.ndarray:
    """(size, size) float32: enlarges the middle of an axis by `factor`, linearly, and crops it to the axis."""
    kept = int(np.ceil(size / factor))
    top = (size - kept) // 2
    zoomed = ndimage.zoom(np.eye(kept), (factor, 1), order=1)
    trim = (len(zoomed) - size) // 2
    matrix = np.zeros((size, size), np.float32)
    matrix[:, top : top + kept] = zoomed[trim : trim + size]
    return matrix


def zoomed(x: np.ndarray, factor: float) -> np.ndarray:
    """Enlarges the middle of (n, H, W, C) by a factor of at least 1; the shape stays."""
    return separable(x, *(_zoom_matrix(size, factor) for size in x.shape[1:3]))


def motion(x: np.ndarray, radius: int, sigma: float, degrees: np.ndarray) -> np.ndarray:
    """Blurs each image in a direction of its own, as ImageMagick's motion blur.

    A pixel becomes a mean of those along a ray from it, with the weights of half a Gaussian and at whole pixels; the
    border is repeated beyond the image.

    Args:
      x: (n, H, W, C) float32.
      radius: the ray has 2 radius + 1 pixels.
      sigma: of the weights, pixels.
      degrees: (n,), clockwise from the right.
    """
    n, height, width, _ = x.shape
    weights = np.exp(-(np.arange(2 * radius + 1) ** 2) / (2 * sigma**2))
    weights /= weights.sum()
    angle, result = np.deg2rad(degrees), np.zeros_like(x)
    image, rows, columns = np.ogrid[:n, :height, :width]
    for i in np.flatnonzero(weights > 1e-5):
        down, right = (np.ceil(i * f(angle) - 0.5).astype(int)[:, None, None] for f in (np.sin, np.cos))
        moved = x[image, np.clip(rows + down, 0, height - 1), np.clip(columns + right, 0, width - 1)]
        result += np.float32(weights[i]) * moved
    return result


def bilinear(x: np.ndarray, rows: np.ndarray, columns: np.ndarray, repeat_edge: bool) -> np.ndarray:
    """Samples (n, H, W, C) at fractional positions, mirrored beyond the border.

    Args:
      x: the images.
      rows: (n, H, W) vertical positions, in pixels.
      columns: (n, H, W) horizontal positions, in pixels.
      repeat_edge: whether the mirror repeats the outermost pixel.
    """
    n, height, width, _ = x.shape
    top, left = np.floor(rows), np.floor(columns)
    down, right = (rows - top)[..., None].astype(x.dtype), (columns - left)[..., None].astype(x.dtype)
    image, result = np.arange(n)[:, None, None], np.zeros_like(x)
    for i, share_i in ((0, 1 - down), (1, down)):
        row = _mirrored(top.astype(int) + i, height, repeat_edge)
        for j, share_j in ((0, 1 - right), (1, right)):
            result += share_i * share_j * x[image, row, _mirrored(left.astype(int) + j, width, repeat_edge)]
    return result


def _mirrored(index: np.ndarray, size: int, repeat_edge: bool) -> np.ndarray:
    period = max(1, 2 * size if repeat_edge else 2 * size - 2)
    index = index % period
    return np.minimum(index, period - repeat_edge - index) if size > 1 else np.zeros_like(index)


def plasma(draws: Draws, height: int, width: int, decay: float) -> np.ndarray:
    """(n, height, width) float32 clouds in [0, 1]: the upper left of diamond-square fractals.

    The side of the square is the smallest power of two that is enough, at least 32; `decay` divides the roughness from
    one scale to the next finer one.
    """
    side = max(32, 1 << (max(height, width) - 1).bit_length())
    cells = [4**level for level in range(side.bit_length() - 1)]
    noise = uniform(draws, (3 * sum(cells),), -1, 1)
    heights = np.zeros((len(draws), side, side))
    step, rough, used = side, 100.0, 0
    while step >= 2:
        half, count = step // 2, side // step
        square, above, beside = (
            noise[:, used + k * count**2 : used + (k + 1) * count**2].reshape(-1, count, count) * rough**2
            for k in range(3)
        )
        used, corner = used + 3 * count**2, heights[:, ::step, ::step]
        pairs = corner + np.roll(corner, -1, axis=1)
        middle = (pairs + np.roll(pairs, -1, axis=2)) / 4 + square
        heights[:, half::step, half::step] = middle
        across = corner + np.roll(corner, -1, axis=2)
        heights[:, ::step, half::step] = (middle + np.roll(middle, 1, axis=1) + across) / 4 + above
        heights[:, half::step, ::step] = (middle + np.roll(middle, 1, axis=2) + pairs) / 4 + beside
        step, rough = half, rough / decay
    heights -= heights.min(axis=(1, 2), keepdims=True)
    heights /= heights.max(axis=(1, 2), keepdims=True)
    return heights[:, :height, :width].astype(np.float32)
