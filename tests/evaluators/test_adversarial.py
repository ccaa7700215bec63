"""Attacks: they stay where they must, do what they say, and pass the quantiser."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from fakes import digits, untrained

from hybrid_jax import evaluators
from hybrid_jax.evaluators import adversarial, linear_probe
from hybrid_jax.models import tokens

IMAGES = digits().test.images[:30]
TARGETS = digits().test.labels[:30]


@pytest.fixture(scope="module")
def weights():
    """A linear classifier of pixels."""
    rng = np.random.default_rng(0)
    return rng.normal(size=(64, 10)).astype(np.float32), rng.normal(size=10).astype(np.float32)


@pytest.fixture(scope="module")
def model():
    """An untrained encoder of 8x8 images."""
    config = tiny.get_config()
    config.eval.batch_size = 32
    config.eval.linear_probe.c_values = (0.1,)
    return untrained(config)


@pytest.mark.parametrize("epsilon", [0, 1, 8, 200])
def test_attacks_stay_in_the_ball_and_in_range_and_are_never_weaker_than_nothing(weights, epsilon):
    found = adversarial.attacked(adversarial.pixel_logits, weights, IMAGES, TARGETS, epsilon, 5)
    margin_of = lambda x: np.asarray(adversarial.margins(adversarial.pixel_logits(weights, x * 1.0), TARGETS))
    for x in found.values():
        assert x.dtype == np.uint8 and x.shape == IMAGES.shape
        assert np.abs(x.astype(int) - IMAGES).max() <= epsilon
    clean, pgd, fgsm = (margin_of(x) for x in (IMAGES, found["pgd"], found["fgsm"]))
    assert np.all(pgd >= np.maximum(fgsm, clean) - 1e-4)
    if epsilon == 0:
        assert all(np.array_equal(x, IMAGES) for x in found.values())
        return
    assert pgd.mean() > max(clean.mean(), margin_of(found["noise"]).mean()) + 1e-3
    moved = np.abs(found["noise"].astype(int) - IMAGES)
    assert np.all((moved == epsilon) | (found["noise"] == 0) | (found["noise"] == 255))


def test_one_step_on_two_linear_classes_is_the_best_there_is(weights):
    matrix, bias = weights[0][:, :2], weights[1][:2]
    targets = TARGETS % 2
    middle = np.clip(IMAGES, 10, 245)
    found = adversarial.attacked(adversarial.pixel_logits, (matrix, bias), middle, targets, 3, 4)
    away = np.sign(matrix[:, 1] - matrix[:, 0]) * np.where(targets == 0, 1, -1)[:, None]
    expected = middle + 3 * away.reshape(middle.shape)
    assert np.array_equal(found["fgsm"], expected) and np.array_equal(found["pgd"], expected)


def test_images_of_more_pixels_than_the_probe_are_averaged_as_it_does():
    images = np.random.default_rng(0).integers(0, 256, (2, 70, 40, 3)).astype(np.uint8)
    x = adversarial.raw_pixels(images)
    matrix = np.random.default_rng(1).normal(size=(x.shape[1], 3)).astype(np.float32)
    found = adversarial.pixel_logits((matrix, np.zeros(3, np.float32)), jnp.asarray(images, jnp.float32))
    np.testing.assert_allclose(found, x @ matrix, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("levels", [256, 20])
def test_soft_tokens_are_the_tokens_with_the_pixels_gradient(levels):
    spec = tokens.TokenSpec("intensity", levels, 2, 8, 8, 1)
    x = jnp.asarray(IMAGES, jnp.float32) + 0.3
    assert np.array_equal(adversarial.soft_tokens(x, spec), tokens.encode(jnp.asarray(IMAGES), spec))
    read = lambda x: jnp.sum(tokens.dequantise(adversarial.soft_tokens(x, spec), spec))
    np.testing.assert_allclose(jax.grad(read)(x), 1 / 127.5, rtol=1e-5)


def test_the_attack_sees_the_encoder_that_is_attacked(model):
    rng = np.random.default_rng(0)
    matrix, bias = rng.normal(size=(16, 10)).astype(np.float32), np.zeros(10, np.float32)
    logits = adversarial.encoder_logits(model.config, "encoder")
    weights = (model.params, matrix, bias)
    forward, slope_of = jax.jit(logits), jax.jit(jax.grad(lambda x: logits(weights, x)[0, 3]))
    x = np.clip(IMAGES, 2, 253)
    found = forward(weights, x.astype(np.float32))
    np.testing.assert_allclose(found, model.embed(x, "encoder") @ matrix, atol=1e-4)
    # A whole grey level up and down is the finite difference of the gradient through the quantiser.
    slope = slope_of(x.astype(np.float32))
    change = np.zeros_like(x, np.float32)
    change[0].flat[np.argmax(np.abs(slope[0]))] = 1
    up, down = (forward(weights, x + sign * change)[0, 3] for sign in (1, -1))
    assert float(up - down) / 2 == pytest.approx(float(jnp.sum(slope * change)), rel=0.02)


def test_rows_hold_every_kind_of_change(model, tmp_path):
    data, config = digits(), model.config.copy_and_resolve_references()
    config.eval.evaluators, config.eval.adversarial.epsilons = ("adversarial",), (16, 0)
    config.eval.adversarial.num_images, config.eval.adversarial.steps = 30, 4
    none, some = evaluators.evaluate(model, data, config, tmp_path)
    assert none["epsilon"] == 0 and none["value"] == none["fgsm_value"] == none["noise_value"] == none["clean_value"]
    assert some["value"] <= some["fgsm_value"] and some["value"] < some["clean_value"] and some["n"] == 30
    assert some["floor"]["raw pixels"] <= none["floor"]["raw pixels"]
    assert some["variant"] == "PGD, 16 of 255" and some["protocol"] == "adversarial-v1"


@pytest.mark.parametrize("change", [{"token_kind": "palette"}, {"patch_size": 1}])
def test_tokens_that_are_looked_up_are_skipped_in_one_line(change):
    config = tiny.get_config()
    config.model.update(change)
    config.eval.evaluators = ("adversarial",)
    model = SimpleNamespace(spec=tokens.TokenSpec.from_config(config), default_layer="encoder")
    lines = []
    assert evaluators.evaluate(model, digits(), config, log=lines.append) == []
    assert lines == ["adversarial: skipped, tokens are looked up in an embedding table, so pixels have no gradient"]


def test_a_probes_standardisation_folds_into_its_matrix():
    data = digits()
    parts = {split: adversarial.raw_pixels(getattr(data, split).images) for split in ("train", "validation")}
    labels = {split: getattr(data, split).labels for split in parts}
    fitted = linear_probe.fit(parts, labels, (0.1,), 100)
    matrix, bias = adversarial.folded(fitted)
    x = adversarial.raw_pixels(IMAGES)
    np.testing.assert_allclose(x @ matrix + bias, fitted.logits(x), atol=1e-3)
