"""Detection measures against scikit-learn, a definition written out, and a published example."""

import numpy as np
import pytest
from sklearn import metrics

from hybrid_jax.anomaly import detection

RNG = np.random.default_rng(0)
CASES = {
    "apart": (RNG.normal(0, 1, 300), RNG.normal(1.5, 1, 170)),
    "ties": (RNG.integers(0, 5, 200).astype(float), RNG.integers(2, 8, 90).astype(float)),
    "few": (np.array([0.1]), np.array([0.4, 0.05])),
    "all equal": (np.zeros(7), np.zeros(3)),
}


def together(inliers, outliers):
    return np.r_[np.zeros(len(inliers)), np.ones(len(outliers))], np.r_[inliers, outliers]


def first_threshold(positive, negative):
    """FPR at the first threshold, from above, whose TPR is at least .95: as pytorch-ood and OpenOOD define it."""
    for threshold in sorted(set(positive), reverse=True):
        if sum(x >= threshold for x in positive) / len(positive) >= 0.95:
            return sum(x >= threshold for x in negative) / len(negative)
    raise AssertionError


@pytest.mark.parametrize("name", CASES)
def test_auroc_and_average_precision_are_scikit_learns(name):
    labels, scores = together(*CASES[name])
    assert detection.auroc(*CASES[name]) == pytest.approx(metrics.roc_auc_score(labels, scores), abs=1e-12)
    expected = metrics.average_precision_score(labels, scores)
    assert detection.average_precision(*CASES[name]) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_fpr95_is_its_definition_in_both_conventions(name):
    inliers, outliers = CASES[name]
    assert detection.fpr95(inliers, outliers) == first_threshold(outliers, inliers)
    assert detection.fpr95_of_inliers(inliers, outliers) == first_threshold(-inliers, -outliers)


@pytest.mark.parametrize("name", CASES)
def test_fpr95_lies_on_scikit_learns_curve(name):
    inliers, outliers = CASES[name]
    fpr, tpr, _ = metrics.roc_curve(*together(inliers, outliers), drop_intermediate=False)
    assert detection.fpr95(inliers, outliers) == pytest.approx(fpr[np.argmax(tpr >= 0.95)])


def test_twenty_outliers_need_nineteen():
    # .95 of 20 in floating point is a hair above 19.
    assert detection.fpr95(np.array([1.5]), np.arange(1.0, 21)) == 0
    assert detection.fpr95(np.array([2.0]), np.arange(1.0, 21)) == 1


def test_a_perfect_score_gives_one_and_a_random_one_chance():
    perfect = np.arange(50.0), 100 + np.arange(30.0)
    values = [f(*perfect) for f in (detection.auroc, detection.average_precision, detection.fpr95)]
    assert values == [1, 1, 0] and detection.fpr95_of_inliers(*perfect) == 0
    chance = RNG.normal(size=20_000), RNG.normal(size=10_000)
    assert detection.auroc(*chance) == pytest.approx(0.5, abs=0.01)
    assert detection.average_precision(*chance) == pytest.approx(1 / 3, abs=0.02)
    assert detection.fpr95(*chance) == pytest.approx(0.95, abs=0.01)


@pytest.mark.parametrize("name", CASES)
def test_placements_have_the_auroc_as_their_mean(name):
    for found in detection.placements(*CASES[name]):
        assert found.mean() == pytest.approx(detection.auroc(*CASES[name]), abs=1e-12)


def delong(inliers, outliers):
    """The variance as published, from the matrix of all comparisons."""
    wins = (outliers[:, None] > inliers) + 0.5 * (outliers[:, None] == inliers)
    return wins.mean(1).var(ddof=1) / len(outliers) + wins.mean(0).var(ddof=1) / len(inliers)


@pytest.mark.parametrize("name", ["apart", "ties"])
def test_the_error_of_one_auroc_is_delongs(name):
    found = detection.auroc_error([detection.placements(*CASES[name])], [False])
    assert found == pytest.approx(np.sqrt(delong(*CASES[name])), rel=1e-9)


def test_the_error_of_a_mean_is_that_of_drawing_images_again():
    rng = np.random.default_rng(1)
    inliers = rng.normal(size=150)
    made = [inliers + rng.normal(1, 0.5, 150), 0.7 * inliers + rng.normal(0.8, 0.5, 150)]
    others = rng.normal(1, 2, 60)

    def mean(rows, picked):
        sets = [*(outliers[rows] for outliers in made), others[picked]]
        return np.mean([detection.auroc(inliers[rows], outliers) for outliers in sets])

    # Outliers made of an image are drawn with it.
    drawn = [mean(rng.integers(0, 150, 150), rng.integers(0, 60, 60)) for _ in range(2000)]
    placed = [detection.placements(inliers, outliers) for outliers in (*made, others)]
    found = detection.auroc_error(placed, [True, True, False])
    assert found == pytest.approx(np.std(drawn), rel=0.06)
    # As if all were images of their own it would be another.
    assert abs(detection.auroc_error(placed, [False] * 3) / found - 1) > 0.1


def test_an_error_needs_two_images_of_each_kind():
    assert detection.auroc_error([detection.placements(*CASES["few"])], [False]) is None
    assert detection.auroc_error([detection.placements(np.arange(5.0), np.arange(5.0, 9))], [False]) == 0


def test_values_are_those_of_pytorch_ood():
    # pytorch-ood 0.4.0, OODMetrics on these scores: AUROC 0.8408374999999999, FPR95TPR 0.6275.
    rng = np.random.default_rng(0)
    inliers, outliers = np.round(rng.normal(0, 1, 400), 2), np.round(rng.normal(1.5, 1.2, 300), 2)
    assert detection.auroc(inliers, outliers) == pytest.approx(0.8408375, abs=1e-12)
    assert detection.fpr95(inliers, outliers) == pytest.approx(0.6275, abs=1e-12)
