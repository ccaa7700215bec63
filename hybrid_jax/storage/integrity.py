"""Whether a checkpoint is sound: a checksum of every array, and what `meta` says, checked before it is used.

A checkpoint may come from anyone. Its config is data, never code; sizes that it names are compared with the files
before anything is built or allocated.
"""

import functools
import hashlib
import itertools
import json
import math
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from jax.sharding import Mesh

from hybrid_jax import config as config_lib
from hybrid_jax import sharding

# What `meta` held before it had a checksum of its own.
_UNSEALED = {"format_version", "step", "seed", "config", "fingerprint", "parts", "checksums"}
# Trained parameters hardly compress; a whole checkpoint has never been seen to by more than 3.
_RATIO = 100
_SMALL = 2**26  # bytes, which may be allocated in any case
LARGEST_META = 2**26  # bytes


def _checksums(leaves: list[jax.Array]) -> list[jax.Array]:
    """Two position-weighted sums of each array's words modulo 2^32; one changed word changes both."""

    def one(x: jax.Array) -> jax.Array:
        x = x.astype(jnp.uint8) if x.dtype == bool else x
        word = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[x.dtype.itemsize]
        words = jax.lax.bitcast_convert_type(x.reshape(-1), word).astype(jnp.uint32)
        place = jnp.arange(words.size, dtype=jnp.uint32)
        mixed = words + place * jnp.uint32(0x9E3779B9)
        mixed = (mixed ^ (mixed >> 16)) * jnp.uint32(0x85EBCA6B)
        mixed = mixed ^ (mixed >> 13)
        return jnp.stack([jnp.sum(words * (2 * place + 1)), jnp.sum(mixed)])

    return [one(x) for x in leaves]


@functools.lru_cache
def _compiled_checksums(mesh: Mesh | None):
    # Whole on every device, so that every process can read them.
    return jax.jit(_checksums, out_shardings=None if mesh is None else sharding.replicated(mesh))


def checksums(tree: Any) -> dict[str, str]:
    """Returns {path of each array: 16 hexadecimal digits}, computed where the array lies."""
    paths, leaves = zip(*jax.tree_util.tree_leaves_with_path(tree), strict=True)
    sums = jax.device_get(_compiled_checksums(getattr(leaves[0].sharding, "mesh", None))(list(leaves)))
    return {jax.tree_util.keystr(p): f"{int(a):08x}{int(b):08x}" for p, (a, b) in zip(paths, sums, strict=True)}


def of_model(model) -> str:
    """Returns a checksum of all that an `inference.Model` computes with, 16 hex digits."""
    digest = hashlib.sha256(json.dumps(checksums(model.params), sort_keys=True).encode())
    if model.palette is not None:
        digest.update(model.palette.content())
    return digest.hexdigest()[:16]


def sealed(meta: dict[str, Any]) -> dict[str, Any]:
    """Returns `meta` with a checksum of itself, as `checksum`."""
    return meta | {"checksum": _digest(meta)}


def check_sealed(meta: Any) -> None:
    """Raises ValueError or KeyError where a restored `meta` is not what was saved."""
    if not isinstance(meta, dict):
        raise ValueError("meta is not an object")
    # One changed byte cannot make the one set of names from the other.
    if set(meta) != _UNSEALED and meta["checksum"] != _digest({k: v for k, v in meta.items() if k != "checksum"}):
        raise ValueError("checksum of meta differs")


def _digest(meta: dict[str, Any]) -> str:
    # JSON knows no tuples: what is written and what is read back must have one text.
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()


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
