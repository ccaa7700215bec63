"""A checkpoint of random parameters, which is not trained."""

import contextlib

import jax
import numpy as np
import pytest
import tiny
from meshes import on_devices

import hybrid_jax
from hybrid_jax import train_state
from hybrid_jax.storage.checkpoint import Checkpoints


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """Holds a checkpoint whose pixel head is no longer at zero, so that samples depend on what they know."""
    config = tiny.get_config()
    with on_devices(1) as one:
        state = train_state.init_state(config, one, None)
    rng = np.random.default_rng(0)
    shaken = jax.tree.map(lambda x: x + rng.normal(0, 0.3, x.shape).astype(np.float32), state.params)
    path = tmp_path_factory.mktemp("sample")
    with contextlib.closing(Checkpoints(path, config)) as checkpoints:
        checkpoints.save(state.replace(params=shaken), config, "")
    return path


@pytest.fixture(scope="module")
def model(workdir):
    return hybrid_jax.load(workdir)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(1).integers(0, 256, (5, 8, 8, 1), dtype=np.uint8)
