"""Transfer of batches to the devices.

Either the host sends each batch, or all images are kept on every accelerator and batches are gathered there, without
copies from the host. Both give the same batches.
"""

from collections.abc import Iterator

import jax
import numpy as np
from jax.sharding import Mesh

from hybrid_jax import sharding
from hybrid_jax.data import pipeline


def batches(images, seed: int, batch_size: int, start: int, stop: int, mesh: Mesh, on_device: bool):
    """Returns an iterator over the global batches of steps `start` to `stop`, in the order of `pipeline`.

    Args:
      images: as in `pipeline.batches`.
      seed: as in `pipeline.batches`.
      batch_size: as in `pipeline.batches`.
      start: as in `pipeline.batches`.
      stop: as in `pipeline.batches`.
      mesh: mesh whose batch axes the batches are sharded over.
      on_device: keep the images on every device and gather batches there (see `fits_devices`).

    Returns:
      Iterator over (batch_size, H, W, C) uint8 global arrays.

    Raises:
      UserError: the batch is larger than the data, or a record is damaged.
    """
    if on_device:
        return _gathered(images, seed, batch_size, start, stop, mesh)
    local = pipeline.batches(images, seed, batch_size, start, stop, sharding.local_rows(mesh, batch_size))
    return (sharding.global_batch(rows, mesh, batch_size) for rows in local)


def fits_devices(images, mesh: Mesh, most_gib: float) -> bool:
    """Returns whether to keep images on the devices: accelerators, images in memory, at most `most_gib` GiB."""
    in_memory = isinstance(images, np.ndarray)
    return in_memory and mesh.devices.flat[0].platform != "cpu" and images.nbytes <= most_gib * 2**30


def _gathered(images: np.ndarray, seed: int, batch_size: int, start: int, stop: int, mesh: Mesh) -> Iterator[jax.Array]:
    per_epoch = pipeline.steps_per_epoch(len(images), batch_size)
    everywhere = sharding.replicated(mesh)
    (held,) = sharding.place([images], [everywhere])

    def take(images: jax.Array, order: jax.Array, index: jax.Array) -> jax.Array:
        # Each device gathers only the rows of its part of the batch.
        rows = jax.lax.dynamic_slice_in_dim(order, index * batch_size, batch_size)
        return images[jax.lax.with_sharding_constraint(rows, sharding.batch_sharding(mesh))]

    take_batch = jax.jit(take, out_shardings=sharding.batch_sharding(mesh))
    order, epoch_held = None, -1
    for step in range(start, stop):
        epoch, index = divmod(step, per_epoch)
        if epoch != epoch_held:
            permutation = pipeline.permutation(seed, epoch, len(images)).astype(np.int32)
            (order,) = sharding.place([permutation], [everywhere])
            epoch_held = epoch
        yield take_batch(held, order, np.int32(index))
