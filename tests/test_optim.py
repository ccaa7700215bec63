"""Muon: which parameters it takes, what its updates look like; and the schedule's ends."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hybrid_jax import optim, train_state


def one_update(config, optimizer=None):
    """First updates of an optimizer, the config's where none is given, by path."""
    params = train_state.abstract_state(config).params
    rng = np.random.default_rng(0)
    random = lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32)
    params, gradients = jax.tree.map(random, params), jax.tree.map(random, params)
    optimizer = optimizer or optim.make_optimizer(config)
    updates = jax.jit(lambda g, p: optimizer.update(g, optimizer.init(p), p)[0])(gradients, params)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree.leaves_with_path(updates)
    }


@pytest.mark.parametrize("scan", [False, True])
def test_muon_turns_the_blocks_matrices_and_leaves_the_rest_to_adam(tiny_config, scan):
    shared = {"optimizer__warmup_steps": 0, "optimizer__weight_decay": 0.0, "optimizer__clip_norm": 0.0}
    shared |= {"model__encoder_layers": 2, "model__scan_layers": scan}
    config = tiny_config(optimizer__name="muon", **shared)
    muon = one_update(config)
    adam = one_update(config, optax.nadam(optim.learning_rate_schedule(config), b2=config.optimizer.b2))
    turned = {name for name in muon if not np.allclose(muon[name], adam[name], rtol=1e-4, atol=0)}
    matrices = ("attention_out", "mlp_in", "mlp_out", "qkv")
    assert turned == {name for name in muon if "transformer" in name and name.split("/")[-2] in matrices}
    rate = tiny_config().optimizer.learning_rate
    for name in turned:
        *_, rows, columns = muon[name].shape
        scale = rate * 0.2 * max(rows, columns) ** 0.5
        values = np.linalg.svd(muon[name], compute_uv=False) / scale
        # Newton-Schulz's five steps bring singular values near 1, not to it (Jordan et al. 2024).
        assert values.min() > 0.4 and values.max() < 1.4
        # The size of Adam's updates, so that one learning rate serves both.
        assert 0.1 * rate < np.sqrt(np.mean(np.square(muon[name]))) < 0.3 * rate


def test_muon_decays_the_blocks_matrices(tiny_config):
    shared = {"optimizer__name": "muon", "optimizer__warmup_steps": 0}
    with_decay = one_update(tiny_config(optimizer__weight_decay=0.5, **shared))
    without = one_update(tiny_config(optimizer__weight_decay=0.0, **shared))
    changed = {name for name in without if not np.array_equal(with_decay[name], without[name])}
    assert changed == {name for name in without if "transformer" in name and name.endswith("/kernel")}


def test_the_schedule_warms_up_and_ends_at_zero(tiny_config):
    schedule = optim.learning_rate_schedule(tiny_config(train__total_steps=100, optimizer__warmup_steps=20))
    peak = tiny_config().optimizer.learning_rate
    values = np.array([schedule(step) for step in (0, 10, 20, 60, 100)])
    np.testing.assert_allclose(values, peak * np.array([0, 0.5, 1, 0.5, 0]), atol=1e-9)
