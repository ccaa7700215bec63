"""The likelihood's units, its histogram floor against brute force, and the rules of its protocol."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.stats
from fakes import config_of, split

from hybrid_jax import evaluators
from hybrid_jax.evaluators import likelihood
from hybrid_jax.models.tokens import Palette, TokenSpec, encode

RNG = np.random.default_rng(0)
TRAIN = RNG.integers(0, 200, (7, 4, 6, 3)).astype(np.uint8)
TEST = RNG.integers(0, 256, (5, 4, 6, 3)).astype(np.uint8)
PALETTE = Palette.from_colours(RNG.uniform(-1, 1, (6, 3)))
INTENSITY = TokenSpec("intensity", 16, 2, 4, 6, 3)
COLOURS = TokenSpec("palette", 6, 2, 4, 6, 3)


def brute_force(train, test, spec, palette):
    """Nats per image, one token at a time."""
    fitted = np.asarray(encode(train, spec, palette)).reshape(len(train), -1)
    scored = np.asarray(encode(test, spec, palette)).reshape(len(test), -1)
    nats = np.zeros(len(test))
    for i, image in enumerate(scored):
        for position, token in enumerate(image):
            count = sum(1 for other in fitted[:, position] if other == token)
            nats[i] -= math.log((count + 1) / (len(train) + spec.vocab_size))
    return nats


@pytest.mark.parametrize(("spec", "palette"), [(INTENSITY, None), (COLOURS, PALETTE)])
@pytest.mark.parametrize("batch_size", [2, 100])
def test_the_histogram_equals_brute_force(spec, palette, batch_size):
    log_probs = likelihood.fit_histograms(TRAIN, spec, palette, batch_size)
    assert log_probs.shape == (spec.num_patches * spec.tokens_per_patch, spec.vocab_size)
    np.testing.assert_allclose(np.exp(log_probs).sum(axis=1), 1, rtol=1e-5)
    found = likelihood.histogram_log_prob(log_probs, TEST, spec, palette, batch_size)
    np.testing.assert_allclose(found, -brute_force(TRAIN, TEST, spec, palette), rtol=1e-5)


def case(spec, palette=None, nats=lambda images: images.mean(axis=(1, 2, 3))):
    data = SimpleNamespace(train=split(TRAIN), validation=None, test=split(TEST), fingerprint="tiny")
    calls = []

    def log_prob(images):
        calls.append(len(images))
        return -nats(images.astype(np.float32))

    model = SimpleNamespace(spec=spec, palette=palette, has_likelihood=True, log_prob=log_prob, calls=calls)
    return model, data, config_of("likelihood", batch_size=3)


def test_bits_per_dim_with_standard_error_floor_and_training_value():
    model, data, config = case(TokenSpec("intensity", 256, 2, 4, 6, 3))
    [row] = evaluators.evaluate(model, data, config)
    bits = TEST.mean(axis=(1, 2, 3)) / (4 * 6 * 3 * math.log(2))
    assert row["metric"] == "bits_per_dim" and row["protocol"] == "likelihood-v1" and row["split"] == "test"
    assert row["value"] == pytest.approx(bits.mean(), rel=1e-5)
    assert row["standard_error"] == pytest.approx(scipy.stats.sem(bits), rel=1e-4)
    first = TRAIN[:5].mean() / (4 * 6 * 3 * math.log(2))
    assert row["train_value"] == pytest.approx(first, rel=1e-5) and row["train_n"] == 5
    assert row["levels"] == 256 and row["comparable_with_literature"] and row["n"] == 5
    floor = brute_force(TRAIN, TEST, model.spec, None).mean() / (4 * 6 * 3 * math.log(2))
    assert row["floor"] == {"per-position histogram": pytest.approx(floor, rel=1e-5)}
    json.dumps(row)


def test_a_uniform_model_costs_eight_bits():
    spec = TokenSpec("intensity", 256, 2, 4, 6, 3)
    model, data, config = case(spec, nats=lambda images: np.full(len(images), 72 * math.log(256), np.float32))
    assert evaluators.evaluate(model, data, config)[0]["value"] == pytest.approx(8, rel=1e-6)


def test_fewer_levels_are_said_not_to_compare():
    [row] = evaluators.evaluate(*case(INTENSITY))
    assert row["levels"] == 16 and not row["comparable_with_literature"] and "16 levels" in row["note"]


def test_a_palette_gives_nats_per_token_and_says_it_is_lossy():
    [row] = evaluators.evaluate(*case(COLOURS, PALETTE))
    assert row["metric"] == "nats_per_token" and "lossy" in row["note"]
    assert row["value"] == pytest.approx(TEST.mean(axis=(1, 2, 3)).mean() / 24, rel=1e-5)
    floor = brute_force(TRAIN, TEST, COLOURS, PALETTE).mean() / 24
    assert row["floor"]["per-position histogram"] == pytest.approx(floor, rel=1e-5)


def test_only_the_first_images_are_scored_if_asked():
    model, data, config = case(INTENSITY)
    config.eval.likelihood.num_images = 2
    [row] = evaluators.evaluate(model, data, config)
    assert row["n"] == row["train_n"] == 2 and model.calls == [2, 2]
    assert row["value"] == pytest.approx(TEST[:2].mean() / (72 * math.log(2)), rel=1e-5)
    floor = brute_force(TRAIN, TEST[:2], INTENSITY, None).mean() / (72 * math.log(2))
    assert row["floor"]["per-position histogram"] == pytest.approx(floor, rel=1e-5)


def test_the_validation_split_has_a_result_of_its_own_to_choose_by():
    model, data, config = case(INTENSITY)
    data.validation = split(TRAIN[-3:])
    test, validation = evaluators.evaluate(model, data, config)
    [alone] = evaluators.evaluate(*case(INTENSITY))
    assert test == alone
    assert validation["split"] == "validation" and validation["n"] == 3 and validation["metric"] == "bits_per_dim"
    assert validation["value"] == pytest.approx(TRAIN[-3:].mean() / (72 * math.log(2)), rel=1e-5)


def test_the_floor_is_kept_for_its_tokens_only(tmp_path, monkeypatch):
    fits = []
    fit = likelihood.fit_histograms
    monkeypatch.setattr(likelihood, "fit_histograms", lambda *args: fits.append(1) or fit(*args))
    for _ in range(2):
        evaluators.evaluate(*case(COLOURS, PALETTE), tmp_path)
    assert len(fits) == 1
    evaluators.evaluate(*case(COLOURS, Palette.from_colours(PALETTE.colours * 0.5)), tmp_path)
    evaluators.evaluate(*case(INTENSITY), tmp_path)
    assert len(fits) == 3


def test_one_image_has_no_standard_error():
    model, data, config = case(INTENSITY)
    data.test.images = TEST[:1]
    assert evaluators.evaluate(model, data, config)[0]["standard_error"] is None


def test_what_the_checkpoint_or_data_lacks_is_said_in_one_line():
    model, data, config = case(INTENSITY)
    lines = []
    data.test = None
    evaluators.evaluate(model, data, config, log=lines.append)
    model.has_likelihood = False
    evaluators.evaluate(model, data, config, log=lines.append)
    assert lines == [
        "likelihood: skipped, the data has no test split",
        "likelihood: skipped, the checkpoint has no likelihood (objective.generative_weight = 0)",
    ]
