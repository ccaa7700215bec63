"""Calibration against scikit-learn, scipy and the plain definitions."""

import numpy as np
import pytest
import scipy.optimize
import scipy.special
from fakes import config_of, digits, root_pixel_model
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss, log_loss

from hybrid_jax import evaluators
from hybrid_jax.evaluators import calibration


def case(n=2000, k=5, temperature=2.0):
    """Logits whose right temperature is known: labels are drawn from softmax(logits / temperature)."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(n, k)) * 3
    p = scipy.special.softmax(logits / temperature, axis=1)
    return logits.astype(np.float32), np.array([rng.choice(k, p=row) for row in p])


def top(logits, targets):
    return scipy.special.softmax(logits, axis=1).max(axis=1), logits.argmax(axis=1) == targets


def slow_error(confidence, hits, num_bins=15):
    total = 0
    for i in range(num_bins):
        inside = [j for j, c in enumerate(confidence) if i / num_bins < c <= (i + 1) / num_bins]
        if inside:
            total += abs(np.mean(hits[inside]) - np.mean(confidence[inside])) * len(inside) / len(confidence)
    return total


def test_the_error_is_its_definition():
    confidence, hits = top(*case())
    bins = calibration.reliability(confidence, hits)
    assert calibration.calibration_error(bins) == pytest.approx(slow_error(confidence, hits), abs=1e-9)
    assert sum(row["count"] for row in bins) == len(hits)


def test_bins_are_scikit_learns():
    rng = np.random.default_rng(1)
    confidence = rng.random(500)
    hits = rng.random(500) < confidence**2
    bins = calibration.reliability(confidence, hits)
    accuracy, mean = calibration_curve(hits, confidence, n_bins=15)
    assert [row["accuracy"] for row in bins] == pytest.approx(list(accuracy))
    assert [row["confidence"] for row in bins] == pytest.approx(list(mean))


def test_certainty_lies_in_the_last_bin_and_an_edge_in_the_lower_one():
    (only,) = calibration.reliability(np.ones(3), np.array([True, True, False]))
    assert only["low"] == pytest.approx(14 / 15) and only["high"] == 1 and only["count"] == 3
    assert calibration.reliability(np.array([0.2]), np.array([True]), 5)[0]["high"] == pytest.approx(0.2)
    assert calibration.calibration_error(calibration.reliability(np.ones(2), np.ones(2, bool))) == 0


def test_likelihood_and_brier_score_are_scikit_learns():
    logits, targets = case()
    p = scipy.special.softmax(logits.astype(np.float64), axis=1)
    assert calibration.nll(logits, targets).mean() == pytest.approx(log_loss(targets, p))
    expected = brier_score_loss(targets, p, scale_by_half=False, labels=range(5))
    assert calibration.brier(logits, targets).mean() == pytest.approx(expected)
    assert calibration.brier(np.array([[50.0, -50.0]]), np.array([1])) == pytest.approx([2])


def test_the_temperature_is_the_minimum_and_the_true_one():
    logits, targets = case()
    found = calibration.fit_temperature(logits, targets)
    loss = lambda t: calibration.nll(logits.astype(np.float64) / t[0], targets).mean()
    oracle = scipy.optimize.minimize(loss, [1.0], method="Nelder-Mead", options={"xatol": 1e-6, "fatol": 1e-12})
    assert found == pytest.approx(oracle.x[0], rel=1e-3) and found == pytest.approx(2, rel=0.1)
    before, after = (
        calibration.calibration_error(calibration.reliability(*top(logits / t, targets))) for t in (1, found)
    )
    assert after < before / 3


def test_the_standard_error_is_the_spread_over_sets_of_images():
    errors, told = [], []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        confidence = rng.uniform(0.3, 1, 800)
        hits = rng.random(800) < confidence * 0.8
        errors.append(slow_error(confidence, hits))
        told.append(calibration.calibration_uncertainty(confidence, hits, 50))
    assert np.mean(told) == pytest.approx(np.std(errors), rel=0.3)


def evaluate(data, log=print):
    return evaluators.evaluate(root_pixel_model(), data, config_of("calibration"), log=log)


def test_rows_come_as_fitted_and_scaled_beside_raw_pixels():
    rows = evaluate(digits())
    names = [(row["metric"], row["variant"]) for row in rows]
    assert names == [(m, v) for m in calibration.METRICS for v in ("as fitted", "temperature scaled")]
    for row in rows:
        assert row["n"] == 200 and row["protocol"] == "calibration-v1" and list(row["floor"]) == ["raw pixels"]
        assert ("temperature" in row) == (row["variant"] == "temperature scaled")
        assert row["standard_error"] > 0
    assert sum(b["count"] for b in rows[0]["reliability"]) == 200


def test_without_validation_there_is_no_temperature():
    data, lines = digits(), []
    data.validation = None
    rows = evaluate(data, lines.append)
    assert {row["variant"] for row in rows} == {"as fitted"} and len(rows) == 3
    assert lines == ["calibration: partly skipped, no labelled validation split to fit a temperature to"]


def test_a_class_that_was_never_trained_on_has_no_likelihood():
    data, lines = digits(), []
    data.test.labels = np.where(np.arange(200) == 3, 77, data.test.labels)
    assert evaluate(data, lines.append) == []
    assert lines == ["calibration: skipped, the test split has a class that the training split lacks"]


def test_the_error_is_that_of_torchmetrics():
    # torchmetrics 1.9.0, MulticlassCalibrationError(num_classes=5, n_bins=15, norm="l1"): 0.05459776148200035.
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (500, 5))
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    y = np.array([rng.choice(5, p=each) for each in p])
    bins = calibration.reliability(p.max(axis=1), p.argmax(axis=1) == y)
    assert calibration.calibration_error(bins) == pytest.approx(0.05459776, abs=1e-7)
