"""Corruptions that overlay an image: snow, frost, fog, spatter.

Each takes (n, H, W, C) float32 images in [0, 1], the constants of one severity and a random generator per image, and
returns images for `corruptions.corrupt` to clip and round. Lengths are in pixels, whatever the size of the image.

Dimensions: n images, H W C image.
"""

import functools

import numpy as np
from scipy import ndimage

from hybrid_jax.corruptions import ops as tools
from hybrid_jax.corruptions.ops import Draws

TEXTURE_SIDE = 256
# Number of stems, share of the clouds of rime in the light, factor of the light of the crystals.
_TEXTURES = ((50, 0.35, 0.7), (80, 0.2, 0.7), (35, 0.5, 0.7), (100, 0.15, 0.5), (60, 0.6, 0.8))
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
_ICE = np.array([0.84, 0.94, 1.0], np.float32)
_WATER = np.array([175, 238, 238], np.float32) / 255  # pale turquoise
_MUD = np.array([63, 42, 20], np.float32) / 255


def _coloured(amount: np.ndarray, colour: np.ndarray, channels: int) -> np.ndarray:
    """(n, H, W) amounts of one colour -> (n, H, W, C); grey images get its luma."""
    return amount[..., None] * (colour if channels == 3 else _LUMA @ colour)


def snow(x: np.ndarray, c: tuple, draws: Draws) -> np.ndarray:
    """Streaks of flakes over a whitened image."""
    mean, deviation, zoom, threshold, radius, sigma, share = c
    flakes = mean + deviation * tools.normal(draws, x.shape[1:3])[..., None]
    flakes = tools.zoomed(flakes, zoom)
    flakes = np.floor(np.clip(np.where(flakes < threshold, 0, flakes), 0, 1) * 255) / 255
    flakes = tools.motion(flakes.astype(np.float32), radius, sigma, tools.uniform(draws, (), -135, -45))
    luma = x @ _LUMA[:, None] if x.shape[-1] == 3 else x
    white = share * x + (1 - share) * np.maximum(x, luma * 1.5 + 0.5)
    return white + flakes + np.rot90(flakes, 2, axes=(1, 2))


def fog(x: np.ndarray, c: tuple, draws: Draws) -> np.ndarray:
    """Clouds over the image, rescaled to keep its brightest value."""
    amount, decay = c
    brightest = x.max(axis=(1, 2, 3), keepdims=True)
    clouds = tools.plasma(draws, x.shape[1], x.shape[2], decay)[..., None]
    return (x + amount * clouds) * brightest / (brightest + amount)


def frost(x: np.ndarray, c: tuple, draws: Draws) -> np.ndarray:
    """A crop of one of five textures of ours, added to a dimmed image with CIFAR-10-C's weights."""
    share, amount = c
    height, width = x.shape[1:3]
    chosen = [frost_texture(int(draw.integers(len(_TEXTURES)))) for draw in draws]
    corners = [draw.integers(TEXTURE_SIDE, size=2) for draw in draws]
    crops = np.stack([
        texture[np.ix_((top + np.arange(height)) % TEXTURE_SIDE, (left + np.arange(width)) % TEXTURE_SIDE)]
        for texture, (top, left) in zip(chosen, corners, strict=True)
    ])  # fmt: skip
    return share * x + amount * _coloured(crops, _ICE, x.shape[-1])


@functools.cache
def frost_texture(number: int) -> np.ndarray:
    """Draws ice on a window: feathers of crystals in clouds of rime.

    No photograph was used or imitated: brightness, size and sharpness of the crystals are our choice, so that results
    under `frost` are not comparable with those on CIFAR-10-C.

    Args:
      number: 0 to 4.

    Returns:
      (256, 256) float32 in [0, 1], periodic.
    """
    stems, cloudy, light = _TEXTURES[number]
    rng = np.random.default_rng((0, number))
    marks = np.zeros((TEXTURE_SIDE, TEXTURE_SIDE))
    for weight, points in zip((1.0, 0.6, 0.35), _feathers(rng, stems), strict=True):
        rows, columns = np.floor(points).astype(int) % TEXTURE_SIDE
        np.add.at(marks, (rows, columns), weight)
    crystals = 1 - np.exp(-light * ndimage.gaussian_filter(marks, 0.6, mode="wrap"))
    rime = _clouds(rng) * (0.7 + 0.3 * rng.random(marks.shape))
    return np.clip(cloudy * rime + (1 - 0.5 * cloudy) * crystals, 0, 1).astype(np.float32)


def _feathers(rng: np.random.Generator, stems: int) -> list[np.ndarray]:
    """Points, (2, m) in pixels, of curved stems, of their branches at 60 degrees, and of the branches of those."""
    start = rng.uniform(0, TEXTURE_SIDE, (2, stems))
    angle, length = rng.uniform(0, 2 * np.pi, stems), rng.uniform(30, 110, stems)
    bend, found = rng.normal(0, 0.006, stems), []
    for step in (7.0, 3.0, 0.0):
        # Two points per pixel, so that no line has gaps.
        along = np.arange(0, length.max(), 0.5)[:, None]
        heading = angle + bend * along
        path = start[:, None] + 0.5 * np.cumsum(np.stack([np.sin(heading), np.cos(heading)]), axis=1)
        grown = along < length
        found.append(path[:, grown])
        if step:
            at, stem = np.nonzero(grown & (along % step < 0.5))
            side = np.tile(np.array([[1], [-1]]), len(at))
            left = length[stem] - along[at, 0]
            start = np.tile(path[:, at, stem], 2)
            angle = (heading[at, stem] + side * np.pi / 3).ravel() + rng.normal(0, 0.1, 2 * len(at))
            # Shorter towards the tip, like a feather.
            length = np.tile(np.minimum(0.45 * left, 30), 2) * rng.uniform(0.5, 1, 2 * len(at))
            bend = rng.normal(0, 0.01, 2 * len(at))
    return found


def _clouds(rng: np.random.Generator) -> np.ndarray:
    """(side, side) noise in [0, 1] with a 1/f spectrum, periodic."""
    frequency = np.hypot(np.fft.fftfreq(TEXTURE_SIDE)[:, None], np.fft.rfftfreq(TEXTURE_SIDE))
    frequency[0, 0] = np.inf
    spectrum = np.fft.rfft2(rng.normal(size=(TEXTURE_SIDE, TEXTURE_SIDE))) / frequency**1.5
    heights = np.fft.irfft2(spectrum, (TEXTURE_SIDE, TEXTURE_SIDE))
    return (heights - heights.min()) / (heights.max() - heights.min())


def spatter(x: np.ndarray, c: tuple, draws: Draws) -> np.ndarray:
    """Drops of water that shine at their rims, or opaque mud."""
    mean, deviation, sigma, threshold, strength, mud = c
    liquid = mean + deviation * tools.normal(draws, x.shape[1:3])[..., None]
    liquid = tools.gaussian(liquid, sigma)
    if mud:
        cover = tools.gaussian((liquid > threshold).astype(np.float32), strength)
        cover[cover < 0.8] = 0
        return x * (1 - cover) + _coloured(cover[..., 0], _MUD, x.shape[-1])
    drops = np.floor(np.clip(np.where(liquid < threshold, 0, liquid), 0, 1) * 255)[..., 0]
    shine = np.stack([_shine(image) for image in drops])
    return x + strength * _coloured(shine, _WATER, x.shape[-1])


def _shine(drops: np.ndarray) -> np.ndarray:
    """Grey levels of drops, (H, W) -> their light in [0, 1], by the distance from their rims."""
    rims = _edges(drops)
    # Without rims every pixel is at the largest distance.
    far = np.minimum(ndimage.distance_transform_edt(~rims), 20) if rims.any() else np.full(drops.shape, 20.0)
    height = _equalised(np.floor(ndimage.uniform_filter(far, 3, mode="mirror") + 1e-6).astype(int))
    slope = np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]])
    lit = np.clip(ndimage.correlate(height, slope, mode="mirror"), 0, 255).astype(float)
    light = drops * np.rint(ndimage.uniform_filter(lit, 3, mode="mirror"))
    return light / max(light.max(), 1)


def _equalised(levels: np.ndarray) -> np.ndarray:
    """Equalises the histogram of whole grey levels to 0..255; the lowest becomes 0."""
    values, index, counts = np.unique(levels, return_inverse=True, return_counts=True)
    if len(values) == 1:
        return levels
    below = np.cumsum(counts) - counts[0]
    return np.rint(255 * below / below[-1]).astype(int)[index].reshape(levels.shape)


def _edges(levels: np.ndarray) -> np.ndarray:
    """Canny edges (1986) of (H, W) grey levels as in OpenCV: Sobel, L1 norm, thresholds 50 and 150; bool."""
    down, right = (ndimage.sobel(levels, axis, mode="nearest") for axis in (0, 1))
    size = np.abs(down) + np.abs(right)
    padded = np.pad(size, 1)
    height, width = levels.shape
    ahead = lambda dy, dx: padded[1 + dy : 1 + dy + height, 1 + dx : 1 + dx + width]
    # Non-maximum suppression along the gradient, in one of four directions: an edge is higher than the pixel before it.
    flat, steep = np.tan(np.pi / 8), np.tan(3 * np.pi / 8)
    across, up = np.abs(right), np.abs(down)
    same = (down >= 0) == (right >= 0)
    cases = [up < flat * across, up > steep * across, same]
    before = np.select(cases, [ahead(0, -1), ahead(-1, 0), ahead(-1, -1)], ahead(-1, 1))
    after = np.select(cases, [ahead(0, 1), ahead(1, 0), ahead(1, 1)], ahead(1, -1))
    straight = cases[0] | cases[1]
    thin = (size > before) & np.where(straight, size >= after, size > after)
    parts, _ = ndimage.label(thin & (size > 50), np.ones((3, 3)))
    strong = np.unique(parts[thin & (size > 150)])
    return np.isin(parts, strong[strong > 0])
