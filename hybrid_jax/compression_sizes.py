"""How large images are when a model compresses them, beside its own prediction, PNG and lossless WebP."""

import io
import math
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from PIL import Image

from hybrid_jax import coding_steps, compression
from hybrid_jax.errors import UserError
from hybrid_jax.inference import model as model_lib

_FORMATS: dict[str, dict[str, Any]] = {
    "PNG": {"format": "png", "optimize": True},
    "lossless WebP": {"format": "webp", "lossless": True, "quality": 100, "method": 6},
}
_SIDE = 16_383  # pixels at most, of a WebP


class Row(NamedTuple):
    """One size of the same images.

    Attributes:
      name: what was measured.
      bytes: of all images.
      bits_per_dim: bits per value of a pixel.
    """

    name: str
    bytes: float
    bits_per_dim: float


def compare(model: model_lib.Model, images: np.ndarray, batch_size: int | None = None) -> tuple[list[Row], str]:
    """Compresses images, restores them, and gives the size beside the model's own prediction, PNG and WebP.

    Args:
      model: with a likelihood.
      images: as `compression.compress` takes them.
      batch_size: as there.

    Returns:
      The sizes, and a line about the seconds and about what they leave out.

    Raises:
      UserError: as `compression.compress`, or where what comes back is not what went in.
    """
    start = time.perf_counter()
    data = compression.compress(model, images, batch_size, show_progress=True)
    middle = time.perf_counter()
    restored = compression.decompress(model, data, show_progress=True)
    end = time.perf_counter()
    steps = coding_steps.Steps(model)
    whole = np.asarray(images).reshape(restored.shape)
    if not np.array_equal(restored, steps.decode(steps.encode(whole))):
        raise UserError("compression: the restored images are not those that were compressed")
    stream = compression.unpack(data).stream.nbytes
    predicted = -float(model.token_log_prob(whole).sum(dtype=np.float64)) / math.log(2) / 8
    sizes: dict[str, float] = {
        "raw": restored.size,
        "predicted by the model (-log2 p)": predicted,
        "coded, the stream alone": stream,
        "coded, the whole file": len(data),
        # What the stream restores, so that all sizes are of the same pixels.
        **_other_formats(restored),
    }
    rows = [Row(name, size, 8 * size / restored.size) for name, size in sizes.items()]
    values = sum(leaf.size for leaf in jax.tree.leaves(model.params))
    told = (
        f"{lossy(model)}, stream {100 * (stream / predicted - 1):+.2f} % of the prediction; "
        f"{middle - start:.1f} s to compress with compilation, {end - middle:.1f} s to restore; "
        f"the model's own {values:,} parameters ({4 * values:,} bytes) are in none of the sizes"
    )
    return rows, told


def _other_formats(images: np.ndarray) -> dict[str, int]:
    across = math.ceil(math.sqrt(len(images)))
    down = -(-len(images) // across)
    if max(across * images.shape[2], down * images.shape[1]) > _SIDE:
        raise UserError(f"{len(images)} images: must be fewer, so that one WebP holds them all")
    blank = ((0, across * down - len(images)), (0, 0), (0, 0), (0, 0))
    tiles = np.pad(images, blank).reshape(down, across, *images.shape[1:])
    sheet = tiles.transpose(0, 2, 1, 3, 4).reshape(down * images.shape[1], across * images.shape[2], -1)
    sizes = {f"{name}, a file for each image": sum(_size(x, name) for x in images) for name in _FORMATS}
    return sizes | {f"{name}, all images in one": _size(sheet, name) for name in _FORMATS}


def _size(image: np.ndarray, name: str) -> int:
    """Returns the bytes of a file of one (h, w, c) uint8 image."""
    file = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[2] == 1 else image).save(file, **_FORMATS[name])
    return file.tell()


def lossy(model: model_lib.Model) -> str:
    """Says whether what is restored is what was compressed."""
    if compression.exact(model):
        return "lossless"
    what = "colours of the palette" if model.spec.kind == "palette" else f"{model.spec.vocab_size} levels"
    return f"lossy: {what} (the tokens are restored exactly, and the sizes are of their images)"


def table(rows: list[Row]) -> Iterator[str]:
    """Yields the lines of a table."""
    yield f"{'':<36}{'bytes':>12}{'bits/dim':>10}"
    for row in rows:
        yield f"{row.name:<36}{row.bytes:>12,.0f}{row.bits_per_dim:>10.3f}"
