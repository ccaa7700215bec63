"""The measurements of one trained arm in a comparison, with results per image.

The metrics are those of the evaluators of the same names, on the same images for every arm and seed:

- `linear_probe_accuracy` (protocol linear-probe-v1): the layer, or the last four concatenated, and the attention mask,
  one that was trained, are chosen by validation accuracy;
- `corruption_accuracy` and `corruption_share_retained` (the protocol of evaluator `corruptions`): the default layer;
- `ood_auroc` (ood-v1): mean over pairs of the Mahalanobis distance on the default layer, a score all arms have;
- `bits_per_dim`, or `nats_per_token` for palette tokens (likelihood-v1).

Dimensions: n test images, m outliers.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
import scipy.stats

from hybrid_jax.anomaly.detection import auroc
from hybrid_jax.anomaly.joint_score import Gaussian
from hybrid_jax.errors import UserError
from hybrid_jax.evaluators import corruptions, likelihood, linear_probe, ood, ood_pairs, ood_scores
from hybrid_jax.evaluators.features import FeatureStore, raw_pixels
from hybrid_jax.inference.model import Model
from hybrid_jax.models.tokens import TokenSpec

# The same outliers for every run, whatever its seed.
OUTLIER_SEED = 0
INLIERS = "test images"
PROTOCOLS = (linear_probe.PROTOCOL, corruptions.PROTOCOL, ood.PROTOCOL, likelihood.PROTOCOL)
Predict = Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Measured:
    """The measurements of a run.

    Attributes:
      metrics: rows of `metric`, `value`, `n`, `protocol` and more.
      per_image: {name: array}: `linear_probe_accuracy` (n,) uint8, whether correct; `corruption_accuracy` (n,) float32,
        share of the corruptions under which correct; `corruption_clean` (n,) uint8, whether correct uncorrupted; the
        metric of the likelihood (n,) float32; `ood/<outliers>` and `ood/test images` (m,), ranks of the scores.
    """

    metrics: list[dict]
    per_image: dict[str, np.ndarray]

    def value(self, metric: str) -> float:
        """Returns the value of a metric; raises KeyError if it was not measured."""
        return {row["metric"]: row["value"] for row in self.metrics}[metric]


def check(data) -> None:
    """Raises UserError for data that the claims cannot be judged on."""
    for name in ("train", "validation", "test"):
        split = getattr(data, name)
        if split is None or not len(split.images) or split.labels is None:
            raise UserError(f"config.data.name={data.name!r}: a comparison needs a labelled {name} split")


def measure(model: Model, data, config) -> Measured:
    """Measures one run on the test split; layers and C are chosen on the validation split.

    Args:
      model: the run's last checkpoint.
      data: in memory, with labelled `train`, `validation` and `test`.
      config: resolved; its `eval` section is read.
    """
    features = FeatureStore(model, data)
    labels = linear_probe.split_labels(data)
    found = [_probe(features, labels, config), _corruptions(features, labels, config), _outliers(features, config)]
    if model.has_likelihood:
        found.append(_likelihood(model, data, config))
    return Measured(
        [row for one in found for row in one.metrics],
        {name: values for one in found for name, values in one.per_image.items()},
    )


def floors(spec: TokenSpec, palette, data, config) -> Measured:
    """Measures the floors: raw pixels, and a histogram of every position for the likelihood.

    Args:
      spec: how images become tokens.
      palette: the palette of palette tokens, else None.
      data: as in `measure`.
      config: as in `measure`.
    """
    labels, settings, test = linear_probe.split_labels(data), config.eval.linear_probe, data.test.images
    fitted = linear_probe.of_pixels(FeatureStore(None, data), labels, settings)
    predict = lambda images: fitted.predict(raw_pixels(images))
    accuracy = {"metric": "linear_probe_accuracy", "value": float(np.mean(predict(test) == labels["test"]))}
    accuracy |= {"n": len(test), "protocol": linear_probe.PROTOCOL}
    distance = Gaussian.fit(raw_pixels(data.train.images[: ood_scores.FIT_IMAGES])).distance
    rows = [accuracy, *_corrupted(predict, data, labels, config).metrics]
    rows += _told_apart(lambda images: distance(raw_pixels(images)), data, config).metrics
    (metric, unit), batch = likelihood.unit_of(spec), config.eval.batch_size
    histograms = likelihood.fit_histograms(data.train.images, spec, palette, batch)
    nats = -likelihood.histogram_log_prob(histograms, test, spec, palette, batch)
    rows.append({"metric": metric, "value": float(nats.mean()) / unit, "n": len(test), "protocol": likelihood.PROTOCOL})
    return Measured(rows, {})


def validated(model: Model, data, config) -> dict[str, float]:
    """Returns the validation metrics that tuning chooses by: probe accuracy and, if there is one, likelihood.

    The probe reads the default layer of at most 5,000 training images; the test split is not read.
    """
    few = data.train.take(np.arange(min(linear_probe.LAYER_CHOICE_IMAGES, len(data.train.images))))
    features = FeatureStore(model, dataclasses.replace(data, train=few, test=None))
    labels = {"train": few.labels, "validation": data.validation.labels}
    c = linear_probe.middle(config.eval.linear_probe.c_values)
    limit = config.eval.linear_probe.max_iterations
    layers = (model.default_layer,)
    scores = linear_probe.choice_scores(features, labels, [layers], c, limit)
    found = {"linear_probe_accuracy": scores[layers]}
    if model.has_likelihood:
        metric, unit = likelihood.unit_of(model.spec)
        found[metric] = -float(np.mean(model.log_prob(data.validation.images), dtype=np.float64)) / unit
    return found


def _probe(features: FeatureStore, labels: dict[str, np.ndarray], config) -> Measured:
    settings = config.eval.linear_probe
    views = _views(features)
    choice = linear_probe.middle(settings.c_values), settings.max_iterations
    scores = {
        (mask, layers): score
        for mask, store in views.items()
        for layers, score in linear_probe.choice_scores(
            store, labels, _options(store, first=store is features), *choice
        ).items()
    }
    mask, layers = max(scores, key=lambda option: scores[option])
    fitted = linear_probe.of_layers(views[mask], labels, layers, settings)
    x = np.concatenate([views[mask].layers("test")[name] for name in layers], axis=1)
    hits = fitted.predict(x) == labels["test"]
    row = {
        "metric": "linear_probe_accuracy",
        "value": float(np.mean(hits)),
        "n": len(hits),
        "protocol": linear_probe.PROTOCOL,
        "mask": mask,
        "layers": list(layers),
        "C": fitted.c,
        "validation_accuracy": fitted.validation_accuracy,
        "choice": {f"{where}: {' + '.join(names)}": score for (where, names), score in scores.items()},
    }
    return Measured([row], {"linear_probe_accuracy": hits.astype(np.uint8)})


def _views(features: FeatureStore) -> dict[str, FeatureStore]:
    """{mask: features under it}, of the masks the encoder was trained with; the default one first."""
    model = features.model
    if not model.has_contrastive or model.config.model.view_attention == "causal":
        return {"causal": features}
    views = {"full": features}
    if model.has_likelihood:
        views["causal"] = FeatureStore(model.under_causal_mask(), features.data)
    return views


def _options(store: FeatureStore, first: bool) -> list[tuple[str, ...]]:
    names = list(store.layers("train"))
    # Encoder layers only for the second mask: decoders read causally encoded patches under either.
    single = [name for name in names if first or name.startswith("encoder")]
    four = tuple(linear_probe.last_four(names))
    return [(name,) for name in single] + [four] * (len(four) > 1)


def _corruptions(features: FeatureStore, labels: dict[str, np.ndarray], config) -> Measured:
    layer = features.model.default_layer
    fitted = linear_probe.of_layers(features, labels, (layer,), config.eval.linear_probe)
    return _corrupted(lambda images: fitted.predict(features.model.embed(images, layer)), features.data, labels, config)


def _corrupted(predict: Predict, data, labels: dict[str, np.ndarray], config) -> Measured:
    count, severities = config.eval.corruptions.num_images or None, sorted(set(config.eval.corruptions.severities))
    images, answers = data.test.images[:count], labels["test"][:count]
    clean = predict(images) == answers
    cells = [predict(changed) == answers for _, changed in corruptions.cells(images, severities)]
    share = np.mean(cells, axis=0, dtype=np.float64)
    common = {"n": len(answers), "protocol": corruptions.PROTOCOL, "severities": severities}
    common["clean_value"] = float(np.mean(clean))
    retained = float(share.mean() / clean.mean()) if clean.any() else 0.0
    rows = [
        {"metric": "corruption_accuracy", "value": float(share.mean()), **common},
        {"metric": "corruption_share_retained", "value": retained, **common},
    ]
    per_image = {"corruption_accuracy": share.astype(np.float32), "corruption_clean": clean.astype(np.uint8)}
    return Measured(rows, per_image)


def _outliers(features: FeatureStore, config) -> Measured:
    bank = features.at_least("train", ood_scores.FIT_IMAGES)[: ood_scores.FIT_IMAGES]
    distance = Gaussian.fit(bank).distance
    return _told_apart(lambda images: distance(features.model.embed(images)), features.data, config)


def _told_apart(score: Predict, data, config) -> Measured:
    test = data.test.images[: config.eval.ood.num_images or None]
    scores = {INLIERS: score(test)}
    scores |= {name: score(images) for name, images in ood_pairs.outliers(data, test, OUTLIER_SEED).items()}
    pairs = {name: auroc(scores[INLIERS], found) for name, found in scores.items() if name != INLIERS}
    row = {
        "metric": "ood_auroc",
        "value": float(np.mean(list(pairs.values()))),
        "n": len(test),
        "protocol": ood.PROTOCOL,
        "score": "Mahalanobis",
        "pairs": pairs,
    }
    ranks = scipy.stats.rankdata(np.concatenate(list(scores.values())), method="dense").astype(np.uint32)
    cut = np.cumsum([len(found) for found in scores.values()])[:-1]
    return Measured([row], {f"ood/{name}": part for name, part in zip(scores, np.split(ranks, cut), strict=True)})


def _likelihood(model: Model, data, config) -> Measured:
    metric, unit = likelihood.unit_of(model.spec)
    test = data.test.images[: config.eval.likelihood.num_images or None]
    values = -np.asarray(model.log_prob(test), np.float64) / unit
    row = {"metric": metric, "value": float(values.mean()), "n": len(test), "protocol": likelihood.PROTOCOL}
    return Measured([row], {metric: values.astype(np.float32)})
