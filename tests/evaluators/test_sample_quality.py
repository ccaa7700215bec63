"""Sample quality: the frozen encoder, what takes the samples' place, and the rules of the protocol."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from fakes import config_of, split
from scipy.ndimage import gaussian_filter
from sklearn.datasets import load_digits

from hybrid_jax import evaluators
from hybrid_jax.config import default_config
from hybrid_jax.data import sources
from hybrid_jax.errors import UserError
from hybrid_jax.evaluators import frozen_encoder, sample_metrics, sample_quality
from hybrid_jax.evaluators.features import raw_pixels
from hybrid_jax.evaluators.sample_metrics import frechet_distance
from hybrid_jax.models.tokens import Palette, TokenSpec

DIGITS, LABELS = load_digits(return_X_y=True)
IMAGES = np.round(DIGITS * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
ORDER = np.random.default_rng(0).permutation(len(IMAGES))
IMAGES, LABELS = IMAGES[ORDER], LABELS[ORDER].astype(np.int32)
EXACT = TokenSpec("intensity", 256, 2, 8, 8, 1)
GREYS = Palette.from_colours(np.array([[-1.0], [0.0], [1.0]], np.float32))
PAINTED = TokenSpec("palette", 3, 2, 8, 8, 1)
LIKENESS = ["frechet_distance", "precision", "recall", "density", "coverage"]


def case(draw=None, spec=EXACT, palette=None, labels=True, **settings):
    """A model that draws what `draw(seed, num)` gives, by default images that no split holds."""
    cut = lambda rows: split(IMAGES[rows], LABELS[rows] if labels else None)
    train, validation, test = cut(slice(0, 600)), cut(slice(600, 900)), cut(slice(900, 1200))
    data = SimpleNamespace(train=train, validation=validation, test=test, fingerprint="digits")
    calls = []

    def sample(rng, num, temperature=1.0):
        calls.append((rng, num, temperature))
        return sample_quality.as_tokens_show(draw(rng, num) if draw else IMAGES[1200 : 1200 + num], spec, palette)

    model = SimpleNamespace(spec=spec, palette=palette, has_likelihood=True, sample=sample, calls=calls)
    config = config_of("sample_quality", sample_quality__num_images=200)
    config.eval.sample_quality.update(settings)
    return model, data, config


def by_name(rows):
    return {(row["metric"], row.get("variant", row["split"])): row for row in rows}


# The encoder


@pytest.mark.parametrize("shape", [(8, 8, 1), (9, 30, 3), (28, 28, 1), (64, 64, 3), (1, 1, 1)])
def test_the_random_network_takes_any_image(shape):
    images = np.random.default_rng(0).integers(0, 256, (3, *shape), dtype=np.uint8)
    features = frozen_encoder.random_conv(images)
    assert features.shape == (3, 128) and features.dtype == np.float32 and np.isfinite(features).all()
    assert features.std() > 0.01


def test_the_random_network_is_the_same_for_ever_and_in_any_batches(monkeypatch):
    ramp = np.arange(192, dtype=np.uint8).reshape(1, 8, 8, 3)
    np.testing.assert_allclose(
        frozen_encoder.random_conv(ramp)[0, :3], [-0.06026664, 0.10263883, -0.46197465], rtol=1e-4
    )
    whole = frozen_encoder.random_conv(IMAGES[:10])
    monkeypatch.setattr(frozen_encoder, "_PIXELS_AT_ONCE", 4 * 64)
    np.testing.assert_allclose(frozen_encoder.random_conv(IMAGES[:10]), whole, rtol=1e-4, atol=1e-5)


def noisy(images, strength):
    damage = np.random.default_rng(0).normal(0, strength, images.shape)
    return np.clip(np.round(images + damage), 0, 255).astype(np.uint8)


def blurred(images, strength):
    return gaussian_filter(images, (0, strength, strength, 0))


def shuffled(images, count):
    """Moves `count` of the sixteen blocks of each image, the same in all."""
    n, height, width, _ = images.shape
    blocks = images.reshape(n, 4, height // 4, 4, width // 4, 1).swapaxes(2, 3).reshape(n, 16, -1)
    which = np.arange(0, 16 * count, 5)[:count] % 16
    blocks[:, which] = blocks[:, np.roll(which, 1)]
    return blocks.reshape(n, 4, 4, height // 4, width // 4, 1).swapaxes(2, 3).reshape(images.shape)


def assert_damage_is_seen(reference, images, noise, blur):
    known = frozen_encoder.random_conv(reference)
    distance = lambda images: frechet_distance(known, frozen_encoder.random_conv(images))
    floor, found = distance(images), {}
    for damage, strengths in ((noisy, noise), (blurred, blur), (shuffled, (2, 4, 8, 16))):
        found[damage.__name__] = [distance(damage(images, strength)) for strength in strengths]
        assert floor < found[damage.__name__][0] and np.all(np.diff(found[damage.__name__]) > 0), found
    return floor, found


def test_the_frechet_distance_grows_with_every_kind_of_damage():
    assert_damage_is_seen(IMAGES[:600], IMAGES[600:1200], (30, 60, 120), (0.5, 1, 2))


@pytest.mark.slow
def test_on_fashion_mnist_too():
    data = sources.load(default_config()).in_memory()
    assert_damage_is_seen(data.train.images[:1000], data.test.images[:1000], (8, 16, 32, 64), (0.5, 1, 2, 4))


def test_another_runs_features_are_named_by_step_and_checksum(tiny_config, tmp_path, monkeypatch):
    made = []

    def load(workdir, mesh):
        made.append(workdir)
        params = {"a": np.ones(3), "b": np.zeros(2)}
        return SimpleNamespace(step=7, params=params, embed=lambda images: raw_pixels(images)[:, :5])

    monkeypatch.setattr(frozen_encoder.loading, "load", load)
    (tmp_path / "checkpoints").mkdir()
    encoder = frozen_encoder.open_encoder(str(tmp_path))
    assert encoder.name.startswith(f"{tmp_path}@7 sha256:") and len(encoder.name.split(":")[-1]) == 12
    model, data, config = case(encoder=str(tmp_path))
    model.params = {"a": np.ones(3), "b": np.ones(2)}
    rows = evaluators.evaluate(model, data, config)
    assert {row["encoder"] for row in rows} == {encoder.name}
    # Nothing is judged by its own features.
    model.params["b"] *= 0
    lines = []
    assert evaluators.evaluate(model, data, config, log=lines.append) == [] and "the evaluated checkpoint" in lines[0]


def test_an_encoder_that_is_none_is_refused_before_training():
    _, data, config = case(encoder="inception")
    with pytest.raises(UserError, match=r"config.eval.sample_quality.encoder='inception': must be random-conv-v1 or"):
        evaluators.check(data, config)


# What takes the samples' place


@pytest.mark.parametrize("spec", [EXACT, TokenSpec("intensity", 256, 2, 8, 8, 3)])
def test_histogram_samples_keep_each_positions_values_and_nothing_else(spec):
    images = np.random.default_rng(0).integers(0, 2, (4000, 1, 1, spec.channels)) * np.arange(64).reshape(1, 8, 8, 1)
    drawn = sample_quality.histogram_samples(images.astype(np.uint8), 3000, spec, None, 0)
    assert drawn.shape == (3000, 8, 8, spec.channels) and drawn.dtype == np.uint8
    for i, j in ((0, 0), (3, 4), (7, 7)):
        assert set(np.unique(drawn[:, i, j])) == {0, 8 * i + j}
    assert np.mean(drawn[:, 7, 7] > 0) == pytest.approx(0.5, abs=0.03)
    # In the images all pixels of a channel are on at once.
    assert abs(np.corrcoef(drawn[:, 7, 7, 0], drawn[:, 3, 4, 0])[0, 1]) < 0.06
    assert np.array_equal(drawn, sample_quality.histogram_samples(images.astype(np.uint8), 3000, spec, None, 0))


def test_a_palettes_token_is_a_whole_pixel_and_tokens_show_its_colours():
    images = np.array([[10, 200, 30], [250, 0, 90]], np.uint8)[np.random.default_rng(0).integers(0, 2, (9, 4, 4))]
    palette = Palette.from_colours(np.array([[10, 200, 30], [250, 0, 90]]) / 127.5 - 1)
    drawn = sample_quality.histogram_samples(images, 50, TokenSpec("palette", 2, 2, 4, 4, 3), palette, 0)
    assert {tuple(pixel) for pixel in drawn.reshape(-1, 3)} == {(10, 200, 30), (250, 0, 90)}
    assert set(np.unique(sample_quality.as_tokens_show(IMAGES[:9], PAINTED, GREYS))) == {0, 128, 255}
    assert sample_quality.as_tokens_show(IMAGES[:9], EXACT, None) is not None


def test_a_classifier_cannot_copy_the_labeller_from_noise():
    labeller = sample_metrics.fit_labeller(IMAGES[:800], LABELS[:800])
    embed, noise = frozen_encoder.random_conv, np.random.default_rng(0).integers(0, 256, (300, 8, 8, 1), dtype=np.uint8)
    real = {"test": (embed(IMAGES[1200:]), LABELS[1200:])}

    def score(images):
        said = labeller.predict(raw_pixels(images))
        return sample_metrics.score(embed(images), said, real)["test"].mean()

    assert score(IMAGES[800:1100]) > 0.85
    assert score(noise) < 0.35
    assert score(IMAGES[800:1100][LABELS[800:1100] < 5]) < 0.6


# The protocol


def test_rows_stand_between_real_images_and_histogram_samples(tmp_path):
    model, data, config = case()
    rows = evaluators.evaluate(model, data, config, tmp_path)
    found = by_name(rows)
    assert [row["metric"] for row in rows[:5]] == LIKENESS and len(rows) == 9
    for row in rows:
        assert row["protocol"] == "sample-quality-v1" and row["encoder"] == "random-conv-v1" and row["seed"] == 0
        json.dumps(row)
    for name in ("frechet_distance", "precision", "density", "coverage"):
        floor, value = found[name, "train"]["floor"], found[name, "train"]["value"]
        assert list(floor) == ["real test images", "histogram samples"]
        span = floor["real test images"] - floor["histogram samples"]
        assert (value - floor["histogram samples"]) / span > 0.8, "the samples are real images"
    assert found["frechet_distance", "train"]["floor"]["real test images"] > 0
    score = found["classification_accuracy_score", "test"]
    assert score["value"] > max(0.7, score["floor"]["histogram samples"]) and score["n_real"] == 300
    assert score["floor"]["real training images"] > 0.7 and score["n"] == 200
    assert found["classification_accuracy_score", "validation"]["n"] == 300
    assert found["near_copy_share", "in pixels"]["exact_copies"] == 0
    assert model.calls == [(0, 200, 1.0)]


def test_equal_seeds_give_equal_rows_and_floors_are_kept(tmp_path, monkeypatch):
    first = evaluators.evaluate(*case(), tmp_path)
    monkeypatch.setattr(evaluators.sample_quality, "histogram_samples", None)
    assert evaluators.evaluate(*case(), tmp_path) == first


def test_copies_of_training_images_are_counted_also_in_a_palettes_colours():
    copying = lambda seed, num: IMAGES[:num]
    for spec, palette in ((EXACT, None), (PAINTED, GREYS)):
        found = by_name(evaluators.evaluate(*case(copying, spec, palette)))
        for variant in ("in pixels", "in features"):
            row = found["near_copy_share", variant]
            assert row["value"] == 1 and row["exact_copies"] == 200 and row["floor"]["real test images"] < 0.1


def test_a_lossy_model_stands_beside_what_its_tokens_can_show():
    found = by_name(evaluators.evaluate(*case(spec=PAINTED, palette=GREYS)))
    floor = found["frechet_distance", "train"]["floor"]
    assert floor["test images in the model's tokens"] > 1.2 * floor["real test images"]
    assert "test images in the model's tokens" not in found["near_copy_share", "in pixels"]["floor"]


def test_what_the_data_or_the_checkpoint_lacks_is_said_in_one_line():
    lines = []
    rows = evaluators.evaluate(*case(labels=False), log=lines.append)
    assert len(rows) == 7 and "classification_accuracy_score" not in {row["metric"] for row in rows}
    model, data, config = case()
    model.has_likelihood = False
    assert evaluators.evaluate(model, data, config, log=lines.append) == []
    model, data, config = case()
    data.test = None
    assert evaluators.evaluate(model, data, config, log=lines.append) == []
    assert evaluators.evaluate(*case(num_images=5), log=lines.append) == []
    assert lines == [
        "sample_quality: partly skipped, the data has no labels for a classification accuracy score",
        "sample_quality: skipped, the checkpoint has no likelihood (objective.generative_weight = 0), so no samples",
        "sample_quality: skipped, the data has no test split",
        "sample_quality: skipped, 5 images can be compared, at least 6 are needed",
    ]


def test_samples_that_are_all_of_one_class_are_scored_too():
    alike = lambda seed, num: np.repeat(IMAGES[1200:1201], num, axis=0)
    row = by_name(evaluators.evaluate(*case(alike)))["classification_accuracy_score", "test"]
    assert row["labelled_classes"] == 1 and row["value"] < 0.2
