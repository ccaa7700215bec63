"""Images that are handed to a trained model: arrays, files and folders, brought to its shape a batch at a time."""

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
    """Images that can be read in order; `len` counts them before any is read.

    Attributes:
      skipped: one line for each file that could not be read, of those read so far.
    """

    def __init__(self, root: pathlib.Path | None, items: Any):
        """Holds the names of files under a folder, or without one an array or list of images."""
        self._root, self._items = root, items
        self.skipped: list[str] = []

    def __len__(self) -> int:
        return len(self._items)

    def chunks(self, size: tuple[int, int], channels: int, at_once: int, on_error: str) -> Iterator[Chunk]:
        """Brings the images to one shape, as the data of a training run are.

        Args:
          size: (height, width) of the result, in pixels.
          channels: 1 or 3.
          at_once: images in memory at a time.
          on_error: at an unreadable file, `stop`, or `skip` it.

        Yields:
          Chunks with names: relative POSIX paths, of arrays the row numbers.

        Raises:
          UserError: an unreadable file with `stop`, or all are unreadable.
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
    """Finds out what there is to read, without reading pixels.

    Args:
      images: a folder, searched at any depth; an image file; an .npy of uint8 images, which is read from
        disk batch by batch and never unpickled; or such images as an array or as a list of arrays.

    Raises:
      UserError: nothing there, or arrays of another shape or dtype.
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
        # A size that no number holds is an error too.
        with np.errstate(over="raise"):
            array = np.lib.format.open_memmap(path, mode="r")
    except Exception as error:  # damaged headers end in errors of every type
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path}: cannot be read as an .npy file of uint8 images ({reason})") from error
    _check(str(path), array, "n, ")
    return _of_array(str(path), array)


def _is_of_images(shape: tuple[int, ...], several: bool) -> bool:
    """Whether an array of this shape is an image, grey or colour, or one of `several`."""
    colour = len(shape) == 3 and shape[2] in _CHANNELS
    # Else one (h, w, 3) image would be taken for h grey ones of width 3.
    grey = len(shape) == 2 and not (several and shape[1] in _CHANNELS)
    return (colour or grey) and 0 not in shape


def _check(what: str, images: Any, first: str) -> None:
    """Refuses what is not uint8 images; `first` is the axis before theirs, if there is one."""
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
