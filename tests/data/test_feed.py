"""Batches on the devices: the same from the host and from images that every device holds."""

import jax
import numpy as np
import pytest

from hybrid_jax.data import feed, pipeline
from hybrid_jax.errors import UserError

IMAGES = np.random.default_rng(0).integers(0, 256, (100, 6, 4, 3)).astype(np.uint8)


@pytest.mark.parametrize("on_device", [False, True])
@pytest.mark.parametrize(("devices", "fsdp", "start"), [(1, 1, 0), (1, 1, 5), (4, 1, 3), (8, 2, 11)])
def test_batches_are_the_images_of_the_order_cut_over_the_devices(mesh_of, devices, fsdp, start, on_device):
    mesh = mesh_of(devices, fsdp)
    found = list(feed.batches(IMAGES, 3, 16, start, 20, mesh, on_device))
    assert len(found) == 20 - start
    for step, batch in enumerate(found, start):
        np.testing.assert_array_equal(batch, IMAGES[pipeline.batch_indices(3, step, 100, 16)])
        assert {shard.data.shape[0] for shard in batch.addressable_shards} == {16 // devices}


def test_gathering_is_one_program_for_all_epochs(mesh_of):
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, *_, **__: compiled.append(name) if name.endswith("backend_compile_duration") else None
    )
    list(feed.batches(IMAGES, 3, 16, 0, 14, mesh_of(8, 2), True))
    jax.monitoring.clear_event_listeners()
    assert len(compiled) == 1


@pytest.mark.parametrize("on_device", [False, True])
def test_a_batch_larger_than_the_data_is_refused(mesh_of, on_device):
    with pytest.raises(UserError, match=r"train\.batch_size=128"):
        list(feed.batches(IMAGES, 3, 128, 0, 2, mesh_of(1), on_device))


def test_images_go_to_accelerators_if_they_fit(mesh_of, monkeypatch):
    mesh = mesh_of(1)
    assert not feed.fits_devices(IMAGES, mesh, 1.0)

    class Accelerator:
        platform = "gpu"

    class Mesh:
        devices = np.array([Accelerator()])

    assert feed.fits_devices(IMAGES, Mesh, 1.0)
    assert not feed.fits_devices(IMAGES, Mesh, IMAGES.nbytes / 2**31)
    assert not feed.fits_devices(IMAGES, Mesh, 0)
    assert not feed.fits_devices(list(IMAGES), Mesh, 1.0)
