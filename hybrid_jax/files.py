"""Files that are whole or absent, and one line where they cannot be written."""

import contextlib
import errno
import os
import pathlib
from collections.abc import Iterator

from hybrid_jax.distributed import is_first
from hybrid_jax.errors import StorageError, UserError

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
