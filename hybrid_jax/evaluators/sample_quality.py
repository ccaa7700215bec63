"""Quality of unconditional samples without any download (protocol sample-quality-v1).

n samples are compared with the first n training images in the features of a frozen, named encoder, never those of the
checkpoint that is judged: a Frechet distance (not the FID, which has another encoder), precision, recall, density and
coverage at k = 5. Then come a classification accuracy score on the real test images, and the share of near copies of
training images. n is `num_images`, at most the test images and half of the training images.

Stand-ins are measured in the samples' place, and every number stands beside theirs:

- real test images, which no model can be asked to beat (the classification score, whose test they are, has the
  first n training images instead, which the labeller never saw);
- histogram samples, which know each position's values and nothing else;
- where tokens are lossy, test images in the model's tokens: the best that its samples could be.

Only the stand-ins, the threshold of near copies and the classification score read the test split.
"""

import functools
from collections.abc import Callable

import numpy as np

from hybrid_jax.evaluators import frozen_encoder
from hybrid_jax.evaluators.features import (
    FeatureStore,
    FloorCache,
    Skipped,
    require_split,
    standard_error,
    validation_row,
)
from hybrid_jax.evaluators.sample_judge import Judge, K, Score
from hybrid_jax.evaluators.stand_ins import as_tokens_show, histogram_samples, is_lossy

PROTOCOL = "sample-quality-v1"
REAL, TRAINING = "real test images", "real training images"
HISTOGRAMS, SHOWN = "histogram samples", "test images in the model's tokens"

Measure = Callable[[np.ndarray], list[Score]]


def check(config) -> None:
    """Raises UserError where `eval.sample_quality.encoder` names none."""
    frozen_encoder.check(config.eval.sample_quality.encoder)


def evaluate(features: FeatureStore, config, floors: FloorCache) -> list[dict]:
    """Draws samples and runs the protocol.

    Args:
      features: of a model with a likelihood; its samples are drawn, its features are not computed.
      config: resolved; `eval.sample_quality` and `seed` are read.
      floors: where the stand-ins' numbers are kept.

    Returns:
      Results whose `floor` holds the stand-ins' numbers: `frechet_distance` (lower is better), `precision`, `recall`,
      `density`, `coverage`, `near_copy_share` (variants `in pixels` and `in features`, no score but a warning, with
      `exact_copies`), and `classification_accuracy_score` with the validation split's beside it.

    Raises:
      Skipped: no likelihood, no test split, too few images, the encoder is the judged checkpoint; with all other
        results, no labels.
      UserError: no such encoder.
    """
    settings = config.eval.sample_quality
    judge = _judge(features, settings)
    shared = {"protocol": PROTOCOL, "encoder": judge.encoder.name, "n": judge.n}
    stand_ins = _stand_ins(features, judge, config.seed)
    key = {**shared, "data": features.data.fingerprint, "seed": config.seed, **_tokens(features.model)}
    samples = features.samples(judge.n, config.seed, settings.temperature)

    def results(measure: Measure, names: tuple[str, ...]) -> list[dict]:
        found = functools.cache(lambda name: {_key(s): float(s.values.mean()) for s in measure(stand_ins[name]())})

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
        raise Skipped("eval.sample_quality.encoder is the checkpoint that is judged; name another run")
    return Judge(data, n, encoder, functools.partial(_shown, model))


def _stand_ins(features: FeatureStore, judge: Judge, seed: int) -> dict[str, Callable[[], np.ndarray]]:
    """How the images are made that take the samples' place, since most often their numbers are known."""
    model, train, test = features.model, features.data.train.images, features.data.test.images
    return {
        REAL: lambda: test[: judge.n],
        TRAINING: lambda: train[: judge.n],
        HISTOGRAMS: lambda: histogram_samples(train, judge.n, model.spec, model.palette, seed),
        SHOWN: lambda: judge.shown(test[: judge.n]),
    }


def _rows(found: list[tuple[Score, dict[str, float]]], told: dict) -> list[dict]:
    """The results of scores and their floors; that of the validation split has none."""
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
    """What stand-ins depend on beside the data."""
    found = {"spec": repr(model.spec)}
    if model.palette is not None:
        found["palette"] = model.palette.digest()
    return found
