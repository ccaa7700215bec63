"""Measures of a set of images: their likeness to training images, copies among them, what a classifier learns of them.

Dimensions: n images, D features.
"""

import dataclasses
import functools
from collections.abc import Callable

import numpy as np

from hybrid_jax.evaluators import classification_score
from hybrid_jax.evaluators.features import Skipped, has_split, raw_pixels
from hybrid_jax.evaluators.frechet import frechet_distance
from hybrid_jax.evaluators.frozen_encoder import FrozenEncoder
from hybrid_jax.evaluators.near_copies import NearCopies, count_copies
from hybrid_jax.evaluators.prdc import precision_recall_density_coverage

K = 5
PIXELS, FEATURES = "in pixels", "in features"


@dataclasses.dataclass(frozen=True)
class Score:
    """A measure of a set of images.

    Attributes:
      metric, variant: what it is called; most have one variant, named "".
      split: whose images are compared with.
      values: (m,) what each image adds; their mean is the value.
      told: what else is known.
    """

    metric: str
    variant: str
    split: str
    values: np.ndarray
    told: dict = dataclasses.field(default_factory=dict)


class Judge:
    """What sets of n images are measured against, prepared when first needed.

    Attributes:
      n: how many images the sets have.
      encoder: the frozen one.
      shown: takes (n, H, W, C) uint8 images; returns them as the judged model's tokens show them.
    """

    def __init__(self, data, n: int, encoder: FrozenEncoder, shown: Callable[[np.ndarray], np.ndarray]):
        """Takes a data set with training and test images, of the former at least 2 n."""
        self._data, self.n, self.encoder, self.shown = data, n, encoder, shown

    def likeness(self, images: np.ndarray) -> list[Score]:
        """Compares (n, H, W, C) uint8 images with the first n training images."""
        x, real = self.encoder.embed(images), self._bank[: self.n]
        near = precision_recall_density_coverage(real, x, K)
        distance = Score("frechet_distance", "", "train", np.array([frechet_distance(real, x)]))
        return [distance, *(Score(name, "", "train", values, {"k": K}) for name, values in near.items())]

    def copies(self, images: np.ndarray) -> list[Score]:
        """Looks for copies of training images among (n, H, W, C) uint8 images; see `near_copies`.

        All as tokens show it: a copy in a palette's colours is a copy.
        """
        images = self.shown(images)
        exact = {"exact_copies": count_copies(images, self.shown(self._data.train.images))}
        scores = []
        for variant, (embed, near) in self._near.items():
            hits, medians = near.measure(embed(images))
            scores.append(Score("near_copy_share", variant, "train", hits, {**exact, **medians}))
        return scores

    def classification(self, images: np.ndarray) -> list[Score]:
        """Fits a classifier to (n, H, W, C) uint8 images as the labeller names them, judged on real ones.

        Raises:
          Skipped: no labels, or one class only.
        """
        said, name = self._labeller.predict(raw_pixels(images)), "classification_accuracy_score"
        hits = classification_score.score(self.encoder.embed(images), said, self._labelled)
        told = {"labeller_accuracy": self._labeller_accuracy, "labelled_classes": len(np.unique(said))}
        return [Score(name, "", split, values, {**told, "n_real": len(values)}) for split, values in hits.items()]

    @functools.cached_property
    def _bank(self) -> np.ndarray:
        """Features of all training images."""
        return self.encoder.embed(self._data.train.images)

    @functools.cached_property
    def _near(self) -> dict[str, tuple[Callable, NearCopies]]:
        """How images become the features in which copies are looked for, and what they are compared with."""
        train, test = self._data.train.images, self.shown(self._data.test.images)
        shown = self.shown(train)
        bank = self._bank if shown is train else self.encoder.embed(shown)
        pixels = NearCopies.of(raw_pixels(shown), raw_pixels(test))
        return {
            PIXELS: (raw_pixels, pixels),
            FEATURES: (self.encoder.embed, NearCopies.of(bank, self.encoder.embed(test))),
        }

    @functools.cached_property
    def _labeller(self) -> classification_score.Standardised:
        """Fitted to training images that are not the reference, which may take the samples' place."""
        train = self._data.train
        if train.labels is None or self._data.test.labels is None:
            raise Skipped("the data has no labels for a classification accuracy score")
        return classification_score.fit_labeller(train.images[self.n :], train.labels[self.n :])

    @functools.cached_property
    def _labeller_accuracy(self) -> float:
        test = self._data.test
        return float(np.mean(self._labeller.predict(raw_pixels(test.images)) == test.labels))

    @functools.cached_property
    def _labelled(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Features and labels of the test and, where it has labels, the validation split."""
        splits = {s: getattr(self._data, s) for s in ("test", "validation") if has_split(self._data, s)}
        return {s: (self.encoder.embed(x.images), x.labels) for s, x in splits.items() if x.labels is not None}
