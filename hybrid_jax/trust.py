"""What a checkpoint says of itself, checked before anything is built or allocated by it.

A checkpoint may come from anyone. Its config is data, never code; what sizes it names are compared with the files.
"""

import itertools
import math
import pathlib
from typing import Any

import ml_collections

from hybrid_jax import config as config_lib

# Trained parameters hardly compress; a whole checkpoint has never been seen to by more than 3.
_RATIO = 100
_SMALL = 2**26  # bytes, which may be allocated in any case
LARGEST_META = 2**26  # bytes


def size_on_disk(folder: pathlib.Path) -> int:
    """Returns the bytes of all files under a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def check_bytes(wanted: int, on_disk: int) -> None:
    """Raises ValueError where `wanted` bytes of arrays cannot be what files of `on_disk` bytes hold."""
    if wanted > max(_SMALL, _RATIO * on_disk):
        raise ValueError(f"its arrays would take {_told(wanted)}, its files hold {_told(on_disk)}")


def config_of(nested: Any, on_disk: int) -> ml_collections.ConfigDict:
    """Returns the config that a checkpoint's `meta` holds.

    Args:
      nested: as JSON gives it; anything.
      on_disk: bytes of the checkpoint's files.

    Raises:
      UserError: an unknown field, or a value that is not allowed.
      ValueError: not a config, or one of a model that the files cannot hold.
    """
    if not isinstance(nested, dict) or not all(isinstance(part, dict | int) for part in nested.values()):
        raise ValueError("its config is none")
    config = config_lib.from_dict(nested)
    # First, since validation counts up to some of the sizes.
    check_bytes(_least_bytes(config), on_disk)
    config_lib.validate(config)
    return config


def _least_bytes(config: ml_collections.ConfigDict) -> int:
    """Returns a lower bound of the parameters' bytes, without building the model."""
    model, side = config.model, max(1, config.model.patch_size)
    patches = math.prod(int(size) // side for size in config.data.image_size)
    blocks = model.encoder_layers + (model.decoder_layers if config.objective.generative_weight > 0 else 0)
    count = patches * model.width + 12 * blocks * model.width**2
    if side > 1 or config.data.channels > 1:
        count += side**2 * config.data.channels * model.width
    if config.objective.contrastive_weight > 0:
        dims = (model.width, *model.projection_dims)
        count += sum(int(one) * int(two) for one, two in itertools.pairwise(dims))
    return 4 * count


def _told(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB" if size < 2**60 else "over 2^60 bytes"
