"""Sampling is exact: what is drawn, with what probability, and from which random numbers."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
import tiny

from hybrid_jax.models import hybrid, sampler, tokens
from hybrid_jax.models.sampler import Draw

KINDS = {
    "masked MLP, scanned blocks": {"scan_layers": True, "remat": True, "decoder_layers": 2},
    "masked MLP, palette": {"token_kind": "palette", "palette_size": 20, "decoder_skip": False},
    "one token a patch": {"patch_size": 1, "levels": 7},
    "Image GPT": {"patch_size": 1, "token_kind": "palette", "palette_size": 20, "encoder_layers": 0,
                  "decoder_layers": 2, "activation": "quick_gelu"},
}  # fmt: skip


@functools.cache
def random_model(side=6, **fields):
    """Returns a model whose parameters are all random, its parameters and its palette."""
    config = tiny.get_config()
    config.data.image_size = (side, side)
    config.update_from_flattened_dict({f"model.{name}": value for name, value in fields.items()})
    model = hybrid.build_model(config)
    palette = None
    if model.spec.kind == "palette":
        palette = tokens.Palette.from_colours(np.linspace(-1, 1, model.spec.vocab_size, dtype=np.float32)[:, None])
    shapes = jax.eval_shape(lambda: hybrid.init_params(model, jax.random.key(0), palette))
    rng = np.random.default_rng(0)
    return model, jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.3, x.shape), jnp.float32), shapes), palette


def keys_of(seed, count):
    return jax.vmap(lambda i: jax.random.fold_in(jax.random.key(seed), i))(jnp.arange(count))


@functools.cache
def functions(**fields):
    """Returns, compiled, `sample_tokens` of a model and its `token_log_prob`."""
    model, params, palette = random_model(**fields)
    steps = sampler.incremental_model(model, params, palette)
    log_prob = functools.partial(model.apply, {"params": params}, method="token_log_prob")
    return jax.jit(functools.partial(sampler.sample_tokens, steps)), jax.jit(lambda t: log_prob(t, palette))


def log_probs_of(kind, drawn):
    """Returns `token_log_prob` of (B, N, S) tokens."""
    return np.asarray(functions(**kind)[1](drawn))


def draw_of(kind, keys, prompt=None, draw=None):
    """Samples from the model of a kind; returns its tokens, their log-probabilities, and `token_log_prob`'s."""
    if prompt is None:
        prompt = np.zeros((len(keys), 0, random_model(**kind)[0].spec.tokens_per_patch), np.int32)
    drawn, found = functions(**kind)[0](keys, prompt, draw or Draw(1.0))
    return np.asarray(drawn), np.asarray(found), log_probs_of(kind, drawn)


@pytest.mark.parametrize("name", KINDS)
def test_log_probabilities_while_sampling_are_those_of_the_result(name):
    drawn, found, exact = draw_of(KINDS[name], keys_of(0, 4))
    np.testing.assert_allclose(found, exact, atol=1e-4)
    assert len(np.unique(drawn, axis=0)) == 4


@pytest.mark.parametrize("name", ["masked MLP, scanned blocks", "one token a patch"])
def test_a_sample_is_completed_to_itself_and_the_cache_may_grow_in_pieces(name, monkeypatch):
    keys = keys_of(0, 4)
    whole, found, _ = draw_of(KINDS[name], keys)
    known = whole.shape[1] // 2 - 1
    monkeypatch.setattr(sampler, "_GROWS_BY", 3)
    again, of_the_rest, exact = draw_of(KINDS[name], keys, jnp.asarray(whole[:, :known]))
    np.testing.assert_array_equal(again, whole)
    np.testing.assert_allclose(of_the_rest[:, known:], exact[:, known:], atol=1e-4)
    assert not of_the_rest[:, :known].any()
    np.testing.assert_allclose(found[:, known:], of_the_rest[:, known:], atol=1e-4)


@pytest.mark.parametrize("patch_size", [1, 2])
def test_samples_have_the_models_distribution(patch_size):
    kind = {"side": 2, "patch_size": patch_size, "levels": 3}
    every = np.array(list(itertools.product(range(3), repeat=4))).reshape(81, 4 // patch_size**2, patch_size**2)
    expected = np.exp(log_probs_of(kind, every).astype(np.float64).sum(axis=(1, 2)))
    assert expected.sum() == pytest.approx(1, abs=1e-5)
    drawn = draw_of(kind, keys_of(5, 20_000))[0].reshape(-1, 4)
    counts = np.bincount(drawn @ 3 ** np.arange(4)[::-1], minlength=81)
    assert scipy.stats.chisquare(counts, expected / expected.sum() * 20_000).pvalue > 0.001
    # The test could tell: against the distribution without dependencies it fails.
    shares = [np.bincount(column, minlength=3) / 20_000 for column in drawn.T]
    independent = np.einsum("a,b,c,d->abcd", *shares).ravel()
    assert scipy.stats.chisquare(counts, independent / independent.sum() * 20_000).pvalue < 1e-6


@pytest.mark.parametrize("name", ["masked MLP, palette", "one token a patch"])
def test_temperature_zero_is_the_argmax(name):
    kind = KINDS[name]
    drawn, _, _ = draw_of(kind, keys_of(0, 2), draw=Draw(0.0, greedy=True))
    np.testing.assert_array_equal(drawn[0], drawn[1])
    vocab = random_model(**kind)[0].spec.vocab_size
    for place in [(0, 0), (3, drawn.shape[2] - 1), (drawn.shape[1] - 1, 0)]:
        others = np.repeat(drawn[:1], vocab, axis=0)
        others[:, *place] = np.arange(vocab)
        assert np.argmax(log_probs_of(kind, others)[:, *place]) == drawn[0, *place]


def test_truncation_keeps_the_tokens_that_its_definition_names():
    probabilities = np.random.default_rng(0).dirichlet(np.ones(9), size=50)
    log_probs = jnp.log(jnp.asarray(probabilities, jnp.float32))

    def shares(draw):
        return scipy.special.softmax(np.asarray(draw.logits(log_probs), np.float64), axis=-1)

    warm = probabilities ** (1 / 0.7)
    warm /= warm.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(shares(Draw(0.7)), warm, atol=1e-6)
    rank = np.argsort(np.argsort(-probabilities, axis=1), axis=1)
    best = np.where(rank < 4, warm, 0)
    np.testing.assert_allclose(shares(Draw(0.7, top_k=4)), best / best.sum(axis=1, keepdims=True), atol=1e-6)
    falling = -np.sort(-warm, axis=1)
    fewest = (np.cumsum(falling, axis=1) < 0.6).sum(axis=1, keepdims=True) + 1
    likely = np.where(rank < fewest, warm, 0)
    np.testing.assert_allclose(shares(Draw(0.7, top_p=0.6)), likely / likely.sum(axis=1, keepdims=True), atol=1e-6)
    np.testing.assert_allclose(shares(Draw(1.0, top_k=100, top_p=1.0)), probabilities, atol=1e-6)
    assert (np.count_nonzero(shares(Draw(1.0, top_p=1e-9)), axis=1) == 1).all()


@pytest.mark.slow
def test_half_precision_samples_from_nearly_the_same_distribution():
    _, found, exact = draw_of({"dtype": "bfloat16"}, keys_of(0, 8))
    np.testing.assert_allclose(found, exact, atol=0.3)
    assert abs(np.mean(found - exact)) < 0.01
