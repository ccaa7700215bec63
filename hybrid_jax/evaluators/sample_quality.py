"""Quality of unconditional samples (protocol sample-quality-v1), without a download.

n samples are compared with the first n training images in the features of a frozen, named encoder, never the evaluated
checkpoint: a Frechet distance (not the FID, which has another encoder), precision, recall, density and coverage at
k = 5. Then come a classification accuracy score on the real test images, and the share of near copies of training
images. n is `num_images`, at most the test images and half of the training images.

The same metrics are computed for baselines in the place of the samples:

- real test images, which no model is expected to beat (for the classification score, which is tested on them, the first
  n training images, which the labeller never saw);
- histogram samples, drawn independently at each position;
- if tokens are lossy, test images in the model's tokens: the best that its samples could be.

Only the baselines, the threshold of near copies and the classification score read the test split.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import numpy as np

from hybrid_jax.evaluators import frozen_encoder, sample_metrics
from hybrid_jax.evaluators.features import (
    FeatureStore,
    FloorCache,
    Skipped,
    has_split,
    raw_pixels,
    require_split,
    standard_error,
    validation_row,
)
from hybrid_jax.evaluators.frozen_encoder import FrozenEncoder
from hybrid_jax.evaluators.sample_metrics import (
    Memorization,
    count_copies,
    frechet_distance,
    precision_recall_density_coverage,
)
from hybrid_jax.models import tokens as tokens_lib
from hybrid_jax.models.tokens import TokenSpec

K = 5
PIXELS, FEATURES = "in pixels", "in features"
IMAGES_AT_ONCE = 500
PROTOCOL = "sample-quality-v1"
REAL, TRAINING = "real test images", "real training images"
HISTOGRAMS, SHOWN = "histogram samples", "test images in the model's tokens"


@dataclasses.dataclass(frozen=True)
class Score:
    """A metric of a set of images.

    Attributes:
      metric: name of the metric.
      variant: name of the variant; "" for metrics with one variant.
      split: the split that images are compared with.
      values: (m,) contribution of each image; their mean is the value.
      told: further entries of the result.
    """

    metric: str
    variant: str
    split: str
    values: np.ndarray
    told: dict = dataclasses.field(default_factory=dict)


class Judge:
    """Measures sets of n images; the references are prepared when first needed.

    Attributes:
      n: number of images in a set.
      encoder: the frozen encoder.
      shown: maps (n, H, W, C) uint8 images to themselves encoded and decoded by the evaluated model's tokens.
    """

    def __init__(self, data, n: int, encoder: FrozenEncoder, shown: Callable[[np.ndarray], np.ndarray]):
        """Takes a data set with test images and at least 2 n training images."""
        self._data, self.n, self.encoder, self.shown = data, n, encoder, shown

    def likeness(self, images: np.ndarray) -> list[Score]:
        """Compares (n, H, W, C) uint8 images with the first n training images."""
        x, real = self.encoder.embed(images), self._bank[: self.n]
        near = precision_recall_density_coverage(real, x, K)
        distance = Score("frechet_distance", "", "train", np.array([frechet_distance(real, x)]))
        return [distance, *(Score(name, "", "train", values, {"k": K}) for name, values in near.items())]

    def copies(self, images: np.ndarray) -> list[Score]:
        """Looks for copies of training images among (n, H, W, C) uint8 images; see `sample_metrics.count_copies`.

        Images are compared after encoding and decoding by tokens: a copy in palette colours is a copy.
        """
        images = self.shown(images)
        exact = {"exact_copies": count_copies(images, self.shown(self._data.train.images))}
        scores = []
        for variant, (embed, near) in self._near.items():
            hits, medians = near.measure(embed(images))
            scores.append(Score("near_copy_share", variant, "train", hits, {**exact, **medians}))
        return scores

    def classification(self, images: np.ndarray) -> list[Score]:
        """Fits a classifier to (n, H, W, C) uint8 images with labels of the labeller, and tests it on real images.

        Raises:
          Skipped: no labels, or one class only.
        """
        said, name = self._labeller.predict(raw_pixels(images)), "classification_accuracy_score"
        hits = sample_metrics.score(self.encoder.embed(images), said, self._labelled)
        told = {"labeller_accuracy": self._labeller_accuracy, "labelled_classes": len(np.unique(said))}
        return [Score(name, "", split, values, {**told, "n_real": len(values)}) for split, values in hits.items()]

    @functools.cached_property
    def _bank(self) -> np.ndarray:
        """Features of all training images."""
        return self.encoder.embed(self._data.train.images)

    @functools.cached_property
    def _near(self) -> dict[str, tuple[Callable, Memorization]]:
        """{variant: function from images to the features in which copies are searched, and their reference}."""
        train, test = self._data.train.images, self.shown(self._data.test.images)
        shown = self.shown(train)
        bank = self._bank if shown is train else self.encoder.embed(shown)
        pixels = Memorization.of(raw_pixels(shown), raw_pixels(test))
        return {
            PIXELS: (raw_pixels, pixels),
            FEATURES: (self.encoder.embed, Memorization.of(bank, self.encoder.embed(test))),
        }

    @functools.cached_property
    def _labeller(self) -> sample_metrics.Standardised:
        """Fitted to training images outside of the reference, which is also a baseline."""
        train = self._data.train
        if train.labels is None or self._data.test.labels is None:
            raise Skipped("the data has no labels for a classification accuracy score")
        return sample_metrics.fit_labeller(train.images[self.n :], train.labels[self.n :])

    @functools.cached_property
    def _labeller_accuracy(self) -> float:
        test = self._data.test
        return float(np.mean(self._labeller.predict(raw_pixels(test.images)) == test.labels))

    @functools.cached_property
    def _labelled(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Features and labels of the test split and, if it has labels, the validation split."""
        splits = {s: getattr(self._data, s) for s in ("test", "validation") if has_split(self._data, s)}
        return {s: (self.encoder.embed(x.images), x.labels) for s, x in splits.items() if x.labels is not None}


def is_lossy(spec: TokenSpec) -> bool:
    """Returns whether tokens keep less than the 8-bit image."""
    return not (spec.kind == "intensity" and spec.vocab_size == 256)


def as_tokens_show(images: np.ndarray, spec: TokenSpec, palette) -> np.ndarray:
    """Returns images encoded to a model's tokens and decoded again: the best that its samples can look like.

    Args:
      images: (n, H, W, C) uint8.
      spec: how images become tokens.
      palette: the palette of palette tokens, else None.

    Returns:
      (n, H, W, C) uint8, the images themselves if tokens are lossless.
    """
    if not is_lossy(spec) or not len(images):
        return images
    # On one device of this process: others may not call this.
    palette = jax.device_put(jax.device_get(palette))
    # Padded, so that one shape is compiled.
    padded = np.pad(images, [(0, -len(images) % IMAGES_AT_ONCE), (0, 0), (0, 0), (0, 0)])
    chunks = padded.reshape(-1, IMAGES_AT_ONCE, *images.shape[1:])
    return np.concatenate([np.asarray(_nearest_shown(chunk, spec, palette)) for chunk in chunks])[: len(images)]


@functools.partial(jax.jit, static_argnums=1)
def _nearest_shown(images: jax.Array, spec: TokenSpec, palette) -> jax.Array:
    return tokens_lib.decode(tokens_lib.encode(images, spec, palette), spec, palette)


def histogram_samples(images: np.ndarray, num: int, spec: TokenSpec, palette, seed: int) -> np.ndarray:
    """Draws every token from the training images' histogram of its position, independently of all others.

    It samples from the floor of the likelihood, without smoothing: each token is that of a newly drawn image.

    Args:
      images: (n, H, W, C) uint8, the training images.
      num: number of samples.
      spec: how images become tokens.
      palette: the palette of palette tokens, else None.
      seed: the seed of the draws.

    Returns:
      (num, H, W, C) uint8, decoded from tokens.
    """
    _, height, width, channels = images.shape
    # A palette token is a whole pixel, an intensity token one channel of it.
    drawn = 1 if spec.kind == "palette" else channels
    which = np.random.default_rng(seed).integers(0, len(images), (num, height, width, drawn))
    rows, columns, channel = np.ogrid[:height, :width, :channels]
    return as_tokens_show(images[which, rows, columns, channel], spec, palette)


Measure = Callable[[np.ndarray], list[Score]]


def check(config) -> None:
    """Raises UserError if `eval.sample_quality.encoder` is not an encoder."""
    frozen_encoder.check(config.eval.sample_quality.encoder)


def evaluate(features: FeatureStore, config, floors: FloorCache) -> list[dict]:
    """Draws samples and runs the protocol.

    Args:
      features: store of a model with a likelihood; samples are drawn, no features are extracted.
      config: resolved; `eval.sample_quality` and `seed` are read.
      floors: cache of the baselines' values.

    Returns:
      Results whose `floor` holds the baselines' values: `frechet_distance` (lower is better), `precision`, `recall`,
      `density`, `coverage`, `near_copy_share` (variants `in pixels` and `in features`; a warning, not a score; with
      `exact_copies`), and `classification_accuracy_score`, also on the validation split.

    Raises:
      Skipped: no likelihood, no test split, too few images, or the encoder is the evaluated checkpoint. Without labels
        it carries all other results.
      UserError: no such encoder.
    """
    settings = config.eval.sample_quality
    judge = _judge(features, settings)
    shared = {"protocol": PROTOCOL, "encoder": judge.encoder.name, "n": judge.n}
    baselines = _baselines(features, judge, config.seed)
    key = {**shared, "data": features.data.fingerprint, "seed": config.seed, **_tokens(features.model)}
    samples = features.samples(judge.n, config.seed, settings.temperature)

    def results(measure: Measure, names: tuple[str, ...]) -> list[dict]:
        found = functools.cache(lambda name: {_key(s): float(s.values.mean()) for s in measure(baselines[name]())})

        def floor(score: Score) -> dict[str, float]:
            asked = {"metric": score.metric, "variant": score.variant, "split": score.split}
            get = lambda name: floors.get(lambda: found(name)[_key(score)], **asked, stand_in=name, **key)
            return {name: get(name) for name in names}

        told = {**shared, "temperature": settings.temperature}
        return _rows([(score, floor(score)) for score in measure(samples)], told)

    lossy = (SHOWN,) if is_lossy(features.model.spec) else ()
    rows = results(judge.likeness, (REAL, HISTOGRAMS, *lossy)) + results(judge.copies, (REAL, HISTOGRAMS))
    try:
        return rows + results(judge.classification, (TRAINING, HISTOGRAMS))
    except Skipped as reason:
        raise Skipped(str(reason), rows) from reason


def _judge(features: FeatureStore, settings) -> Judge:
    model, data = features.model, features.data
    if not model.has_likelihood:
        raise Skipped("the checkpoint has no likelihood (objective.generative_weight = 0), so no samples")
    train, test = (require_split(data, split).images for split in ("train", "test"))
    n = min(settings.num_images, len(test), len(train) // 2)
    if n <= K:
        raise Skipped(f"{n} images can be compared, at least {K + 1} are needed")
    encoder = frozen_encoder.open_encoder(settings.encoder)
    if encoder.checksum and encoder.checksum == frozen_encoder.checksum(model.params):
        raise Skipped("eval.sample_quality.encoder is the evaluated checkpoint itself; name another run")
    return Judge(data, n, encoder, functools.partial(_shown, model))


def _baselines(features: FeatureStore, judge: Judge, seed: int) -> dict[str, Callable[[], np.ndarray]]:
    """{baseline: function that returns its images}, not the images, since most often the values are cached."""
    model, train, test = features.model, features.data.train.images, features.data.test.images
    return {
        REAL: lambda: test[: judge.n],
        TRAINING: lambda: train[: judge.n],
        HISTOGRAMS: lambda: histogram_samples(train, judge.n, model.spec, model.palette, seed),
        SHOWN: lambda: judge.shown(test[: judge.n]),
    }


def _rows(found: list[tuple[Score, dict[str, float]]], told: dict) -> list[dict]:
    """The results of scores and their floors; those of the validation split have none."""
    rows: list[dict] = []
    for score, floor in found:
        row = {"metric": score.metric, "value": float(score.values.mean()), "split": score.split, **told, **score.told}
        row |= {"variant": score.variant} if score.variant else {}
        if len(score.values) > 1:
            row["standard_error"] = standard_error(score.values)
        if score.split == "validation":
            error = {"standard_error": row["standard_error"], "encoder": row["encoder"]}
            rows.append(validation_row(row, row["value"], len(score.values), **error))
        else:
            rows.append({**row, "floor": floor})
    return rows


def _key(score: Score) -> tuple[str, str, str]:
    return score.metric, score.variant, score.split


def _shown(model, images: np.ndarray) -> np.ndarray:
    return as_tokens_show(images, model.spec, model.palette)


def _tokens(model) -> dict[str, str]:
    """What baselines depend on besides the data."""
    found = {"spec": repr(model.spec)}
    if model.palette is not None:
        found["palette"] = model.palette.digest()
    return found
