"""Input images for a trained model, from arrays, files or folders, converted to its shape batch by batch."""

import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from hybrid_jax.data import decode, folder
from hybrid_jax.data.store import Chunk
from hybrid_jax.errors import UserError

# A path, or (B, h, w) or (B, h, w, c) uint8, or a list of (h, w) or (h, w, c) uint8; c is 1 to 4.
Images = np.ndarray | Sequence[np.ndarray] | str | os.PathLike
_CHANNELS = (1, 2, 3, 4)


class Inputs:
    """Images to be read in order; `len` is known before any is read.

    Attributes:
      skipped: one line per unreadable file so far.
    """

    def __init__(self, root: pathlib.Path | None, items: Any):
        """Takes names of files under the folder `root`; or an array or list of images if `root` is None."""
        self._root, self._items = root, items
        self.skipped: list[str] = []

    def __len__(self) -> int:
        return len(self._items)

    def chunks(self, size: tuple[int, int], channels: int, at_once: int, on_error: str) -> Iterator[Chunk]:
        """Reads images and converts them to one shape, like training data.

        Args:
          size: (height, width) of the result, in pixels.
          channels: 1 or 3.
          at_once: images in memory at a time.
          on_error: on an unreadable file, `stop` or `skip`.

        Yields:
          Chunks with names: relative POSIX paths, or row numbers for arrays.

        Raises:
          UserError: a file is unreadable and `on_error` is `stop`, or all are unreadable.
        """
        if on_error not in ("stop", "skip"):
            raise UserError(f"on_error={on_error!r}: must be stop or skip")
        self.skipped.clear()
        if self._root is None:
            for start in range(0, len(self), at_once):
                images = decode.fit_images(self._items[start : start + at_once], size, channels)
                yield Chunk(images, names=[str(start + i) for i in range(len(images))])
            return
        for chunk in decode.chunks(self._root, self._items, size, channels, "skip", at_once):
            self.skipped += chunk.skipped
            if chunk.skipped and on_error == "stop":
                path, _, reason = chunk.skipped[0].partition(": ")
                raise UserError(f"{path}: cannot be read as an image ({reason}); remove it, or set on_error=skip")
            yield chunk
        if len(self.skipped) == len(self):
            raise UserError(f"{self._root}: no image can be read; the first: {self.skipped[0]}")


def open_inputs(images: Images | Inputs) -> Inputs:
    """Opens input images, without reading pixels.

    Args:
      images: a folder, searched at any depth; an image file; an .npy file of uint8 images, which is read batch by
        batch and never unpickled; or an array or list of arrays of uint8 images.

    Raises:
      UserError: there are no images, or arrays have another shape or dtype.
    """
    if isinstance(images, Inputs):
        return images
    if isinstance(images, str | os.PathLike):
        return _open_path(pathlib.Path(images).expanduser())
    if isinstance(images, list | tuple):
        for i, image in enumerate(images):
            _check(f"images[{i}]", image, "")
    else:
        _check("images", images, "B, ")
    return _of_array("images", images)


def _of_array(what: str, images: Any) -> Inputs:
    if not len(images):
        raise UserError(f"{what}: there are no images")
    return Inputs(None, images)


def _open_path(path: pathlib.Path) -> Inputs:
    if path.is_dir():
        names = folder.find_images(path)
        if not names:
            raise UserError(f"{path}: must hold PNG, JPEG, WebP or BMP images; it holds none")
        return Inputs(path, names)
    if not path.is_file():
        raise UserError(f"{path}: does not exist; must be a folder of images, an image or an .npy file")
    if path.suffix.lower() != ".npy":
        return Inputs(path.parent, [path.name])
    try:
        # An overflow of the size is an error too.
        with np.errstate(over="raise"):
            array = np.lib.format.open_memmap(path, mode="r")
    except Exception as error:  # damaged headers raise many types
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path}: cannot be read as an .npy file of uint8 images ({reason})") from error
    _check(str(path), array, "n, ")
    return _of_array(str(path), array)


def _is_of_images(shape: tuple[int, ...], several: bool) -> bool:
    """Returns whether an array of this shape is an image, grey or colour, or one of `several`."""
    colour = len(shape) == 3 and shape[2] in _CHANNELS
    # Otherwise one (h, w, 3) image would count as h grey ones of width 3.
    grey = len(shape) == 2 and not (several and shape[1] in _CHANNELS)
    return (colour or grey) and 0 not in shape


def _check(what: str, images: Any, first: str) -> None:
    """Raises UserError unless these are uint8 images; `first` names the batch axis, if there is one."""
    if not hasattr(images, "shape") or not hasattr(images, "dtype"):
        raise UserError(f"{what} of type {type(images).__name__}: must be an array of dtype uint8")
    shape, dtype = tuple(images.shape), images.dtype
    if dtype != np.uint8:
        hint = "; from [0, 1]: (255 * images).round().astype('uint8')" if "float" in str(dtype) else ""
        raise UserError(f"{what} of dtype {dtype}: must be uint8, 0 to 255{hint}")
    if not _is_of_images(shape[1:] if first else shape, bool(first)):
        single = "; a single image as images[None]" if first and len(shape) == 3 else ""
        allowed = f"must be ({first}h, w) or ({first}h, w, c) with c = 1 to 4{single}"
        raise UserError(f"{what} of shape {shape}: {allowed}")
