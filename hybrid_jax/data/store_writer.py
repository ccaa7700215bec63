"""Writing a store of decoded images: beside its place, then renamed, so that it is whole or absent."""

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

FORMAT_VERSION = 1
_SHARD_BYTES = 2**30
# One image a group, so that random reads unpack nothing else; pixels hardly compress.
_OPTIONS = "group_size:1,uncompressed"
_QUIET = 3  # seconds before the progress line appears


@dataclasses.dataclass(frozen=True)
class Chunk:
    """Consecutive images of a split, on their way into a store.

    Attributes:
      images: (b, H, W, C) uint8.
      labels: (b,) int32, or None.
      names: b names, or None.
      sizes: (b, 2) int32, height and width before resizing, in pixels; or None.
      skipped: one line for each image that could not be read.
    """

    images: np.ndarray
    labels: np.ndarray | None = None
    names: list[str] | None = None
    sizes: np.ndarray | None = None
    skipped: tuple[str, ...] = ()


def make(folder: pathlib.Path, shape: tuple[int, int, int], chunks: Callable[[], Iterable[Chunk]], total: int) -> None:
    """Makes a store; any number of processes may make the same one at once.

    Args:
      folder: of the store.
      shape: (H, W, C) of the images.
      chunks: called for them.
      total: how many will come, for the progress line.

    Raises:
      OSError: it cannot be written.
    """
    _remove_abandoned(folder)
    temporary = folder.with_name(f"{folder.name}.{socket.gethostname()}.{os.getpid()}.incomplete")
    temporary.mkdir(parents=True)
    try:
        _write(temporary, shape, chunks(), total)
        try:
            temporary.rename(folder)
        except OSError:
            if not folder.exists():  # else another process was first, with the same content
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _remove_abandoned(folder: pathlib.Path) -> None:
    """Removes what killed processes of this host left behind."""
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
    """array_record tells of a full disk by a RuntimeError."""
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
        """Returns one entry a file."""
        if self._writer is not None:
            self._finish()
        return self._done
