"""Arrays by name in one `.npz` file: stored as they are, whole or absent, read without pickle."""

import pathlib
import zipfile
import zlib

import numpy as np

from hybrid_jax.distributed import is_first
from hybrid_jax.files import replacing

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
