"""The pixel heads: distributions that sum to one, order inside a patch, one token at a time as all at once."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybrid_jax.models import heads, hybrid, tokens

WIDTH = 6
RNG = np.random.default_rng(0)


def random_head(levels, patch_size):
    """Returns a head with random parameters and what reads all tokens of patches at once: tokens -> nats."""
    spec = tokens.TokenSpec("intensity", levels, patch_size, patch_size, patch_size, 1)
    if patch_size == 1:
        head = heads.LinearHead(spec, jnp.float32)
    else:
        head = heads.MaskedMLPHead(spec, WIDTH, "gelu", jnp.float32, lambda x, axis=0: x)
    state = jnp.asarray(RNG.normal(size=(1, 1, WIDTH)), jnp.float32)
    values = lambda coded: tokens.dequantise(coded, spec)
    coded = jnp.zeros((1, 1, spec.tokens_per_patch), jnp.int32)
    shapes = jax.eval_shape(lambda: head.init(jax.random.key(0), state, coded, values(coded)))
    params = jax.tree.map(lambda x: jnp.asarray(RNG.normal(0, 0.5, x.shape), jnp.float32), shapes)

    @jax.jit
    def log_prob(coded):
        return head.apply(params, jnp.broadcast_to(state, (len(coded), 1, WIDTH)), coded, values(coded))

    return head.bind(params), state[:, 0], values, log_prob


# With 5 levels three codes of the factors 2 x 4 are invalid.
@pytest.mark.parametrize(("levels", "patch_size"), [(7, 1), (5, 2), (4, 2)])
def test_the_probabilities_of_all_patches_sum_to_one(levels, patch_size):
    *_, log_prob = random_head(levels, patch_size)
    every = np.array(list(itertools.product(range(levels), repeat=patch_size**2)), np.int32)[:, None]
    assert abs(np.exp(np.asarray(log_prob(every), np.float64).sum((1, 2))).sum() - 1) < 1e-4


def test_a_token_changes_nothing_before_it_and_all_after_it():
    *_, log_prob = random_head(5, 2)
    base = np.array([[1, 4, 0, 2]])
    changed = (base + np.eye(4, dtype=int)) % 5
    before, after = log_prob(np.repeat(base, 4, axis=0)[:, None])[:, 0], log_prob(changed[:, None])[:, 0]
    for j in range(4):
        np.testing.assert_array_equal(after[j, :j], before[j, :j])
        assert (after[j, j:] != before[j, j:]).all()


@pytest.mark.parametrize(("levels", "patch_size"), [(7, 1), (5, 2)])
def test_one_token_at_a_time_is_as_all_at_once(levels, patch_size):
    head, state, values, log_prob = random_head(levels, patch_size)
    coded = RNG.integers(0, levels, (1, 1, patch_size**2))
    progress = head.init_state(state)
    for j, token in enumerate(coded[0, 0]):
        found, progress = head.log_probs(progress, jnp.int32(j))
        assert found.shape == (1, levels)
        np.testing.assert_allclose(found[0, token], log_prob(coded)[0, 0, j], atol=1e-5)
        token = jnp.array([token])
        progress = head.update(progress, jnp.int32(j), token, values(token))


@pytest.mark.parametrize(("levels", "patch"), [(256, 1), (20, 2), (256, 2)])
def test_an_untrained_model_is_uniform(tiny_config, levels, patch):
    config = tiny_config(data__image_size=(4, 4), model__patch_size=patch, model__levels=levels)
    model = hybrid.build_model(config)
    params = hybrid.init_params(model, jax.random.key(3), None)
    coded = np.random.default_rng(0).integers(0, levels, (7, model.spec.num_patches, patch**2))
    log_prob = jax.jit(lambda t: model.apply({"params": params}, t, None, method="token_log_prob"))(coded)
    np.testing.assert_allclose(log_prob, -np.log(levels), rtol=0, atol=1e-5)
