"""Meshes over the fake devices of the test process."""

import contextlib

import jax
import pytest
from jax.sharding import AxisType


def mesh_of(devices: int, fsdp: int = 1):
    """A (data, fsdp) mesh over the first fake devices."""
    shape, axes = (devices // fsdp, fsdp), ("data", "fsdp")
    return jax.make_mesh(shape, axes, axis_types=(AxisType.Auto,) * 2, devices=jax.devices()[:devices])


@contextlib.contextmanager
def on_devices(devices: int = 1, fsdp: int = 1):
    """Training inside takes the first fake devices instead of all; yields their mesh."""
    from hybrid_jax import sharding

    mesh = mesh_of(devices, fsdp)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharding, "make_mesh", lambda config, *_: mesh)
        yield mesh
