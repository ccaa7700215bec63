"""The mesh, what may not be asked of it, and where a batch lies."""

import types

import jax
import numpy as np
import pytest

from hybrid_jax import sharding
from hybrid_jax.errors import UserError

IMAGES = np.random.default_rng(0).integers(0, 256, (100, 6, 4, 3)).astype(np.uint8)


def test_the_mesh_here_is_as_before(tiny_config):
    mesh = sharding.make_mesh(tiny_config(mesh__fsdp=2))
    assert dict(mesh.shape) == {"data": 4, "fsdp": 2}
    assert mesh.devices.ravel().tolist() == jax.devices()


def test_a_mesh_of_several_slices_keeps_fsdp_inside_one(tiny_config):
    def device(i):
        return types.SimpleNamespace(
            id=i, slice_index=i // 8, process_index=0, platform="cpu", device_kind="cpu", client=None
        )

    devices = [device(i) for i in range(16)]
    with pytest.raises(UserError, match=r"mesh.fsdp=16: must divide the number of devices per slice, 8"):
        sharding.arrange(tiny_config(mesh__fsdp=16), devices)
    with pytest.raises(UserError, match=r"train.batch_size=16: must be divisible by 32 devices"):
        sharding.make_mesh(tiny_config(), [device(i) for i in range(32)])
    slice_of = [[d.slice_index for d in row] for row in sharding.arrange(tiny_config(mesh__fsdp=4), devices)]
    assert slice_of == [[0] * 4, [0] * 4, [1] * 4, [1] * 4]


@pytest.mark.parametrize(("devices", "fsdp"), [(1, 1), (4, 1), (8, 2)])
def test_a_global_batch_holds_the_rows_in_order(mesh_of, devices, fsdp):
    mesh = mesh_of(devices, fsdp)
    rows = sharding.local_rows(mesh, 16)
    np.testing.assert_array_equal(rows, np.arange(16))
    batch = sharding.global_batch(IMAGES[rows], mesh, 16)
    np.testing.assert_array_equal(batch, IMAGES[:16])
    assert {shard.data.shape[0] for shard in batch.addressable_shards} == {16 // devices}


@pytest.mark.parametrize(("platform", "asked"), [("cpu", False), ("tpu", False), ("gpu", True), ("cuda", True)])
def test_what_the_compiler_is_asked_for_is_known_to_it(platform, asked):
    mesh = types.SimpleNamespace(devices=np.array([types.SimpleNamespace(platform=platform)]))
    options = sharding.compiler_options(mesh)
    assert bool(options) is asked
    # Every compiler reads all options; one that it does not know is an error.
    assert jax.jit(lambda x: x + 1, compiler_options=options)(1) == 2
