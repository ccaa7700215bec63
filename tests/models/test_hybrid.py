"""Masks, patch dropping, arms, options of the model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybrid_jax.data import augment
from hybrid_jax.models import hybrid, transformer


def setup(config, seed=0):
    model = hybrid.build_model(config)
    params = hybrid.init_params(model, jax.random.key(seed), None)
    coded = jnp.asarray(
        np.random.default_rng(0).integers(0, 256, (3, model.spec.num_patches, model.spec.tokens_per_patch))
    )
    return model, params, coded


def shapes_of(config):
    """The parameters' shapes, without computing them."""
    return jax.eval_shape(lambda: hybrid.init_params(hybrid.build_model(config), jax.random.key(0), None))


def leaves(params):
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}


def test_arms_share_the_initial_values_of_shared_modules_and_create_nothing_else(tiny_config):
    both = leaves(setup(tiny_config())[1])
    generative = leaves(setup(tiny_config(objective__contrastive_weight=0.0))[1])
    contrastive = leaves(setup(tiny_config(objective__generative_weight=0.0))[1])
    assert not any("projection" in name for name in generative)
    assert not any("decoder" in name or "head" in name for name in contrastive)
    assert set(both) == set(generative) | set(contrastive)
    for arm in (generative, contrastive):
        for name, leaf in arm.items():
            np.testing.assert_array_equal(leaf, both[name], err_msg=name)


@pytest.mark.parametrize("causal", [True, False])
def test_the_encoder_mask(tiny_config, causal):
    model, params, coded = setup(tiny_config())
    encoded = lambda m, t: m.encoder([transformer.Stream(t, causal)], None)[0].output
    encode = jax.jit(lambda t: model.apply({"params": params}, t, method=encoded))
    changed = coded.at[:, 5].add(7)
    same = (encode(coded) == encode(changed)).all(axis=(0, 2))
    assert bool(same[:5].all()) is causal
    assert not same[5:].any()


def test_kept_patches_keep_their_own_positions(tiny_config):
    model, params, coded = setup(tiny_config())
    embed = lambda t, keep: model.apply({"params": params}, t, None, keep, method="view_embedding")
    everything = jnp.tile(jnp.arange(model.spec.num_patches), (3, 1))
    np.testing.assert_allclose(embed(coded, everything), embed(coded, None), rtol=1e-5, atol=1e-6)
    # Full attention and a mean do not see the order in which patches are listed, only where they belong.
    shuffled = jax.random.permutation(jax.random.key(0), model.spec.num_patches)
    there = embed(coded[:, shuffled], jnp.tile(shuffled, (3, 1)))
    np.testing.assert_allclose(there, embed(coded, None), rtol=1e-4, atol=1e-5)
    moved = embed(coded[:, shuffled], everything)
    assert np.abs(moved - there).max() > 1e-3


@pytest.mark.parametrize(
    ("layers", "looped", "mask", "dtype"),
    [(0, False, "full", "bfloat16"), (2, True, "full", "float32"), (2, False, "causal", "bfloat16")],
)
def test_one_pass_over_images_and_views_gives_what_two_passes_give(tiny_config, layers, looped, mask, dtype):
    fields = {"encoder_layers": layers, "scan_layers": looped, "remat": looped, "dtype": dtype, "view_attention": mask}
    model, params, coded = setup(tiny_config(**{f"model__{name}": value for name, value in fields.items()}))
    # The output layer starts at zero.
    params = jax.tree.map(lambda x: x + 0.02, params)
    keep = jnp.asarray(np.random.default_rng(1).permuted(np.tile(np.arange(16), (6, 1)), axis=1)[:, :7])
    views = jnp.take_along_axis(jnp.concatenate([coded, coded[::-1]]), keep[..., None], axis=1)
    # Block by block as jax computes them: a compiler may fuse the two programs differently.
    with jax.disable_jit():
        rounded = {"params": transformer.cast_block_kernels(params, jnp.dtype(dtype))}
        log_prob, embedded = model.apply(rounded, coded, views, None, keep)
        want = model.apply({"params": params}, coded, None, method="token_log_prob")
        np.testing.assert_array_equal(log_prob, want)
        want = model.apply({"params": params}, views, None, keep, method="view_embedding")
        np.testing.assert_array_equal(embedded, want)


@pytest.mark.parametrize(("share", "want"), [(0.5, 8), (0.01, 1), (0.99, None), (1.0, None)])
def test_keep_patches_draws_without_repetition(share, want):
    keep = augment.keep_patches(jax.random.key(0), 40, 16, share)
    if want is None:
        assert keep is None
        return
    assert keep.shape == (40, want)
    assert all(len(set(row.tolist())) == want for row in keep)
    assert len({tuple(row.tolist()) for row in keep}) > 1


def test_scan_and_remat_change_no_value(tiny_config):
    model, params, coded = setup(tiny_config())
    log_prob = lambda m, p: m.apply({"params": p}, coded, None, method="token_log_prob").mean()
    gradient = jax.jit(jax.grad(log_prob, 1), static_argnums=0)
    # The output layer starts at zero, and with it every gradient behind it.
    params = jax.tree.map(lambda x: x + 0.02, params)
    want = gradient(model, params)
    remat = hybrid.build_model(tiny_config(model__remat=True))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), gradient(remat, params), want)

    def stack(tree):
        if isinstance(tree, dict) and "block_1" in tree:
            blocks = [tree[f"block_{i + 1}"] for i in range(len(tree))]
            return {"blocks": jax.tree.map(lambda *x: jnp.stack(x), *blocks)}
        return {k: stack(v) for k, v in tree.items()} if isinstance(tree, dict) else tree

    config = tiny_config(model__scan_layers=True, model__remat=True)
    scanned = hybrid.build_model(config)
    assert jax.tree.map(jnp.shape, stack(params)) == jax.tree.map(lambda x: x.shape, shapes_of(config))
    got = gradient(scanned, stack(params))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), got, stack(want))
    names = lambda m, p: m.apply({"params": p}, coded, None, method="features")
    one, two = names(model, params), names(scanned, stack(params))
    assert list(one) == list(two)
    for name in one:
        np.testing.assert_allclose(one[name], two[name], rtol=1e-4, atol=1e-5, err_msg=name)


def test_bfloat16_keeps_parameters_and_likelihood_in_float32(tiny_config):
    config = tiny_config(model__dtype="bfloat16")
    model, params, coded = setup(config)
    assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    params = jax.tree.map(lambda x: x + 0.02, params)
    log_prob = lambda m: m.apply({"params": params}, coded, None, method="token_log_prob")
    assert log_prob(model).dtype == jnp.float32
    np.testing.assert_allclose(log_prob(model), log_prob(hybrid.build_model(tiny_config())), rtol=0.05, atol=0.2)


def test_the_skip_carries_pixels_past_the_features(tiny_config):
    with_skip = leaves(shapes_of(tiny_config()))
    without = leaves(shapes_of(tiny_config(model__decoder_skip=False)))
    assert {n for n in with_skip if n not in without} == {"['decoder']['skip']['kernel']"}


def test_without_encoder_layers_the_model_is_a_look_up_and_a_decoder(tiny_config):
    config = tiny_config(
        model__encoder_layers=0,
        model__patch_size=1,
        model__activation="quick_gelu",
        objective__contrastive_weight=0.0,
    )
    params = shapes_of(config)
    assert set(leaves(params["encoder"])) == {"['patch_embedding']['table']['embedding']"}
    assert params["decoder"]["positions"].shape == (64, 16)
    assert set(params["head"]) == {"logits"} and set(params["head"]["logits"]) == {"kernel"}


def test_normed_layers_are_computed_only_when_asked_under_the_features_mask(tiny_config):
    config = tiny_config(model__encoder_layers=2, model__scan_layers=True, model__remat=True)
    model, params, _ = setup(config)
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1), dtype=np.uint8)
    features = jax.jit(hybrid.image_features, static_argnums=(0, 4))
    plain, found = (features(model, params, images, None, normed) for normed in (False, True))
    names = {f"encoder/{i}:normed" for i in range(3)} | {f"decoder/{i}:normed" for i in range(2)}
    assert not names & set(plain) and set(found) == names | set(plain)
    np.testing.assert_array_equal(found["encoder/2:normed"], found["encoder"])
    np.testing.assert_array_equal(found["decoder/1:normed"], found["decoder"])
    # The likelihood's causal pass is another; a model without one has the view pass only.
    config.objective.generative_weight = 0.0
    alone = hybrid.build_model(config)
    views = features(alone, params, images, None, True)
    np.testing.assert_allclose(found["encoder/1:normed"], views["encoder/1:normed"], rtol=1e-5, atol=1e-6)
