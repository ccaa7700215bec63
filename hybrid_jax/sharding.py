"""The device mesh, the shardings of arrays, and global arrays from host data."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from hybrid_jax.config import likelihood_batch
from hybrid_jax.errors import reject

# Names that JAX and XLA use for NVIDIA GPUs.
GPU_PLATFORMS = ("gpu", "cuda")
# The batch is sharded over both axes, parameters and optimizer state over `fsdp`.
BATCH_AXES = ("data", "fsdp")
# Sharding smaller arrays saves little memory and costs a collective.
MIN_SHARDED_SIZE = 1024


def make_mesh(config, devices: Sequence[Any] | None = None) -> Mesh:
    """Returns the mesh (data, fsdp); `fsdp` stays within a slice, `data` spans slices.

    Args:
      config: a resolved config.
      devices: by default all; may be those of a topology description (`hybrid_jax.aot.compile`).

    Raises:
      UserError: the product of the axes is not the number of devices, or does not divide the batch.
    """
    devices = jax.devices() if devices is None else devices
    placed = arrange(config, devices)
    _check_batch(config, len(devices))
    return Mesh(placed, BATCH_AXES, axis_types=(AxisType.Auto,) * 2)


def arrange(config, devices: Sequence[Any]) -> np.ndarray:
    """Returns the devices as a (data, fsdp) array, neighbours along `fsdp`; raises as `make_mesh`."""
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    data, fsdp = _mesh_shape(config, len(devices), slices)
    # Without splitting axes of the torus, most shapes would be refused.
    if slices == 1:
        return mesh_utils.create_device_mesh((data, fsdp), devices, allow_split_physical_axes=True)
    shape = (data // slices, fsdp)
    return mesh_utils.create_hybrid_device_mesh(shape, (slices, 1), devices, allow_split_physical_axes=True)


def _mesh_shape(config, devices: int, slices: int) -> tuple[int, int]:
    data, fsdp = config.mesh.data, config.mesh.fsdp
    if devices % fsdp:
        raise reject("mesh.fsdp", fsdp, f"must divide the number of devices, {devices}")
    if devices // slices % fsdp:
        raise reject("mesh.fsdp", fsdp, f"must divide the number of devices per slice, {devices // slices}")
    if data == -1:
        data = devices // fsdp
    if data * fsdp != devices:
        raise reject("mesh.data", data, f"times mesh.fsdp={fsdp} must be the number of devices, {devices}")
    return data, fsdp


def _check_batch(config, devices: int) -> None:
    batch, pieces = config.train.batch_size, config.train.microbatches
    if batch % (devices * pieces):
        allowed = f"must be divisible by {devices} devices x train.microbatches={pieces}"
        raise reject("train.batch_size", batch, allowed)
    likelihood = likelihood_batch(config)
    if config.objective.generative_weight > 0 and likelihood % (devices * pieces):
        allowed = f"gives {likelihood} images; must be divisible by {devices} devices x train.microbatches={pieces}"
        raise reject("train.likelihood_fraction", config.train.likelihood_fraction, allowed)


def all_devices() -> Mesh:
    """Returns a mesh that shards batches over all devices and replicates everything else."""
    return jax.make_mesh((jax.device_count(), 1), BATCH_AXES, axis_types=(AxisType.Auto,) * 2)


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of an array replicated on every device."""
    return NamedSharding(mesh, P())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of an array whose first axis is the batch."""
    return NamedSharding(mesh, P(BATCH_AXES))


def constrain_batch(mesh: Mesh):
    """Returns a function that shards an activation along its batch axis, by default the first.

    Without the constraint, activations inherit the parameters' sharding over features.
    """

    def constrain(x: jax.Array, axis: int = 0) -> jax.Array:
        spec: list[Any] = [None] * x.ndim
        spec[axis] = BATCH_AXES
        return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, P(*spec)))

    return constrain


def state_sharding(abstract_state, mesh: Mesh):
    """Returns a tree of shardings: each large array is sharded over `fsdp`.

    It is split along its second-to-last axis, for a plain kernel the input features (with `qkv` split along output
    features, the TPU compiler sums the whole gradient on every device); if that is not divisible, along the longest
    axis that is. Depends on shapes only, so that moments and averages are sharded like their parameters.
    """
    size = mesh.shape["fsdp"]

    def rule(leaf):
        axes = sorted(range(len(leaf.shape)), key=lambda i: (i != len(leaf.shape) - 2, -leaf.shape[i]))
        fits = [i for i in axes if leaf.shape[i] % size == 0]
        if size == 1 or not fits or math.prod(leaf.shape) < MIN_SHARDED_SIZE:
            return replicated(mesh)
        spec: list[str | None] = [None] * len(leaf.shape)
        spec[fits[0]] = "fsdp"
        return NamedSharding(mesh, P(*spec))

    return jax.tree.map(rule, abstract_state)


def compiler_options(mesh: Mesh) -> dict[str, Any]:
    """Returns the XLA options, other than defaults, for the mesh's platform."""
    if mesh.devices.flat[0].platform not in GPU_PLATFORMS:
        return {}
    # XLA merges the products of both streams with one kernel, then copies each part of the result. That pays only for
    # small products, whose cost is the kernel launch; larger ones are not merged.
    return {"xla_gpu_dot_merger_threshold_mb": 8}


def place(tree, shardings):
    """Returns host arrays as global arrays; every process must pass the same values."""

    def one(x, where) -> jax.Array:
        return jax.make_array_from_callback(np.shape(x), where, lambda index: np.asarray(x)[index])

    return jax.tree.map(one, tree, shardings)


@functools.lru_cache
def local_rows(mesh: Mesh, size: int) -> np.ndarray:
    """Returns the rows of a global batch that this process's devices hold, ascending: (r,) int64."""
    places = batch_sharding(mesh).addressable_devices_indices_map((size,)).values()
    return np.unique(np.concatenate([np.arange(size)[index] for index in places]))


def global_batch(local: np.ndarray, mesh: Mesh, size: int) -> jax.Array:
    """Returns a global array sharded over the batch axes.

    Args:
      local: (r, ...), the rows `local_rows(mesh, size)` of the batch.
      mesh: the device mesh.
      size: rows of the global batch.

    Returns:
      (size, ...), the same for any number of processes.
    """
    rows = local_rows(mesh, size)

    def piece(index: Any) -> np.ndarray:
        start, stop, _ = index[0].indices(size)
        first = int(np.searchsorted(rows, start))
        return local[first : first + stop - start]

    return jax.make_array_from_callback((size, *local.shape[1:]), batch_sharding(mesh), piece)
