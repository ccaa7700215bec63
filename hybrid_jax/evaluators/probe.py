"""The fitted linear probe, shared by the evaluators that ask for more than its accuracy.

It is fitted once per set of features: the store of an evaluation keeps it.

Dimensions: n images, D features, K classes.
"""

import dataclasses

import numpy as np

from hybrid_jax.evaluators.features import FeatureStore, raw_pixels
from hybrid_jax.evaluators.logistic import LogisticRegression, solver


@dataclasses.dataclass(frozen=True)
class FittedProbe:
    """A linear probe with the standardisation of its features.

    Attributes:
      mean, deviation: (D,) float32 of the training split's features.
      classifier: fitted to training and validation images.
      held_out: fitted to training images alone at the same C, so that validation images are new to it.
      c: inverse penalty.
      n_train: images that `classifier` was fitted to.
      validation_accuracy: of `held_out`; None where there is no validation split.
    """

    mean: np.ndarray
    deviation: np.ndarray
    classifier: LogisticRegression
    held_out: LogisticRegression
    c: float
    n_train: int
    validation_accuracy: float | None

    def predict(self, x: np.ndarray) -> np.ndarray:
        """(n, D) -> (n,) labels."""
        return self.classifier.predict(self._standardised(x))

    def logits(self, x: np.ndarray) -> np.ndarray:
        """(n, D) -> (n, K) float32, in the order of `classifier.classes`."""
        return self.classifier.logits(self._standardised(x))

    def held_out_logits(self, x: np.ndarray) -> np.ndarray:
        """(n, D) -> (n, K) float32 of `held_out`, in the order of its classes."""
        return self.held_out.logits(self._standardised(x))

    def _standardised(self, x: np.ndarray) -> np.ndarray:
        return ((x - self.mean) / self.deviation).astype(np.float32)


def fit(parts: dict[str, np.ndarray], labels: dict[str, np.ndarray], c_values, max_iterations: int) -> FittedProbe:
    """Fits the probe: C by validation accuracy (ties: the smaller), then a refit on both splits at that C.

    Args:
      parts: {split: (n, D)} for `train` and, where there is one, `validation`; others are not read.
      labels: {split: (n,)} likewise.
      c_values: inverse penalties; without a validation split the middle one is used.
      max_iterations: limit of the solver in each fit.

    Raises:
      Skipped: one class only.
    """
    mean, deviation = moments(parts["train"])
    seen = [split for split in ("train", "validation") if split in parts]
    x = {split: ((parts[split] - mean) / deviation).astype(np.float32) for split in seen}
    solve = solver(x["train"])
    tried = sorted(c_values) if "validation" in x else [middle(c_values)]
    fits = solve(x["train"], labels["train"], tried, max_iterations)
    if "validation" not in x:
        return FittedProbe(mean, deviation, fits[0], fits[0], float(tried[0]), len(x["train"]), None)
    scores = [np.mean(fitted.predict(x["validation"]) == labels["validation"]) for fitted in fits]
    best = int(np.argmax(scores))
    x_seen, y_seen = (np.concatenate([source[split] for split in seen]) for source in (x, labels))
    (last,) = solve(x_seen, y_seen, [tried[best]], max_iterations)
    return FittedProbe(mean, deviation, last, fits[best], float(tried[best]), len(y_seen), float(scores[best]))


def moments(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns mean and deviation, (D,), of (n, D) features; a constant feature has deviation 1."""
    mean, deviation = x.mean(axis=0), x.std(axis=0)
    deviation[deviation < 1e-6] = 1
    return mean, deviation


def middle(c_values) -> float:
    """Returns the middle of the values, the lower one of two."""
    ordered = sorted(c_values)
    return ordered[(len(ordered) - 1) // 2]


def of_layers(features: FeatureStore, labels: dict[str, np.ndarray], layers, settings) -> FittedProbe:
    """Returns the probe on some layers side by side.

    Args:
      features: where it is kept.
      labels: {split: (n,)}; of `train` and, where there are some, `validation`.
      layers: their names.
      settings: `config.eval.linear_probe`.

    Raises:
      Skipped: one class only.
    """
    part = lambda split: np.concatenate([features.layers(split)[name] for name in layers], axis=1)
    return _kept(features, labels, ("layers", *layers), part, settings)


def of_pixels(features: FeatureStore, labels: dict[str, np.ndarray], settings) -> FittedProbe:
    """Returns the probe on raw pixels, the floor; arguments as in `of_layers`."""
    part = lambda split: raw_pixels(getattr(features.data, split).images)
    return _kept(features, labels, ("raw pixels",), part, settings)


def _kept(features: FeatureStore, labels, name: tuple, part, settings) -> FittedProbe:
    grid, limit = grid_of(settings), settings.max_iterations
    seen = [split for split in labels if split != "test"]
    compute = lambda: fit({split: part(split) for split in seen}, labels, grid, limit)
    return features.once(("probe", name, grid, limit), compute)


def grid_of(settings) -> tuple[float, ...]:
    """Returns the inverse penalties of `config.eval.linear_probe`, ascending."""
    return tuple(sorted(float(c) for c in settings.c_values))
