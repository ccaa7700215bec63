"""The joint anomaly scores J1 and J2: what features, likelihood and code length say together.

Statistics of an image: `distance`, squared Mahalanobis distance of the last layer's features, which are whitened by
their principal axes first (a Ledoit-Wolf covariance alone would blur directions of little variance); `residual`,
negative log-likelihood less a robust line over the code length; `nll`; `worst_patch`, the largest negative
log-likelihood of a patch; `middle`, the distance at the middle layer; `norm`, the length of the last layer's features.
Distances stand for log-densities: of one Gaussian the one is a falling function of the other.

J1 = -2 (ln p of `distance`, upper tail + ln p of `residual`, two-sided), with Brown's correction where the two
correlate; J2 = the squared distance of all six's normal scores from their Gaussian.

Dimensions: n images, D features.
"""

import dataclasses
import math
from typing import Any

import numpy as np
import scipy.stats

from hybrid_jax.anomaly_parts import Gaussian, Tails, held_out_distance, robust_line

KINDS = ("J1", "J2")
LAYERS = ("middle", "last")
CORRELATED = 0.3
FEWEST_IMAGES = 50
_FEATURE_STATISTICS = ("distance", "middle", "norm")
_LIKELIHOOD_STATISTICS = ("residual", "nll", "worst_patch")


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
