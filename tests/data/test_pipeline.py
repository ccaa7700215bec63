"""The order of examples and the held-out images."""

import subprocess
import sys

import numpy as np
import pytest

from hybrid_jax.data import pipeline, store
from hybrid_jax.data.store import Chunk
from hybrid_jax.errors import UserError

IMAGES = np.random.default_rng(0).integers(0, 256, (100, 6, 4, 3)).astype(np.uint8)


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
    pipeline.permutation.cache_clear()
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


@pytest.fixture(scope="module", params=["memory", "disk"])
def images(request, tmp_path_factory):
    """The same images as an array and as they lie in a store."""
    if request.param == "memory":
        return IMAGES
    chunk = Chunk(IMAGES[np.argsort(pipeline.mixed_order(100))])
    made = store.open_or_make(tmp_path_factory.mktemp("s") / "s", IMAGES.shape[1:], lambda: [chunk], 100)
    return made.images.select(pipeline.mixed_order(100))


def test_batches_are_the_images_of_the_order(images):
    found = list(pipeline.batches(images, 3, 16, 0, 20))
    want = [IMAGES[pipeline.batch_indices(3, step, 100, 16)] for step in range(20)]
    np.testing.assert_array_equal(found, want)
    assert found[0].dtype == np.uint8


@pytest.mark.parametrize("start", [1, 5, 6, 19])
def test_a_resumed_run_sees_the_batches_of_one_never_interrupted(images, start):
    want = [IMAGES[pipeline.batch_indices(3, step, 100, 16)] for step in range(start, 20)]
    np.testing.assert_array_equal(list(pipeline.batches(images, 3, 16, start, 20)), want)


@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_hosts_together_hold_the_global_batches(images, hosts):
    parts = np.split(np.arange(16), hosts)
    found = [list(pipeline.batches(images, 3, 16, 2, 12, rows)) for rows in parts]
    assert all(batch.shape == (16 // hosts, 6, 4, 3) for host in found for batch in host)
    want = [IMAGES[pipeline.batch_indices(3, step, 100, 16)] for step in range(2, 12)]
    np.testing.assert_array_equal([np.concatenate(batch) for batch in zip(*found, strict=True)], want)


def test_reading_ahead_stops_when_it_is_no_longer_wanted(tmp_path):
    code = f"""
import pathlib
from hybrid_jax.data import pipeline, store
from hybrid_jax.data.store import Chunk
import numpy as np
images = np.zeros((1000, 8, 8, 1), np.uint8)
folder = pathlib.Path({str(tmp_path / "s")!r})
made = store.open_or_make(folder, (8, 8, 1), lambda: [Chunk(images)], 1000)
batches = pipeline.batches(made.images, 0, 10, 0, 10**9)
print(len(next(batches)))
"""
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert output.stdout == "10\n"


def test_a_damaged_record_met_while_reading_ahead_is_told(tmp_path):
    made = store.open_or_make(tmp_path / "s", IMAGES.shape[1:], lambda: [Chunk(IMAGES)], 100)
    file = tmp_path / "s/images-00000.array_record"
    content = bytearray(file.read_bytes())
    content[5000] ^= 1
    file.write_bytes(content)
    made = store.open_or_make(tmp_path / "s", IMAGES.shape[1:], list, 100)
    with pytest.raises(UserError, match="is damaged") as caught:
        list(pipeline.batches(made.images, 0, 50, 0, 2))
    assert "\n" not in str(caught.value)
