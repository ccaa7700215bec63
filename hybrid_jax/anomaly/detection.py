"""Metrics of out-of-distribution detection: AUROC, average precision, FPR95.

Scores are higher for more anomalous images. Outliers are the positive class unless stated otherwise.

Dimensions: n inliers (images of the data), m outliers.
"""

from collections.abc import Sequence

import numpy as np

TPR = 0.95


def auroc(inliers: np.ndarray, outliers: np.ndarray) -> float:
    """Returns the share of pairs of (n,) and (m,) scores in which the outlier scores higher; ties count half."""
    ordered = np.sort(inliers)
    below = np.searchsorted(ordered, outliers, "left")
    up_to = np.searchsorted(ordered, outliers, "right")
    return float(np.mean(below + up_to) / (2 * len(inliers)))


def placements(inliers: np.ndarray, outliers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the contribution of each image to the AUROC, which is the mean of either result.

    Args:
      inliers: (n,) scores.
      outliers: (m,) scores.

    Returns:
      (n,) share of the outliers above each inlier, and (m,) share of the inliers below each outlier; ties count half.
    """
    below = _share_below(inliers, outliers)
    return 1 - _share_below(outliers, inliers), below


def _share_below(some: np.ndarray, x: np.ndarray) -> np.ndarray:
    ordered = np.sort(some)
    return (np.searchsorted(ordered, x, "left") + np.searchsorted(ordered, x, "right")) / (2 * len(ordered))


def auroc_error(placed: Sequence[tuple[np.ndarray, np.ndarray]], made: Sequence[bool]) -> float | None:
    """Returns the standard error, over images, of the mean of AUROCs that share their inliers.

    Method of DeLong, DeLong and Clarke-Pearson 1988 (Biometrics 44:837), whose covariance counts shared inliers once.
    An inlier and the outliers made from it are one cluster (Obuchowski 1997, Biometrics 53:567).

    Args:
      placed: for each AUROC, `placements` of the same (n,) inliers and its (m,) outliers.
      made: for each AUROC, whether outlier i was made from inlier i; otherwise outliers are independent images.

    Returns:
      The standard error; None if there are fewer than two inliers or outliers.
    """
    n = len(placed[0][0])
    if n < 2 or any(len(outliers) < 2 for _, outliers in placed):
        return None
    shared, variance = np.zeros(n), 0.0
    for (inliers, outliers), of_inliers in zip(placed, made, strict=True):
        own, m = (outliers - outliers.mean()) / len(outliers), len(outliers)
        shared += (inliers - inliers.mean()) / n + (own if of_inliers else 0)
        variance += 0.0 if of_inliers else m / (m - 1) * float(own @ own)
    return float(np.sqrt(variance + n / (n - 1) * float(shared @ shared)) / len(placed))


def average_precision(inliers: np.ndarray, outliers: np.ndarray) -> float:
    """Returns the area under the stepwise precision-recall curve of (n,) and (m,) scores; ties are one threshold.

    It depends on n / m: at chance it is m / (n + m).
    """
    thresholds, hits = np.unique(outliers, return_counts=True)
    found = np.cumsum(hits[::-1])
    flagged = found + len(inliers) - np.searchsorted(np.sort(inliers), thresholds[::-1], "left")
    return float(np.sum(hits[::-1] / len(outliers) * found / flagged))


def fpr95(inliers: np.ndarray, outliers: np.ndarray) -> float:
    """Returns the share of (n,) inliers flagged at the highest threshold that flags 95 % of the (m,) outliers.

    There is no interpolation; scores at the threshold are flagged. With the arguments exchanged and negated,
    `fpr95(-outliers, -inliers)`, the inliers are the positive class.
    """
    needed = int(np.ceil(round(TPR * len(outliers), 9)))
    threshold = np.sort(outliers)[-needed]
    return float(np.mean(inliers >= threshold))


def fpr95_of_inliers(inliers: np.ndarray, outliers: np.ndarray) -> float:
    """Returns the share of outliers accepted at the lowest threshold that accepts 95 % of the inliers."""
    return fpr95(-np.asarray(outliers), -np.asarray(inliers))
