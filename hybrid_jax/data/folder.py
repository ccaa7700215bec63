"""Folders of image files: their files, splits and classes."""

import dataclasses
import hashlib
import os
import pathlib

import numpy as np

from hybrid_jax.data.decode import unreadable
from hybrid_jax.errors import reject

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
SPLITS = ("train", "validation", "test", "labelled")


@dataclasses.dataclass(frozen=True)
class Layout:
    """The image files of a folder.

    Attributes:
      root: the folder.
      splits: {split: image names}, as sorted relative POSIX paths.
      class_names: class names in the order of the labels, or None without classes.
      num_ignored: number of images outside the split folders, if there are split folders.
    """

    root: pathlib.Path
    splits: dict[str, list[str]]
    class_names: tuple[str, ...] | None
    num_ignored: int

    def labels(self, split: str, names: list[str]) -> np.ndarray | None:
        """Returns (n,) int32 labels of images of a split; None if an image is outside the class folders."""
        if self.class_names is None:
            return None
        index: dict[str | None, int] = {class_name: i for i, class_name in enumerate(self.class_names)}
        labels = [index.get(_class_of(name, split), -1) for name in names]
        return None if -1 in labels else np.array(labels, np.int32)


def scan(path: str) -> Layout:
    """Finds the images of a folder, its splits and its classes.

    Top-level folders `train/`, `validation/`, `test/` and `labelled/` are splits; without them all images are
    `train`. The direct sub-folders of `labelled/`, else of `train/`, else of the folder itself are the classes,
    if there are at least two and every image of that split is in one.

    Raises:
      UserError: the path does not exist, is not a folder, or contains no images.
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
    splits = {split: found for split, found in by_split.items() if found}
    if not splits or list(splits) == ["labelled"]:  # a class named labelled
        splits = {"train": names}
    first = "labelled" if "labelled" in splits else next(iter(splits))
    found = {_class_of(name, first) for name in splits[first]}
    classes = tuple(sorted(name for name in found if name is not None))
    class_names = classes if None not in found and len(classes) >= 2 else None
    return Layout(root, splits, class_names, len(names) - sum(map(len, splits.values())))


def _class_of(name: str, split: str) -> str | None:
    """Returns the direct sub-folder of the split that contains an image, if any."""
    folder, slash, _ = name.removeprefix(f"{split}/").partition("/")
    return folder if slash else None


def find_images(root: pathlib.Path) -> list[str]:
    """Returns the images under a folder at any depth, as sorted relative POSIX paths.

    Symbolic links are followed, except to a parent folder. Names that start with a dot are skipped.
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


def fingerprint(root: pathlib.Path, names: list[str]) -> str:
    """Returns a hex digest of the files' names, sizes and modification times, the key of a cached copy."""
    digest = hashlib.blake2b(digest_size=16)
    for name in names:
        try:
            stat = (root / name).stat()
        except OSError as error:
            raise unreadable(f"{root / name}: {error.strerror}") from error
        digest.update(f"{name}\0{stat.st_size}\0{stat.st_mtime_ns}\0".encode(errors="surrogateescape"))
    return digest.hexdigest()
