"""Checksums of a checkpoint: of every array, computed where it lies, and of the `meta` that holds these."""

import functools
import hashlib
import json
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from hybrid_jax import sharding

# What `meta` held before it had a checksum of its own.
_UNSEALED = {"format_version", "step", "seed", "config", "fingerprint", "parts", "checksums"}


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
