"""The report's samples: what is shown, and what is said of it."""

import numpy as np

from hybrid_jax.evaluators.features import FeatureStore
from hybrid_jax.models.tokens import Palette, TokenSpec
from hybrid_jax.report import samples
from tests.report.fakes import images_in, make_data, make_model


def store(copies=0, test=True, **model):
    """Data, and a model whose first `copies` samples are training images."""
    data = make_data(labels=False, test=test, validation=False)
    return FeatureStore(make_model(samples=data.train.images[:copies], **model), data)


def test_samples_lie_beside_real_images_and_their_neighbours_and_completions_follow():
    features = store(copies=1)
    (first, shown), (second, completed) = samples.sections(features, 5, 7)
    assert (first, second) == ("Samples", "Completions")
    assert features.model.calls == [("sample", 7, 5, 1.0), ("complete", 7, 10, 4)]
    assert "the first 5 images that the model drew" in shown and "nearest of 60 training images" in shown
    assert "Of 5 samples 1 equals its nearest training image in every pixel." in shown and "levels" not in shown
    assert "of the test split, which the model has never seen; its upper 4 of 8 rows" in completed
    ours, real, *groups = images_in(shown)
    assert ours.shape == real.shape and len(groups) == 5
    # 84 pixels are 8 by 11; the first sample is the first training image, and so is its nearest.
    tile = features.data.train.images[0].repeat(11, axis=0).repeat(11, axis=1)
    assert all(np.array_equal(image[:88, :88], np.broadcast_to(tile, (88, 88, 3))) for image in (ours, real, groups[0]))
    assert np.array_equal(groups[0][:88, :88], groups[0][:88, 92:180])
    # An image, its kept rows above blue ones, and two completions, black below.
    sheet = images_in(completed)[0]
    tiles = [sheet[:88, 92 * i : 92 * i + 88] for i in range(4)]
    assert all(np.array_equal(tile[:44], tiles[0][:44]) for tile in tiles)
    assert (tiles[1][44:] == samples.HIDDEN).all() and not tiles[2][44:].any() and not tiles[3][44:].any()


def test_there_is_nothing_where_nothing_is_asked_for_or_can_be_drawn():
    assert samples.sections(store(), 0, 0) == []
    assert samples.sections(store(generative=False), 16, 0) == []
    # One row of patches: no part of it can be kept.
    whole = samples.sections(store(spec=TokenSpec("intensity", 256, 8, 8, 8, 1)), 3, 0)
    assert [title for title, _ in whole] == ["Samples"]


def test_images_of_the_training_split_are_not_called_unseen():
    _, (_, completed) = samples.sections(store(test=False), 2, 0)
    assert "an image of the train split; its upper" in completed


def test_lossy_tokens_are_said_to_be_lossy():
    palette = Palette.from_colours(np.random.default_rng(0).uniform(-1, 1, (6, 1)).astype(np.float32))
    (_, shown), _ = samples.sections(store(spec=TokenSpec("palette", 6, 2, 8, 8, 1), palette=palette), 2, 0)
    assert "palette images: every pixel has one of 6 colours (PSNR of test images: " in shown
    (_, shown), _ = samples.sections(store(spec=TokenSpec("intensity", 16, 2, 8, 8, 1)), 2, 0)
    assert "Samples have 16 levels instead of 256." in shown


def test_samples_that_the_evaluator_drew_are_not_drawn_again():
    features = store()
    many = features.samples(12, 0)
    samples.sections(features, 4, 0)
    assert [call[0] for call in features.model.calls] == ["sample", "complete"]
    assert np.array_equal(features.samples(4, 0), many[:4])
