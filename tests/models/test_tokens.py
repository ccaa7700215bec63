"""Images to tokens and back: intensities, palettes, the order of patches and of what lies in them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybrid_jax.models import tokens


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
