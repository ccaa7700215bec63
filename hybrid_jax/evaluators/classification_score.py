"""Classification accuracy score (Ravuri & Vinyals 2019, arXiv 1905.10887) of samples without classes.

A classifier is fitted to samples and judged on real images: it can be good only if the samples show every class as it
is. That paper's models draw a class each was asked for; ours are unconditional, so a labeller, a classifier fitted to
real training images and their labels, says what each sample shows.

The labeller reads raw pixels and the classifier a frozen encoder's features, on purpose: were both of one kind, the
classifier would copy the labeller even from noise (on Fashion-MNIST, both on `random-conv-v1`: .44 from uniform
noise, which this pairing holds at .11, chance being .10).

Dimensions: n images, D features.
"""

import dataclasses

import numpy as np

from hybrid_jax.evaluators.features import Skipped, raw_pixels
from hybrid_jax.evaluators.logistic import LogisticRegression, solver

LABELLER_IMAGES = 10_000
LABELLER_C, CLASSIFIER_C, MAX_ITERATIONS = 0.01, 0.1, 300


@dataclasses.dataclass(frozen=True)
class Standardised:
    """Logistic regression on features shifted and scaled by the mean and deviation of those it was fitted to."""

    mean: np.ndarray
    scale: np.ndarray
    fitted: LogisticRegression

    @classmethod
    def fit(cls, x: np.ndarray, labels: np.ndarray, c: float) -> "Standardised":
        """Fits to (n, D) features and (n,) labels; raises Skipped where these hold one class only."""
        mean, scale = x.mean(axis=0), x.std(axis=0)
        scale[scale < 1e-6] = 1
        x = (x - mean) / scale
        (fitted,) = solver(x)(x, labels, [c], MAX_ITERATIONS)
        return cls(mean, scale, fitted)

    def predict(self, x: np.ndarray) -> np.ndarray:
        """(n, D) -> (n,) labels."""
        return self.fitted.predict((x - self.mean) / self.scale)


def fit_labeller(images: np.ndarray, labels: np.ndarray) -> Standardised:
    """Fits the labeller to the raw pixels of the first 10,000 of (n, H, W, C) uint8 images."""
    chosen = slice(LABELLER_IMAGES)
    return Standardised.fit(raw_pixels(images[chosen]), labels[chosen], LABELLER_C)


def score(x: np.ndarray, said: np.ndarray, real: dict[str, tuple[np.ndarray, np.ndarray]]) -> dict[str, np.ndarray]:
    """Fits the classifier to samples and judges it on real images.

    Args:
      x: (n, D) features of samples.
      said: (n,) what the labeller says of them.
      real: {split: features (m, D), labels (m,)}.

    Returns:
      {split: (m,) bool}, whether it names the real image's class; where the labeller finds one class only, that
      class is its answer to everything.
    """
    try:
        answers = Standardised.fit(x, said, CLASSIFIER_C).predict
    except Skipped:
        answers = lambda x: np.full(len(x), said[0])
    return {split: answers(queries) == labels for split, (queries, labels) in real.items()}
