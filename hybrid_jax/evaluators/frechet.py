"""The Frechet distance between two sets of features, each taken for a Gaussian (Dowson & Landau 1982).

Dimensions: n images, D features.
"""

import numpy as np


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Returns |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)), m means and C covariances.

    It is biased upwards by few images, the more so the more features there are: compare numbers of equal n only.

    Args:
      a: (n, D) features, n >= 2.
      b: (m, D) features, m >= 2.

    Returns:
      The distance, in squared units of the features, at least 0; 0 for equal sets but for rounding.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    between = a.mean(axis=0) - b.mean(axis=0)
    first, second = (np.atleast_2d(np.cov(x, rowvar=False)) for x in (a, b))
    values, vectors = np.linalg.eigh(first)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    # (C_a C_b)^(1/2) has the trace of the root of this matrix, which is symmetric: no complex numbers, and covariances
    # of fewer images than features are no trouble.
    eigenvalues = np.linalg.eigvalsh(root @ second @ root)
    cross = np.sqrt(np.maximum(eigenvalues, 0)).sum()
    return max(0.0, float(between @ between + np.trace(first) + np.trace(second) - 2 * cross))
