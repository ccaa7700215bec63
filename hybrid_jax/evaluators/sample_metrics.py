"""Metrics of samples: precision and recall, Frechet distance, memorization, classification accuracy score.

Precision, recall, density and coverage. Every image is the centre of a ball that reaches to its k-th nearest other
image of the same set; the union of the balls estimates the support of the set. Precision and recall: Kynkaanniemi et
al. 2019 (arXiv 1904.06991). Density and coverage: Naeem et al. 2020 (arXiv 2002.09797), as in the authors' code, where
a point on the edge of a ball lies outside.

Frechet distance between two sets of features, each modelled as a Gaussian (Dowson & Landau 1982).

Memorization: distances of samples to the nearest training images, compared with those of the test images.

Classification accuracy score (Ravuri & Vinyals 2019, arXiv 1905.10887): a classifier fitted to samples is tested on
real images; it can be accurate only if the samples represent every class. That paper's models are class-conditional;
ours are not, so a labeller, a classifier fitted to real training images and their labels, labels each sample. The
labeller reads raw pixels and the classifier a frozen encoder's features: on the same features, the classifier would
copy the labeller even from noise (on Fashion-MNIST with `random-conv-v1` for both: .44 from uniform noise, against .11
with this pairing and .10 at chance).

Dimensions: n real images, m samples, D features, H W C image.
"""

import dataclasses
import hashlib
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from hybrid_jax.evaluators.features import Skipped, raw_pixels
from hybrid_jax.evaluators.logistic import LogisticRegression, solver
from hybrid_jax.utils import runtime

ROWS_AT_ONCE = 500
PERCENTILE = 1
LABELLER_IMAGES = 10_000
LABELLER_C, CLASSIFIER_C, MAX_ITERATIONS = 0.01, 0.1, 300


def precision_recall_density_coverage(real: np.ndarray, samples: np.ndarray, k: int) -> dict[str, np.ndarray]:
    """Returns the contribution of each image to the four metrics, which are their means.

    Memory grows with 500 * max(n, m), not with n * m.

    Args:
      real: (n, D) features, n > k.
      samples: (m, D) features, m > k.
      k: the neighbour that sets the radius of a ball.

    Returns:
      `precision` (m,) bool, whether the sample lies in a ball of a real image;
      `recall` (n,) bool, whether the real image lies in a ball of a sample;
      `density` (m,) float64, in how many balls of real images the sample lies, over k;
      `coverage` (n,) bool, whether a sample lies in the real image's ball.
    """
    real, samples = _centred(real, samples)
    # Rounding must not decide whether a point on the edge of a ball lies inside.
    real_radii, sample_radii = (radii(x, k) * (1 - 1e-9) for x in (real, samples))
    density, recall, coverage = [], np.zeros(len(real), bool), np.zeros(len(real), bool)
    for rows, squares in _snapped(samples, real):
        inside = squares < real_radii
        density.append(inside.sum(axis=1) / k)
        coverage |= inside.any(axis=0)
        recall |= (squares < sample_radii[rows, None]).any(axis=0)
    whole = np.concatenate(density)
    return {"precision": whole > 0, "recall": recall, "density": whole, "coverage": coverage}


def radii(x: np.ndarray, k: int) -> np.ndarray:
    """Returns the (n,) float64 squared distance of each of (n, D) points to its k-th nearest other point."""
    found = []
    for rows, squares in _snapped(x, x):
        # A point is its own nearest neighbour, even if others are equal to it.
        squares[np.arange(len(squares)), np.arange(rows.start, rows.stop)] = -1
        squares.partition(k, axis=1)
        # A view would keep all distances in memory.
        found.append(squares[:, k].copy())
    return np.concatenate(found)


def nearest_distance(queries: np.ndarray, bank: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Finds each query's nearest row of a bank by Euclidean distance.

    Memory grows with 500 * n, not with m * n.

    Args:
      queries: (m, D).
      bank: (n, D); of equally near rows the first is returned.

    Returns:
      (m,) float64 distances and (m,) rows of the bank. The search is done in the inputs' precision: within rounding,
      another row may be returned.
    """
    rows = (_nearest_on_device if runtime.on_accelerator() else _nearest_rows)(queries, bank)
    distances = [
        np.linalg.norm(queries[part].astype(np.float64) - bank[rows[part]], axis=1)
        for part in np.array_split(np.arange(len(queries)), -(-len(queries) // ROWS_AT_ONCE))
    ]
    return np.concatenate(distances), rows


def _nearest_rows(queries: np.ndarray, bank: np.ndarray) -> np.ndarray:
    return np.concatenate([squares.argmin(axis=1) for _, squares in _squared_distances(queries, bank)])


def _nearest_on_device(queries: np.ndarray, bank: np.ndarray) -> np.ndarray:
    """As `_nearest_rows`, in float32 and in batches of one shape."""
    bank = jax.device_put(np.asarray(bank, np.float32))
    filled = np.pad(queries.astype(np.float32), ((0, -len(queries) % ROWS_AT_ONCE), (0, 0)))
    parts = [np.asarray(_nearest(part, bank)) for part in filled.reshape(-1, ROWS_AT_ONCE, filled.shape[1])]
    return np.concatenate(parts)[: len(queries)]


@jax.jit
def _nearest(queries: jax.Array, bank: jax.Array) -> jax.Array:
    products = jnp.matmul(queries, bank.T, precision=jax.lax.Precision.HIGHEST)
    return jnp.argmin(jnp.sum(jnp.square(bank), axis=1) - 2 * products, axis=1)


def _centred(real: np.ndarray, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same points in float64, centred on the mean of the real ones to avoid cancellation in distances."""
    mean = real.mean(axis=0, dtype=np.float64)
    return real - mean, samples - mean


def _snapped(a: np.ndarray, b: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Yields the squared distances, 0 where they are within rounding, so that equal points have distance 0."""
    largest = max(float(np.einsum("nd,nd->n", x, x).max()) for x in (a, b))
    for rows, squares in _squared_distances(a, b):
        squares[squares < 1e-13 * largest] = 0
        yield rows, squares


def _squared_distances(a: np.ndarray, b: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Yields rows of `a` and their (rows, len(b)) squared distances to all of `b`, in the inputs' dtype."""
    b_squares = np.einsum("nd,nd->n", b, b)
    for start in range(0, len(a), ROWS_AT_ONCE):
        chunk = a[start : start + ROWS_AT_ONCE]
        squares = chunk @ b.T
        squares *= -2
        squares += b_squares
        squares += np.einsum("nd,nd->n", chunk, chunk)[:, None]
        yield slice(start, start + len(chunk)), squares


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Returns |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)), m means and C covariances.

    It is biased upwards for few images, more so with more features: compare values of equal n only.

    Args:
      a: (n, D) features, n >= 2.
      b: (m, D) features, m >= 2.

    Returns:
      The distance, in squared units of the features, at least 0; 0 for equal sets up to rounding.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    between = a.mean(axis=0) - b.mean(axis=0)
    first, second = (np.atleast_2d(np.cov(x, rowvar=False)) for x in (a, b))
    values, vectors = np.linalg.eigh(first)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    # (C_a C_b)^(1/2) has the trace of the root of this matrix, which is symmetric: its root is real, and covariances
    # may be singular.
    eigenvalues = np.linalg.eigvalsh(root @ second @ root)
    cross = np.sqrt(np.maximum(eigenvalues, 0)).sum()
    return max(0.0, float(between @ between + np.trace(first) + np.trace(second) - 2 * cross))


@dataclasses.dataclass(frozen=True)
class Memorization:
    """Features of the training images, and the distances from them of the test images, which are no copies.

    Attributes:
      train: (n, D) float32 features of the training images.
      test_distances: (m,) float64, of each test image to its nearest training image.
    """

    train: np.ndarray
    test_distances: np.ndarray

    @classmethod
    def of(cls, train: np.ndarray, test: np.ndarray) -> "Memorization":
        """Measures (m, D) features of test images against (n, D) ones of training images."""
        return cls(train, nearest_distance(test, train)[0])

    @property
    def threshold(self) -> float:
        """The distance that 99 % of the test images exceed."""
        return float(np.percentile(self.test_distances, PERCENTILE))

    def measure(self, samples: np.ndarray) -> tuple[np.ndarray, dict[str, float]]:
        """Measures (m, D) features of samples.

        Returns:
          (m,) bool, whether a sample is within the threshold of a training image; and the median distances of the
          samples and of the test images.
        """
        distances, _ = nearest_distance(samples, self.train)
        medians = {
            "median_distance": float(np.median(distances)),
            "test_median_distance": float(np.median(self.test_distances)),
        }
        return distances <= self.threshold, medians


def count_copies(images: np.ndarray, train: np.ndarray) -> int:
    """Returns how many of (m, H, W, C) uint8 images equal one of (n, H, W, C) in every pixel."""
    digest = lambda image: hashlib.blake2b(image.tobytes(), digest_size=16).digest()
    known = set(map(digest, train))
    return sum(digest(image) in known for image in images)


@dataclasses.dataclass(frozen=True)
class Standardised:
    """Logistic regression on features standardised by the mean and deviation of those it was fitted to."""

    mean: np.ndarray
    scale: np.ndarray
    fitted: LogisticRegression

    @classmethod
    def fit(cls, x: np.ndarray, labels: np.ndarray, c: float) -> "Standardised":
        """Fits to (n, D) features and (n,) labels; raises Skipped if these hold one class only."""
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
    """Fits the classifier to samples and tests it on real images.

    Args:
      x: (n, D) features of samples.
      said: (n,) labels that the labeller predicts for them.
      real: {split: features (m, D), labels (m,)}.

    Returns:
      {split: (m,) bool}, whether the real image is classified correctly; if the labeller predicts one class only, that
      class is predicted for every image.
    """
    try:
        answers = Standardised.fit(x, said, CLASSIFIER_C).predict
    except Skipped:
        answers = lambda x: np.full(len(x), said[0])
    return {split: answers(queries) == labels for split, (queries, labels) in real.items()}
