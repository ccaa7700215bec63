"""Augmentation steps against formulations of PIL, scipy and numpy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import PIL.ImageEnhance
import pytest
import scipy.ndimage

from hybrid_jax.config import default_config
from hybrid_jax.data import augment
from hybrid_jax.data.augment import RECIPES, Recipe


@pytest.fixture
def colour():
    return np.random.default_rng(0).integers(0, 256, (6, 20, 24, 3)).astype(np.uint8)


def test_the_recipe_none_changes_nothing(colour):
    np.testing.assert_array_equal(augment.augment(jax.random.key(0), colour, RECIPES["none"]), colour)


@pytest.mark.parametrize("name", RECIPES)
def test_a_view_depends_on_its_key_only_and_stays_in_range(colour, name):
    make = jax.jit(lambda key: augment.augment(key, colour, RECIPES[name]))
    one, again, other = make(jax.random.key(0)), make(jax.random.key(0)), make(jax.random.key(1))
    np.testing.assert_array_equal(one, again)
    assert one.shape == colour.shape and one.dtype == jnp.float32
    assert one.min() >= 0 and one.max() <= 255
    assert (name == "none") == bool((one == other).all())


def test_a_crop_interpolates_inside_itself_only():
    # Bilinear samples at the centres of output pixels, clamped to the crop: numpy.interp along each axis.
    image = np.random.default_rng(0).uniform(0, 255, 16)
    start, length = 3.25, 7.5
    weights = augment._interpolation(jnp.array([start]), jnp.array([length]), 16)[0]
    places = np.clip(start + (np.arange(16) + 0.5) / 16 * length - 0.5, start, start + length - 1)
    np.testing.assert_allclose(weights @ image, np.interp(places, np.arange(16), image), rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(weights.sum(1), 1, rtol=1e-5)


def test_crop_areas_and_flips_follow_their_distributions():
    ramp = np.tile(np.arange(64, dtype=np.float32), (500, 64, 1))[..., None]
    views = np.asarray(augment.augment(jax.random.key(0), ramp, Recipe(crop_min_area=0.25, flip=0.5)))
    slope = views[:, 32, -1, 0] - views[:, 32, 0, 0]
    assert 0.4 < (slope < 0).mean() < 0.6
    shares = np.abs(slope) / 63
    assert shares.min() > 0.4 and shares.max() <= 1.0 + 1e-6 and shares.std() > 0.1
    np.testing.assert_array_equal(augment.augment(jax.random.key(0), ramp, Recipe(flip=1.0)), ramp[:, :, ::-1])


@pytest.mark.parametrize("factor", [0.3, 1.0, 1.7])
def test_contrast_equals_pils_enhancer(colour, factor):
    # PIL rounds the mean luma and the result to integers: one level of tolerance.
    got = augment.adjust_contrast(jnp.asarray(colour, jnp.float32), jnp.full((6, 1, 1, 1), factor))
    for image, view in zip(colour, got, strict=True):
        want = PIL.ImageEnhance.Contrast(PIL.Image.fromarray(image)).enhance(factor)
        assert np.abs(np.asarray(want, np.float32) - view).max() <= 1.5


def test_gray_equals_pils_luma(colour):
    got = augment.to_gray(jnp.asarray(colour, jnp.float32))
    want = np.asarray(PIL.Image.fromarray(colour[0]).convert("L"), np.float32)
    assert np.abs(got[0, ..., 0] - want).max() <= 1.0
    assert (got[..., 0] == got[..., 2]).all()


@pytest.mark.parametrize("sigma", [0.5, 1.5])
def test_blur_equals_scipys_convolution(colour, sigma):
    radius = 1  # a tenth of 20 pixels, as a kernel of 2 * 1 + 1
    got = augment.gaussian_blur(jnp.asarray(colour, jnp.float32), jnp.full(6, sigma))
    want = scipy.ndimage.gaussian_filter(
        colour.astype(np.float64), (0, sigma, sigma, 0), mode="mirror", radius=(0, radius, radius, 0)
    )
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-2)


def test_a_hue_turn_keeps_luma_and_a_full_turn_is_the_identity(colour):
    mild = (colour * 0.2 + 100).astype(np.float32)  # so that nothing is clipped
    turned = augment.rotate_hue(jnp.asarray(mild), jnp.linspace(0.1, 0.9, 6))
    np.testing.assert_allclose(augment.to_gray(turned), augment.to_gray(jnp.asarray(mild)), atol=0.2)
    assert np.abs(turned - mild).max() > 5
    np.testing.assert_allclose(augment.rotate_hue(jnp.asarray(mild), jnp.ones(6)), mild, atol=0.05)


def test_the_config_overrides_a_recipes_strengths():
    config = default_config()
    assert augment.recipe_from_config(config.augment) == RECIPES["grey_small"]
    config.augment.flip = 0.0
    config.augment.blur = 0.75
    want = dataclasses.replace(RECIPES["grey_small"], flip=0.0, blur=0.75)
    assert augment.recipe_from_config(config.augment) == want
