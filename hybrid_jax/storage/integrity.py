"""Integrity of checkpoints: checksums of arrays, and checks of `meta` before use.

A checkpoint may come from an untrusted source. Its config is data, never code, and sizes in it are compared with the
files before anything is built or allocated.
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

# Fields of `meta` in older checkpoints, which have no checksum of it.
_UNSEALED = {"format_version", "step", "seed", "config", "fingerprint", "parts", "checksums"}
# Upper bound of the compression ratio; trained checkpoints were compressed at most threefold.
_RATIO = 100
_SMALL = 2**26  # bytes that may always be allocated
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
    # Replicated, so that every process can read them.
    return jax.jit(_checksums, out_shardings=None if mesh is None else sharding.replicated(mesh))


def checksums(tree: Any) -> dict[str, str]:
    """Returns {path of an array: 16 hexadecimal digits}, computed on the array's devices."""
    paths, leaves = zip(*jax.tree_util.tree_leaves_with_path(tree), strict=True)
    sums = jax.device_get(_compiled_checksums(getattr(leaves[0].sharding, "mesh", None))(list(leaves)))
    return {jax.tree_util.keystr(p): f"{int(a):08x}{int(b):08x}" for p, (a, b) in zip(paths, sums, strict=True)}


def of_model(model) -> str:
    """Returns a checksum of an `inference.Model`'s parameters and palette, 16 hex digits."""
    digest = hashlib.sha256(json.dumps(checksums(model.params), sort_keys=True).encode())
    if model.palette is not None:
        digest.update(model.palette.content())
    return digest.hexdigest()[:16]


def sealed(meta: dict[str, Any]) -> dict[str, Any]:
    """Returns `meta` with its checksum in the field `checksum`."""
    return meta | {"checksum": _digest(meta)}


def check_sealed(meta: Any) -> None:
    """Raises ValueError or KeyError if a restored `meta` differs from the saved one."""
    if not isinstance(meta, dict):
        raise ValueError("meta is not an object")
    # A single changed byte cannot turn one set of names into the other.
    if set(meta) != _UNSEALED and meta["checksum"] != _digest({k: v for k, v in meta.items() if k != "checksum"}):
        raise ValueError("checksum of meta differs")


def _digest(meta: dict[str, Any]) -> str:
    # As JSON text, so that tuples and the lists read back give the same digest.
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()


def size_on_disk(folder: pathlib.Path) -> int:
    """Returns the size of all files under a folder, in bytes."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def check_bytes(wanted: int, on_disk: int) -> None:
    """Raises ValueError if files of `on_disk` bytes cannot hold arrays of `wanted` bytes."""
    if wanted > max(_SMALL, _RATIO * on_disk):
        raise ValueError(f"its arrays would take {_told(wanted)}, its files hold {_told(on_disk)}")


def config_of(nested: Any, on_disk: int) -> ml_collections.ConfigDict:
    """Returns the config in a checkpoint's `meta`.

    Args:
      nested: decoded JSON, untrusted.
      on_disk: size of the checkpoint's files, in bytes.

    Raises:
      UserError: the config has an unknown field or an invalid value.
      ValueError: this is not a config, or its model is too large for the files.
    """
    if not isinstance(nested, dict) or not all(isinstance(part, dict | int) for part in nested.values()):
        raise ValueError("its config is not a config")
    config = config_lib.from_dict(nested)
    # Before validation, whose time depends on some of the sizes.
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
