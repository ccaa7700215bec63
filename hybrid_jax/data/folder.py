"""Folders of image files: which files there are, their splits and classes, and their pixels."""

import dataclasses
import os
import pathlib
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import tqdm

from hybrid_jax.errors import reject

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
SPLITS = ("train", "validation", "test")
_PROGRESS_ABOVE = 2000  # images


@dataclasses.dataclass(frozen=True)
class Layout:
    """The image files of a folder.

    Attributes:
      root: the folder.
      splits: the image names of each split: relative POSIX paths in sorted order.
      class_names: the classes in the order of their labels, or None where there are none.
      num_ignored: images outside the split folders, where there are split folders.
    """

    root: pathlib.Path
    splits: dict[str, list[str]]
    class_names: tuple[str, ...] | None
    num_ignored: int

    def labels(self, split: str, names: list[str]) -> np.ndarray | None:
        """Returns (n,) int32 labels of images of a split; None if one lies outside the class folders."""
        if self.class_names is None:
            return None
        index: dict[str | None, int] = {class_name: i for i, class_name in enumerate(self.class_names)}
        labels = [index.get(_class_of(name, split), -1) for name in names]
        return None if -1 in labels else np.array(labels, np.int32)


def scan(path: str) -> Layout:
    """Finds the images of a folder, its splits and its classes.

    `train/`, `validation/` and `test/` at the top are splits; without them every image is `train`. The
    direct sub-folders of `train/` (of the folder itself where there are no splits) are the classes if
    there are at least two and every training image lies in one.

    Raises:
      UserError: no such folder, not a folder, or no image in it.
    """
    root = pathlib.Path(path).expanduser()
    if not path:
        raise reject("data.path", path, "must name the folder of images")
    if not root.is_dir():
        what = "is a file" if root.exists() else "does not exist"
        raise reject("data.path", path, f"must be a folder of images; it {what}")
    names = find_images(root)
    if not names:
        raise reject("data.path", path, "must hold PNG, JPEG, WebP or BMP images; it holds none")
    by_split = {split: [name for name in names if name.startswith(f"{split}/")] for split in SPLITS}
    splits = {split: found for split, found in by_split.items() if found} or {"train": names}
    first = next(iter(splits))
    found = {_class_of(name, first) for name in splits[first]}
    classes = tuple(sorted(name for name in found if name is not None))
    class_names = classes if None not in found and len(classes) >= 2 else None
    return Layout(root, splits, class_names, len(names) - sum(map(len, splits.values())))


def _class_of(name: str, split: str) -> str | None:
    """The direct sub-folder of its split that an image lies in, if any."""
    folder, slash, _ = name.removeprefix(f"{split}/").partition("/")
    return folder if slash else None


def find_images(root: pathlib.Path) -> list[str]:
    """Returns the images under a folder at any depth: relative POSIX paths in sorted order.

    Links are followed, except to a folder they lie in. Names that start with a dot are left out.
    """
    names = []
    for folder, subfolders, files in os.walk(root, followlinks=True):
        here = pathlib.Path(folder)
        subfolders[:] = [s for s in subfolders if not s.startswith(".") and not _is_loop(here / s)]
        names += [
            (here / file).relative_to(root).as_posix()
            for file in files
            if file.lower().endswith(SUFFIXES) and not file.startswith(".")
        ]
    return sorted(names)


def _is_loop(folder: pathlib.Path) -> bool:
    return folder.is_symlink() and folder.parent.resolve().is_relative_to(folder.resolve())


def read_images(
    root: pathlib.Path, names: list[str], size: tuple[int, int], channels: int, on_error: str
) -> tuple[np.ndarray, list[str], list[str]]:
    """Decodes image files in threads, with a progress line where they are many.

    Args:
      root: the folder the names are relative to.
      names: the files, in the order of the result.
      size: (height, width) of the result, in pixels.
      channels: 1 or 3.
      on_error: at an unreadable file, `stop`, or `skip` it.

    Returns:
      images: (n, height, width, channels) uint8.
      kept: the names of those n files.
      skipped: one line for each unreadable file.

    Raises:
      UserError: an unreadable file with `stop`, or no readable file at all.
    """
    images = np.empty((len(names), *size, channels), np.uint8)
    kept: list[str] = []
    skipped: list[str] = []
    pool = ThreadPoolExecutor()
    try:
        decoded = pool.map(lambda name: _decode(root / name, size, channels), names)
        quiet = len(names) <= _PROGRESS_ABOVE
        progress = tqdm.tqdm(decoded, "reading images", len(names), file=sys.stderr, disable=quiet)
        for name, image in zip(names, progress, strict=True):
            if isinstance(image, np.ndarray):
                images[len(kept)] = image
                kept.append(name)
            elif on_error == "skip":
                skipped.append(f"{root / name}: {image}")
            else:
                allowed = f"cannot be read as an image ({image}); remove it, or set data.on_error=skip"
                raise reject("data.path", str(root / name), allowed)
    finally:
        pool.shutdown(cancel_futures=True)
    if not kept:
        raise reject("data.path", str(root), f"no image can be read; the first: {skipped[0]}")
    return images[: len(kept)], kept, skipped


def _decode(path: pathlib.Path, size: tuple[int, int], channels: int) -> np.ndarray | str:
    """One file's image, or the reason why it cannot be read."""
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as image:
            # A JPEG decodes several times faster to a size that is still twice what is needed.
            image.draft(None, (2 * max(size), 2 * max(size)))
            ImageOps.exif_transpose(image, in_place=True)
            return fit_image(image, size, channels)
    except Exception as error:  # decoders meet damaged files with errors of every type
        return " ".join(str(error).split()) or type(error).__name__


def fit_image(image, size: tuple[int, int], channels: int) -> np.ndarray:
    """Brings a picture to the model's shape.

    16 bits are scaled to 8, transparent pixels are composited on black, then colours are converted. The
    shorter side is made to fit with an antialiased bicubic filter, the longer side is cropped around the
    centre.

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


def fit_images(images: Sequence[np.ndarray], size: tuple[int, int], channels: int) -> np.ndarray:
    """Brings arrays to the model's shape, as `fit_image` does; those that have it are copied.

    Args:
      images: each (h, w) or (h, w, c), uint8 or uint16; c is 1, 3, or 2 or 4 with alpha.
      size: (height, width) in pixels.
      channels: 1 or 3.

    Returns:
      (n, height, width, channels) uint8.
    """
    from PIL import Image

    result = np.empty((len(images), *size, channels), np.uint8)
    for i, image in enumerate(images):
        pixels = _eight_bits(image) if image.dtype == np.uint16 else image
        pixels = pixels.reshape(*pixels.shape[:2], -1)
        if pixels.shape != result.shape[1:]:
            grey = pixels.shape[2] == 1
            pixels = fit_image(Image.fromarray(pixels[..., 0] if grey else pixels), size, channels)
        result[i] = pixels
    return result


def _eight_bits(values: np.ndarray) -> np.ndarray:
    """16-bit values of any integer type -> uint8, rounded: 65535 becomes 255."""
    return ((np.clip(values, 0, 65535).astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
