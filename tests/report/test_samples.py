"""The report's samples and the table of their quality: what is shown, and what is said of it."""

import base64
import io
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from hybrid_jax.config import default_config
from hybrid_jax.evaluators.features import FeatureStore
from hybrid_jax.models.tokens import Palette, TokenSpec
from hybrid_jax.report import quality, results
from hybrid_jax.report import results as report_results
from hybrid_jax.report import samples as report_samples

RNG = np.random.default_rng(0)
GREY = TokenSpec("intensity", 256, 2, 8, 8, 1)


def store(spec=GREY, palette=None, test=True, likelihood=True, copies=0):
    """A model whose samples are noise but for the first `copies`, and whose completions are black."""
    shape = spec.image_shape
    split = lambda n: SimpleNamespace(images=RNG.integers(0, 256, (n, *shape), dtype=np.uint8), labels=None)
    train = split(30)
    calls = []

    def sample(rng, num, temperature=1.0):
        calls.append(("sample", rng, num, temperature))
        return np.concatenate([train.images[:copies], split(num - copies).images])

    def complete(images, num_rows, rng):
        calls.append(("complete", rng, len(images), num_rows))
        return np.concatenate([images[:, :num_rows], np.zeros_like(images[:, num_rows:])], axis=1)

    flat = lambda images: images.reshape(len(images), -1).astype(np.float32)
    model = SimpleNamespace(
        spec=spec, palette=palette, config=default_config(), has_likelihood=likelihood, embed=flat, sample=sample,
        complete=complete, calls=calls,
    )  # fmt: skip
    return FeatureStore(model, SimpleNamespace(train=train, validation=None, test=split(9) if test else None))


def figures(html):
    parts = html.split("data:image/png;base64,")[1:]
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(part.split('"')[0])))) for part in parts]


def test_samples_their_neighbours_and_completions_are_drawn_from_the_seed():
    features = store(copies=1)
    (samples, shown), (completions, completed) = report_samples.sections(features, 5, 7)
    assert (samples, completions) == ("Samples", "Completions")
    assert features.model.calls == [("sample", 7, 5, 1.0), ("complete", 7, 10, 4)]
    assert "5 images that the model drew from nothing" in shown and "nearest of 30 training images" in shown
    assert "1 sample equals its nearest training image in every pixel." in shown and "lossy" not in shown
    assert "of the test split, which the model has never seen; its upper 4 of 8 rows" in completed
    assert len(figures(shown)) == 2
    # An image, its kept rows above blue ones, and two completions, black below; 84 pixels are 8 by 11.
    [sheet] = figures(completed)
    tiles = [sheet[:88, 92 * i : 92 * i + 88] for i in range(4)]
    assert all(np.array_equal(tile[:44], tiles[0][:44]) for tile in tiles)
    assert (tiles[1][44:] == report_samples.HIDDEN).all() and not tiles[2][44:].any() and not tiles[3][44:].any()


def test_there_is_nothing_where_nothing_is_asked_for_or_can_be_drawn():
    assert report_samples.sections(store(), 0, 0) == []
    assert report_samples.sections(store(likelihood=False), 16, 0) == []
    # One row of patches: no part of it can be kept.
    whole = report_samples.sections(store(TokenSpec("intensity", 256, 8, 8, 8, 1)), 3, 0)
    assert [title for title, _ in whole] == ["Samples"]


def test_images_of_the_training_split_are_not_called_unseen():
    _, (_, completed) = report_samples.sections(store(test=False), 2, 0)
    assert "an image of the train split; its upper" in completed


def test_lossy_tokens_are_said_to_be_lossy():
    palette = Palette.from_colours(RNG.uniform(-1, 1, (6, 1)).astype(np.float32))
    (_, shown), _ = report_samples.sections(store(TokenSpec("palette", 6, 2, 8, 8, 1), palette), 2, 0)
    assert "palette images: every pixel is one of 6 colours, which is lossy (PSNR of test images in them: " in shown
    (_, shown), _ = report_samples.sections(store(TokenSpec("intensity", 16, 2, 8, 8, 1)), 2, 0)
    assert "Their values have 16 levels instead of 256, which is lossy." in shown


def test_samples_that_the_evaluator_drew_are_not_drawn_again():
    features = store()
    many = features.samples(12, 0)
    report_samples.sections(features, 4, 0)
    assert [call[0] for call in features.model.calls] == ["sample", "complete"]
    assert np.array_equal(features.samples(4, 0), many[:4])


def row(metric, value, real, blind, **more):
    floor = {"real test images": real, "histogram samples": blind}
    common = {"protocol": "sample-quality-v1", "encoder": "<e>", "n": 1000, "split": "train", "temperature": 1.0}
    return {"metric": metric, "value": value, "floor": floor, **common, **more}


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        (row("precision", 0.6, 0.8, 0.0), "75% of the way from histogram samples to real images"),
        (row("density", 1.3, 1.1, 0.0), "100% of the way from histogram samples to real images"),
        (row("coverage", 0.0, 0.9, 0.0), "no better than histogram samples"),
        (row("recall", 0.8, 0.8, 0.9), "histogram samples do as well as real images: it tells nothing here"),
        (row("frechet_distance", 0.9, 0.5, 10.0), "1.8 times that of real images; histogram samples: 20 times"),
        (row("frechet_distance", 11.0, 0.5, 10.0), "no better than histogram samples"),
        (
            row("near_copy_share", 0.0, 0.01, 0.0, variant="in pixels", exact_copies=0),
            "no more than among real images (no exact copy)",
        ),
        (
            row("near_copy_share", 0.3, 0.01, 0.0, variant="in pixels", exact_copies=7, standard_error=0.01),
            "more than among real images: look for copies (exact copies: 7)",
        ),
    ],
)
def test_verdicts_lie_between_real_images_and_histogram_samples(result, expected):
    assert quality.verdict(result) == expected
    text = quality.table([result])
    assert expected in text and "&lt;e&gt;" in text and "<e>" not in text
    assert ('class="bad"' in text) == expected.startswith(("no better", "more"))


def test_a_lossy_model_has_a_column_for_what_its_tokens_can_show():
    result = row("frechet_distance", 0.9, 0.5, 10.0)
    result["floor"]["test images in the model's tokens"] = 0.7123
    text = quality.table([result, row("precision", 0.6, 0.8, 0.0)])
    assert "0.712" in text and text.count("<th>") == 6


def test_the_summary_tells_one_measure_of_the_samples():
    rows = [row("frechet_distance", 0.9, 0.5, 10.0), row("precision", 0.6, 0.8, 0.0)]
    split = SimpleNamespace(images=[0], labels=[0])
    data = SimpleNamespace(name="d", train=split, validation=None, test=split)
    text = report_results.summary(SimpleNamespace(step=1, has_likelihood=True), data, rows)
    assert "samples' Frechet distance 0.900 (1.8 times that of real images" in text and "recision" not in text
    assert quality.table([]) == "" and results.metric_of(rows[0]).samples
