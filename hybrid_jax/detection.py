"""How well a score tells outliers from images of the data: AUROC, average precision, FPR95.

A score is higher where an image is more anomalous; an outlier is the positive case unless said otherwise.

Dimensions: n images of the data, m outliers.
"""

import numpy as np

TPR = 0.95


def auroc(inliers: np.ndarray, outliers: np.ndarray) -> float:
    """Returns the share of pairs of (n,) and (m,) scores in which the outlier's is the higher one; ties count half."""
    ordered = np.sort(inliers)
    below = np.searchsorted(ordered, outliers, "left")
    up_to = np.searchsorted(ordered, outliers, "right")
    return float(np.mean(below + up_to) / (2 * len(inliers)))


def average_precision(inliers: np.ndarray, outliers: np.ndarray) -> float:
    """Returns the area under precision over recall, as steps, of (n,) and (m,) scores; equal scores are one threshold.

    It depends on n / m: scores at chance have m / (n + m).
    """
    thresholds, hits = np.unique(outliers, return_counts=True)
    found = np.cumsum(hits[::-1])
    flagged = found + len(inliers) - np.searchsorted(np.sort(inliers), thresholds[::-1], "left")
    return float(np.sum(hits[::-1] / len(outliers) * found / flagged))


def fpr95(inliers: np.ndarray, outliers: np.ndarray) -> float:
    """Returns the share of (n,) inliers flagged at the first threshold that flags 95 % of the (m,) outliers.

    From the highest score downwards, without interpolation; scores at the threshold are flagged. With the arguments
    exchanged and negated, `fpr95(-outliers, -inliers)`, the data's own images are the positive case.
    """
    needed = int(np.ceil(round(TPR * len(outliers), 9)))
    threshold = np.sort(outliers)[-needed]
    return float(np.mean(inliers >= threshold))


def fpr95_of_inliers(inliers: np.ndarray, outliers: np.ndarray) -> float:
    """Returns the share of outliers kept at the first threshold that keeps 95 % of the data's own images."""
    return fpr95(-np.asarray(outliers), -np.asarray(inliers))
