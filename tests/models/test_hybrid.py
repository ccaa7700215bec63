"""Masks, patch dropping, arms, options of the model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybrid_jax.data import augment
from hybrid_jax.models import hybrid, tokens, transformer


def setup(config, seed=0):
    model = hybrid.build_model(config)
    params = hybrid.init_params(model, jax.random.key(seed), None)
    coded = jnp.asarray(
        np.random.default_rng(0).integers(0, 256, (3, model.spec.num_patches, model.spec.tokens_per_patch))
    )
    return model, params, coded


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


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("layers", "looped", "mask"), [(0, False, "full"), (2, False, "full"), (2, True, "full"), (2, False, "causal")]
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
    gradient = lambda m, p: jax.grad(lambda p: m.apply({"params": p}, coded, None, method="token_log_prob").mean())(p)
    # The output layer starts at zero, and with it every gradient behind it.
    params = jax.tree.map(lambda x: x + 0.02, params)
    want = gradient(model, params)
    remat = hybrid.build_model(tiny_config(model__remat=True))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), gradient(remat, params), want)

    def stack(tree):
        if isinstance(tree, dict) and "block_1" in tree:
            blocks = [tree[f"block_{i + 1}"] for i in range(len(tree))]
            return {"blocks": jax.tree.map(lambda *x: jnp.stack(x), *blocks)}
        return {k: stack(v) for k, v in tree.items()} if isinstance(tree, dict) else tree

    scanned = hybrid.build_model(tiny_config(model__scan_layers=True, model__remat=True))
    shapes = jax.eval_shape(lambda: hybrid.init_params(scanned, jax.random.key(0), None))
    assert jax.tree.map(jnp.shape, stack(params)) == jax.tree.map(lambda x: x.shape, shapes)
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
    with_skip = leaves(setup(tiny_config())[1])
    without = leaves(setup(tiny_config(model__decoder_skip=False))[1])
    assert {n for n in with_skip if n not in without} == {"['decoder']['skip']['kernel']"}


def test_without_encoder_layers_the_model_is_a_look_up_and_a_decoder(tiny_config):
    config = tiny_config(
        model__encoder_layers=0,
        model__patch_size=1,
        model__activation="quick_gelu",
        objective__contrastive_weight=0.0,
    )
    _, params, _ = setup(config)
    assert set(leaves(params["encoder"])) == {"['patch_embedding']['table']['embedding']"}
    assert params["decoder"]["positions"].shape == (64, 16)
    assert set(params["head"]) == {"logits"} and set(params["head"]["logits"]) == {"kernel"}


@pytest.mark.parametrize("levels", [2, 3, 7, 255, 256])
def test_decoding_tokens_gives_images_with_the_same_tokens(levels):
    spec = tokens.TokenSpec("intensity", levels, 2, 4, 6, 3)
    images = np.random.default_rng(0).integers(0, 256, (4, 4, 6, 3)).astype(np.uint8)
    coded = tokens.encode(images, spec)
    assert coded.shape == (4, 6, 12) and coded.min() >= 0 and coded.max() < levels
    again = tokens.encode(np.asarray(tokens.decode(coded, spec)), spec)
    np.testing.assert_array_equal(again, coded)
    if levels == 256:
        np.testing.assert_array_equal(tokens.decode(coded, spec), images)


def test_patches_are_in_raster_order_and_inside_row_column_channel():
    image = np.arange(4 * 4 * 3).reshape(1, 4, 4, 3)
    patches = np.asarray(tokens.patchify(jnp.asarray(image), 2))
    np.testing.assert_array_equal(patches[0, 1], image[0, 0:2, 2:4].reshape(-1))
    np.testing.assert_array_equal(patches[0, 2], image[0, 2:4, 0:2].reshape(-1))


def test_palette_tokens_are_the_nearest_colours():
    rng = np.random.default_rng(0)
    colours = rng.uniform(-1, 1, (9, 3)).astype(np.float32)
    images = rng.integers(0, 256, (40, 8, 8, 3)).astype(np.uint8)
    spec = tokens.TokenSpec("palette", 9, 2, 8, 8, 3)
    pixels = tokens.patchify(jnp.asarray(images), 2).reshape(40, 16, 4, 3) / 127.5 - 1
    distance = ((np.asarray(pixels, np.float64)[..., None, :] - colours) ** 2).sum(-1)
    palette = tokens.Palette.from_colours(colours)
    coded = jax.jit(tokens.encode, static_argnums=1)(images, spec, palette)
    np.testing.assert_array_equal(coded, distance.argmin(-1))
    shown = np.asarray(tokens.decode(coded, spec, palette), np.float64)
    error = np.square(shown - images).mean()
    assert tokens.palette_psnr(images, spec, palette) == pytest.approx(10 * np.log10(255**2 / error), abs=1e-9)


def test_grey_palettes_and_pixels_that_are_colours_of_the_palette():
    spec = tokens.TokenSpec("palette", 3, 1, 2, 2, 1)
    palette = tokens.Palette.from_colours(np.array([[255.0], [0], [100]]) / 127.5 - 1)
    images = np.array([[0, 49, 51, 177], [178, 255, 100, 0]], np.uint8).reshape(2, 2, 2, 1)
    assert tokens.encode(images, spec, palette).ravel().tolist() == [1, 1, 2, 2, 0, 0, 2, 1]
    assert tokens.palette_psnr(images[:, 1:] * 0, spec, palette) == np.inf


def test_like_colours_of_a_fitted_palette_have_like_numbers():
    images = np.random.default_rng(0).integers(0, 256, (20, 16, 16, 3), dtype=np.uint8)
    colours = tokens.fit_palette(images, 32)

    def spread(numbers):
        """Mean squared distance of colours from the mean of their group of 4, over that of all from theirs."""
        groups = colours[numbers].reshape(8, 4, 3)
        return np.square(groups - groups.mean(axis=1, keepdims=True)).mean() / colours.var(axis=0).mean()

    assert spread(np.arange(32)) < 0.3 < 0.6 < spread(np.random.default_rng(1).permutation(32))
    np.testing.assert_array_equal(tokens.fit_palette(images, 32), colours)


def test_a_fitted_palette_finds_the_colours_that_are_there():
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 256, (5, 3)).astype(np.uint8)
    images = colours[rng.integers(0, 5, (6, 8, 8))]
    palette = tokens.fit_palette(images, 5)
    found = np.round((palette + 1) * 127.5).astype(int)
    assert {tuple(c) for c in found} == {tuple(c) for c in colours.astype(int)}
    with pytest.raises(ValueError, match="5 distinct colours"):
        tokens.fit_palette(images, 6)


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
