"""A store of decoded images on disk: one array_record entry per image, uint8 pixels in row, column, channel order.

A store is a folder with `images-<i>.array_record`, `store.json`, and if known `labels.npy`, `names.json` and
`sizes.npy`. It is written under a temporary name and renamed when complete, so that several processes may create
the same one.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
import socket
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import tqdm

from hybrid_jax.errors import UserError, reject

FORMAT_VERSION = 1
_SHARD_BYTES = 2**30
# One image per group, for random reads; uncompressed, since pixels hardly compress.
_OPTIONS = "group_size:1,uncompressed"
_QUIET = 3  # seconds before the progress line appears
_READ_AT_ONCE = 2**25  # bytes


@dataclasses.dataclass(frozen=True)
class Chunk:
    """Consecutive images of a split.

    Attributes:
      images: (b, H, W, C) uint8.
      labels: (b,) int32, or None.
      names: b names, or None.
      sizes: (b, 2) int32, height and width before resizing, in pixels; or None.
      skipped: one line per unreadable image.
    """

    images: np.ndarray
    labels: np.ndarray | None = None
    names: list[str] | None = None
    sizes: np.ndarray | None = None
    skipped: tuple[str, ...] = ()


def make(folder: pathlib.Path, shape: tuple[int, int, int], chunks: Callable[[], Iterable[Chunk]], total: int) -> None:
    """Creates a store; several processes may create the same one at once.

    Args:
      folder: folder of the store.
      shape: (H, W, C) of the images.
      chunks: function that returns the images.
      total: number of images, for the progress line.

    Raises:
      OSError: the store cannot be written.
    """
    _remove_abandoned(folder)
    temporary = folder.with_name(f"{folder.name}.{socket.gethostname()}.{os.getpid()}.incomplete")
    temporary.mkdir(parents=True)
    try:
        _write(temporary, shape, chunks(), total)
        try:
            temporary.rename(folder)
        except OSError:
            if not folder.exists():  # otherwise another process was first, with the same content
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _remove_abandoned(folder: pathlib.Path) -> None:
    """Removes incomplete stores of killed processes on this host."""
    for left in folder.parent.glob(f"{folder.name}.{socket.gethostname()}.*.incomplete"):
        try:
            os.kill(int(left.name.split(".")[-2]), 0)
        except ProcessLookupError:
            shutil.rmtree(left, ignore_errors=True)
        except PermissionError:
            continue


def _write(folder: pathlib.Path, shape: tuple[int, int, int], chunks: Iterable[Chunk], total: int) -> None:
    shards = _Shards(folder)
    extras: dict[str, list] = {"labels": [], "names": [], "sizes": []}
    skipped: list[str] = []
    digest = hashlib.blake2b(digest_size=16)
    bar = tqdm.tqdm(total=total, desc="decoding images, once", unit=" images", file=sys.stderr, delay=_QUIET)
    with bar as progress:
        for chunk in chunks:
            digest.update(np.ascontiguousarray(chunk.images).data)
            shards.add(chunk.images)
            skipped += chunk.skipped
            for name, found in extras.items():
                found += [] if getattr(chunk, name) is None else list(getattr(chunk, name))
            progress.update(len(chunk.images) + len(chunk.skipped))
    files = shards.close()
    for name, dtype in (("labels", np.int32), ("sizes", np.int32)):
        if extras[name]:
            np.save(folder / f"{name}.npy", np.array(extras[name], dtype))
    if extras["names"]:
        (folder / "names.json").write_text(json.dumps(extras["names"]))
    about = {"format_version": FORMAT_VERSION, "shape": shape, "shards": files, "digest": digest.hexdigest()}
    (folder / "store.json").write_text(json.dumps(about | {"skipped": skipped}))


@contextlib.contextmanager
def _as_os_error() -> Iterator[None]:
    """Converts the RuntimeError by which array_record reports a full disk."""
    try:
        yield
    except RuntimeError as error:
        raise OSError(str(error).partition(";")[0]) from error


class _Shards:
    """Writes images to one file after another."""

    def __init__(self, folder: pathlib.Path):
        self._folder, self._count, self._bytes = folder, 0, 0
        self._writer: Any = None
        self._done: list[dict] = []

    def add(self, images: np.ndarray) -> None:
        from array_record.python.array_record_module import ArrayRecordWriter

        for image in images:
            if self._writer is None:
                self._path = self._folder / f"images-{len(self._done):05}.array_record"
                self._writer = ArrayRecordWriter(str(self._path), _OPTIONS)
            with _as_os_error():
                self._writer.write(image.tobytes())
            self._count, self._bytes = self._count + 1, self._bytes + image.nbytes
            if self._bytes >= _SHARD_BYTES:
                self._finish()

    def _finish(self) -> None:
        with _as_os_error():
            self._writer.close()
        self._done.append({"file": self._path.name, "images": self._count, "bytes": self._path.stat().st_size})
        self._writer, self._count, self._bytes = None, 0, 0

    def close(self) -> list[dict]:
        """Returns one entry per file."""
        if self._writer is not None:
            self._finish()
        return self._done


class StoredImages:
    """Images of a store as a read-only array: `len`, `shape`, `dtype`, rows by index, slice or index array."""

    dtype = np.dtype(np.uint8)

    def __init__(self, folder: pathlib.Path, source, image_shape: tuple[int, ...], rows: np.ndarray):
        self._folder, self._source, self._image_shape, self._rows = folder, source, image_shape, rows

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, H, W, C)."""
        return (len(self), *self._image_shape)

    @property
    def nbytes(self) -> int:
        """Size of all pixels in bytes."""
        return int(np.prod(self.shape))

    def __getitem__(self, index) -> np.ndarray:
        """Reads images as an array in memory.

        Raises:
          UserError: a record is damaged.
        """
        rows = self._rows[index]
        found = self._read(np.atleast_1d(rows))
        return found if np.ndim(rows) else found[0]

    def _read(self, rows: np.ndarray) -> np.ndarray:
        try:
            records = self._source.__getitems__(rows.tolist()) if len(rows) else []
            return np.frombuffer(b"".join(records), np.uint8).reshape(len(rows), *self._image_shape)
        except (RuntimeError, ValueError) as error:
            raise damaged(self._folder, str(error).partition("\n")[0]) from error

    def select(self, rows: np.ndarray) -> "StoredImages":
        """Returns the given rows in order, without reading them."""
        return StoredImages(self._folder, self._source, self._image_shape, self._rows[rows])

    def to_memory(self) -> np.ndarray:
        """Reads all images into memory, in file order for speed: (n, H, W, C) uint8."""
        result = np.empty(self.shape, np.uint8)
        order = np.argsort(self._rows)
        size = max(1, _READ_AT_ONCE // int(np.prod(self._image_shape)))
        for start in range(0, len(order), size):
            places = order[start : start + size]
            result[places] = self._read(self._rows[places])
        return result


@dataclasses.dataclass(frozen=True)
class Store:
    """An open store.

    Attributes:
      folder: folder of the store.
      images: images, read on demand.
      labels: as in `Chunk`, for all images.
      names: as in `Chunk`, for all images.
      sizes: as in `Chunk`, for all images.
      skipped: one line per image that was unreadable when the store was created.
      digest: digest of the pixels in order, equal to `digest_of` of the array.
    """

    folder: pathlib.Path
    images: StoredImages
    labels: np.ndarray | None
    names: list[str] | None
    sizes: np.ndarray | None
    skipped: tuple[str, ...]
    digest: str


def digest_of(images: np.ndarray) -> str:
    """Returns the hex digest of (n, H, W, C) uint8 pixels."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update(np.ascontiguousarray(images).data)
    return digest.hexdigest()


def key_of(*parts) -> str:
    """Returns a short hex digest of values that JSON can encode."""
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=8).hexdigest()


def open_or_make(
    folder: pathlib.Path, shape: tuple[int, int, int], chunks: Callable[[], Iterable[Chunk]], total: int
) -> Store:
    """Opens a store; creates it if it does not exist.

    Args:
      folder: folder of the store; its name must identify all inputs of the content.
      shape: (H, W, C) of the images.
      chunks: function that returns the images.
      total: number of images, for the progress line.

    Raises:
      UserError: the store is damaged or cannot be written; also errors of `chunks`.
    """
    if not folder.exists():
        try:
            make(folder, shape, chunks, total)
        except OSError as error:
            allowed = (
                f"{folder} cannot be written ({error.strerror or error}); must be a folder with space for the images"
            )
            raise reject("data.cache", str(folder.parent), allowed) from error
    return _open(folder)


def damaged(folder: pathlib.Path, reason: str) -> UserError:
    """Returns the error for a damaged store."""
    return reject("data.cache", str(folder), f"is damaged ({reason}); delete it and run again to recreate it")


def _open(folder: pathlib.Path) -> Store:
    from array_record.python.array_record_data_source import ArrayRecordDataSource

    try:
        about = json.loads((folder / "store.json").read_text())
        files = [folder / shard["file"] for shard in about["shards"]]
        broken = [f.name for f, s in zip(files, about["shards"], strict=True) if _size(f) != s["bytes"]]
        if broken or about["format_version"] != FORMAT_VERSION:
            raise ValueError(f"{broken[0]} is truncated or missing" if broken else f"format {about['format_version']}")
        source = ArrayRecordDataSource(files) if files else ()
        total = sum(shard["images"] for shard in about["shards"])
        arrays = {n: _load(p) for n in ("labels", "sizes") if (p := folder / f"{n}.npy").exists()}
        names = json.loads(p.read_text()) if (p := folder / "names.json").exists() else None
    except (OSError, EOFError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise damaged(folder, str(error).partition("\n")[0]) from error
    images = StoredImages(folder, source, tuple(about["shape"]), np.arange(total))
    known = (arrays.get("labels"), names, arrays.get("sizes"))
    return Store(folder, images, *known, tuple(about["skipped"]), about["digest"])


def _load(file: pathlib.Path) -> np.ndarray:
    # Memory-mapped first, so that a wrong size in the header allocates nothing.
    return np.array(np.load(file, mmap_mode="r", allow_pickle=False))


def _size(file: pathlib.Path) -> int:
    return file.stat().st_size if file.is_file() else -1
