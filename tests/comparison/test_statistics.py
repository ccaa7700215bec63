"""Intervals and verdicts: their error rate by simulation, their variances against closed forms."""

import math

import numpy as np
import pytest
import scipy.stats

from hybrid_jax.anomaly.detection import auroc
from hybrid_jax.comparison import statistics

MARGIN, TRIALS, SEEDS, IMAGES = 0.01, 2_000, 5, 200


@pytest.mark.parametrize(
    ("seed_noise", "image_noise", "both_noise"), [(0.01, 0, 0), (0, 0.1, 0), (0.005, 0.1, 0.3), (0.003, 0, 0.5)]
)
def test_at_the_margin_a_claim_is_supported_in_at_most_5_percent_of_trials(seed_noise, image_noise, both_noise):
    rng = np.random.default_rng(0)
    verdicts = []
    for _ in range(TRIALS):
        per_image = rng.normal(-MARGIN, both_noise, (SEEDS, IMAGES))
        per_image += rng.normal(0, seed_noise, (SEEDS, 1)) + rng.normal(0, image_noise, (1, IMAGES))
        found = statistics.interval(per_image.mean(axis=1), statistics.mean_variance(per_image))
        verdicts.append(statistics.not_worse(found, MARGIN))
    error = 3 * math.sqrt(0.05 * 0.95 / TRIALS)
    assert np.mean([v == statistics.SUPPORTED for v in verdicts]) <= 0.05 + error
    assert np.mean([v == statistics.NOT_SUPPORTED for v in verdicts]) <= 0.05 + error


def test_noise_of_seeds_alone_gives_the_t_test_of_scipy():
    d = np.array([0.02, -0.01, 0.03, 0.0, 0.015])
    found = statistics.interval(d, 0.0)
    expected = scipy.stats.ttest_1samp(d, 0, alternative="greater").confidence_interval(0.95).low
    assert found.lower == pytest.approx(expected)
    assert found.upper - found.estimate == pytest.approx(found.estimate - found.lower)


@pytest.mark.parametrize(
    ("value", "verdict"),
    [(-0.0099, statistics.SUPPORTED), (-0.0101, statistics.NOT_SUPPORTED), (-0.01, statistics.UNDECIDED)],
)
def test_without_noise_the_verdict_is_exact(value, verdict):
    assert statistics.not_worse(statistics.interval([value] * 3, 0.0), MARGIN) == verdict


def test_the_likelihood_is_judged_by_the_sign_alone():
    verdicts = [statistics.below(statistics.interval([x] * 2, 0.0)) for x in (-1e-6, 1e-6, 0.0)]
    assert verdicts == [statistics.SUPPORTED, statistics.NOT_SUPPORTED, statistics.UNDECIDED]


def test_one_seed_decides_nothing():
    found = statistics.interval([0.5], 0.0)
    assert statistics.not_worse(found, MARGIN) == statistics.UNDECIDED
    assert (found.lower, found.upper) == (-math.inf, math.inf)


def test_seeds_that_agree_do_not_hide_the_choice_of_images():
    rng = np.random.default_rng(1)
    per_image = np.repeat(rng.normal(0, 1, (1, 50)), 4, axis=0)
    assert statistics.mean_variance(per_image) == pytest.approx(np.var(per_image[0], ddof=1) / 50)


def test_the_bootstrap_of_a_share_agrees_with_the_delta_method():
    rng = np.random.default_rng(2)
    clean = [rng.random((3, 1_000)) < 0.8 for _ in range(2)]
    corrupted = [c * rng.uniform(0.4, 1, c.shape) for c in clean]
    found = statistics.share_variance((corrupted[0], corrupted[1]), (clean[0], clean[1]), draws=2_000)
    parts = []
    for top, bottom in zip(corrupted, clean, strict=True):
        share = top.mean(axis=1, keepdims=True) / bottom.mean(axis=1, keepdims=True)
        parts.append(((top - share * bottom) / bottom.mean(axis=1, keepdims=True)).mean(axis=0))
    expected = np.var(parts[0] - parts[1], ddof=1) / 1_000
    assert found == pytest.approx(expected, rel=0.15)


def test_the_bootstrap_of_an_auroc_agrees_with_delong():
    # DeLong, DeLong and Clarke-Pearson 1988: the variance of an AUROC by its structural components.
    rng = np.random.default_rng(3)
    inliers, outliers = rng.normal(0, 1, 300), rng.normal(1, 1, 200)
    wins = statistics.wins(inliers, outliers)
    assert wins.mean() == pytest.approx(auroc(inliers, outliers), abs=1e-6)
    delong = np.var(wins.mean(axis=1), ddof=1) / 300 + np.var(wins.mean(axis=0), ddof=1) / 200
    assert statistics.auroc_variance([wins], draws=3_000) == pytest.approx(delong, rel=0.15)


def test_pairs_share_their_test_images():
    rng = np.random.default_rng(4)
    wins = [(rng.random((100, 1)) < 0.7).astype(np.float32) * np.ones((1, 80), np.float32)] * 2
    # Nothing but the test images varies, and both pairs vary alike: their mean varies as much as one of them.
    one, both = (statistics.auroc_variance(wins[:count], draws=2_000) for count in (1, 2))
    assert both == pytest.approx(one, rel=1e-3)


def test_equal_scores_count_half():
    assert statistics.wins(np.array([1, 2]), np.array([1, 3])).tolist() == [[0.5, 1], [0, 1]]
