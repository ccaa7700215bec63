"""Named, frozen encoders for measuring samples, never the evaluated checkpoint itself.

`random-conv-v1` is a small convolutional network with random weights. It needs no download, favours no data set, and
works for images unlike photographs, for which Naeem et al. 2020 (arXiv 2002.09797) recommend random embeddings. Its
numbers are comparable with numbers of the same encoder only.

Dimensions: n images, H W C image, D features.
"""

import dataclasses
import functools
import hashlib
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType

from hybrid_jax import sharding
from hybrid_jax.errors import reject
from hybrid_jax.inference import load as loading
from hybrid_jax.storage import checkpoint

RANDOM_CONV = "random-conv-v1"
FIELD = "eval.sample_quality.encoder"
DIMENSIONS = 128

_SEED = 0
_CHANNELS = (32, 64, 128)
_SMALLEST_SIDE = 4
_IMAGES_AT_ONCE, _PIXELS_AT_ONCE = 500, 2**21


@dataclasses.dataclass(frozen=True)
class FrozenEncoder:
    """An encoder whose features measure images.

    Attributes:
      name: reported with every number measured with it.
      embed: (n, H, W, C) uint8 -> (n, D) float32.
      checksum: of a checkpoint's parameters; empty for other encoders.
    """

    name: str
    embed: Callable[[np.ndarray], np.ndarray]
    checksum: str = ""


def check(choice: str) -> None:
    """Raises UserError if `eval.sample_quality.encoder` is neither `random-conv-v1` nor a workdir."""
    if choice == RANDOM_CONV:
        return
    if not checkpoint.directory(choice).is_dir():
        raise reject(FIELD, choice, f"must be {RANDOM_CONV} or the workdir of a trained model")


def open_encoder(choice: str) -> FrozenEncoder:
    """Returns the encoder that `eval.sample_quality.encoder` names.

    For a workdir it is `embed` of the newest checkpoint; the name holds path, step and a checksum of the parameters.

    Raises:
      UserError: no such encoder, or the workdir has no checkpoint.
    """
    check(choice)
    if choice == RANDOM_CONV:
        return FrozenEncoder(RANDOM_CONV, random_conv)
    # Each process embeds by itself: a process with cached baselines may not get here.
    here = jax.make_mesh((1, 1), sharding.BATCH_AXES, axis_types=(AxisType.Auto,) * 2, devices=jax.local_devices()[:1])
    model = loading.load(choice, mesh=here)
    found = checksum(model.params)
    return FrozenEncoder(f"{choice}@{model.step} sha256:{found}", model.embed, found)


def checksum(params) -> str:
    """Returns 12 hex digits of the SHA-256 of a pytree's paths and values."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        digest.update(jax.tree_util.keystr(path).encode())
        digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()[:12]


def random_conv(images: np.ndarray) -> np.ndarray:
    """The features of `random-conv-v1`.

    Convolutions of 3x3 and stride 2 with 32, 64, then 128 channels halve the image until its shorter side is at most
    4; each is followed by a leaky ReLU (slope 0.2). A random matrix projects the last map to 128 dimensions. Weights
    and biases are uniform, of variance 2 / fan-in and 1 / 4, from one stream of PCG64's raw integers.

    Args:
      images: (n, H, W, C) uint8, of any size, n >= 1.

    Returns:
      (n, 128) float32: the same on every machine up to rounding.
    """
    n, height, width, _ = images.shape
    weights = _weights(images.shape[1:])
    size = min(_IMAGES_AT_ONCE, max(1, _PIXELS_AT_ONCE // (height * width)))
    parts = []
    for start in range(0, n, size):
        chunk = images[start : start + size]
        padded = np.pad(chunk, [(0, size - len(chunk)), (0, 0), (0, 0), (0, 0)])
        parts.append(np.asarray(_forward(weights, padded))[: len(chunk)])
    return np.concatenate(parts)


@functools.lru_cache(maxsize=4)
def _weights(image_shape: tuple[int, int, int]) -> tuple[list[tuple[np.ndarray, np.ndarray]], np.ndarray]:
    """Kernel (3, 3, in, out) and bias (out,) of every convolution, and the last matrix, all float32."""
    height, width, channels = image_shape
    stream = np.random.PCG64(_SEED)

    def draw(shape: tuple[int, ...], variance: float) -> np.ndarray:
        # numpy guarantees the raw integers of a bit generator across versions, but not the output of Generator.
        uniform = (stream.random_raw(math.prod(shape)) >> np.uint64(11)) * 2.0**-53
        return ((2 * uniform - 1) * math.sqrt(3 * variance)).astype(np.float32).reshape(shape)

    layers: list[tuple[np.ndarray, np.ndarray]] = []
    while not layers or min(height, width) > _SMALLEST_SIDE:
        out = _CHANNELS[min(len(layers), len(_CHANNELS) - 1)]
        layers.append((draw((3, 3, channels, out), 2 / (9 * channels)), draw((out,), 0.25)))
        height, width, channels = -(-height // 2), -(-width // 2), out
    size = height * width * channels
    return layers, draw((size, DIMENSIONS), 1 / size)


@jax.jit
def _forward(weights, images: jax.Array) -> jax.Array:
    layers, matrix = weights
    # Float32 products even if the default would round them to bfloat16.
    exact = jax.lax.Precision.HIGHEST
    x = images.astype(jnp.float32) / 127.5 - 1
    for kernel, bias in layers:
        order = ("NHWC", "HWIO", "NHWC")
        x = jax.lax.conv_general_dilated(x, kernel, (2, 2), "SAME", dimension_numbers=order, precision=exact)
        x = jax.nn.leaky_relu(x + bias, 0.2)
    return jnp.matmul(x.reshape(len(x), -1), matrix, precision=exact)
