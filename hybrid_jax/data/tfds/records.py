"""Reads and verifies tfrecord and array_record files, and decodes their images, without TensorFlow."""

import io
import itertools
import pathlib
import struct
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import google_crc32c
import numpy as np
import tensorflow_datasets as tfds

_LENGTH_AND_CRC = struct.Struct("<QI")
_CRC = struct.Struct("<I")
_AT_ONCE = 200
_THREADS_ABOVE = 16 << 10  # bytes of an image; for smaller ones threads were slower
_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}

Decoded = tuple[list[np.ndarray], np.ndarray | None]


class DamagedError(ValueError):
    """A record file is damaged; the message is the reason, without the file's name."""


def read_tfrecord(file: pathlib.Path) -> Iterator[bytes]:
    """Yields the records of a tfrecord file one by one.

    Raises:
      DamagedError: the file is truncated, or a checksum differs.
    """
    with file.open("rb", buffering=1 << 20) as stream:
        number = 0
        while head := stream.read(_LENGTH_AND_CRC.size):
            number += 1
            if len(head) < _LENGTH_AND_CRC.size:
                raise DamagedError(f"cut off in record {number}")
            length, crc = _LENGTH_AND_CRC.unpack(head)
            # Verify the length before use: with a flipped bit it could be arbitrarily large.
            if _masked_crc(head[:8]) != crc:
                raise DamagedError(f"wrong checksum in record {number}")
            record, tail = stream.read(length), stream.read(_CRC.size)
            if len(record) < length or len(tail) < _CRC.size:
                raise DamagedError(f"cut off in record {number}")
            if _masked_crc(record) != _CRC.unpack(tail)[0]:
                raise DamagedError(f"wrong checksum in record {number}")
            yield record


def _masked_crc(data: bytes) -> int:
    """Returns CRC32C rotated by 15 bits plus a constant, as the format stores it."""
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def read_array_record(file: pathlib.Path) -> Iterator[bytes]:
    """Yields the records of an array_record file one by one.

    Raises:
      DamagedError: the reader reports damage; the format has a checksum per chunk.
    """
    from array_record.python import array_record_module

    try:
        reader = array_record_module.ArrayRecordReader(str(file))
        try:
            total = reader.num_records()
            for start in range(0, total, _AT_ONCE):
                # Several times faster than reading single records.
                yield from reader.read(start, min(start + _AT_ONCE, total))
        finally:
            reader.close()
    except (RuntimeError, ValueError, IndexError) as error:
        raise DamagedError(line(error)) from error


READERS: dict[str, Callable[[pathlib.Path], Iterator[bytes]]] = {
    "tfrecord": read_tfrecord,
    "array_record": read_array_record,
}


def decode(features: tfds.features.FeaturesDict, part: list[bytes], pool: ThreadPoolExecutor) -> Decoded:
    """Returns images and labels of encoded records, as `reader.Prepared.chunks` yields them.

    Args:
      features: features to decode: `image` and optionally `label`.
      part: encoded records.
      pool: threads for large images.

    Raises:
      DamagedError: a record or an image cannot be decoded.
    """
    image = features["image"]
    encoded = isinstance(image, tfds.features.Image)
    skipped = {"image": tfds.decode.SkipDecoding()} if encoded else None
    try:
        examples = [features.deserialize_example_np(record, decoders=skipped) for record in part]
    except Exception as error:  # a wrong features.json raises many types
        raise DamagedError(f"a record does not match features.json ({line(error)})") from error
    images = [example["image"] for example in examples]
    if encoded:
        many_threads = sum(map(len, part)) > _THREADS_ABOVE * len(part)
        images = list((pool.map if many_threads else map)(_decode_image, images, itertools.repeat(image)))
    labels = np.array([example["label"] for example in examples], np.int32) if "label" in features else None
    return images, labels


def _decode_image(encoded: bytes, feature: tfds.features.Image) -> np.ndarray:
    """Returns the (h, w, c) pixels of an encoded image, with the channels that the feature declares."""
    from PIL import Image

    # Not by tfds, which uses OpenCV or PIL and leaves grey files of colour sets grey.
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            if feature.np_dtype == np.uint16:
                return np.asarray(image).astype(np.uint16)[..., None]
            mode = _MODES.get(feature.shape[-1]) or (image.mode if image.mode in _MODES.values() else "RGB")
            pixels = np.asarray(image if image.mode == mode else image.convert(mode))
    except Exception as error:  # decoders raise many types for damaged files
        raise DamagedError(f"an image cannot be decoded ({line(error)})") from error
    return pixels.reshape(*pixels.shape[:2], -1)


def line(error: Exception) -> str:
    """Returns the message of an error as one line."""
    return " ".join(str(error).split())[:200] or type(error).__name__
