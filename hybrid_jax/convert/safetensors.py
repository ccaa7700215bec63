"""Safetensors files: reading with checked sizes, atomic writing."""

import contextlib
import json
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import ml_dtypes  # noqa: F401 - registers bfloat16 with NumPy
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from hybrid_jax.errors import UserError

_FLOATS = ("F32", "F16", "BF16")
_NAME = "model.safetensors"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


class Tensors:
    """The arrays of a folder's `model.safetensors`, or of the files in its index; read one at a time.

    Attributes:
      shapes: {name: shape}.
    """

    def __init__(self, folder: pathlib.Path):
        """Opens the files and reads their headers; raises UserError if there are none or one is damaged."""
        self._files: dict[str, tuple[pathlib.Path, Any]] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        for path in _files(folder):
            with _readable(path):
                file = safe_open(path, "np")
                for name in file.keys():  # noqa: SIM118 - not a dict
                    self._files[name] = path, file
                    self.shapes[name] = tuple(file.get_slice(name).get_shape())

    def read(self, name: str) -> np.ndarray:
        """Returns an array as float32; raises UserError for other dtypes than float32, float16 and bfloat16."""
        path, file = self._files[name]
        with _readable(path):
            kind = file.get_slice(name).get_dtype()
            if kind not in _FLOATS:
                raise UserError(f"{path}: {name} is of type {kind}; must be one of {', '.join(_FLOATS)}")
            return file.get_tensor(name).astype(np.float32)


def _files(folder: pathlib.Path) -> list[pathlib.Path]:
    index = folder / f"{_NAME}.index.json"
    if (folder / _NAME).is_file():
        return [folder / _NAME]
    if index.is_file():
        parts = read_json(index).get("weight_map")
        names = list(parts.values()) if isinstance(parts, dict) and parts else [None]
        if not all(isinstance(name, str) and pathlib.PurePath(name).name == name for name in names):
            raise UserError(f"{index}: weight_map must name files of this folder")
        return [folder / name for name in sorted(set(map(str, names)))]
    if pickles := sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern)):
        raise UserError(
            f"{folder / pickles[0]} is a pickle, which could run any code and is never read; must be {_NAME}, "
            "as written by save_pretrained of transformers"
        )
    raise UserError(f"{folder}: has no {_NAME}")


@contextlib.contextmanager
def _readable(path: pathlib.Path) -> Iterator[None]:
    try:
        yield
    except SafetensorError as error:
        raise UserError(f"{path} is damaged ({error})") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """Returns the object in a JSON file; raises UserError if it cannot be read or has none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: is not JSON ({error})") from error
    if not isinstance(found, dict):
        raise UserError(f"{path}: must hold a JSON object")
    return found


def write_tensors(path: pathlib.Path, arrays: dict[str, np.ndarray], metadata: dict[str, str]) -> None:
    """Writes arrays by name and metadata by key, atomically."""
    # safetensors would write other memory orders as if they were C order.
    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    replace(path, lambda temporary: save_file(arrays, temporary, metadata))


def replace(path: pathlib.Path, write: Callable[[pathlib.Path], object]) -> None:
    """Calls `write` with a temporary path and renames it to `path`; raises UserError if that fails."""
    temporary = path.with_name(f"{path.name}.incomplete")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode
        write(temporary)
        # safetensors creates files that only the owner can read.
        temporary.chmod(mode)
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise UserError(f"--output={path}: cannot be written ({reason})") from error
    finally:
        temporary.unlink(missing_ok=True)
