"""Augmentation steps against formulations of PIL, scipy, numpy and colorsys."""

import colorsys
import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import PIL.ImageEnhance
import PIL.ImageOps
import pytest
import scipy.ndimage

from hybrid_jax import sharding
from hybrid_jax.config import FIELDS, default_config
from hybrid_jax.data import augment
from hybrid_jax.data.augment import RECIPES, Recipe

FACTORS = [0.2, 1.0, 1.8]
# PIL rounds luma and results to whole levels.
PIL_TOLERANCE = 1.5
# Of single precision, on a scale of 255.
FLOAT_TOLERANCE = 2e-3

# Compiled as a whole: step by step takes longer.
_augment = jax.jit(augment.augment, static_argnums=2)
_shift_hue, _gaussian_blur = jax.jit(augment.shift_hue), jax.jit(augment.gaussian_blur)


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (6, 20, 24, 3)).astype(np.uint8)


def floats(images):
    return np.asarray(images, np.float32)


def close_to_pil(got, images, make, tolerance=PIL_TOLERANCE):
    want = np.stack([np.asarray(make(PIL.Image.fromarray(image)), np.float32) for image in images])
    return np.abs(got - want).max() <= tolerance


def view(key, images, recipe):
    return _augment(jax.random.key(key), images, recipe)


def crop_weights(start, length, size):
    make = jax.jit(augment._interpolation, static_argnums=2)
    return np.asarray(make(np.array([start], np.float32), np.array([length], np.float32), size)[0])


def test_the_recipe_none_changes_nothing(images):
    np.testing.assert_array_equal(view(0, images, RECIPES["none"][0]), images)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_fits_grey_and_colour_images(images, name):
    for recipe, channels in itertools.product(dict.fromkeys(RECIPES[name]), (1, 3)):
        made = jax.eval_shape(lambda x, recipe=recipe: view(0, x, recipe), images[..., :channels])
        assert made.shape == images[..., :channels].shape and made.dtype == jnp.float32


# The other recipes are these with other numbers, or fewer steps.
@pytest.mark.parametrize("name", ["crop_flip", "simclr", "moco_v3"])
def test_a_view_depends_on_its_key_only_and_stays_in_range(images, name):
    one, again, other = (np.asarray(view(key, images, RECIPES[name][0])) for key in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert one.min() >= 0 and one.max() <= 255
    assert (one != other).any(axis=(1, 2, 3)).all()


def test_the_views_of_grey_small_are_those_of_the_recorded_curves():
    images = np.random.default_rng(0).integers(0, 256, (16, 28, 28, 1)).astype(np.uint8)
    views = view(7, images, RECIPES["grey_small"][0])
    want = """
        156.1296 121.6173 121.5774 255.0000 128.4585 107.6628 77.4869 191.7534
        27.1190 48.4495 98.8489 119.5372 124.0289 170.4872 79.5935 213.3344
    """
    # Bits differ between levels of compiler optimisation.
    np.testing.assert_allclose(views[:, 13, 9, 0], [float(x) for x in want.split()], atol=FLOAT_TOLERANCE)


def test_any_number_of_devices_gives_the_same_bits(mesh_of):
    recipe = RECIPES["moco_v3"][1]  # has every step
    images = np.random.default_rng(0).integers(0, 256, (16, 8, 12, 3)).astype(np.uint8)
    views = []
    for devices in (1, 4):
        batch = sharding.batch_sharding(mesh_of(devices))
        make = jax.jit(augment.augment, static_argnums=2, out_shardings=batch)
        key, placed = jax.random.key(3), jax.device_put(images, batch)
        compiled = make.lower(key, placed, recipe).compile()
        views.append(np.asarray(compiled(key, placed)))
        assert not [line for line in compiled.as_text().splitlines() if " all-" in line], "images never travel"
    np.testing.assert_array_equal(*views)


def test_grey_images_have_no_colour_steps(images):
    gray = images[..., :1]
    colour_only = Recipe(saturation=0.8, hue=0.2, grayscale=1.0, jitter_probability=0.5)
    np.testing.assert_array_equal(view(0, gray, colour_only), gray)
    assert len(augment._jitter_steps(jax.random.split(jax.random.key(0), 8), RECIPES["simclr"][0], 1, 1)) == 2


def test_a_crop_interpolates_inside_itself_only():
    # Bilinear samples at the centres of output pixels, clamped to the crop: numpy.interp along each axis.
    image = np.random.default_rng(0).uniform(0, 255, 16)
    start, length = 3.25, 7.5
    weights = crop_weights(start, length, 16)
    places = np.clip(start + (np.arange(16) + 0.5) / 16 * length - 0.5, start, start + length - 1)
    np.testing.assert_allclose(weights @ image, np.interp(places, np.arange(16), image), atol=FLOAT_TOLERANCE)
    np.testing.assert_allclose(weights.sum(1), 1, rtol=1e-5)


def test_a_crop_of_whole_pixels_equals_pils(images):
    top, left, height, width = 3, 6, 9, 14
    rows, columns = crop_weights(top, height, 20), crop_weights(left, width, 24)
    got = np.einsum("yh,xw,bhwc->byxc", rows, columns, floats(images))
    box = (left, top, left + width, top + height)
    assert close_to_pil(got, images, lambda image: image.crop(box).resize((24, 20), PIL.Image.Resampling.BILINEAR))


def test_crops_and_flips_follow_their_distributions():
    y, x = np.meshgrid(np.arange(48), np.arange(64), indexing="ij")
    ramp = np.broadcast_to(np.stack([y, x], -1), (500, 48, 64, 2)).astype(np.float32)
    views = np.asarray(view(0, ramp, Recipe(crop_min_area=0.25, flip=0.5)))
    # At places 4 and -5 nothing is clamped, so that the slope is the crop's share of the side.
    height, width = views[:, -5, 5, 0] - views[:, 4, 5, 0], views[:, 5, -5, 1] - views[:, 5, 4, 1]
    height, width = height / (48 - 9), width / (64 - 9)
    assert 0.4 < (width < 0).mean() < 0.6 and (height > 0).all()
    area, aspect = height * np.abs(width), np.abs(width) / height
    assert area.min() > 0.249 and area.max() <= 1.001
    assert aspect.min() > 0.749 and aspect.max() < 1.334 and 0.45 < (aspect < 1).mean() < 0.55
    # Until a side of the crop reaches the image's, nothing is clipped: area is uniform.
    assert np.abs(np.quantile(area[area < 0.75], [0.25, 0.5, 0.75]) - [0.375, 0.5, 0.625]).max() < 0.05
    flipped = view(0, ramp[:6], Recipe(flip=1.0))
    np.testing.assert_array_equal(flipped, ramp[:6, :, ::-1])


def test_a_flip_equals_pils_mirror(images):
    assert close_to_pil(view(0, images, Recipe(flip=1.0)), images, PIL.ImageOps.mirror, tolerance=0)


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize(
    ("adjust", "enhancer"),
    [
        (augment.adjust_brightness, PIL.ImageEnhance.Brightness),
        (augment.adjust_contrast, PIL.ImageEnhance.Contrast),
        (augment.adjust_saturation, PIL.ImageEnhance.Color),
    ],
    ids=["brightness", "contrast", "saturation"],
)
def test_an_adjustment_equals_pils_enhancer(images, adjust, enhancer, factor):
    got = jax.jit(adjust)(floats(images), np.full((6, 1, 1, 1), factor))
    assert close_to_pil(got, images, lambda image: enhancer(image).enhance(factor))


def test_contrast_of_grey_images_is_about_their_mean(images):
    gray = floats(images[..., :1])
    got = augment.adjust_contrast(gray, np.full((6, 1, 1, 1), 0.5))
    np.testing.assert_allclose(got, (gray + gray.mean(axis=(1, 2, 3), keepdims=True)) / 2, atol=FLOAT_TOLERANCE)


def test_gray_equals_pils_luma(images):
    got = augment.to_gray(floats(images))
    assert close_to_pil(got, images, lambda image: image.convert("L").convert("RGB"))


@pytest.mark.parametrize("turns", [-0.9, -0.2, 0.05, 0.5])
def test_a_hue_shift_equals_colorsys(images, turns):
    # A few pure and grey pixels, whose hue is at a corner or undefined.
    corners = np.array([[r, g, b] for r in (0, 9, 255) for g in (0, 9, 255) for b in (0, 9, 255)])
    pixels = np.concatenate([images[0].reshape(-1, 3), corners])
    want = []
    for pixel in pixels:
        hue, saturation, value = colorsys.rgb_to_hsv(*(pixel / 255))
        want.append(colorsys.hsv_to_rgb((hue + turns) % 1, saturation, value))
    got = _shift_hue(floats(pixels)[None, None], np.array([turns], np.float32))
    np.testing.assert_allclose(got[0, 0], np.array(want) * 255, atol=FLOAT_TOLERANCE)


def test_hue_shifts_with_a_closed_form(images):
    # A third of a turn moves each channel to the next, half a turn mirrors it between the pixel's extremes.
    x = floats(images)
    got = _shift_hue(x, np.array([0, 1 / 3, -1 / 3, 0.5, -0.5, 1], np.float32))
    mirrored = x.max(axis=-1, keepdims=True) + x.min(axis=-1, keepdims=True) - x
    want = [x[0], np.roll(x[1], 1, axis=-1), np.roll(x[2], -1, axis=-1), mirrored[3], mirrored[4], x[5]]
    np.testing.assert_allclose(got, np.stack(want), atol=FLOAT_TOLERANCE)


def test_solarize_equals_pils(images):
    got = view(0, images, Recipe(solarize=1.0))
    assert close_to_pil(got, images, lambda image: PIL.ImageOps.solarize(image, 128), tolerance=0)


@pytest.mark.parametrize("sigma", [0.5, 1.5])
@pytest.mark.parametrize(("side", "radius"), [(20, 1), (64, 3)])
def test_blur_equals_scipys_convolution(sigma, side, radius):
    # SimCLR's kernel: a tenth of the side, made odd. scipy's mode mirror is PyTorch's and numpy's reflect.
    images = np.random.default_rng(0).uniform(0, 255, (2, side, side + 4, 3))
    got = _gaussian_blur(floats(images), np.full(2, sigma, np.float32))
    want = scipy.ndimage.gaussian_filter(images, (0, sigma, sigma, 0), mode="mirror", radius=(0, radius, radius, 0))
    np.testing.assert_allclose(got, want, atol=FLOAT_TOLERANCE)


def test_factors_are_drawn_per_image_from_their_range():
    flat = np.full((300, 2, 2, 1), 100, np.uint8)
    values = np.asarray(view(0, flat, Recipe(brightness=0.4)))[:, 0, 0, 0]
    assert 60 <= values.min() < 63 and 137 < values.max() <= 140 and abs(values.mean() - 100) < 5


@pytest.mark.parametrize("step", ["jitter_probability", "grayscale", "blur", "solarize"])
def test_a_step_happens_to_its_share_of_images(step):
    images = np.random.default_rng(0).integers(0, 256, (400, 4, 4, 3)).astype(np.uint8)
    strength = {"brightness": 0.4} if step == "jitter_probability" else {}
    changed = np.asarray(view(0, images, Recipe(**{step: 0.25}, **strength)) != images).any(axis=(1, 2, 3))
    assert 0.18 < changed.mean() < 0.32


def test_every_order_of_the_jitter_comes_up_and_each_step_once():
    # Steps that do not commute: the digits tell the order.
    steps = [lambda x, digit=digit: 10 * x + digit for digit in (1, 2, 3, 4)]
    shuffled = jax.jit(lambda seed: augment._in_random_order(jax.random.key(seed), jnp.zeros(()), steps))
    seen = [int(shuffled(seed)) for seed in range(200)]
    assert all(sorted(str(order)) == list("1234") for order in seen)
    assert len(set(seen)) == 24


def test_a_gpus_form_of_the_random_order_gives_the_same_images():
    images = jnp.asarray(np.random.default_rng(0).uniform(0, 255, (6, 8, 8, 3)), jnp.float32)
    steps = augment._jitter_steps(jax.random.split(jax.random.key(1), 8), augment._SIMCLR, 6, 3)
    for seed in range(4):
        order = jax.random.permutation(jax.random.key(seed), 4)
        found = [
            jax.jit(functools.partial(form, steps))(images, order)
            for form in (augment._one_by_one, augment._all_at_once)
        ]
        np.testing.assert_allclose(*found, atol=1e-3)
    text = jax.jit(functools.partial(augment._all_at_once, steps)).lower(images, order).as_text()
    assert "stablehlo.case" not in text


def test_brightness_is_clipped_unless_the_order_is_fixed():
    keys, white = jax.random.split(jax.random.key(0), 8), jnp.full((16, 2, 2, 1), 255.0)
    brightness = lambda recipe: augment._jitter_steps(keys, recipe, 16, 1)[0](white)
    clipped, free = brightness(Recipe(brightness=0.4)), brightness(Recipe(brightness=0.4, random_order=False))
    assert free.max() > 300
    np.testing.assert_array_equal(clipped, jnp.minimum(free, 255))


def test_the_config_overrides_the_strengths_of_both_views():
    config = default_config()
    assert augment.recipes_from_config(config.augment) == RECIPES["grey_small"]
    config.augment.recipe = "moco_v3"
    names = {f.name for f in dataclasses.fields(Recipe)} - {"jitter_probability", "random_order"}
    assert {f"augment.{name}" for name in names} | {"augment.recipe", "augment.view_keep"} == {
        name for name in FIELDS if name.startswith("augment.")
    }
    changes = {name: 0.25 + i / 100 for i, name in enumerate(sorted(names))}
    config.augment.update(changes)
    want = tuple(dataclasses.replace(recipe, **changes) for recipe in RECIPES["moco_v3"])
    assert augment.recipes_from_config(config.augment) == want
