"""Decoding of image files and arrays to uint8 pixels of the model's shape."""

import pathlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from hybrid_jax.data.store import Chunk
from hybrid_jax.errors import UserError, reject

_ORIENTATION = 0x0112  # EXIF tag; above 4, height and width are swapped
_THREADS_ABOVE = 2**17  # bytes of an image; for smaller ones threads cost more than they save


def chunks(
    root: pathlib.Path, names: list[str], size: tuple[int, int], channels: int, on_error: str, at_once: int = 1024
) -> Iterator[Chunk]:
    """Decodes image files in threads.

    Args:
      root: folder that the names are relative to.
      names: names of the files, in the order of the result.
      size: (height, width) of the result, in pixels.
      channels: 1 or 3.
      on_error: on an unreadable file, `stop` or `skip`.
      at_once: images in memory at a time.

    Yields:
      Chunks with names and original sizes of the readable images, in order.

    Raises:
      UserError: a file is unreadable and `on_error` is `stop`.
    """
    pool = ThreadPoolExecutor()
    try:
        for start in range(0, len(names), at_once):
            part = names[start : start + at_once]
            decoded = pool.map(lambda name: _decode(root / name, size, channels), part)
            yield _chunk(root, part, decoded, on_error, (*size, channels))
    finally:
        pool.shutdown(cancel_futures=True)


def _chunk(root: pathlib.Path, names: list[str], decoded: Iterable, on_error: str, shape: tuple[int, ...]) -> Chunk:
    images = np.empty((len(names), *shape), np.uint8)
    kept: list[str] = []
    sizes: list[tuple[int, int]] = []
    skipped: list[str] = []
    for name, found in zip(names, decoded, strict=True):
        if not isinstance(found, str):
            images[len(kept)], original = found
            kept.append(name)
            sizes.append(original)
        elif on_error == "skip":
            skipped.append(f"{root / name}: {found}")
        else:
            raise unreadable(f"{root / name}: {found}")
    return Chunk(images[: len(kept)], None, kept, np.array(sizes, np.int32).reshape(-1, 2), tuple(skipped))


def unreadable(line: str) -> UserError:
    """Returns the error for an unreadable image file, from the line `path: reason`."""
    path, _, reason = line.partition(": ")
    allowed = f"cannot be read as an image ({reason}); remove it, or set data.on_error=skip"
    return reject("data.path", path, allowed)


def _decode(path: pathlib.Path, size: tuple[int, int], channels: int) -> tuple[np.ndarray, tuple[int, int]] | str:
    """Returns a file's image and its original (height, width), or the reason why it is unreadable."""
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as image:
            original = image.size if image.getexif().get(_ORIENTATION, 1) > 4 else image.size[::-1]
            # JPEGs decode several times faster at reduced size; twice the target size is enough.
            image.draft(None, (2 * max(size), 2 * max(size)))
            ImageOps.exif_transpose(image, in_place=True)
            return fit_image(image, size, channels), original
    except Exception as error:  # decoders raise many types for damaged files
        return " ".join(str(error).split()) or type(error).__name__


def fit_image(image, size: tuple[int, int], channels: int) -> np.ndarray:
    """Converts an image to the model's shape.

    16-bit values are scaled to 8 bits, transparent pixels composited on black, then colours converted. The
    shorter side is resized with an antialiased bicubic filter, the longer side is centre-cropped.

    Args:
      image: a PIL image of any mode.
      size: (height, width) in pixels.
      channels: 1 = grey (ITU-R 601 luma), 3 = RGB.

    Returns:
      (height, width, channels) uint8.
    """
    from PIL import Image, ImageOps

    if image.mode.startswith("I"):
        image = Image.fromarray(_eight_bits(np.asarray(image)))  # convert() would clip at 255
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image.convert("RGBA"))
    image = image.convert("L" if channels == 1 else "RGB")
    height, width = size
    image = ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC)
    return np.asarray(image).reshape(height, width, channels)


def fit_images(images: Sequence[np.ndarray] | np.ndarray, size: tuple[int, int], channels: int) -> np.ndarray:
    """Converts arrays to the model's shape, as `fit_image`; arrays of that shape are copied.

    Args:
      images: each (h, w) or (h, w, c), uint8 or uint16; c is 1, 3, or 2 or 4 with alpha.
      size: (height, width) in pixels.
      channels: 1 or 3.

    Returns:
      (n, height, width, channels) uint8.
    """
    if isinstance(images, np.ndarray) and images.dtype == np.uint8 and images.shape[1:] == (*size, channels):
        return np.array(images)
    result = np.empty((len(images), *size, channels), np.uint8)
    if any(image.nbytes > _THREADS_ABOVE for image in images):
        with ThreadPoolExecutor() as pool:
            fitted = pool.map(lambda image: _fit_array(image, size, channels), images)
            for i, pixels in enumerate(fitted):
                result[i] = pixels
        return result
    for i, image in enumerate(images):
        result[i] = _fit_array(image, size, channels)
    return result


def _fit_array(image: np.ndarray, size: tuple[int, int], channels: int) -> np.ndarray:
    from PIL import Image

    pixels = _eight_bits(image) if image.dtype == np.uint16 else image
    pixels = pixels.reshape(*pixels.shape[:2], -1)
    if pixels.shape == (*size, channels):
        return pixels
    grey = pixels.shape[2] == 1
    return fit_image(Image.fromarray(pixels[..., 0] if grey else pixels), size, channels)


def _eight_bits(values: np.ndarray) -> np.ndarray:
    """16-bit values of any integer type -> uint8, rounded: 65535 becomes 255."""
    return ((np.clip(values, 0, 65535).astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
