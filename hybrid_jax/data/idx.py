"""IDX files, the format of MNIST and Fashion-MNIST (yann.lecun.com/exdb/mnist)."""

import gzip
import pathlib
import zlib

import numpy as np

from hybrid_jax.errors import reject


def read(file: pathlib.Path) -> np.ndarray:
    """Returns the uint8 array of a gzipped IDX file of unsigned bytes, whatever its shape.

    Raises:
      UserError: it cannot be read.
    """
    try:
        content = gzip.decompress(file.read_bytes())
        shape = np.frombuffer(content, ">i4", content[3], 4)
        return np.frombuffer(content, np.uint8, offset=4 + 4 * len(shape)).reshape(shape)
    except (OSError, EOFError, IndexError, ValueError, zlib.error) as error:
        raise reject("data.path", str(file), f"is not a readable IDX file ({error})") from error
