"""Atomic writes of files and `.npz` arrays, and one-line errors for failed writes."""

import contextlib
import errno
import os
import pathlib
import zipfile
import zlib
from collections.abc import Iterator

import numpy as np

from hybrid_jax.errors import StorageError, UserError
from hybrid_jax.multihost.coordination import is_first

# Errors that only writing raises, so they count even without a path.
_CANNOT_WRITE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG}


def write_whole(path: pathlib.Path, text: str) -> None:
    """Writes a text file atomically, on the first process only."""
    if is_first():
        with replacing(path) as temporary:
            temporary.write_bytes(text.encode())


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a temporary path; the file is renamed to `path` at the end, or removed after an error."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def writable(workdir: str | os.PathLike) -> Iterator[None]:
    """Converts an OSError at the start of a run to a UserError about --workdir."""
    try:
        if is_first() and os.path.exists(workdir) and not os.access(workdir, os.W_OK):
            raise OSError(errno.EROFS, "read-only")
        yield
    except OSError as error:
        raise UserError(f"--workdir={workdir}: cannot be written ({error.strerror})") from error


@contextlib.contextmanager
def still_writable(workdir: str | os.PathLike) -> Iterator[None]:
    """Converts an OSError about a file in the workdir, or about a full disk, to a StorageError."""
    try:
        yield
    except OSError as error:
        ours = str(error.filename or "").startswith(os.path.join(workdir, ""))
        if not ours and error.errno not in _CANNOT_WRITE:
            raise
        raise StorageError(
            f"--workdir={workdir}: is no longer writable ({error.strerror}); the last checkpoint is kept"
        ) from error


# Errors from reading a damaged file, or one of another kind.
DAMAGE = (
    OSError, ValueError, KeyError, TypeError, MemoryError, EOFError, RuntimeError, SyntaxError, zipfile.BadZipFile,
    zlib.error,
)  # fmt: skip


def write_arrays(path: pathlib.Path, arrays: dict[str, np.ndarray]) -> None:
    """Writes an `.npz` file atomically, array by array, on the first process only; creates a missing folder."""
    if not is_first():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def read_arrays(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Returns the arrays of a file of `write_arrays`, in order.

    Raises:
      One of `DAMAGE`: the file is missing or damaged.
    """
    with np.load(path, allow_pickle=False) as file:
        # Our files are not compressed; refuse others, which could expand to any size.
        if any(member.compress_type != zipfile.ZIP_STORED for member in file.zip.infolist()):
            raise ValueError("compressed")
        # numpy reads only as much as an array's header says, and may not verify the checksum.
        if file.zip.testzip() is not None:
            raise ValueError("checksum differs")
        return {name: file[name] for name in file.files}
