"""Are samples copies? Their distances to the nearest training images, beside those of the test images.

Dimensions: n images, H W C image, D features.
"""

import dataclasses
import hashlib

import numpy as np

from hybrid_jax.evaluators.prdc import nearest_distance

PERCENTILE = 1


@dataclasses.dataclass(frozen=True)
class NearCopies:
    """Training images in some features, and how near to them images are that are no copies.

    Attributes:
      train: (n, D) float32 features of the training images.
      test_distances: (m,) float64, of each test image to its nearest training image.
    """

    train: np.ndarray
    test_distances: np.ndarray

    @classmethod
    def of(cls, train: np.ndarray, test: np.ndarray) -> "NearCopies":
        """Measures (m, D) features of test images against (n, D) ones of training images."""
        return cls(train, nearest_distance(test, train)[0])

    @property
    def threshold(self) -> float:
        """What 99 % of the test images lie further away than."""
        return float(np.percentile(self.test_distances, PERCENTILE))

    def measure(self, samples: np.ndarray) -> tuple[np.ndarray, dict[str, float]]:
        """Measures (m, D) features of samples.

        Returns:
          (m,) bool, whether it is as near to a training image as the threshold; and the median distances of the
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
