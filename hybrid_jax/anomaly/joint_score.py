"""The joint anomaly score, and its parts: Gaussians, tails and code lengths.

Statistics of an image: `distance`, squared Mahalanobis distance of the last layer's features, which are whitened by
their principal axes first (a Ledoit-Wolf covariance alone would blur directions of low variance), and `residual`,
negative log-likelihood minus a robust line over the code length. Under a Gaussian, the log-density is a decreasing
function of the distance.

score = -2 (ln p of `distance`, upper tail + ln p of `residual`, two-sided), Fisher's combination of two tests, with
Brown's correction (1975) if the two correlate. Without a likelihood only the distance counts.

Dimensions: n images, D features, H W C image.
"""

import dataclasses
import io
import math
from typing import Any

import numpy as np
import scipy.linalg
import scipy.special
import scipy.stats
import sklearn.covariance

FOLDS = 10
_TAIL = 0.05
_ENOUGH = 10  # images per dimension, for a covariance without shrinkage
_LINE_IMAGES = 2000
_BYTE = 8 * math.log(2)  # nats
CORRELATED = 0.3
FEWEST_IMAGES = 50


@dataclasses.dataclass(frozen=True)
class Gaussian:
    """A normal distribution of features with a Ledoit-Wolf covariance.

    Attributes:
      mean: (D,) float64.
      whitening: (D, D) float64, the principal axes, each divided by the standard deviation along it.
    """

    mean: np.ndarray
    whitening: np.ndarray

    @classmethod
    def fit(cls, x: np.ndarray, axes: np.ndarray | None = None) -> "Gaussian":
        """Fits (n, D) features, n >= 2.

        Args:
          x: the features.
          axes: (D, D), as returned by `white_axes`; the covariance is shrunk towards that of the features passed
            there, rather than towards a sphere, which would blur directions of low variance.
        """
        x = np.asarray(x, np.float64)
        mean = x.mean(axis=0)
        centred = x - mean if axes is None else (x - mean) @ axes
        covariance, _ = sklearn.covariance.ledoit_wolf(centred, assume_centered=True)
        whitening = _whitening(covariance)
        return cls(mean, whitening if axes is None else axes @ whitening)

    def distance(self, x: np.ndarray) -> np.ndarray:
        """(n, D) -> (n,) float64, the squared Mahalanobis distance."""
        return np.sum(((x - self.mean) @ self.whitening) ** 2, axis=1)


def white_axes(x: np.ndarray) -> np.ndarray:
    """Returns (D, D) float64, the principal axes of (n, D) features, each divided by the standard deviation along it.

    For fewer than ten images per dimension the covariance is Ledoit and Wolf's.
    """
    x = np.asarray(x, np.float64)
    if len(x) < _ENOUGH * x.shape[1]:
        return Gaussian.fit(x).whitening
    return _whitening(np.atleast_2d(np.cov(x.T)))


def _whitening(covariance: np.ndarray) -> np.ndarray:
    values, vectors = scipy.linalg.eigh(covariance)
    # Constant features have no variance to divide by.
    floor = max(values[-1] * 1e-12, 1e-12)
    return vectors / np.sqrt(np.maximum(values, floor))


def held_out_distance(x: np.ndarray, axes: np.ndarray | None = None, folds: int = FOLDS) -> np.ndarray:
    """Returns the (n,) squared distance of each row from a Gaussian fitted without its fold of the (n, D) features.

    Distances of the rows that a Gaussian was fitted on are too short. `axes` as in `Gaussian.fit`.
    """
    fold = np.arange(len(x)) % min(folds, len(x))
    found = np.empty(len(x))
    for i in range(fold.max() + 1):
        found[fold == i] = Gaussian.fit(x[fold != i], axes).distance(x[fold == i])
    return found


@dataclasses.dataclass(frozen=True)
class Tails:
    """The distribution of a statistic: empirical, with exponential tails beyond the outer 5 %.

    Attributes:
      values: (n,) float64, ascending.
    """

    values: np.ndarray

    @classmethod
    def fit(cls, x: np.ndarray) -> "Tails":
        """Fits (n,) values."""
        return cls(np.sort(np.asarray(x, np.float64)))

    def log_above(self, x: np.ndarray) -> np.ndarray:
        """Returns ln P(X >= x), (n,) float64, finite for every finite x."""
        return _log_above(self.values, x)

    def log_below(self, x: np.ndarray) -> np.ndarray:
        """Returns ln P(X <= x), (n,) float64, finite for every finite x."""
        return _log_above(-self.values[::-1], -np.asarray(x))

    def log_two_sided(self, x: np.ndarray) -> np.ndarray:
        """Returns the logarithm of the two-sided p-value, twice the smaller of both, at most 0."""
        return np.minimum(0, math.log(2) + np.minimum(self.log_above(x), self.log_below(x)))


def _log_above(ordered: np.ndarray, x: np.ndarray) -> np.ndarray:
    n, x = len(ordered), np.asarray(x, np.float64)
    share = 1 - (np.arange(n) + 0.5) / n
    first = min(n - 2, max(0, math.floor((1 - _TAIL) * n)))
    edge, beyond = ordered[first], ordered[first + 1 :] - ordered[first]
    # If the largest values are equal, the tail has no length of its own.
    scale = max(beyond.mean(), 1e-6 * (ordered[-1] - ordered[0]), 1e-12)
    inner = np.log(np.interp(x, ordered, share))
    return np.where(x > edge, math.log(share[first]) - (x - edge) / scale, inner)


def robust_line(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Returns (2,) float64, slope and intercept of y over x by Theil and Sen's medians; slope 0 for a constant x."""
    x, y = np.asarray(x[:_LINE_IMAGES], np.float64), np.asarray(y[:_LINE_IMAGES], np.float64)
    slope = 0.0 if np.ptp(x) == 0 else float(scipy.stats.theilslopes(y, x).slope)
    return np.array([slope, np.median(y - slope * x)])


def code_length(images: np.ndarray) -> np.ndarray:
    """Returns by how much the images' PNG files are longer than that of a black image.

    Args:
      images: (n, H, W, C) uint8, C 1 or 3.

    Returns:
      (n,) float64, nats.
    """
    empty = _png_bytes(np.zeros_like(images[0]))
    return np.array([_png_bytes(image) - empty for image in images], np.float64) * _BYTE


def _png_bytes(image: np.ndarray) -> int:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[2] == 1 else image).save(file, format="png")
    return file.tell()


@dataclasses.dataclass(frozen=True)
class Measures:
    """Features, likelihoods and code lengths of n images.

    Attributes:
      default: (n, D) float32, features of the default layer.
      last: (n, D) float32, features of the last layer.
      nll: (n,) float64, nats; None if the model has no likelihood.
      code_length: (n,) float64, nats.
    """

    default: np.ndarray
    last: np.ndarray
    nll: np.ndarray | None
    code_length: np.ndarray

    def __len__(self) -> int:
        return len(self.last)

    def take(self, rows) -> "Measures":
        """Returns the measures of some images, by index, slice or mask."""
        values: dict[str, Any] = vars(self)
        taken: dict[str, Any] = {name: None if value is None else value[rows] for name, value in values.items()}
        return Measures(**taken)


@dataclasses.dataclass(frozen=True)
class JointScore:
    """A fitted score.

    Attributes:
      arrays: fitted arrays, by name.
      about: the split and the number of images it was fitted on.
    """

    arrays: dict[str, np.ndarray]
    about: dict = dataclasses.field(default_factory=dict)

    def check(self, has_likelihood: bool) -> None:
        """Raises ValueError or KeyError if the arrays cannot be a result of `fit`."""
        size, n = self.arrays["last/mean"].size, self.arrays["tails/distance"].size
        shapes = {"last/mean": (size,), "last/whitening": (size, size), "tails/distance": (n,), "brown": (2,)}
        shapes |= {"line": (2,), "tails/residual": (n,)} if has_likelihood else {}
        for name, shape in shapes.items():
            if self.arrays[name].shape != shape or not np.isfinite(self.arrays[name]).all():
                raise ValueError(f"{name}: wrong shape or not finite")

    def score(self, measures: Measures) -> np.ndarray:
        """Returns (n,) float32, higher = more anomalous."""
        return (self._statistic(measures) / self.arrays["brown"][0]).astype(np.float32)

    def p_value(self, measures: Measures) -> np.ndarray:
        """Returns the (n,) p-values: the share of inliers with a score at least as high."""
        scale, freedom = self.arrays["brown"]
        return scipy.stats.chi2.sf(self._statistic(measures) / scale, freedom)

    def _statistic(self, measures: Measures) -> np.ndarray:
        gaussian = Gaussian(self.arrays["last/mean"], self.arrays["last/whitening"])
        return -2 * _log_ps(gaussian.distance(measures.last), measures, self.arrays).sum(axis=1)


def fit(measures: Measures, axes: np.ndarray | None = None) -> JointScore:
    """Fits the score on held-out images.

    Args:
      measures: of n >= 50 images.
      axes: (D, D), `white_axes` of training images' features of the last layer.

    Returns:
      The score. Distances of the images it is fitted on are cross-fitted, as in `held_out_distance`.
    """
    gaussian, distance = Gaussian.fit(measures.last, axes), held_out_distance(measures.last, axes)
    arrays = {"last/mean": gaussian.mean, "last/whitening": gaussian.whitening}
    arrays["tails/distance"] = Tails.fit(distance).values
    if measures.nll is not None:
        arrays["line"] = robust_line(measures.code_length, measures.nll)
        arrays["tails/residual"] = Tails.fit(_residual(measures, arrays["line"])).values
    return JointScore(arrays | {"brown": _brown(_log_ps(distance, measures, arrays))})


def _residual(measures: Measures, line: np.ndarray) -> np.ndarray:
    return measures.nll - line[0] * measures.code_length - line[1]


def _log_ps(distance: np.ndarray, measures: Measures, arrays: dict[str, np.ndarray]) -> np.ndarray:
    """Returns (n, 2) ln p of distance and residual, (n, 1) without a likelihood."""
    found = [Tails(arrays["tails/distance"]).log_above(distance)]
    if measures.nll is not None:
        found.append(Tails(arrays["tails/residual"]).log_two_sided(_residual(measures, arrays["line"])))
    return np.stack(found, axis=1)


def _brown(log_ps: np.ndarray) -> np.ndarray:
    """Returns (2,) scale and degrees of freedom of the chi-square for -2 times the sum of k logarithms (Brown 1975)."""
    k = log_ps.shape[1]
    if k == 1 or abs(correlation := np.corrcoef(log_ps.T)[0, 1]) <= CORRELATED or math.isnan(correlation):
        return np.array([1.0, 2.0 * k])
    mean, variance = 2.0 * k, 4.0 * k + 2 * np.cov(-2 * log_ps.T)[0, 1]
    return np.array([variance / (2 * mean), 2 * mean**2 / variance])
