"""Files that are whole or absent, arrays in `.npz` files among them, and one line where they cannot be written."""

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

# What only writing meets, so that no path is needed to tell whose fault it is.
_CANNOT_WRITE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG}


def write_whole(path: pathlib.Path, text: str) -> None:
    """Writes a text beside its place and renames it; of several processes only the first does."""
    if is_first():
        with replacing(path) as temporary:
            temporary.write_bytes(text.encode())


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Gives a place beside `path`; what was written there becomes `path` at the end, or is removed after an error."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def writable(workdir: str | os.PathLike) -> Iterator[None]:
    """Makes an OSError before anything was computed one UserError about --workdir."""
    try:
        if is_first() and os.path.exists(workdir) and not os.access(workdir, os.W_OK):
            raise OSError(errno.EROFS, "read-only")
        yield
    except OSError as error:
        raise UserError(f"--workdir={workdir}: cannot be written ({error.strerror})") from error


@contextlib.contextmanager
def still_writable(workdir: str | os.PathLike) -> Iterator[None]:
    """Makes an OSError about a file of the workdir, or about a full disk, one StorageError."""
    try:
        yield
    except OSError as error:
        ours = str(error.filename or "").startswith(os.path.join(workdir, ""))
        if not ours and error.errno not in _CANNOT_WRITE:
            raise
        raise StorageError(
            f"--workdir={workdir}: cannot be written any more ({error.strerror}); the last checkpoint is kept"
        ) from error


# What reading a file raises that holds something else, or was changed on the disk.
DAMAGE = (
    OSError, ValueError, KeyError, TypeError, MemoryError, EOFError, RuntimeError, SyntaxError, zipfile.BadZipFile,
    zlib.error,
)  # fmt: skip


def write_arrays(path: pathlib.Path, arrays: dict[str, np.ndarray]) -> None:
    """Writes arrays beside the file's place and renames it, never all in memory again.

    Of several processes only the first writes. The folder is made where it is missing.
    """
    if not is_first():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def read_arrays(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Returns what `write_arrays` wrote, in that order.

    Raises:
      One of `DAMAGE`: there is no such file, or it is not as it was written.
    """
    with np.load(path, allow_pickle=False) as file:
        # Ours are stored as they are: what unpacks to more than the file holds is not.
        if any(member.compress_type != zipfile.ZIP_STORED for member in file.zip.infolist()):
            raise ValueError("compressed")
        # numpy reads as much as an array's own head says, and may miss the checksum at its end.
        if file.zip.testzip() is not None:
            raise ValueError("checksum differs")
        return {name: file[name] for name in file.files}
