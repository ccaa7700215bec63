"""Scores that `ood` compares: those of the model, and trivial ones as floors.

All are fitted on the training or the validation split; higher = more anomalous.

Dimensions: n images, D features, H W C image.
"""

import dataclasses
from collections.abc import Callable

import jax
import numpy as np
from scipy.special import logsumexp, softmax

from hybrid_jax.anomaly.joint_score import Gaussian, JointScore, Measures
from hybrid_jax.evaluators.features import FeatureStore, has_split, raw_pixels, raw_pixels_name
from hybrid_jax.evaluators.knn import nearest
from hybrid_jax.evaluators.likelihood import fit_histograms, histogram_log_prob
from hybrid_jax.evaluators.linear_probe import middle, standardise
from hybrid_jax.evaluators.logistic import solver

FIT_IMAGES = 5_000
NEIGHBOUR = 10
# These have no direction of their own: each pair takes the better one, which favours them.
UNDIRECTED = ("image mean", "image deviation", "share of zeros")


@dataclasses.dataclass(frozen=True)
class Seen:
    """Images with their features and likelihoods.

    Attributes:
      images: (n, H, W, C) uint8.
      measures: the model's measures of the joint score.
      features: (n, D) float32, the model's default layer.
      random: (n, D) float32, the default layer of an untrained model of the same architecture.
    """

    images: np.ndarray
    measures: Measures
    features: np.ndarray
    random: np.ndarray


Score = Callable[[Seen], np.ndarray]
Distance = Callable[[np.ndarray], np.ndarray]


class Scores:
    """All scores, fitted.

    Attributes:
      model: {name: function of a `Seen` to (n,) scores}; the joint score, if there is one, first.
      trivial: the same for the floors.
    """

    def __init__(self, features: FeatureStore, config, joint: JointScore | None):
        """Fits the scores on at most 5,000 training images, the typicality on the validation split."""
        self._features, self._config, self._joint = features, config, joint
        self._random = features.model.untrained(config.seed)
        self.model: dict[str, Score] = {}
        if joint is not None:
            self.model["joint score"] = lambda seen: joint.score(seen.measures)
        self.model |= self._likelihoods() | self._of_features() | self._of_probe()
        self.trivial = self._of_pixels() | self._of_random() | self._of_histograms() | _statistics()

    def see(self, images: np.ndarray) -> Seen:
        """Passes (n, H, W, C) uint8 images through both networks."""
        model = self._features.model
        measures = model.measures(images)
        return Seen(images, measures, measures.default, self._random.embed(images))

    def _likelihoods(self) -> dict[str, Score]:
        if not self._features.model.has_likelihood:
            return {}
        if self._joint is not None:
            usual = self._joint.about["mean_nll"]
        else:
            data = self._features.data
            known = data.validation if has_split(data, "validation") else data.train
            usual = np.mean(self._features.model.measures(known.images[:FIT_IMAGES]).nll)
        return {
            "likelihood": lambda seen: seen.measures.nll,
            "likelihood less code length": lambda seen: seen.measures.nll - seen.measures.code_length,
            "typicality": lambda seen: np.abs(seen.measures.nll - usual),
        }

    def _of_features(self) -> dict[str, Score]:
        bank = self._features.at_least("train", FIT_IMAGES)[:FIT_IMAGES]
        return _of(lambda seen: seen.features, _distances(bank))

    def _of_probe(self) -> dict[str, Score]:
        labels, settings = self._features.data.train.labels, self._config.eval.linear_probe
        if labels is None or len(np.unique(labels[:FIT_IMAGES])) < 2:
            return {}
        bank = self._features.at_least("train", FIT_IMAGES)[:FIT_IMAGES]
        x = standardise({"train": bank})["train"]
        c = middle(settings.c_values)
        (fitted,) = solver(x)(x, labels[:FIT_IMAGES], [c], settings.max_iterations)

        def logits(seen: Seen) -> np.ndarray:
            return standardise({"seen": seen.features}, bank)["seen"] @ fitted.weights + fitted.bias

        return {
            "max-softmax of a probe": lambda seen: -softmax(logits(seen), axis=1).max(axis=1),
            "energy of a probe": lambda seen: -logsumexp(logits(seen), axis=1),
        }

    def _of_pixels(self) -> dict[str, Score]:
        train = self._features.data.train.images[:FIT_IMAGES]
        found, name = _distances(raw_pixels(train)), raw_pixels_name(train)
        return _of(lambda seen: raw_pixels(seen.images), {f"{name}, {kind}": f for kind, f in found.items()})

    def _of_random(self) -> dict[str, Score]:
        bank = self._random.embed(self._features.data.train.images[:FIT_IMAGES])
        found = _distances(bank)
        return _of(lambda seen: seen.random, {f"random encoder, {kind}": f for kind, f in found.items()})

    def _of_histograms(self) -> dict[str, Score]:
        model, batch = self._features.model, self._config.eval.batch_size
        # On one device of this process, like the floor of `likelihood`.
        palette = jax.device_put(jax.device_get(model.palette))
        fitted = fit_histograms(self._features.data.train.images[:FIT_IMAGES], model.spec, palette, batch)
        return {
            "per-position histogram": lambda seen: -histogram_log_prob(fitted, seen.images, model.spec, palette, batch)
        }


def _of(part: Score, functions: dict[str, Distance]) -> dict[str, Score]:
    """Turns functions of features into functions of a `Seen`, whose features `part` returns."""

    def one(function: Distance) -> Score:
        return lambda seen: function(part(seen))

    return {name: one(function) for name, function in functions.items()}


def _distances(bank: np.ndarray) -> dict[str, Distance]:
    """Scores of (n, D) features by their distance from an (m, D) bank of training features."""
    gaussian, k = Gaussian.fit(bank), min(NEIGHBOUR, len(bank))
    return {"Mahalanobis": gaussian.distance, "k-NN": lambda x: -nearest(x, bank, k)[0][:, -1]}


def _statistics() -> dict[str, Score]:
    pixels = lambda seen: seen.images.reshape(len(seen.images), -1)
    functions: tuple[Score, ...] = (
        lambda seen: pixels(seen).mean(axis=1),
        # As integers, so that the same pixels in another order have the same deviation to the last bit.
        lambda seen: _deviation(pixels(seen).astype(np.int64)),
        lambda seen: np.mean(pixels(seen) == 0, axis=1),
    )
    return dict(zip(UNDIRECTED, functions, strict=True))


def _deviation(pixels: np.ndarray) -> np.ndarray:
    return np.sqrt(np.mean(pixels**2, axis=1) - np.mean(pixels, axis=1) ** 2)
