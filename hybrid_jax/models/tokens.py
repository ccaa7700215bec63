"""Images as tokens: patches in raster order, each a short sequence of integers.

Dimensions: B batch, H W C image, N patches, S tokens per patch, V vocabulary, K palette colours.
"""

import dataclasses
import hashlib
import math
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import threadpoolctl
from scipy.spatial import cKDTree

_PALETTE_IMAGES = 10_000
_PIXELS_AT_ONCE = 2**20
_CELL = 4  # pixel values


@dataclasses.dataclass(frozen=True)
class TokenSpec:
    """How images become tokens; hashable, for use as a static argument.

    Attributes:
      kind: `intensity` (a token is one channel's value) or `palette` (one pixel's nearest colour).
      vocab_size: V, the number of intensity levels or palette colours.
      patch_size: side of a patch, in pixels.
      height: height of the images, in pixels.
      width: width of the images, in pixels.
      channels: channels of the images.
    """

    kind: str
    vocab_size: int
    patch_size: int
    height: int
    width: int
    channels: int

    @classmethod
    def from_config(cls, config) -> "TokenSpec":
        """Returns the spec of a resolved config."""
        model, data = config.model, config.data
        vocab = model.levels if model.token_kind == "intensity" else model.palette_size
        height, width = data.image_size
        return cls(model.token_kind, vocab, model.patch_size, height, width, data.channels)

    @property
    def num_patches(self) -> int:
        """N, the number of patches."""
        return (self.height // self.patch_size) * (self.width // self.patch_size)

    @property
    def tokens_per_patch(self) -> int:
        """S: p*p*C intensities or p*p palette indices."""
        return self.patch_size**2 * self.values_per_patch_pixel

    @property
    def values_per_patch_pixel(self) -> int:
        """Tokens per pixel."""
        return self.channels if self.kind == "intensity" else 1

    @property
    def values_per_token(self) -> int:
        """Dequantised values per token."""
        return 1 if self.kind == "intensity" else self.channels

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C)."""
        return self.height, self.width, self.channels


class Palette(flax.struct.PyTreeNode):
    """Colours, and the nearest one to each 8-bit pixel.

    Attributes:
      colours: (K, C) float32 in [-1, 1].
      nearest: (256**C,) uint16, indexed by the pixel's channels as base-256 digits; ties are deterministic.
    """

    colours: Any
    nearest: Any

    @classmethod
    def from_colours(cls, colours: np.ndarray) -> "Palette":
        """Finds the nearest colour of every pixel value; takes seconds for C = 3.

        Args:
          colours: (K, C) float32 in [-1, 1], K at most 65,536.
        """
        colours = np.asarray(colours, np.float32)
        return cls(colours, _nearest_colours((colours.astype(np.float64) + 1) * 127.5).astype(np.uint16))

    def content(self) -> bytes:
        """Returns bytes that identify the palette."""
        return np.asarray(self.colours, np.float32).tobytes()

    def digest(self) -> str:
        """Returns 64 hex digits of `content`."""
        return hashlib.sha256(self.content()).hexdigest()


def _nearest_colours(colours: np.ndarray) -> np.ndarray:
    """(K, C) on the 0..255 scale -> (256**C,): the nearest one of every pixel value, exactly."""
    tree, channels = cKDTree(colours), colours.shape[1]
    grid, cube = (256 // _CELL,) * channels, (256,) * channels
    centres = np.stack(np.unravel_index(np.arange(math.prod(grid)), grid), axis=-1) * _CELL + (_CELL - 1) / 2
    distance, index = tree.query(centres, k=2, workers=-1)
    # No pixel is further than `radius` from the centre of its cell. If the second colour is further than the first by
    # more than twice that, the first is nearest to all pixels of the cell.
    radius = (_CELL - 1) / 2 * math.sqrt(channels)
    unsure = distance[:, 1] - distance[:, 0] <= 2.001 * radius
    nearest, unsure = index[:, 0].reshape(grid), unsure.reshape(grid)
    for axis in range(channels):
        nearest, unsure = nearest.repeat(_CELL, axis), unsure.repeat(_CELL, axis)
    nearest, left = nearest.ravel(), np.flatnonzero(unsure)
    for part in np.array_split(left, len(left) // _PIXELS_AT_ONCE + 1):
        nearest[part] = tree.query(np.stack(np.unravel_index(part, cube), axis=-1), workers=-1)[1]
    return nearest


def abstract_palette(spec: TokenSpec) -> Palette | None:
    """Returns the shapes and dtypes of a spec's palette; None for intensity tokens."""
    if spec.kind != "palette":
        return None
    colours = jax.ShapeDtypeStruct((spec.vocab_size, spec.channels), jnp.float32)
    return Palette(colours, jax.ShapeDtypeStruct((256**spec.channels,), jnp.uint16))


def patchify(images: jax.Array, patch_size: int) -> jax.Array:
    """(B, H, W, C) -> (B, N, p*p*C): patches in raster order, within a patch by row, column, channel."""
    b, h, w, c = images.shape
    p = patch_size
    x = images.reshape(b, h // p, p, w // p, p, c).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, (h // p) * (w // p), p * p * c)


def unpatchify(patches: jax.Array, spec: TokenSpec) -> jax.Array:
    """(B, N, p*p*C) -> (B, H, W, C), the inverse of `patchify`."""
    h, w, c = spec.image_shape
    p = spec.patch_size
    x = patches.reshape(-1, h // p, w // p, p, p, c).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(-1, h, w, c)


def encode(images: jax.Array, spec: TokenSpec, palette: Palette | None = None) -> jax.Array:
    """Images to tokens.

    Args:
      images: (B, H, W, C); uint8, or float32 on the same 0..255 scale (augmented views), which is
        first rounded to integers.
      spec: how images become tokens.
      palette: the palette, for palette tokens.

    Returns:
      (B, N, S) int32 in [0, V).
    """
    if jnp.issubdtype(images.dtype, jnp.floating):
        images = jnp.clip(jnp.round(images), 0, 255)
    values = patchify(images, spec.patch_size).astype(jnp.int32)
    if spec.kind == "intensity":
        return values * spec.vocab_size // 256
    pixels = values.reshape(*values.shape[:2], -1, spec.channels)
    digits = 256 ** np.arange(spec.channels)[::-1]
    return jnp.asarray(_required(palette).nearest)[jnp.sum(pixels * digits, axis=-1)].astype(jnp.int32)


def dequantise(tokens: jax.Array, spec: TokenSpec, palette: Palette | None = None) -> jax.Array:
    """(..., S) tokens -> (..., S, values_per_token) float32 in [-1, 1]: bin centres or colours."""
    if spec.kind == "palette":
        return jnp.asarray(_required(palette).colours)[tokens]
    centre = (tokens + 0.5) * (256 / spec.vocab_size) - 0.5
    return (centre / 127.5 - 1)[..., None].astype(jnp.float32)


def decode(tokens: jax.Array, spec: TokenSpec, palette: Palette | None = None) -> jax.Array:
    """(B, N, S) tokens -> (B, H, W, C) uint8; encoding the result gives the same tokens.

    For palette tokens, this requires that no two colours round to the same 8-bit colour.
    """
    if spec.kind == "intensity":
        return unpatchify(jnp.asarray(_middle_values(spec.vocab_size))[tokens], spec)
    colours = jnp.clip(jnp.round((_required(palette).colours + 1) * 127.5), 0, 255).astype(jnp.uint8)
    return unpatchify(colours[tokens].reshape(*tokens.shape[:2], -1), spec)


def _required(palette: Palette | None) -> Palette:
    if palette is None:
        raise ValueError("palette tokens need a palette")
    return palette


def _middle_values(levels: int) -> np.ndarray:
    """(levels,) uint8: the middle 8-bit value of each bin."""
    tokens = np.arange(256) * levels // 256
    bins = [np.flatnonzero(tokens == t) for t in range(levels)]
    return np.array([b[len(b) // 2] for b in bins], np.uint8)


def fit_palette(images, size: int, seed: int = 0, sample: int = 100_000) -> np.ndarray:
    """Fits a palette by k-means on a seeded sample of pixels, as for Image GPT (Chen et al. 2020).

    Args:
      images: (n, H, W, C) uint8, in memory or on disk.
      size: K, the number of colours; at most the number of distinct pixels in the sample.
      seed: seed of the sample and of k-means.
      sample: number of pixels to cluster, from at most 10,000 images.

    Returns:
      (K, C) float32 in [-1, 1], ordered so that similar colours have similar indices.

    Raises:
      ValueError: the sample has fewer distinct colours than `size`.
    """
    from sklearn.cluster import KMeans  # slow import, needed only for palettes

    rng = np.random.default_rng(seed)
    some = images[np.sort(rng.permutation(len(images))[:_PALETTE_IMAGES])]
    pixels = some.reshape(-1, some.shape[-1])
    chosen = pixels[rng.permutation(len(pixels))[:sample]]
    distinct = len(np.unique(chosen, axis=0))
    if distinct < size:
        raise ValueError(f"{distinct} distinct colours, fewer than the palette's {size}")
    means = KMeans(size, n_init=1, random_state=seed, max_iter=50)
    # With several threads the order of summation is not deterministic.
    with threadpoolctl.threadpool_limits(1):
        centres = means.fit(chosen / 127.5 - 1).cluster_centers_.astype(np.float32)
    return centres[_by_likeness(centres)]


def _by_likeness(colours: np.ndarray) -> np.ndarray:
    """(K, C) -> (K,) an order in which colours with equal leading index bits are similar.

    The colours are halved recursively along their first principal component. A pixel head that factorises tokens into
    high and low bits then first chooses a group of similar colours.
    """
    if len(colours) < 2:
        return np.arange(len(colours))
    centred = colours.astype(np.float64) - colours.mean(axis=0)
    axis = np.linalg.svd(centred, full_matrices=False)[2][0]
    # The sign of a singular vector is arbitrary; fix it.
    along = np.argsort(centred @ (axis * np.sign(axis[np.argmax(np.abs(axis))])), kind="stable")
    half = 2 ** (math.ceil(math.log2(len(colours))) - 1)
    parts = along[:half], along[half:]
    return np.concatenate([part[_by_likeness(colours[part])] for part in parts])


def palette_psnr(images: np.ndarray, spec: TokenSpec, palette: Palette) -> float:
    """Peak signal-to-noise ratio of images decoded from palette tokens, 10 log10(255^2 / MSE) over all images.

    Args:
      images: (n, H, W, C) uint8.
      spec: how images become palette tokens.
      palette: the palette.

    Returns:
      dB; infinite if every pixel is a palette colour.
    """
    error = 0.0
    for start in range(0, len(images), 500):
        chunk = images[start : start + 500]
        shown = np.asarray(decode(encode(jnp.asarray(chunk), spec, palette), spec, palette), np.float64)
        error += float(np.sum(np.square(shown - chunk)))
    return 10 * math.log10(255**2 * images.size / error) if error else math.inf
