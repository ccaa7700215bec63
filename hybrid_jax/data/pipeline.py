"""Which images belong together: pure functions of their arguments, so there is no iterator state to save."""

import functools
from collections.abc import Iterator

import numpy as np

from hybrid_jax.errors import reject

# Not config.seed: runs with different seeds are judged on the same held-out images.
_SPLIT_SEED = 0
_THREADS = 4
_BATCHES_AHEAD = 8


def steps_per_epoch(num_images: int, batch_size: int) -> int:
    """Returns how many whole batches one pass over the images gives.

    Raises:
      UserError: the batch is larger than the data.
    """
    if batch_size > num_images:
        raise reject("train.batch_size", batch_size, f"must be at most the {num_images} training images")
    return num_images // batch_size


def batch_indices(seed: int, step: int, num_images: int, batch_size: int) -> np.ndarray:
    """Returns which images the global batch of a step holds.

    Each epoch is a fresh permutation whose incomplete last batch is dropped, so no batch holds an image
    twice.

    Args:
      seed: of the order.
      step: counted from 0 over the whole run.
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
    """Yields the images of steps `start` to `stop`, or the part of each that one host holds.

    Images in memory are gathered when asked for; others are read ahead by grain's threads, in the same order.

    Args:
      images: (n, H, W, C) uint8, an array or `StoredImages`.
      seed: of the order.
      batch_size: global images per step.
      start: the first step; a resumed run begins anywhere.
      stop: the step before which to end.
      rows: which rows of each global batch to read.

    Yields:
      (len(rows), H, W, C) uint8, step after step.

    Raises:
      UserError: the batch is larger than the data, or a record is damaged.
    """
    steps_per_epoch(len(images), batch_size)

    def read(step: int) -> np.ndarray:
        return images[batch_indices(seed, step, len(images), batch_size)[rows]]

    if isinstance(images, np.ndarray):
        return map(read, range(start, stop))
    import grain  # here: it takes longer to import than images in memory take to be ready

    ahead = grain.ReadOptions(num_threads=_THREADS, prefetch_buffer_size=_BATCHES_AHEAD)
    return iter(grain.MapDataset.range(start, stop).map(read).to_iter_dataset(ahead))


@functools.lru_cache(maxsize=2)
def permutation(seed: int, epoch: int, num_images: int) -> np.ndarray:
    """Returns the order of an epoch, (num_images,) int64; read-only, because every caller shares the cached array."""
    entropy = np.random.SeedSequence(seed, spawn_key=(epoch,))
    order = np.random.default_rng(entropy).permutation(num_images)
    order.flags.writeable = False
    return order


def mixed_order(num_images: int) -> np.ndarray:
    """Returns a permutation, (num_images,) int64, always the same for the same number."""
    return np.random.default_rng(_SPLIT_SEED).permutation(num_images)


def hold_out(num_images: int, percent: float) -> tuple[np.ndarray, np.ndarray]:
    """Draws a share of at least one image, always the same for the same arguments.

    Returns:
      kept, held: int64 indices in rising order; disjoint, together all images. `kept` may be empty.
    """
    count = min(num_images, max(1, round(num_images * percent / 100)))
    order = mixed_order(num_images)
    return np.sort(order[count:]), np.sort(order[:count])
