"""Lossless compression of images by a model's likelihood, and the way back.

python -m hybrid_jax.compression compress --workdir=DIR --input=IMAGES --output=FILE
python -m hybrid_jax.compression decompress --workdir=DIR --input=FILE --output=FILE.npy
python -m hybrid_jax.compression compare --workdir=DIR --input=IMAGES

An arithmetic coder (a range coder of `constriction`) spends -log2 p bits on a token of probability p. The decoder must
compute every p to the last bit as the coder did: both run the same compiled functions on batches of the same shape.
So a file is restored for certain only with the same checkpoint, the same versions and the same kind of device,
processor and number of cores. The file names them all; where one differs it is refused, and a checksum of the pixels
tells of whatever else may go wrong.

Dimensions: n images, B images of a batch, N patches, S tokens per patch, V vocabulary, H W C image.
"""

import json
import struct
import sys
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import tqdm

from hybrid_jax.coding_steps import Steps
from hybrid_jax.errors import UserError
from hybrid_jax.inference.model import NO_LIKELIHOOD, Model

_MAGIC, _FORMAT = b"hybridjx", 1
# Magic, format, n, H, W, C, B, CRC-32 of the pixels, digest of the model, bytes of the environment's JSON.
_HEAD = struct.Struct("<8sHI3HII16sH")
_CRC = struct.Struct("<I")  # of everything before it, at the end of the file
_WORD = np.dtype("<u4")


class Packed(NamedTuple):
    """A file's parts.

    Attributes:
      num: n.
      shape: (H, W, C).
      batch: B; the last batch is padded.
      pixels: CRC-32 of the restored images.
      digest: of the model.
      environment: what the probabilities depend on beside it.
      stream: uint32 words of the range coder.
    """

    num: int
    shape: tuple[int, int, int]
    batch: int
    pixels: int
    digest: bytes
    environment: dict[str, Any]
    stream: np.ndarray


def exact(model: Model) -> bool:
    """Whether tokens are pixels; else what is restored are the images of the tokens, so compression is lossy."""
    return model.spec.kind == "intensity" and model.spec.vocab_size == 256


def compress(model: Model, images: np.ndarray, batch_size: int | None = None, show_progress: bool = False) -> bytes:
    """Codes images in one stream: token t of all images of a batch, then token t + 1.

    Args:
      model: with a likelihood.
      images: (n, H, W, C), or (n, H, W) where C = 1; uint8, of exactly the model's shape.
      batch_size: images at a time, as far as memory allows; None = as the checkpoint's evaluations.
      show_progress: a bar on stderr.

    Returns:
      The file; it restores the pixels themselves where `exact(model)`.

    Raises:
      UserError: images of another shape or dtype, no likelihood, probabilities that are not finite.
    """
    coder, family = _range_coder(model)
    images, steps = _checked(model, images), Steps(model)
    batch = steps.batch_size(len(images), batch_size or model.config.eval.batch_size)
    program, encoder, pixels = steps.program(batch), coder.RangeEncoder(), 0
    with _bar("compressing", len(images), batch, steps, show_progress) as bar:
        for first in range(0, len(images), batch):
            coded = steps.encode(images[first : first + batch])
            # One row for each token in generation order.
            columns = iter(np.ascontiguousarray(coded.reshape(len(coded), -1).T))

            def code(probabilities: np.ndarray, columns=columns) -> np.ndarray:
                bar.update()
                symbols = next(columns)
                _coded(encoder.encode, symbols, family, probabilities)
                return symbols

            steps.walk(program, batch, len(coded), code)
            pixels = zlib.crc32(steps.decode(coded).data, pixels)
    stream = encoder.get_compressed()
    shape = model.spec.image_shape
    return _pack(Packed(len(images), shape, batch, pixels, steps.digest, program.environment, stream))


def decompress(model: Model, data: bytes, show_progress: bool = False) -> np.ndarray:
    """Restores the images of a file that `compress` made with the same model on the same kind of machine.

    Args:
      model: the one that coded them.
      data: the file.
      show_progress: a bar on stderr.

    Returns:
      (n, H, W, C) uint8.

    Raises:
      UserError: no such file, a damaged one, or one of another model, machine or version; never wrong images.
    """
    packed = unpack(data)
    coder, family = _range_coder(model)
    steps = Steps(model)
    if (packed.shape, packed.digest) != (model.spec.image_shape, steps.digest):
        raise UserError("compressed images of another checkpoint: must be restored with the one that coded them")
    # Of a file of unknown origin: what `compress` would never do might not fit into memory.
    if not packed.num or not 1 <= packed.batch <= steps.batch_size(packed.num, packed.num):
        raise UserError(f"compressed images: n={packed.num} in batches of {packed.batch}, which no such file has")
    program = steps.program(packed.batch)
    _check_environment(packed.environment, program.environment)
    decoder, parts = coder.RangeDecoder(packed.stream), []
    with _bar("decompressing", packed.num, packed.batch, steps, show_progress) as bar:

        def code(probabilities: np.ndarray) -> np.ndarray:
            bar.update()
            return _coded(decoder.decode, family, probabilities)

        for first in range(0, packed.num, packed.batch):
            parts.append(steps.decode(steps.walk(program, packed.batch, min(packed.batch, packed.num - first), code)))
    images = np.concatenate(parts)
    if zlib.crc32(images.data) != packed.pixels:
        raise UserError("compressed images: what was restored are not the images that were coded; it is not kept")
    return images


def unpack(data: bytes) -> Packed:
    """Reads a file's parts.

    Raises:
      UserError: it is no such file, of another format, or not the bytes that were written.
    """
    if not data.startswith(_MAGIC):
        raise UserError("not images that hybrid_jax.compression wrote")
    if len(data) < _HEAD.size + _CRC.size or _CRC.unpack(data[-_CRC.size :])[0] != zlib.crc32(data[: -_CRC.size]):
        raise UserError("compressed images: the file is damaged (truncated or changed)")
    _, form, num, *shape, batch, pixels, digest, length = _HEAD.unpack(data[: _HEAD.size])
    if form != _FORMAT:
        raise UserError(f"compressed images of format {form}: must be {_FORMAT}, the one that this version knows")
    text, stream = data[_HEAD.size : _HEAD.size + length], data[_HEAD.size + length : -_CRC.size]
    try:
        environment = json.loads(text)
        words = np.frombuffer(stream, _WORD).astype(np.uint32)
    except (ValueError, RecursionError) as error:
        raise UserError("compressed images: the header or the stream is not one that was written") from error
    if not isinstance(environment, dict):
        raise UserError("compressed images: the header is not one that was written")
    return Packed(num, (shape[0], shape[1], shape[2]), batch, pixels, digest, environment, words)


def _pack(parts: Packed) -> bytes:
    environment = json.dumps(parts.environment, separators=(",", ":")).encode()
    numbers = (parts.num, *parts.shape, parts.batch, parts.pixels, parts.digest, len(environment))
    head = _HEAD.pack(_MAGIC, _FORMAT, *numbers) + environment
    data = head + parts.stream.astype(_WORD).tobytes()
    return data + _CRC.pack(zlib.crc32(data))


def _check_environment(there: dict[str, Any], here: dict[str, Any]) -> None:
    for name, value in here.items():
        if there.get(name) != value:
            coded = f"compressed images, coded with {name}={str(there.get(name))[:80]}"
            raise UserError(f"{coded}: must be restored with the same; here it is {value}")


def _range_coder(model: Model) -> tuple[Any, Any]:
    """Returns the module of range coders, and the model family of tables of probabilities."""
    if not model.has_likelihood:
        raise UserError(f"compression: {NO_LIKELIHOOD}")
    try:
        import constriction  # an extra
    except ImportError as error:
        raise UserError("compression needs constriction: pip install 'hybrid_jax[compress]'") from error
    # 24-bit probabilities, none of them 0: every token can be coded, the least likely with 24 bits.
    return constriction.stream.queue, constriction.stream.model.Categorical(perfect=False)


def _checked(model: Model, images: np.ndarray) -> np.ndarray:
    images, shape = np.asarray(images), model.spec.image_shape
    whole = images[..., None] if images.ndim == 3 and shape[2] == 1 else images
    # Resizing, which other methods do, could not be undone.
    if whole.shape[1:] != shape or whole.dtype != np.uint8 or not len(whole):
        allowed = f"must be uint8 (n, {', '.join(map(str, shape))}), n at least 1, exactly the model's shape"
        raise UserError(f"images of shape {images.shape} and dtype {images.dtype}: {allowed}")
    return whole


def _coded(function: Callable, *args: Any) -> Any:
    try:
        return function(*args)
    except ValueError as error:
        raise UserError("compression: the model gives probabilities that are not finite") from error
    except AssertionError as error:
        raise UserError("compressed images: the stream is none of this model's") from error


def _bar(what: str, num: int, batch: int, steps: Steps, shown: bool) -> tqdm.tqdm:
    total = -(-num // batch) * steps.spec.num_patches * steps.spec.tokens_per_patch
    return tqdm.tqdm(total=total, desc=what, unit=" steps", file=sys.stderr, delay=1, disable=not shown)


if __name__ == "__main__":
    from hybrid_jax.compression_command import main

    sys.exit(main(sys.argv[1:]))
