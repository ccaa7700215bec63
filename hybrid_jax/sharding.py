"""The mesh, where each array lives on it, and how a host's batch becomes a global array."""

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

# What JAX and its compiler call NVIDIA's.
GPU_PLATFORMS = ("gpu", "cuda")
# Both axes share the batch; parameters and optimizer state are cut over `fsdp`.
BATCH_AXES = ("data", "fsdp")
# Below this many elements a cut saves nothing and costs a collective.
MIN_SHARDED_SIZE = 1024


def make_mesh(config, devices: Sequence[Any] | None = None) -> Mesh:
    """Returns the mesh (data, fsdp); `fsdp` stays inside a slice, `data` spans slices.

    Args:
      config: a resolved config.
      devices: all of them by default; those of a topology that is not here (`hybrid_jax.aot.compile`) will do.

    Raises:
      UserError: the two axes do not multiply to the number of devices, or do not divide the batch.
    """
    devices = jax.devices() if devices is None else devices
    placed = arrange(config, devices)
    _check_batch(config, len(devices))
    return Mesh(placed, BATCH_AXES, axis_types=(AxisType.Auto,) * 2)


def arrange(config, devices: Sequence[Any]) -> np.ndarray:
    """Returns the devices as (data, fsdp), near ones along `fsdp`; raises as `make_mesh`."""
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    data, fsdp = _mesh_shape(config, len(devices), slices)
    # Axes of the torus may be split: most shapes would be refused otherwise.
    if slices == 1:
        return mesh_utils.create_device_mesh((data, fsdp), devices, allow_split_physical_axes=True)
    shape = (data // slices, fsdp)
    return mesh_utils.create_hybrid_device_mesh(shape, (slices, 1), devices, allow_split_physical_axes=True)


def _mesh_shape(config, devices: int, slices: int) -> tuple[int, int]:
    data, fsdp = config.mesh.data, config.mesh.fsdp
    if devices % fsdp:
        raise reject("mesh.fsdp", fsdp, f"must divide the number of devices, {devices}")
    if devices // slices % fsdp:
        raise reject("mesh.fsdp", fsdp, f"must divide the number of devices of a slice, {devices // slices}")
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
    """Returns the mesh that cuts batches over all devices, and nothing else."""
    return jax.make_mesh((jax.device_count(), 1), BATCH_AXES, axis_types=(AxisType.Auto,) * 2)


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of an array that every device holds whole."""
    return NamedSharding(mesh, P())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of an array whose first axis is the batch."""
    return NamedSharding(mesh, P(BATCH_AXES))


def constrain_batch(mesh: Mesh):
    """Returns a function that pins an activation's batch axis, the first or a given one, to the batch's devices.

    Without it the partitioner lets activations inherit the parameters' cut over features.
    """

    def constrain(x: jax.Array, axis: int = 0) -> jax.Array:
        spec: list[Any] = [None] * x.ndim
        spec[axis] = BATCH_AXES
        return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, P(*spec)))

    return constrain


def state_sharding(abstract_state, mesh: Mesh):
    """Returns a tree of shardings: each large array is cut over `fsdp`.

    Along its last axis but one, of a plain kernel the input features (of `qkv` cut along its output features the
    TPU compiler adds up the whole gradient on every device); where that does not divide, along the longest that does.
    Depends on shapes only, so that moments and averages lie where their parameters lie.
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
    """Returns what XLA is asked for beside its defaults when it compiles for the mesh's platform."""
    if mesh.devices.flat[0].platform not in GPU_PLATFORMS:
        return {}
    # Products of both streams with one kernel, joined to one, are followed by a copy of each part of the result: large
    # ones stay apart. Of small ones the number of kernels counts.
    return {"xla_gpu_dot_merger_threshold_mb": 8}


def place(tree, shardings):
    """Returns arrays of the host's memory as global ones; every process must hold the same."""

    def one(x, where) -> jax.Array:
        return jax.make_array_from_callback(np.shape(x), where, lambda index: np.asarray(x)[index])

    return jax.tree.map(one, tree, shardings)


@functools.lru_cache
def local_rows(mesh: Mesh, size: int) -> np.ndarray:
    """Returns which rows of a global batch this process's devices hold, in rising order: (r,) int64."""
    places = batch_sharding(mesh).addressable_devices_indices_map((size,)).values()
    return np.unique(np.concatenate([np.arange(size)[index] for index in places]))


def global_batch(local: np.ndarray, mesh: Mesh, size: int) -> jax.Array:
    """Returns a global array cut over the batch axes.

    Args:
      local: (r, ...), the rows `local_rows(mesh, size)` of the batch.
      mesh: whose devices hold it.
      size: rows of the whole batch.

    Returns:
      (size, ...), the same for any number of processes.
    """
    rows = local_rows(mesh, size)

    def piece(index: Any) -> np.ndarray:
        start, stop, _ = index[0].indices(size)
        first = int(np.searchsorted(rows, start))
        return local[first : first + stop - start]

    return jax.make_array_from_callback((size, *local.shape[1:]), batch_sharding(mesh), piece)
