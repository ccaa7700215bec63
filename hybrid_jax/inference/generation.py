"""Sampling and completion in batches of bounded memory, over all devices of a mesh.

Dimensions: B images, N patches, S tokens per patch, K known patches, H W C image.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from hybrid_jax import sharding
from hybrid_jax.errors import UserError
from hybrid_jax.models import tokens as tokens_lib
from hybrid_jax.models.hybrid import HybridModel
from hybrid_jax.models.sampler import Draw, incremental_model, sample_tokens
from hybrid_jax.models.transformer import exact_products

# Keys and values of a batch, per device with memory of its own; XLA's copies of them while they grow need as much
# again.
CACHE_BYTES = 2**30


def make_draw(temperature: float, top_k: int | None, top_p: float | None) -> Draw:
    """Returns how tokens are drawn; raises UserError for settings out of range."""
    if not (temperature >= 0 and math.isfinite(temperature)):
        raise UserError(f"temperature={temperature}: must be at least 0 (0 = always the likeliest token)")
    if top_k is not None and top_k < 1:
        raise UserError(f"top_k={top_k}: must be at least 1")
    if top_p is not None and not 0 < top_p <= 1:
        raise UserError(f"top_p={top_p}: must lie in (0, 1]")
    return Draw(np.float32(temperature), None if top_p is None else np.float32(top_p), top_k, temperature == 0)


def as_key(rng: int | jax.Array) -> jax.Array:
    """Returns a key: `rng` itself, or the key of a seed."""
    return rng if isinstance(rng, jax.Array) else jax.random.key(rng)


def kept_patches(spec: tokens_lib.TokenSpec, num_rows: int | None, num_patches: int | None) -> int:
    """Returns how many of an image's first patches are kept; raises UserError for invalid numbers."""
    if (num_rows is None) == (num_patches is None):
        raise UserError(f"num_rows={num_rows}, num_patches={num_patches}: exactly one of the two must be given")
    if num_patches is not None:
        if not 0 <= num_patches <= spec.num_patches:
            raise UserError(f"num_patches={num_patches}: must lie in [0, {spec.num_patches}]")
        return num_patches
    assert num_rows is not None
    if num_rows % spec.patch_size or not 0 <= num_rows <= spec.height:
        allowed = f"must be a multiple of the patch size {spec.patch_size} in [0, {spec.height}]"
        raise UserError(f"num_rows={num_rows}: {allowed}")
    return num_rows // spec.patch_size * (spec.width // spec.patch_size)


class Generator:
    """Samples the rest of each image given its first patches.

    Image n is drawn with fold_in(key, n): the same numbers for any batch size, devices and processes.
    """

    def __init__(self, module: HybridModel, mesh: Mesh | None):
        """Takes a model with a generative branch; with a mesh, batches are sharded over its devices."""
        self._config, self._spec, self._mesh = module.config, module.spec, mesh
        whole = None if mesh is None else sharding.replicated(mesh)

        def function(params, palette, key, rows, images, draw, num_patches):
            keys = jax.vmap(lambda row: jax.random.fold_in(key, row))(rows)
            prompt = tokens_lib.encode(images, module.spec, palette)[:, :num_patches]
            with exact_products(module.config.dtype):
                drawn, _ = sample_tokens(incremental_model(module, params, palette), keys, prompt, draw)
            return tokens_lib.decode(drawn, module.spec, palette)

        self._function = jax.jit(function, static_argnums=6, out_shardings=whole)

    def batch_size(self, count: int, at_once: int) -> int:
        """Returns how many of `count` images to draw together: at most `at_once`, fewer if memory requires it."""
        c = self._config
        each = 2 * (c.encoder_layers + c.decoder_layers) * self._spec.num_patches * c.width
        fits = max(1, CACHE_BYTES // (each * jnp.dtype(c.dtype).itemsize))
        devices = 1 if self._mesh is None else self._mesh.size
        # CPU devices share the host's memory.
        shares = devices if jax.default_backend() != "cpu" else 1
        size = min(at_once, 2 ** math.ceil(math.log2(count)), fits * shares)
        return -(-size // devices) * devices

    def complete(
        self, params: Any, palette: Any, key: jax.Array, images: np.ndarray, first: int, num_patches: int, draw: Draw
    ) -> np.ndarray:
        """Completes a batch.

        Args:
          params: of the model.
          palette: of the model.
          key: of all batches.
          images: (B, H, W, C) uint8, of which the known patches are read.
          first: index of the first of them among all images.
          num_patches: K, from 0 to N.
          draw: how tokens are drawn.

        Returns:
          (B, H, W, C) uint8; the known patches are unchanged.
        """
        rows = self._placed(first + np.arange(len(images), dtype=np.int32))
        drawn = np.asarray(self._function(params, palette, key, rows, self._placed(images), draw, num_patches))
        return np.where(known_pixels(self._spec, num_patches), images, drawn)

    def compiled(self, params: Any, palette: Any, size: int, num_patches: int):
        """Compiles sampling of `size` images after `num_patches` known patches."""
        where = None if self._mesh is None else sharding.batch_sharding(self._mesh)
        rows = jax.ShapeDtypeStruct((size,), np.int32, sharding=where)
        images = jax.ShapeDtypeStruct((size, *self._spec.image_shape), np.uint8, sharding=where)
        draw = make_draw(1.0, None, None)
        return self._function.lower(params, palette, as_key(0), rows, images, draw, num_patches).compile()

    def _placed(self, batch: np.ndarray) -> jax.Array:
        """Moves a (B, ...) array from the host to the devices."""
        if self._mesh is None:
            return jax.device_put(batch)
        return sharding.global_batch(batch[sharding.local_rows(self._mesh, len(batch))], self._mesh, len(batch))


def known_pixels(spec: tokens_lib.TokenSpec, num_patches: int) -> np.ndarray:
    """Returns (H, W, 1) bool: the pixels of the first patches in raster order."""
    rows, columns = spec.height // spec.patch_size, spec.width // spec.patch_size
    known = (np.arange(rows * columns) < num_patches).reshape(rows, columns, 1)
    return known.repeat(spec.patch_size, axis=0).repeat(spec.patch_size, axis=1)
