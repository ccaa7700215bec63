"""Differences between arms over few seeds and many images: intervals and verdicts.

d_s is the difference of a metric between two arms of seed s on the same test images. It has two sources of uncertainty:
the seed, seen in the spread of d_s, and the choice of test images, which all seeds share, so that the spread does not
show it. The interval adds both: mean(d) -/+ t(.95, S - 1) sqrt(var(d) / S + v), where v is the variance over images of
the difference averaged over seeds. Each bound is one-sided at 95 %.

Dimensions: S seeds, n images, m outliers, B bootstrap draws.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np
import scipy.stats

CONFIDENCE = 0.95
DRAWS = 1_000
SUPPORTED, NOT_SUPPORTED, UNDECIDED = "supported", "not supported", "undecided"
NOT_REPRODUCED = "premise not reproduced"

ImageStatistic = Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Interval:
    """A difference and its one-sided 95 % bounds, which are infinite for a single seed."""

    estimate: float
    lower: float
    upper: float


def interval(differences: Sequence[float], image_variance: float) -> Interval:
    """Returns the interval of the mean difference.

    Args:
      differences: (S,), one per seed.
      image_variance: v, the variance of the mean difference over the choice of test images.
    """
    d = np.asarray(differences, np.float64)
    mean = float(d.mean())
    if len(d) < 2:
        return Interval(mean, -math.inf, math.inf)
    spread = math.sqrt(float(np.var(d, ddof=1)) / len(d) + image_variance)
    reach = float(scipy.stats.t.ppf(CONFIDENCE, len(d) - 1)) * spread
    return Interval(mean, mean - reach, mean + reach)


def not_worse(found: Interval, margin: float) -> str:
    """Returns the verdict on "higher than -margin": supported, not supported, undecided."""
    if found.lower > -margin:
        return SUPPORTED
    return NOT_SUPPORTED if found.upper < -margin else UNDECIDED


def below(found: Interval) -> str:
    """Returns the verdict on "below zero"."""
    if found.upper < 0:
        return SUPPORTED
    return NOT_SUPPORTED if found.lower > 0 else UNDECIDED


def mean_variance(per_image: np.ndarray) -> float:
    """Returns v of a metric that is a mean over images.

    Args:
      per_image: (S, n) differences, one per seed and image.
    """
    averaged = np.asarray(per_image, np.float64).mean(axis=0)
    return float(np.var(averaged, ddof=1) / len(averaged)) if len(averaged) > 1 else math.inf


def share_variance(
    corrupted: tuple[np.ndarray, np.ndarray], clean: tuple[np.ndarray, np.ndarray], seed: int = 0, draws: int = DRAWS
) -> float:
    """Returns v of the difference in the share retained, by bootstrap over images.

    Args:
      corrupted: hybrid and reference, each (S, n), share of the corruptions under which an image is correct.
      clean: hybrid and reference, each (S, n), whether it is correct without corruption.
      seed: of the bootstrap.
      draws: B.
    """
    weights = _resampled(corrupted[0].shape[1], draws, np.random.default_rng(seed))
    shares = [_ratio(weights @ top.T, weights @ bottom.T) for top, bottom in zip(corrupted, clean, strict=True)]
    return _bootstrap_variance((shares[0] - shares[1]).mean(axis=1))


def _ratio(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    # A draw without a correct prediction has nothing to retain.
    return np.divide(top, bottom, out=np.zeros_like(top), where=bottom > 0)


def auroc_variance(advantages: Sequence[np.ndarray], seed: int = 0, draws: int = DRAWS) -> float:
    """Returns v of the difference in mean AUROC over pairs, by bootstrap stratified into images and outliers.

    The outliers of each pair are resampled separately; the test images, which all pairs share, are resampled once.

    Args:
      advantages: for each pair (n, m), the difference of `wins` between the arms, averaged over seeds.
      seed: of the bootstrap.
      draws: B.
    """
    rng = np.random.default_rng(seed)
    inliers = _resampled(len(advantages[0]), draws, rng)
    total = np.zeros(draws)
    for advantage in advantages:
        outliers = _resampled(advantage.shape[1], draws, rng)
        total += np.sum((inliers @ advantage) * outliers, axis=1, dtype=np.float64)
    return _bootstrap_variance(total / len(advantages))


def wins(inliers: np.ndarray, outliers: np.ndarray) -> np.ndarray:
    """Returns (n, m) float32: 1 where the outlier scores higher, 1/2 where equal; its mean is the AUROC.

    Args:
      inliers: (n,) scores.
      outliers: (m,) scores.
    """
    difference = np.sign(outliers[None].astype(np.float64) - inliers[:, None].astype(np.float64))
    return ((difference + 1) / 2).astype(np.float32)


def _resampled(count: int, draws: int, rng: np.random.Generator) -> np.ndarray:
    """(B, count) float32 weights of a bootstrap; each row sums to 1."""
    drawn = rng.integers(0, count, (draws, count), np.int32)
    return np.stack([np.bincount(row, minlength=count) for row in drawn]).astype(np.float32) / count


def _bootstrap_variance(values: np.ndarray) -> float:
    return float(np.var(values, ddof=1))
