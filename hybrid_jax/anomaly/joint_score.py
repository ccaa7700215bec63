"""The joint anomaly scores J1 and J2, and the Gaussians, tails and code lengths that they are made of.

Statistics of an image: `distance`, squared Mahalanobis distance of the last layer's features, which are whitened by
their principal axes first (a Ledoit-Wolf covariance alone would blur directions of little variance); `residual`,
negative log-likelihood less a robust line over the code length; `nll`; `worst_patch`, the largest negative
log-likelihood of a patch; `middle`, the distance at the middle layer; `norm`, the length of the last layer's features.
Distances stand for log-densities: of one Gaussian the one is a falling function of the other.

J1 = -2 (ln p of `distance`, upper tail + ln p of `residual`, two-sided), with Brown's correction where the two
correlate; J2 = the squared distance of all six's normal scores from their Gaussian.

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
_ENOUGH = 10  # images a dimension, for a covariance without shrinkage
_LINE_IMAGES = 2000
_BYTE = 8 * math.log(2)  # nats
KINDS = ("J1", "J2")
LAYERS = ("middle", "last")
CORRELATED = 0.3
FEWEST_IMAGES = 50
_FEATURE_STATISTICS = ("distance", "middle", "norm")
_LIKELIHOOD_STATISTICS = ("residual", "nll", "worst_patch")


@dataclasses.dataclass(frozen=True)
class Gaussian:
    """A normal distribution of features with a Ledoit-Wolf covariance.

    Attributes:
      mean: (D,) float64.
      whitening: (D, D) float64, its principal axes, each divided by the deviation along it.
    """

    mean: np.ndarray
    whitening: np.ndarray

    @classmethod
    def fit(cls, x: np.ndarray, axes: np.ndarray | None = None) -> "Gaussian":
        """Fits (n, D) features, n >= 2.

        Args:
          x: the features.
          axes: (D, D), as `white_axes` gives them; the covariance is shrunk towards that of the features they were
            found in, rather than towards a sphere, which would blur directions in which features hardly vary.
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
    """Returns (D, D) float64, the principal axes of (n, D) features, each divided by the deviation along it.

    Below ten images a dimension the covariance is Ledoit and Wolf's.
    """
    x = np.asarray(x, np.float64)
    if len(x) < _ENOUGH * x.shape[1]:
        return Gaussian.fit(x).whitening
    return _whitening(np.atleast_2d(np.cov(x.T)))


def _whitening(covariance: np.ndarray) -> np.ndarray:
    values, vectors = scipy.linalg.eigh(covariance)
    # Of features that are all constant nothing can be divided by.
    floor = max(values[-1] * 1e-12, 1e-12)
    return vectors / np.sqrt(np.maximum(values, floor))


def held_out_distance(x: np.ndarray, axes: np.ndarray | None = None, folds: int = FOLDS) -> np.ndarray:
    """Returns each row's (n,) squared distance from a Gaussian fitted without its tenth of the (n, D) features.

    Of the rows it was fitted on, a Gaussian gives distances that are too short. `axes` as in `Gaussian.fit`.
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
        """Returns ln P(X >= x), (n,) float64 and finite however far out x lies."""
        return _log_above(self.values, x)

    def log_below(self, x: np.ndarray) -> np.ndarray:
        """Returns ln P(X <= x), likewise."""
        return _log_above(-self.values[::-1], -np.asarray(x))

    def log_two_sided(self, x: np.ndarray) -> np.ndarray:
        """Returns the logarithm of twice the smaller of both, at most 0."""
        return np.minimum(0, math.log(2) + np.minimum(self.log_above(x), self.log_below(x)))

    def normal_score(self, x: np.ndarray) -> np.ndarray:
        """Returns the standard normal quantiles of x's places, finite however far out x lies."""
        above, below = self.log_above(x), self.log_below(x)
        return np.where(above < below, -scipy.special.ndtri_exp(above), scipy.special.ndtri_exp(below))


def _log_above(ordered: np.ndarray, x: np.ndarray) -> np.ndarray:
    n, x = len(ordered), np.asarray(x, np.float64)
    share = 1 - (np.arange(n) + 0.5) / n
    first = min(n - 2, max(0, math.floor((1 - _TAIL) * n)))
    edge, beyond = ordered[first], ordered[first + 1 :] - ordered[first]
    # Where the largest values are equal the tail has no length of its own.
    scale = max(beyond.mean(), 1e-6 * (ordered[-1] - ordered[0]), 1e-12)
    inner = np.log(np.interp(x, ordered, share))
    return np.where(x > edge, math.log(share[first]) - (x - edge) / scale, inner)


def robust_line(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Returns (2,) float64, slope and intercept of y over x by Theil and Sen's medians; of a constant x slope 0."""
    x, y = np.asarray(x[:_LINE_IMAGES], np.float64), np.asarray(y[:_LINE_IMAGES], np.float64)
    slope = 0.0 if np.ptp(x) == 0 else float(scipy.stats.theilslopes(y, x).slope)
    return np.array([slope, np.median(y - slope * x)])


def code_length(images: np.ndarray) -> np.ndarray:
    """Returns how long the images' PNG files are beyond that of a black image.

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
    """What a model and a code say of n images.

    Attributes:
      middle, last: (n, D) float32 features.
      nll: (n,) float64, nats; None where the model has no likelihood.
      worst_patch: (n,) float64, nats, of the least likely patch; None likewise.
      code_length: (n,) float64, nats.
    """

    middle: np.ndarray
    last: np.ndarray
    nll: np.ndarray | None
    worst_patch: np.ndarray | None
    code_length: np.ndarray

    def __len__(self) -> int:
        return len(self.last)

    def take(self, rows) -> "Measures":
        """Returns those of some images, by index, slice or mask."""
        values: dict[str, Any] = vars(self)
        taken: dict[str, Any] = {name: None if value is None else value[rows] for name, value in values.items()}
        return Measures(**taken)


@dataclasses.dataclass(frozen=True)
class JointScore:
    """A fitted score.

    Attributes:
      kind: J1 or J2.
      arrays: what was fitted, by name.
      about: on how many images of which split, and how the kind was chosen.
    """

    kind: str
    arrays: dict[str, np.ndarray]
    about: dict = dataclasses.field(default_factory=dict)

    def check(self, has_likelihood: bool) -> None:
        """Raises ValueError or KeyError where the arrays are not what `fit` makes."""
        names = _LIKELIHOOD_STATISTICS * has_likelihood + _FEATURE_STATISTICS
        if self.kind not in KINDS or any(not np.isfinite(values).all() for values in self.arrays.values()):
            raise ValueError("no such score")
        sizes = {"normal": len(names)} | {name: self.arrays[f"{name}/mean"].size for name in LAYERS}
        shapes: dict[str, tuple[int, ...]] = {f"{name}/mean": (size,) for name, size in sizes.items()}
        shapes |= {f"{name}/whitening": (size, size) for name, size in sizes.items()}
        shapes |= {f"tails/{name}": (self.arrays["tails/distance"].size,) for name in names} | {"brown": (2,)}
        shapes |= {"line": (2,)} if has_likelihood else {}
        if {name: values.shape for name, values in self.arrays.items()} != shapes:
            raise ValueError("arrays of other shapes")

    def score(self, measures: Measures, kind: str | None = None) -> np.ndarray:
        """Returns (n,) float32, higher = more anomalous; by another kind than the chosen one if asked."""
        parts = _parts(measures, self.arrays)
        if (kind or self.kind) == "J2":
            return self._gaussian("normal").distance(_normal_scores(parts, self.arrays)).astype(np.float32)
        return (-2 * self._log_ps(parts).sum(axis=1) / self.arrays["brown"][0]).astype(np.float32)

    def p_value(self, measures: Measures) -> np.ndarray:
        """Returns J1's (n,) p-value: the share of images of the data that score as high."""
        statistic = -2 * self._log_ps(_parts(measures, self.arrays)).sum(axis=1)
        scale, freedom = self.arrays["brown"]
        return scipy.stats.chi2.sf(statistic / scale, freedom)

    def _log_ps(self, parts: dict[str, np.ndarray]) -> np.ndarray:
        return _log_ps(parts, self.arrays)

    def _gaussian(self, name: str) -> Gaussian:
        return _gaussian(self.arrays, name)


def fit(measures: Measures, kind: str = "J1", axes: dict[str, np.ndarray] | None = None) -> JointScore:
    """Fits both scores on images of the data that were not trained on.

    Args:
      measures: of n >= 50 images.
      kind: which of the two `score` gives.
      axes: (D, D) of the layers `middle` and `last`, as `anomaly_parts.white_axes` finds them in training images.

    Returns:
      The score. Distances of the images it is fitted on are taken from Gaussians that did not see them.
    """
    arrays: dict[str, np.ndarray] = {}
    known: dict = axes or dict.fromkeys(LAYERS)
    for name in LAYERS:
        gaussian = Gaussian.fit(getattr(measures, name), known[name])
        arrays |= {f"{name}/mean": gaussian.mean, f"{name}/whitening": gaussian.whitening}
    if measures.nll is not None:
        arrays["line"] = robust_line(measures.code_length, measures.nll)
    held_out = {
        "distance": held_out_distance(measures.last, known["last"]),
        "middle": held_out_distance(measures.middle, known["middle"]),
    }
    parts = _parts(measures, arrays) | held_out
    arrays |= {f"tails/{name}": Tails.fit(values).values for name, values in parts.items()}
    arrays["brown"] = _brown(_log_ps(parts, arrays))
    gaussian = Gaussian.fit(_normal_scores(parts, arrays))
    return JointScore(kind, arrays | {"normal/mean": gaussian.mean, "normal/whitening": gaussian.whitening})


def _parts(measures: Measures, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns {statistic: (n,) float64}; without a likelihood three of the six."""
    parts = {
        "distance": _gaussian(arrays, "last").distance(measures.last),
        "middle": _gaussian(arrays, "middle").distance(measures.middle),
        "norm": np.linalg.norm(measures.last.astype(np.float64), axis=1),
    }
    if measures.nll is None or measures.worst_patch is None:
        return parts
    slope, intercept = arrays["line"]
    residual = measures.nll - slope * measures.code_length - intercept
    return parts | {"residual": residual, "nll": measures.nll, "worst_patch": measures.worst_patch}


def _log_ps(parts: dict[str, np.ndarray], arrays: dict[str, np.ndarray]) -> np.ndarray:
    """Returns (n, 2) ln p of distance and residual, (n, 1) without a likelihood."""
    found = [Tails(arrays["tails/distance"]).log_above(parts["distance"])]
    if "residual" in parts:
        found.append(Tails(arrays["tails/residual"]).log_two_sided(parts["residual"]))
    return np.stack(found, axis=1)


def _normal_scores(parts: dict[str, np.ndarray], arrays: dict[str, np.ndarray]) -> np.ndarray:
    names = sorted(parts)
    return np.stack([Tails(arrays[f"tails/{name}"]).normal_score(parts[name]) for name in names], axis=1)


def _brown(log_ps: np.ndarray) -> np.ndarray:
    """Returns (2,): -2 times the sum of k logarithms is scale * chi-square of this freedom (Brown 1975)."""
    k = log_ps.shape[1]
    if k == 1 or abs(correlation := np.corrcoef(log_ps.T)[0, 1]) <= CORRELATED or math.isnan(correlation):
        return np.array([1.0, 2.0 * k])
    mean, variance = 2.0 * k, 4.0 * k + 2 * np.cov(-2 * log_ps.T)[0, 1]
    return np.array([variance / (2 * mean), 2 * mean**2 / variance])


def _gaussian(arrays: dict[str, np.ndarray], name: str) -> Gaussian:
    return Gaussian(arrays[f"{name}/mean"], arrays[f"{name}/whitening"])
