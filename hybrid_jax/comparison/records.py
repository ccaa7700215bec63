"""One run of a comparison as a JSON file: config, measurements, and what it found image by image.

The file stands by itself: runs made on several machines, or on another day, are judged together by putting their files
into one folder.
"""

import base64
import json
import pathlib
import zlib
from typing import Any

import ml_collections
import numpy as np

from hybrid_jax import config as config_lib
from hybrid_jax.comparison.measures import PROTOCOLS, Measured
from hybrid_jax.errors import UserError
from hybrid_jax.files import write_whole

_TYPES = ("uint8", "uint16", "uint32", "float32")
# What a result depends on beside the training itself.
_EVAL = ("eval.linear_probe.", "eval.corruptions.", "eval.ood.", "eval.likelihood.", "eval.max_images")
_TRAINING = ("seed", "data.", "model.", "objective.", "augment.", "train.", "optimizer.")
_LOCAL = ("data.path", "data.cache", "data.memory_gib", "data.device_gib")


def write(path: pathlib.Path, record: dict[str, Any], config: ml_collections.ConfigDict, measured: Measured) -> None:
    """Writes a run's file, whole or not at all."""
    packed = {name: _pack(values) for name, values in measured.per_image.items()}
    whole = record | {"metrics": measured.metrics, "config": config.to_dict(), "per_image": packed}
    write_whole(path, json.dumps(whole, indent=1) + "\n")


def read(path: pathlib.Path, config: ml_collections.ConfigDict, fingerprint: str) -> dict[str, Any] | None:
    """Returns a run's record, with `measured` in place of what `write` was given; None where there is no file.

    Args:
      path: of the file.
      config: that the run must have had.
      fingerprint: of the data that it must have seen.

    Raises:
      UserError: the file is damaged, or it is of another config or of other data.
    """
    try:
        record = json.loads(path.read_text())
        before = config_lib.flatten(config_lib.from_dict(record.pop("config")))
        packed = record.pop("per_image")
        measured = Measured(record.pop("metrics"), {name: _unpack(values) for name, values in packed.items()})
        same_data = record["fingerprint"] == fingerprint
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, zlib.error) as error:
        raise UserError(f"{path}: damaged; delete it and the same command measures the run again") from error
    after = config_lib.flatten(config)
    for name in config_lib.FIELDS:
        if _matters(name) and before[name] != after[name]:
            what = f"config.{name}={after[name]!r}: {path} was made with {before[name]!r}"
            raise UserError(f"{what}; choose another --workdir")
    for row in measured.metrics:
        if row.get("protocol") not in (None, *PROTOCOLS):
            again = "delete it and the same command measures the run again"
            raise UserError(f"{path}: {row['metric']} by {row['protocol']}, now {', '.join(PROTOCOLS)}; {again}")
    if not same_data:
        raise UserError(f"{path}: was made with other data of the name {config.data.name!r}; choose another --workdir")
    return record | {"measured": measured}


def _matters(name: str) -> bool:
    return name.startswith((*_TRAINING, *_EVAL)) and name not in _LOCAL


def _pack(values: np.ndarray) -> dict[str, Any]:
    data = base64.b64encode(zlib.compress(np.ascontiguousarray(values).tobytes(), 9)).decode()
    return {"dtype": str(values.dtype), "shape": list(values.shape), "zlib_base64": data}


def _unpack(packed: dict[str, Any]) -> np.ndarray:
    if packed["dtype"] not in _TYPES:
        raise ValueError(f"dtype {packed['dtype']!r}")
    values = np.frombuffer(zlib.decompress(base64.b64decode(packed["zlib_base64"])), packed["dtype"])
    return values.reshape(packed["shape"])
