"""The order of examples and the held-out images."""

import subprocess
import sys

import numpy as np
import pytest

from hybrid_jax.data import pipeline
from hybrid_jax.errors import UserError


def epoch_batches(seed, epoch, num_images, batch_size):
    steps = pipeline.steps_per_epoch(num_images, batch_size)
    return [
        pipeline.batch_indices(seed, step, num_images, batch_size) for step in range(epoch * steps, (epoch + 1) * steps)
    ]


@pytest.mark.parametrize(("num_images", "batch_size"), [(12, 4), (10, 4), (7, 7), (7, 1), (1, 1)])
def test_an_epoch_repeats_no_image_and_drops_less_than_a_batch(num_images, batch_size):
    for epoch in range(3):
        batches = epoch_batches(0, epoch, num_images, batch_size)
        seen = np.concatenate(batches)
        assert all(batch.shape == (batch_size,) and batch.dtype == np.int64 for batch in batches)
        assert len(set(seen.tolist())) == len(seen) > num_images - batch_size
        assert seen.min() >= 0
        assert seen.max() < num_images


def test_epochs_and_seeds_differ():
    orders = [np.concatenate(epoch_batches(s, e, 100, 10)).tolist() for s in (0, 1) for e in (0, 1, 2)]
    assert all(sorted(order) == list(range(100)) for order in orders)
    assert len({tuple(order) for order in orders}) == len(orders)


def test_every_image_is_trained_on_although_batches_are_dropped():
    seen = {i for epoch in range(20) for batch in epoch_batches(3, epoch, 11, 4) for i in batch.tolist()}
    assert seen == set(range(11))


def test_the_order_does_not_depend_on_what_was_asked_before():
    forward = [pipeline.batch_indices(5, step, 50, 8) for step in range(20)]
    pipeline._permutation.cache_clear()
    backward = [pipeline.batch_indices(5, step, 50, 8) for step in reversed(range(20))]
    np.testing.assert_array_equal(forward, backward[::-1])


def test_another_process_sees_the_same_order():
    code = "from hybrid_jax.data import pipeline; print(pipeline.batch_indices(2**40, 123, 1000, 6).tolist())"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == str(pipeline.batch_indices(2**40, 123, 1000, 6).tolist())


def test_the_shared_order_cannot_be_written():
    with pytest.raises(ValueError, match="read-only"):
        pipeline.batch_indices(0, 0, 10, 5)[0] = 1


def test_a_batch_larger_than_the_data_is_refused():
    for call in (lambda: pipeline.steps_per_epoch(7, 8), lambda: pipeline.batch_indices(0, 0, 7, 8)):
        with pytest.raises(UserError, match=r"config.train.batch_size=8: must be at most the 7 training images"):
            call()


@pytest.mark.parametrize(("total", "percent", "count"), [(100, 10, 10), (3, 10, 1), (1000, 0.1, 1), (4, 99, 4)])
def test_hold_out_cuts_all_images_in_two(total, percent, count):
    kept, held = pipeline.hold_out(total, percent)
    assert len(held) == count
    assert sorted([*kept, *held]) == list(range(total))
    assert (np.diff(kept) > 0).all()
    assert (np.diff(held) > 0).all()


def test_hold_out_is_spread_over_the_data():
    _, held = pipeline.hold_out(1000, 10)
    assert (np.histogram(held, bins=4, range=(0, 1000))[0] > 10).all()
