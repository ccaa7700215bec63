"""What a checkpoint's network said of whole splits, kept so that a later evaluation need not ask again.

`<workdir>/cache/<checkpoint>/<name>.npz`: the folder's name is a digest of all that the numbers depend on beside the
images (parameters, palette, settings of the model, code, batch size, devices, versions), and each file holds a digest
of its images. Any other parameter, image or setting is therefore a miss, and what is found is what would be computed,
bit for bit. Only one checkpoint's are kept.

Dimensions: n images, H W C image.
"""

import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Callable

import jax
import numpy as np

from hybrid_jax.multihost import coordination
from hybrid_jax.storage import integrity
from hybrid_jax.storage.files import DAMAGE, read_arrays, write_arrays
from hybrid_jax.utils import runtime

FOLDER = "cache"
FORMAT = 1
_KEY = "content of the images"  # no layer has such a name
_PACKAGE = pathlib.Path(__file__).resolve().parent.parent
_CODE = ("models/*.py", "inference.py", "data/inputs.py")

Arrays = dict[str, np.ndarray]


class _MissingError(Exception):
    """Nothing is kept, or not the same, or it is damaged."""


class FeatureCache:
    """Arrays of one checkpoint by name, one file each."""

    def __init__(self, workdir: str | os.PathLike, model, limit: float, log: Callable[[str], None]):
        """Takes a model of the workdir; `limit` is in bytes, 0 = nothing is kept; `log` takes its lines."""
        self._folder, self._model, self._limit, self._log = pathlib.Path(workdir) / FOLDER, model, limit, log
        self._own: pathlib.Path | None = None
        self._opened = self._told = False

    def get(self, name: str, images: np.ndarray, compute: Callable[[], Arrays]) -> Arrays:
        """Returns what is kept under this name for these images, or what `compute` returns, which is kept then.

        Of several processes all compute where one cannot read.

        Args:
          name: of the file.
          images: (n, H, W, C) uint8; of images on disk nothing is kept.
          compute: returns arrays of n rows.
        """
        folder = self._open()
        if folder is None or not isinstance(images, np.ndarray):
            return compute()
        path, key = folder / f"{name}.npz", _content(images)
        try:
            with coordination.raise_on_all_processes(_MissingError):
                found = _read(path, key, len(images))
        except _MissingError:
            found = compute()
            self._keep(path, key, found)
            return found
        if not self._told:
            self._log(f"  features: those that an earlier evaluation of this checkpoint kept in {FOLDER}/")
            self._told = True
        return found

    def _open(self) -> pathlib.Path | None:
        """Returns this checkpoint's folder, None where nothing is kept; others' are removed."""
        if not self._opened:
            self._own = self._folder / _digest(self._model) if self._limit else None
            if coordination.is_first() and self._folder.is_dir():
                for other in self._folder.iterdir():
                    if other != self._own:
                        shutil.rmtree(other, ignore_errors=True)
        self._opened = True
        return self._own

    def _keep(self, path: pathlib.Path, key: str, arrays: Arrays) -> None:
        if not coordination.is_first():
            return
        others = sum(file.stat().st_size for file in path.parent.glob("*.npz") if file != path)
        size = others + sum(values.nbytes for values in arrays.values())
        if size > self._limit:
            self._log(
                f"  {path.stem}: not kept, {size / 2**30:.2f} GiB are above eval.cache_gib={self._limit / 2**30:g}"
            )
            return
        try:
            write_arrays(path, {_KEY: _label(key, arrays), **arrays})
        except OSError as error:
            self._log(f"  {path.stem}: not kept ({error.strerror})")


def _read(path: pathlib.Path, key: str, count: int) -> Arrays:
    try:
        found = read_arrays(path)
        label = found.pop(_KEY)
        # With the names, since a changed directory of the file may hide some.
        if label != _label(key, found) or any(len(values) != count for values in found.values()):
            raise ValueError("of other images")
    except DAMAGE as error:
        raise _MissingError(str(error)) from error
    return found


def _label(key: str, arrays: Arrays) -> np.ndarray:
    return np.array(json.dumps([key, *arrays]))


def _content(images: np.ndarray) -> str:
    digest = hashlib.blake2b(f"{images.shape} {images.dtype}".encode(), digest_size=16)
    digest.update(np.ascontiguousarray(images).data)
    return digest.hexdigest()


def _digest(model) -> str:
    """All that features of given images depend on, 16 hex digits."""
    devices = jax.tree.leaves(model.params)[0].sharding.device_set
    config = model.config.to_dict()
    known = {
        "format": FORMAT,
        "parameters": integrity.of_model(model),
        "spec": repr(model.spec),
        "model": config["model"],
        # They decide on the mask.
        "objective": config["objective"],
        "batch": model.config.eval.batch_size,
        "devices": [len(devices), sorted({device.device_kind for device in devices}), runtime.processor()],
        "versions": [jax.__version__, np.__version__],
        "settings": [os.environ.get("XLA_FLAGS", ""), str(jax.config.jax_default_matmul_precision)],  # type: ignore[attr-defined]
    }
    digest = hashlib.blake2b(json.dumps(known, sort_keys=True).encode(), digest_size=8)
    for path in sorted(path for pattern in _CODE for path in _PACKAGE.glob(pattern)):
        digest.update(path.read_bytes())
    return digest.hexdigest()
