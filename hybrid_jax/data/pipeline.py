"""Order of images in batches and splits: pure functions, so there is no iterator state to save."""

import functools
from collections.abc import Iterator

import numpy as np

from hybrid_jax.errors import reject

# Not config.seed, so that runs with different seeds are evaluated on the same held-out images.
_SPLIT_SEED = 0
_THREADS = 4
_BATCHES_AHEAD = 8


def steps_per_epoch(num_images: int, batch_size: int) -> int:
    """Returns the number of whole batches in one pass over the images.

    Raises:
      UserError: the batch is larger than the data.
    """
    if batch_size > num_images:
        raise reject("train.batch_size", batch_size, f"must be at most the {num_images} training images")
    return num_images // batch_size


def batch_indices(seed: int, step: int, num_images: int, batch_size: int) -> np.ndarray:
    """Returns the indices of the images in the global batch of a step.

    Each epoch is a new permutation without its incomplete last batch, so no batch has an image twice.

    Args:
      seed: seed of the order.
      step: step from the start of the run, from 0.
      num_images: size of the training split.
      batch_size: global images per step.

    Returns:
      (batch_size,) int64, read-only.

    Raises:
      UserError: the batch is larger than the data.
    """
    epoch, index = divmod(step, steps_per_epoch(num_images, batch_size))
    return permutation(seed, epoch, num_images)[index * batch_size : (index + 1) * batch_size]


def batches(
    images, seed: int, batch_size: int, start: int, stop: int, rows: slice | np.ndarray = slice(None)
) -> Iterator[np.ndarray]:
    """Yields the images of steps `start` to `stop`, or the rows of each batch that one host needs.

    Images in memory are gathered on demand; others are prefetched by grain's threads, in the same order.

    Args:
      images: (n, H, W, C) uint8, an array or `StoredImages`.
      seed: seed of the order.
      batch_size: global images per step.
      start: the first step.
      stop: the step after the last.
      rows: rows of each global batch to read.

    Yields:
      (len(rows), H, W, C) uint8, one per step.

    Raises:
      UserError: the batch is larger than the data, or a record is damaged.
    """
    steps_per_epoch(len(images), batch_size)

    def read(step: int) -> np.ndarray:
        return images[batch_indices(seed, step, len(images), batch_size)[rows]]

    if isinstance(images, np.ndarray):
        return map(read, range(start, stop))
    import grain  # slow import, not needed for images in memory

    ahead = grain.ReadOptions(num_threads=_THREADS, prefetch_buffer_size=_BATCHES_AHEAD)
    return iter(grain.MapDataset.range(start, stop).map(read).to_iter_dataset(ahead))


@functools.lru_cache(maxsize=2)
def permutation(seed: int, epoch: int, num_images: int) -> np.ndarray:
    """Returns the order of an epoch, (num_images,) int64; read-only, since the cached array is shared."""
    entropy = np.random.SeedSequence(seed, spawn_key=(epoch,))
    order = np.random.default_rng(entropy).permutation(num_images)
    order.flags.writeable = False
    return order


def mixed_order(num_images: int) -> np.ndarray:
    """Returns a fixed permutation of `num_images` images, (num_images,) int64."""
    return np.random.default_rng(_SPLIT_SEED).permutation(num_images)


def hold_out(num_images: int, percent: float) -> tuple[np.ndarray, np.ndarray]:
    """Draws `percent` of the images, at least one, with a fixed seed.

    Returns:
      Disjoint int64 indices (kept, held), ascending, together all images. `kept` may be empty.
    """
    count = min(num_images, max(1, round(num_images * percent / 100)))
    order = mixed_order(num_images)
    return np.sort(order[count:]), np.sort(order[:count])
