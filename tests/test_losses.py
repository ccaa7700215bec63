"""NT-Xent and token likelihood against independent float64 formulations."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special

from hybrid_jax.losses import nt_xent, nt_xent_and_accuracy, token_nll


def reference_nt_xent(z1, z2, temperature):
    """SimCLR's equation 1, written anchor by anchor in float64."""
    z = np.concatenate([z1, z2]).astype(np.float64)
    z = z / np.linalg.norm(z, axis=1, keepdims=True)
    n = len(z1)
    losses = []
    for i in range(2 * n):
        similarity = z @ z[i] / temperature
        others = np.delete(similarity, i)
        losses.append(scipy.special.logsumexp(others) - similarity[(i + n) % (2 * n)])
    return np.array(losses)


def reference_gradient(z1, z2, temperature, weights):
    """Analytic gradient of sum(weights * losses) by z1 and z2, in float64."""
    z = np.concatenate([z1, z2]).astype(np.float64)
    norm = np.linalg.norm(z, axis=1, keepdims=True)
    u, n = z / norm, len(z1)
    similarity = u @ u.T / temperature
    np.fill_diagonal(similarity, -np.inf)
    pull = scipy.special.softmax(similarity, axis=1)
    pull[np.arange(2 * n), (np.arange(2 * n) + n) % (2 * n)] -= 1
    pull *= weights[:, None]
    by_u = (pull @ u + pull.T @ u) / temperature
    by_z = (by_u - u * np.sum(by_u * u, axis=1, keepdims=True)) / norm
    return by_z[:n], by_z[n:]


@pytest.mark.parametrize(("block_size", "temperature"), [(None, 0.07), (1, 0.5), (5, 0.07), (24, 0.5), (1000, 0.07)])
def test_nt_xent_equals_float64_in_value_and_gradient(block_size, temperature):
    rng = np.random.default_rng(0)
    # Raw inputs: norms far from one and different for each row.
    z1, z2 = (rng.normal(size=(12, 5)) * rng.uniform(0.1, 30, size=(12, 1)) for _ in range(2))
    z1, z2 = z1.astype(np.float32), z2.astype(np.float32)
    weights = rng.uniform(size=24)
    value = nt_xent(z1, z2, temperature, block_size)
    assert value.shape == (24,) and value.dtype == jnp.float32
    np.testing.assert_allclose(value, reference_nt_xent(z1, z2, temperature), rtol=1e-5, atol=1e-5)
    gradient = jax.grad(lambda a, b: jnp.sum(weights * nt_xent(a, b, temperature, block_size)), (0, 1))(z1, z2)
    for got, want in zip(gradient, reference_gradient(z1, z2, temperature, weights), strict=True):
        assert np.abs(got - want).max() <= 1e-5 * np.abs(want).max()


def test_nt_xent_gradient_equals_automatic_one_of_the_plain_formula():
    def plain(z1, z2, temperature):
        z = jnp.concatenate([z1, z2])
        z /= jnp.linalg.norm(z, axis=1, keepdims=True)
        similarity = jnp.matmul(z, z.T, precision="highest") / temperature
        others = jnp.where(jnp.eye(len(z), dtype=bool), -jnp.inf, similarity)
        return jax.nn.logsumexp(others, axis=1) - jnp.diag(jnp.roll(similarity, len(z1), axis=1))

    rng = np.random.default_rng(3)
    z1, z2 = rng.normal(size=(2, 11, 5))
    weights = rng.normal(size=22)
    with jax.enable_x64(True):
        want = jax.grad(lambda *x: jnp.sum(weights * plain(*x)), (0, 1, 2))(z1, z2, 0.2)
    # The temperature is traced too.
    blocked = lambda a, b, t: jnp.sum(weights * nt_xent(a, b, t, 7))
    got = jax.jit(jax.grad(blocked, (0, 1, 2)))(z1, z2, 0.2)
    for one, other in zip(got, want, strict=True):
        assert np.abs(one - np.asarray(other)).max() <= 5e-6 * np.abs(other).max()


def test_equal_embeddings_tie_and_are_no_hits():
    z = np.tile(np.random.default_rng(4).normal(size=(1, 32)), (19, 1)).astype(np.float32)
    for block_size in (1, 5, None):
        losses, hits = nt_xent_and_accuracy(z, z, 0.1, block_size)
        np.testing.assert_allclose(losses, np.log(37), rtol=1e-6)
        assert not hits.any()


def test_nt_xent_convention_is_optax_ntxent():
    rng = np.random.default_rng(1)
    z1, z2 = rng.normal(size=(2, 6, 5)).astype(np.float32)
    theirs = optax.losses.ntxent(jnp.concatenate([z1, z2]), jnp.tile(jnp.arange(6), 2), temperature=0.3)
    np.testing.assert_allclose(jnp.mean(nt_xent(z1, z2, 0.3)), theirs, rtol=1e-5)


def test_accuracy_counts_anchors_whose_positive_is_nearest():
    z1 = np.eye(4, dtype=np.float32)
    z2 = z1[[0, 1, 3, 2]]
    _, hits = nt_xent_and_accuracy(z1, z2, 0.1, block_size=3)
    np.testing.assert_array_equal(hits, [1, 1, 0, 0, 1, 1, 0, 0])


@pytest.mark.parametrize("differentiate", [False, True])
def test_nt_xent_memory_grows_with_batch_times_block(differentiate):
    def temporaries(batch, dim):
        z = jax.ShapeDtypeStruct((batch, dim), jnp.float32)
        loss = lambda a, b: jnp.sum(nt_xent(a, b, 0.1, block_size=64))
        function = jax.grad(loss, (0, 1)) if differentiate else loss
        return jax.jit(function).lower(z, z).compile().memory_analysis().temp_size_in_bytes

    # Quadratic growth would be sixteenfold; a (B, B, D) array would need 2^30 bytes at the larger size.
    small, large = temporaries(1024, 64), temporaries(4096, 64)
    assert large < 6 * small
    assert large < 4 * 4 * (2 * 4096) * (64 + 6 * 64)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ((np.ones((2, 3)), np.ones((3, 3)), 0.1), "shape"),
        ((np.ones((2, 3)), np.ones((2, 3)), 0.0), "temperature"),
        ((np.ones((2, 3)), np.ones((2, 3)), 0.1, 0), "block_size"),
    ],
)
def test_nt_xent_refuses_bad_arguments(arguments, word):
    with pytest.raises(ValueError, match=word):
        nt_xent(*arguments)


def test_a_zero_embedding_has_a_finite_gradient():
    z1, z2 = np.zeros((3, 4), np.float32), np.ones((3, 4), np.float32)
    gradient = jax.grad(lambda a: jnp.sum(nt_xent(a, z2, 0.1)))(z1)
    assert np.isfinite(gradient).all()


def test_token_nll_is_scipys_log_softmax_and_uniform_at_zero():
    rng = np.random.default_rng(0)
    logits, tokens = rng.normal(size=(3, 4, 7)).astype(np.float32), rng.integers(0, 7, size=(3, 4))
    want = -np.take_along_axis(scipy.special.log_softmax(logits.astype(np.float64), -1), tokens[..., None], -1)[..., 0]
    np.testing.assert_allclose(token_nll(logits, tokens), want, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        token_nll(jnp.zeros((2, 256), jnp.bfloat16), jnp.array([0, 255])), np.log(256), rtol=1e-6
    )
