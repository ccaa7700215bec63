"""The likelihood is exact: it sums to one, is causal to the bit, and depends on tokens only."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from hybrid_jax.models import hybrid, tokens

CASES = [
    pytest.param(kind, levels, patch, id=f"{kind}-{levels}-p{patch}")
    for kind, levels, patch in (("intensity", 2, 1), ("intensity", 3, 2), ("palette", 3, 1), ("palette", 3, 2))
]


@functools.cache
def trained(kind, levels, patch, image_size=(4, 2), steps=12):
    """A model after a few steps on random images, so that no layer is at its initial zeros."""
    config = tiny.get_config()
    config.data.image_size = image_size
    config.model.patch_size, config.model.token_kind = patch, kind
    config.model.levels = config.model.palette_size = levels
    config.model.width = 8
    config.objective.contrastive_weight = 0.0
    model = hybrid.build_model(config)
    palette = tokens.Palette.from_colours(np.linspace(-1, 1, levels)[:, None]) if kind == "palette" else None
    params = hybrid.init_params(model, jax.random.key(0), palette)
    rng = np.random.default_rng(0)
    images = rng.choice([0, 90, 255], size=(16, *image_size, 1), p=[0.6, 0.3, 0.1]).astype(np.uint8)
    data = tokens.encode(images, model.spec, palette)
    optimizer = optax.adam(3e-2)
    loss = lambda p: -jnp.mean(model.apply({"params": p}, data, palette, method="token_log_prob"))

    @jax.jit
    def update(params, state):
        gradient = jax.grad(loss)(params)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    for _ in range(steps):
        params, state = update(params, state)
    assert loss(params) < np.log(levels) - 0.05
    log_prob = jax.jit(lambda t: model.apply({"params": params}, t, palette, method="token_log_prob"))
    return model, log_prob, palette


@pytest.mark.parametrize(("kind", "levels", "patch"), CASES)
def test_probabilities_of_all_images_sum_to_one(kind, levels, patch):
    model, log_prob, _ = trained(kind, levels, patch)
    count = model.spec.num_patches * model.spec.tokens_per_patch
    every = np.array(list(itertools.product(range(levels), repeat=count)), np.int32)
    every = every.reshape(-1, model.spec.num_patches, model.spec.tokens_per_patch)
    assert len(every) == levels**8
    total = np.exp(np.asarray(log_prob(every), np.float64).sum((1, 2))).sum()
    assert abs(total - 1) < 1e-4


@pytest.mark.parametrize(("kind", "levels", "patch"), CASES)
def test_a_token_changes_nothing_before_it_to_the_bit(kind, levels, patch):
    model, log_prob, _ = trained(kind, levels, patch)
    shape = (1, model.spec.num_patches, model.spec.tokens_per_patch)
    rng = np.random.default_rng(1)
    base = rng.integers(0, levels, shape).astype(np.int32)
    flat = base.reshape(-1)
    changed = np.tile(flat, (flat.size, 1))
    changed[np.arange(flat.size), np.arange(flat.size)] = (flat + 1) % levels
    # The same program and the same row of its batch: a vector's rest is rounded otherwise on some processors.
    whole = lambda rows: np.asarray(log_prob(rows.reshape(-1, *shape[1:]))).reshape(len(rows), -1)
    before, after = whole(np.tile(flat, (flat.size, 1))), whole(changed)
    for position in range(flat.size):
        np.testing.assert_array_equal(after[position, :position], before[position, :position])
        assert after[position, position] != before[position, position]


@pytest.mark.parametrize(("kind", "levels", "patch"), CASES)
def test_equal_tokens_give_equal_bits_whatever_the_pixels(kind, levels, patch):
    model, log_prob, palette = trained(kind, levels, patch)
    rng = np.random.default_rng(2)
    images = rng.integers(0, 256, (5, 4, 2, 1)).astype(np.uint8)
    coded = tokens.encode(images, model.spec, palette)
    other = np.asarray(tokens.decode(coded, model.spec, palette))
    assert (other != images).any()
    score = jax.jit(lambda x: log_prob(tokens.encode(x, model.spec, palette)))
    np.testing.assert_array_equal(score(images), score(other))
