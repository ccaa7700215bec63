"""Corruptions: properties that each must have, and what scipy, PIL and the plain definitions say."""

import io
import itertools

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from hybrid_jax import corruptions
from hybrid_jax.corruptions import ops, weather

# Of these a higher severity is another change, not only a larger one: spatter turns from water to mud.
OTHERWISE = ("elastic_transform", "glass_blur", "saturate", "frost", "spatter")
STRONGER = [name for name in corruptions.kinds(3) if name not in OTHERWISE]


@pytest.fixture(scope="module")
def photographs():
    """Twelve smooth colour images with edges, 20x28."""
    rng = np.random.default_rng(0)
    smooth = ndimage.gaussian_filter(rng.normal(size=(12, 20, 28, 3)), (0, 3, 3, 0))
    images = 128 + 900 * smooth
    images[:, 5:12, 8:20] += 60
    return np.clip(images, 0, 255).astype(np.uint8)


def distance(a, b):
    return float(np.abs(a.astype(float) - b).mean())


def test_every_corruption_keeps_shape_and_type_and_changes_something(photographs):
    for images in (photographs, photographs[..., :1]):
        kinds = corruptions.kinds(images.shape[-1])
        assert kinds[:15] == corruptions.MAIN and ("saturate" in kinds) == (images.shape[-1] == 3)
        for name in kinds:
            before = images.copy()
            found = corruptions.corrupt(images, name, 4)
            assert found.shape == images.shape and found.dtype == np.uint8, name
            assert np.array_equal(images, before) and distance(found, images) > 0.3, name


@pytest.mark.parametrize("name", STRONGER)
def test_a_higher_severity_is_further_away(name, photographs):
    found = [distance(corruptions.corrupt(photographs, name, s), photographs) for s in corruptions.SEVERITIES]
    # Motion blur's third and fourth differ in the reach of weights that are next to nothing, and in their angles.
    slack = 0.95 if name == "motion_blur" else 1
    assert all(later > slack * earlier for earlier, later in itertools.pairwise(found)), found


def test_an_image_depends_on_its_number_and_not_on_those_beside_it(photographs):
    for name in corruptions.kinds(3):
        whole = corruptions.corrupt(photographs, name, 3, seed=5)
        assert np.array_equal(whole[7:9], corruptions.corrupt(photographs[7:9], name, 3, seed=5, first=7)), name
    same = np.repeat(photographs[:1], 2, axis=0)
    first, second = corruptions.corrupt(same, "gaussian_noise", 3)
    assert not np.array_equal(first, second), "each image has noise of its own"
    assert not np.array_equal(first, corruptions.corrupt(same, "gaussian_noise", 3, seed=1)[0])


def test_large_sets_are_cut_without_a_seam(photographs, monkeypatch):
    whole = corruptions.corrupt(photographs, "snow", 2)
    monkeypatch.setattr(corruptions, "_PIXELS_AT_ONCE", 20 * 28 * 5)
    assert np.array_equal(whole, corruptions.corrupt(photographs, "snow", 2))


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 2, 3, 3), (2, 8, 8, 1), (1, 70, 40, 3)])
def test_any_size_works(shape):
    images = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    for name in corruptions.kinds(shape[-1]):
        assert corruptions.corrupt(images, name, 5).shape == shape


def test_no_image_and_unknown_names():
    empty = np.zeros((0, 8, 8, 1), np.uint8)
    assert corruptions.corrupt(empty, "fog", 1).shape == empty.shape
    for name, severity in (("rain", 1), ("saturate", 1), ("fog", 6)):
        with pytest.raises(ValueError, match=name):
            corruptions.corrupt(empty, name, severity)


def test_noise_has_the_strength_that_cifar_10_c_gives():
    grey = np.full((40, 32, 32, 1), 128, np.uint8)
    level = 128 / 255
    expected = {
        ("gaussian_noise", 1): 0.04,
        ("gaussian_noise", 5): 0.10,
        ("shot_noise", 5): (level / 50) ** 0.5,
        ("speckle_noise", 3): 0.12 * level,
    }
    for (name, severity), deviation in expected.items():
        noise = corruptions.corrupt(grey, name, severity) / 255.0 - level
        assert noise.std() == pytest.approx(deviation, rel=0.03), name
        assert noise.mean() == pytest.approx(0, abs=0.003), name
    salted = corruptions.corrupt(grey, "impulse_noise", 5)
    assert np.mean(salted == 255) == pytest.approx(0.035, abs=0.004)
    assert np.mean(salted == 0) == pytest.approx(0.035, abs=0.004)


def test_blurs_are_scipys(photographs):
    x = photographs / 255.0
    for i, sigma in ((1, 0.4), (5, 1.0)):
        expected = ndimage.gaussian_filter(x, (0, sigma, sigma, 0), mode="nearest")
        assert distance(corruptions.corrupt(photographs, "gaussian_blur", i), expected * 255) < 0.3
    zoomed = ndimage.zoom(x[0, :19, 1:27], (1.1, 1.1, 1), order=1)[:20, :28]
    assert ops.zoomed(x[:1].astype(np.float32), 1.0)[0] == pytest.approx(x[0], abs=1e-6)
    assert ops.zoomed(x[:1].astype(np.float32), 1.1)[0] == pytest.approx(zoomed, abs=1e-5)
    line = np.zeros((1, 9, 33, 1), np.float32)
    line[:, 4, 16] = 1
    streak = ops.motion(line, 6, 2.0, np.zeros(1))[0, 4, :, 0]
    half = np.exp(-(np.arange(13) ** 2) / 8)
    assert streak[16:3:-1] == pytest.approx(half / half.sum(), abs=1e-4), "dragged along the row, one way"


def test_an_even_image_stays_so_under_what_only_moves_pixels():
    even = np.full((2, 16, 16, 3), 90, np.uint8)
    still = ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "contrast", "elastic_transform", "pixelate")
    for name in (*still, "gaussian_blur"):
        assert np.abs(corruptions.corrupt(even, name, 5).astype(int) - 90).max() <= 1, name


def test_jpeg_and_pixelate_are_pils(photographs):
    file = io.BytesIO()
    Image.fromarray(photographs[0]).save(file, "jpeg", quality=58)
    assert np.array_equal(corruptions.corrupt(photographs, "jpeg_compression", 3)[0], np.asarray(Image.open(file)))
    grey = photographs[..., :1]
    small = Image.fromarray(grey[1, ..., 0]).resize((int(28 * 0.65), int(20 * 0.65)), Image.Resampling.BOX)
    expected = np.asarray(small.resize((28, 20), Image.Resampling.BOX))
    assert np.array_equal(corruptions.corrupt(grey, "pixelate", 5)[1, ..., 0], expected)


def test_brightness_and_saturation_move_one_coordinate_of_hsv(photographs):
    from matplotlib.colors import hsv_to_rgb, rgb_to_hsv

    images = np.concatenate([photographs, np.full((1, 20, 28, 3), 77, np.uint8), np.zeros((1, 20, 28, 3), np.uint8)])
    hsv = rgb_to_hsv(images / 255.0)
    changes = {("brightness", 5): (2, 1, 0.3), ("saturate", 1): (1, 0.3, 0), ("saturate", 5): (1, 2.5, 0.2)}
    for (name, severity), (channel, factor, more) in changes.items():
        moved = hsv.copy()
        moved[..., channel] = np.clip(moved[..., channel] * factor + more, 0, 1)
        found = corruptions.corrupt(images, name, severity)
        assert np.abs(found - hsv_to_rgb(moved) * 255).max() < 0.6, name


def test_contrast_and_elastic_shifts_follow_their_formulas(photographs):
    mean = photographs.mean(axis=(1, 2), keepdims=True)
    expected = (photographs - mean) * 0.15 + mean
    assert np.abs(corruptions.corrupt(photographs, "contrast", 5) - expected).max() < 0.6
    x = photographs.astype(np.float32)
    rows, columns = np.mgrid[:20, :28] + np.random.default_rng(0).normal(0, 9, (2, 20, 28))
    for repeat_edge, mode in ((True, "reflect"), (False, "mirror")):
        at = np.broadcast_to(rows, (12, 20, 28)), np.broadcast_to(columns, (12, 20, 28))
        found = ops.bilinear(x, *at, repeat_edge)
        oracle = ndimage.map_coordinates(x[3, ..., 1], (rows, columns), order=1, mode=mode)
        assert found[3, ..., 1] == pytest.approx(oracle, abs=1e-2)


def test_fog_is_a_cloud_and_keeps_the_brightest_value():
    draws = ops.generators(0, "fog", 1, 0, 3)
    clouds = ops.plasma(draws, 32, 32, 3)
    assert clouds.shape == (3, 32, 32) and clouds.min() == 0 and clouds.max() == 1
    neighbours = np.abs(np.diff(clouds, axis=1)).mean()
    assert neighbours < 0.5 * np.abs(clouds - clouds[:, ::-1, ::-1]).mean(), "near points are alike"
    white = np.full((3, 28, 28, 1), 255, np.uint8)
    assert corruptions.corrupt(white, "fog", 5).max() == 255
    assert not corruptions.corrupt(np.zeros_like(white), "fog", 5).any()


def test_frost_brightens_by_its_share_of_a_texture_that_has_no_seam():
    textures = [weather.frost_texture(number) for number in range(5)]
    for texture in textures:
        assert texture.min() >= 0 and texture.max() <= 1 and 0.3 < texture.mean() < 0.6
        inside = np.abs(np.diff(texture, axis=0)).mean()
        assert np.abs(texture[0] - texture[-1]).mean() < 1.5 * inside, "the lower border continues at the upper"
    assert len({texture.tobytes() for texture in textures}) == 5
    black = np.zeros((40, 32, 32, 3), np.uint8)
    for severity, amount in zip(corruptions.SEVERITIES, (0.2, 0.3, 0.4, 0.4, 0.45), strict=True):
        found = corruptions.corrupt(black, "frost", severity)
        assert found.max() <= np.ceil(255 * amount) and np.all(found[..., 0] <= found[..., 2]), "bluish"
        assert found[..., 2].mean() == pytest.approx(255 * amount * np.mean(textures), rel=0.15)
    white = np.full((9, 32, 32, 1), 255, np.uint8)
    assert corruptions.corrupt(white, "frost", 1).min() == 255, "a bright image stays bright"
    assert corruptions.corrupt(white, "frost", 5).min() < 240, "and is dimmed between the crystals"


def test_spatter_is_water_that_brightens_and_mud_that_covers(photographs):
    before = photographs.astype(int)
    for severity in (1, 2, 3):
        assert np.all(corruptions.corrupt(photographs, "spatter", severity) >= before), "water only adds light"
    for severity in (4, 5):
        found = corruptions.corrupt(photographs, "spatter", severity)
        changed = (found != photographs).any(axis=-1)
        assert 0 < changed.mean() < 0.3
        towards = np.abs(found[changed] - np.array([63, 42, 20])).mean()
        assert towards < 0.3 * np.abs(photographs[changed] - np.array([63.0, 42, 20])).mean()


def test_the_edges_of_drops_are_one_pixel_wide_and_need_a_strong_part():
    square = np.zeros((16, 16))
    square[4:12, 4:12] = 200
    edges = weather._edges(square)
    assert edges[8].sum() == 2 and edges[:, 8].sum() == 2
    assert not weather._edges(square / 8).any(), "100 along the sides: above 50, nowhere above 150"
    assert np.array_equal(weather._edges(square), edges)
    assert weather._equalised(np.array([[3, 3], [5, 9]])).tolist() == [[0, 0], [128, 255]]
