"""Views: what the encoder gets, and the steps of the augmentation in words."""

import re

import pytest

from hybrid_jax.config import default_config
from hybrid_jax.report import views
from hybrid_jax.utils.image_grid import HIDDEN
from tests.report.fakes import make_data


def make_recipe(**changes):
    config = default_config()
    config.augment.update(changes)
    return config


def steps_of(config):
    text = views.recipe_table(config)
    return [row[0] for row in re.findall('<tr><td data-head="step">([^<]*)()', text)], text


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_sample_views_mark_what_the_encoder_gets(share):
    sample = views.sample_views(make_recipe(view_keep=share), make_data())
    assert sample.images.shape == (8, 8, 8, 1) and sample.views.shape == (8, 2, 8, 8, 1)
    assert (sample.views[:, 0] != sample.views[:, 1]).any()
    shown, sheet = sample.as_encoder_gets(), views.sheet(sample)
    if share == 1:
        assert sample.kept is None and (shown == sample.views).all() and "Groups of three" in sheet
        return
    assert sample.kept.shape == (8, 2, 4) and (sample.kept.sum(axis=2) == 2).all()
    assert (sample.kept[:, 0] != sample.kept[:, 1]).any()
    for patch, (row, column) in enumerate([(0, 0), (0, 4), (4, 0), (4, 4)]):
        hidden = (shown[:, :, row : row + 4, column : column + 4] == HIDDEN).all(axis=(2, 3, 4))
        assert (hidden == ~sample.kept[:, :, patch]).all()
    assert "Groups of five" in sheet and "2 of 4 patches, drawn anew at each step." in sheet


def test_the_recipe_is_told_step_by_step():
    config = make_recipe(view_keep=0.75, blur=0.0, flip=0.25)
    steps, text = steps_of(config)
    assert steps == ["crop, resized", "horizontal flip", "brightness", "contrast", "patches kept"]
    assert "30% to 100% of the area" in text and "factor 0.6 to 1.4" in text and "75%, drawn at random" in text
    assert "augment.flip = 0.25 instead of the recipe&#x27;s 0.5" in text
    config.augment.recipe, config.data.channels = "simclr", 3
    coloured, text = steps_of(config)
    assert coloured == [
        *steps[:2], "jitter: the steps below up to hue", *steps[2:4], "saturation", "hue", "colour removed", steps[4],
    ]  # fmt: skip
    assert "80% of the time, in one random order for the whole batch" in text and "first view" not in text
    assert "up to 0.2 of the colour circle" in text
    assert "no step is active" in views.recipe_table(make_recipe(recipe="none", view_keep=1.0))


def test_the_recipe_is_told_for_each_view_where_they_differ():
    config = make_recipe(recipe="moco_v3", view_keep=1.0)
    steps, text = steps_of(config)
    # On grey images the jitter has two steps, and no colour is removed.
    assert steps == [
        "crop, resized", "horizontal flip", "jitter: the steps below up to contrast", "brightness", "contrast", "blur",
        "values from 128 up inverted (solarize)",
    ]  # fmt: skip
    assert text.count("first view: ") == 2
    assert "first view: 100% of the time, sigma 0.1 to 2 pixels; second view: 10% of the time, sigma" in text
    assert "first view: never; second view: 20% of the time" in text
    config.augment.update({"blur": 0.5, "solarize": 0.0})
    _, text = steps_of(config)
    assert "first view" not in text and "solarize" not in text
    assert "augment.blur = 0.5 instead of the recipe&#x27;s 1 and 0.1" in text


def test_sample_views_follow_the_recipe_of_each_view():
    plain = make_recipe(recipe="moco_v3", view_keep=1.0, crop_min_area=1.0, flip=0.0, brightness=0.0, contrast=0.0)
    sample = views.sample_views(plain, make_data(), count=64)
    as_it_was = (sample.views == sample.images[:, None]).all(axis=(2, 3, 4)).mean(axis=0)
    # A tenth of a pixel of blur vanishes in rounding.
    assert as_it_was[0] < 0.4 < 0.6 < as_it_was[1] < 1, "the first view is always blurred, the second seldom"
