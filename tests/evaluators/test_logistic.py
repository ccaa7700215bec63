"""Logistic regression on the host and on a device: scikit-learn's optimum, fits side by side, limits."""

import functools
import re
import time

import jax
import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from hybrid_jax.evaluators import knn, linear_probe, logistic, logistic_device, sample_metrics
from hybrid_jax.evaluators.features import Skipped
from hybrid_jax.evaluators.logistic import Spectrum, fit_logistic

C_VALUES = (0.01, 0.1)


def test_fits_side_by_side_are_those_one_after_the_other_to_the_last_bit():
    rng = np.random.default_rng(0)
    x, y, grid = rng.normal(size=(2000, 30)).astype(np.float32), rng.integers(0, 4, 2000), (0.01, 0.1, 1.0, 10.0)
    spectrum = Spectrum.of(x)
    for fitted, c in zip(logistic.fit_logistic_each(x, y, grid, 50, spectrum), grid, strict=True):
        alone = fit_logistic(x, y, c, spectrum, 50)
        np.testing.assert_array_equal(fitted.weights, alone.weights)
        np.testing.assert_array_equal(fitted.bias, alone.bias)


def test_no_more_run_at_once_than_memory_holds(monkeypatch):
    running, most = [], []

    def task(i):
        running.append(i)
        most.append(len(running))
        time.sleep(0.01)
        running.remove(i)
        return i

    monkeypatch.setattr(logistic, "_cores", lambda: 8)
    for bytes_each, allowed in ((2**30, 1), (2**29, 2), (2**40, 1), (0, 6)):
        tasks = [functools.partial(task, i) for i in range(6)]
        assert logistic.side_by_side(tasks, bytes_each) == list(range(6)) and max(most) <= allowed
        most.clear()


def test_badly_scaled_features_converge_within_the_default_limit():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 10, 1000)
    # Correlated columns: scikit-learn needs thousands of steps to this tolerance.
    mixing = rng.normal(size=(30, 30)) * np.logspace(0, -4, 30)
    x = linear_probe.standardise({"train": (rng.normal(size=(1000, 30)) + y[:, None] * 0.1) @ mixing})["train"]
    fitted = fit_logistic(x, y, 1.0, Spectrum.of(x), 300)
    reference = LogisticRegression(C=1.0, tol=1e-10, max_iter=20_000).fit(x.astype(np.float64), y)
    assert fitted.converged
    assert abs(objective(x, y, fitted.weights, fitted.bias) - objective(x, y, *sklearn_weights(reference))) < 1e-4


def objective(x, y, weights, bias, c=1.0):
    logits = x.astype(np.float64) @ weights + bias
    log_norm = np.log(np.exp(logits).sum(axis=1))
    return np.mean(log_norm - logits[np.arange(len(y)), y]) + np.sum(weights**2) / (2 * c * len(y))


def sklearn_weights(fitted):
    return fitted.coef_.T, fitted.intercept_


def test_one_class_is_skipped_by_the_fit_itself():
    with pytest.raises(Skipped, match="one class only"):
        fit_logistic(np.ones((3, 2), np.float32), np.zeros(3), 1.0, Spectrum.of(np.ones((3, 2))), 10)


def digits(n: int, num_classes: int = 10):
    x, y = load_digits(return_X_y=True)
    kept = y < num_classes
    x = linear_probe.standardise({"train": x[kept].astype(np.float32)})["train"]
    return x[:n], y[kept][:n] * 3, x[n:]


@pytest.mark.parametrize(("n", "num_classes"), [(150, 10), (500, 3)])
def test_the_device_finds_the_hosts_and_scikit_learns_optimum(small_shapes, n, num_classes):
    x, y, unseen = digits(n, num_classes)
    found = logistic.fit_logistic_on_device(x, y, C_VALUES, 300, tolerance=1e-5)
    known = logistic.fit_logistic_each(x, y, C_VALUES, 300, logistic.Spectrum.of(x))
    for c, ours, host in zip(C_VALUES, found, known, strict=True):
        oracle = LogisticRegression(C=c, tol=1e-7, max_iter=5000).fit(x.astype(np.float64), y)
        assert ours.converged and ours.iterations < 100
        np.testing.assert_array_equal(ours.classes, np.unique(y))
        np.testing.assert_allclose(ours.weights, oracle.coef_.T, atol=2e-2 * np.abs(oracle.coef_).max())
        for other in (host, oracle):
            assert np.mean(ours.predict(unseen) == other.predict(unseen)) > 0.99


def test_what_fills_up_a_fit_does_not_change_it(small_shapes, monkeypatch):
    x, y, _ = digits(150)
    (alone,) = logistic.fit_logistic_on_device(x[:, :40], y, [0.1], 300)
    monkeypatch.setattr(logistic_device, "_ROWS", (150,))
    monkeypatch.setattr(logistic_device, "_COLUMNS", (40,))
    monkeypatch.setattr(logistic_device, "_CLASSES", (10,))
    (exact,) = logistic.fit_logistic_on_device(x[:, :40], y, [0.1], 300)
    np.testing.assert_allclose(alone.weights, exact.weights, atol=2e-3)


def test_a_limit_that_is_too_low_is_told_and_a_fit_that_fails_is_loud(small_shapes):
    x, y, _ = digits(150)
    assert [(f.iterations, f.converged) for f in logistic.fit_logistic_on_device(x, y, [1.0], 2)] == [(2, False)]
    with pytest.raises(FloatingPointError, match="not finite"):
        logistic.fit_logistic_on_device(np.where(x > 2, np.nan, x), y, [1.0], 5)
    with pytest.raises(Skipped):
        logistic.fit_logistic_on_device(x, np.zeros(150), [1.0], 5)


def test_five_shapes_serve_all_fits_of_cifar10():
    fits = [(45_000, 512), (50_000, 2048), (50_000, 3072), (5_000, 512), (100, 100), (500, 500), (5_000, 3072)]
    fits += [(10_000, 3072), (1_000, 128), (5_000, 2048)]
    assert len({logistic_device.filled_shape(*fit, 10) for fit in fits}) == 5


def test_products_ask_for_float32():
    lowered = logistic_device._solved.trace(*logistic_device.arguments(100, 64, 10)).jaxpr
    tops = jax.make_jaxpr(lambda q, b: knn._top(q, b, 3))(np.ones((4, 8), np.float32), np.ones((9, 8), np.float32))
    nearest = jax.make_jaxpr(sample_metrics._nearest)(np.ones((4, 8), np.float32), np.ones((9, 8), np.float32))
    for text in map(str, (lowered, tops, nearest)):
        products = len(re.findall(r"dot_general\[", text))
        assert products and text.count("precision=(Precision.HIGHEST, Precision.HIGHEST)") == products


def test_the_nearest_rows_are_the_same_on_the_device():
    rng = np.random.default_rng(0)
    queries, bank = (rng.normal(size=(n, 12)).astype(np.float32) for n in (700, 300))
    rows = sample_metrics._nearest_on_device(queries, bank)
    np.testing.assert_array_equal(rows, sample_metrics._nearest_rows(queries, bank))
