"""Distances between sets of features against their definitions, in float64 and point by point."""

import tracemalloc

import numpy as np
import pytest
import scipy.linalg

from hybrid_jax.evaluators import sample_metrics
from hybrid_jax.evaluators.sample_metrics import Memorization, count_copies, frechet_distance

RNG = np.random.default_rng(0)
NAMES = ("precision", "recall", "density", "coverage")


def gaussian(n, d, shift=0.0, scale=1.0):
    return (RNG.normal(size=(n, d)) * scale + shift).astype(np.float32)


def brute_force(real, samples, k):
    """The definitions, one ball at a time."""
    real, samples = real.astype(np.float64), samples.astype(np.float64)
    distance = lambda a, b: np.sqrt(np.sum((a - b) ** 2))
    radius = lambda i, x: sorted(distance(x[i], y) for j, y in enumerate(x) if j != i)[k - 1]
    real_radii = [radius(i, real) for i in range(len(real))]
    sample_radii = [radius(j, samples) for j in range(len(samples))]
    inside = np.array([[distance(x, y) < r for y in samples] for x, r in zip(real, real_radii, strict=True)])
    drawn = np.array([[distance(x, y) < r for y, r in zip(samples, sample_radii, strict=True)] for x in real])
    return {
        "precision": inside.any(axis=0),
        "recall": drawn.any(axis=1),
        "density": inside.sum(axis=0) / k,
        "coverage": inside.any(axis=1),
    }


@pytest.mark.parametrize(("k", "shift", "chunk"), [(5, 0.3, 500), (5, 0.8, 7), (1, 0.3, 16), (3, 5.0, 500)])
def test_all_four_equal_brute_force(monkeypatch, k, shift, chunk):
    monkeypatch.setattr(sample_metrics, "ROWS_AT_ONCE", chunk)
    # Far from the origin, where naive float32 distances would lose their digits.
    real, samples = gaussian(40, 6, 1000), gaussian(33, 6, 1000 + shift, 0.8)
    found, expected = sample_metrics.precision_recall_density_coverage(real, samples, k), brute_force(real, samples, k)
    for name in NAMES:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


def test_a_set_is_like_itself_and_unlike_one_far_away():
    x = gaussian(60, 8)
    same = sample_metrics.precision_recall_density_coverage(x, x, 5)
    assert [float(same[name].mean()) for name in NAMES] == pytest.approx([1, 1, 1, 1])
    apart = sample_metrics.precision_recall_density_coverage(x, gaussian(60, 8, 100), 5)
    assert [float(apart[name].mean()) for name in NAMES] == [0, 0, 0, 0]


def test_a_model_that_forgets_a_mode_loses_recall_and_coverage_only():
    modes = np.concatenate([gaussian(100, 4), gaussian(100, 4, 20)])
    found = sample_metrics.precision_recall_density_coverage(modes, gaussian(200, 4), 5)
    assert found["precision"].mean() > 0.9 and found["recall"].mean() < 0.55 and found["coverage"].mean() < 0.55


def test_copies_of_one_image_are_told_apart_from_it_by_no_rounding():
    real = np.repeat(gaussian(1, 8, 3), 20, axis=0)
    # Balls of radius 0 hold nothing, not even their own centre, as in the authors' code.
    assert not any(sample_metrics.precision_recall_density_coverage(real, real, 5)[name].any() for name in NAMES)


def test_memory_grows_with_one_set_not_with_both(monkeypatch):
    monkeypatch.setattr(sample_metrics, "ROWS_AT_ONCE", 50)
    real, samples = gaussian(3000, 4), gaussian(3000, 4)
    tracemalloc.start()
    sample_metrics.precision_recall_density_coverage(real, samples, 5)
    sample_metrics.nearest_distance(samples, real)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3000 * 3000 * 8 / 8, "an eighth of one matrix of all distances"


def test_the_nearest_row_is_brute_forces():
    queries, bank = gaussian(30, 5), gaussian(70, 5)
    bank[3] = queries[4]
    distances, rows = sample_metrics.nearest_distance(queries, bank)
    expected = np.linalg.norm(queries[:, None].astype(np.float64) - bank, axis=2)
    np.testing.assert_array_equal(rows, expected.argmin(axis=1))
    np.testing.assert_allclose(distances, expected.min(axis=1), rtol=1e-6)
    assert distances[4] == 0


def textbook_frechet(a, b):
    first, second = np.cov(a.T), np.cov(b.T)
    cross = scipy.linalg.sqrtm(first @ second).real
    return np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(first + second - 2 * cross)


def test_the_frechet_distance_is_the_textbooks():
    mix = RNG.normal(size=(7, 7))
    a, b = RNG.normal(size=(200, 7)) @ mix, RNG.normal(size=(150, 7)) * 2 + 1
    assert frechet_distance(a, b) == pytest.approx(textbook_frechet(a, b), rel=1e-9)
    assert frechet_distance(b, a) == pytest.approx(frechet_distance(a, b), rel=1e-9)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)


def test_the_frechet_distance_of_known_gaussians_and_of_fewer_images_than_features():
    # Whitened exactly: moments are those that are asked for, so that the closed form holds to rounding.
    x = np.linalg.qr(RNG.normal(size=(100, 3)) - 0)[0]
    x = np.linalg.qr(x - x.mean(axis=0))[0] * np.sqrt(99)
    scales = np.array([1.0, 2.0, 5.0])
    assert frechet_distance(x, x * scales + 3) == pytest.approx(27 + np.sum((scales - 1) ** 2), rel=1e-9)
    few = RNG.normal(size=(10, 40))
    assert np.isfinite(frechet_distance(few, few + 1)) and frechet_distance(few, few + 1) == pytest.approx(40, rel=1e-6)


def test_copies_lie_nearer_than_the_test_images_do():
    train, test, fresh = gaussian(300, 6), gaussian(200, 6), gaussian(100, 6)
    near = Memorization.of(train, test)
    assert np.mean(near.test_distances <= near.threshold) == pytest.approx(0.01)
    copied, told = near.measure(np.concatenate([train[:50] + np.float32(1e-4), fresh[:50]]))
    assert copied[:50].all() and copied[50:].mean() < 0.1
    assert told["median_distance"] < told["test_median_distance"]
    images = RNG.integers(0, 256, (20, 4, 4, 1), dtype=np.uint8)
    changed = images[:5].copy()
    changed[0, 0, 0] ^= 1
    assert count_copies(changed, images) == 4
