"""Decoded images on disk, made once: one array_record entry an image, its uint8 pixels in row, column, channel order.

A store is a folder with `images-<i>.array_record`, `store.json`, and `labels.npy`, `names.json`, `sizes.npy` where
these are known. It is written beside its place and renamed when complete, so that any number of processes may
make the same one.
"""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Callable, Iterable

import numpy as np

from hybrid_jax.data import store_writer
from hybrid_jax.data.store_writer import FORMAT_VERSION, Chunk
from hybrid_jax.errors import UserError, reject

_READ_AT_ONCE = 2**25  # bytes


class StoredImages:
    """Images of a store as a read-only array: `len`, `shape`, `dtype`, rows by number, slice or index array."""

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
        """Bytes of all pixels."""
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
        """Returns these rows, in this order, without reading them."""
        return StoredImages(self._folder, self._source, self._image_shape, self._rows[rows])

    def to_memory(self) -> np.ndarray:
        """Reads all of them in the order of the files: (n, H, W, C) uint8."""
        result = np.empty(self.shape, np.uint8)
        order = np.argsort(self._rows)
        size = max(1, _READ_AT_ONCE // int(np.prod(self._image_shape)))
        for start in range(0, len(order), size):
            places = order[start : start + size]
            result[places] = self._read(self._rows[places])
        return result


@dataclasses.dataclass(frozen=True)
class Store:
    """What lies in a store.

    Attributes:
      folder: where it lies.
      images: as an array that is read on demand.
      labels, names, sizes: as in `Chunk`, of all images.
      skipped: one line for each image that could not be read when the store was made.
      digest: of the pixels in order; equal to `digest_of` of the array.
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
    """Returns a short hex digest of anything JSON can write."""
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=8).hexdigest()


def open_or_make(
    folder: pathlib.Path, shape: tuple[int, int, int], chunks: Callable[[], Iterable[Chunk]], total: int
) -> Store:
    """Opens a store; makes it where it is not there.

    Args:
      folder: of the store; its name must say all that its content depends on.
      shape: (H, W, C) of the images.
      chunks: called to make it.
      total: how many images will come, for the progress line.

    Raises:
      UserError: it cannot be written, or what is there is damaged; and what `chunks` raises.
    """
    if not folder.exists():
        try:
            store_writer.make(folder, shape, chunks, total)
        except OSError as error:
            allowed = f"{folder} cannot be written ({error.strerror or error}); name a folder with space for the images"
            raise reject("data.cache", str(folder.parent), allowed) from error
    return _open(folder)


def damaged(folder: pathlib.Path, reason: str) -> UserError:
    """Returns the error for a store that cannot be trusted."""
    return reject("data.cache", str(folder), f"is damaged ({reason}); delete it and run again, it is made anew")


def _open(folder: pathlib.Path) -> Store:
    from array_record.python.array_record_data_source import ArrayRecordDataSource

    try:
        about = json.loads((folder / "store.json").read_text())
        files = [folder / shard["file"] for shard in about["shards"]]
        broken = [f.name for f, s in zip(files, about["shards"], strict=True) if _size(f) != s["bytes"]]
        if broken or about["format_version"] != FORMAT_VERSION:
            raise ValueError(f"{broken[0]} is cut or missing" if broken else f"format {about['format_version']}")
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
    # Mapped first: a header that claims more than the file holds allocates nothing.
    return np.array(np.load(file, mmap_mode="r", allow_pickle=False))


def _size(file: pathlib.Path) -> int:
    return file.stat().st_size if file.is_file() else -1
