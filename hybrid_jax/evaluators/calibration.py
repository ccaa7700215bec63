"""Calibration of the linear probe (protocol calibration-v1).

Metrics of the probe of `linear-probe-v1` on the default layer, on the test split:

- expected calibration error (Guo et al. 2017, arXiv 1706.04599): top-1 confidences in 15 bins of equal width, each
  (low, high]; the mean over images of |accuracy - confidence| of their bin;
- negative log-likelihood of the label, nats;
- Brier score: the squared distance between probabilities and the one-hot label, summed over classes, in [0, 2].

Each is given as fitted and temperature scaled: logits are divided by one temperature that minimises the negative
log-likelihood of the validation split. It is fitted to a probe that has not seen that split and applied to the refitted
probe. The floor is the probe on raw pixels under the same protocol.

Dimensions: n images, K classes, M bins.
"""

import functools

import numpy as np
import scipy.optimize
import scipy.special

from hybrid_jax.evaluators import linear_probe
from hybrid_jax.evaluators.features import (
    FeatureStore,
    FloorCache,
    Skipped,
    raw_pixels,
    raw_pixels_name,
    standard_error,
)

PROTOCOL = "calibration-v1"
NUM_BINS = 15
AS_FITTED, SCALED = "as fitted", "temperature scaled"
METRICS = ("calibration_error", "probe_nll", "brier_score")


def reliability(confidence: np.ndarray, hits: np.ndarray, num_bins: int = NUM_BINS) -> list[dict]:
    """Returns the non-empty bins of a reliability diagram, the least confident first.

    Args:
      confidence: (n,) probabilities of the predicted classes.
      hits: (n,) bool, whether the prediction is correct.
      num_bins: M, of equal width; each is (low, high], so that 1 lies in the last bin and an edge in the lower bin.

    Returns:
      `low`, `high`, `count`, mean `confidence` and `accuracy` of each bin.
    """
    edges = np.linspace(0, 1, num_bins + 1)
    index = np.clip(np.digitize(confidence, edges, right=True) - 1, 0, num_bins - 1)
    bins = []
    for i in np.unique(index):
        inside = index == i
        told = {"low": float(edges[i]), "high": float(edges[i + 1]), "count": int(inside.sum())}
        means = {"confidence": float(confidence[inside].mean()), "accuracy": float(hits[inside].mean())}
        bins.append({**told, **means})
    return bins


def calibration_error(bins: list[dict]) -> float:
    """Returns the expected calibration error of `reliability`'s bins, in [0, 1]."""
    counts = [row["count"] for row in bins]
    return float(np.average([abs(row["accuracy"] - row["confidence"]) for row in bins], weights=counts))


def calibration_uncertainty(confidence: np.ndarray, hits: np.ndarray, draws: int = 200) -> float:
    """Returns the standard error of `calibration_error` over images, by bootstrap with a fixed seed.

    Args:
      confidence: as in `reliability`, with 15 bins.
      hits: as in `reliability`.
      draws: number of bootstrap draws.
    """
    index = np.clip(np.ceil(confidence * NUM_BINS).astype(int) - 1, 0, NUM_BINS - 1)
    rng, gap, n = np.random.default_rng(0), hits - confidence, len(hits)
    picked = (rng.integers(0, n, n) for _ in range(draws))
    # |accuracy - confidence| of a bin times its share of the images is |sum of gaps| / n.
    errors = [np.abs(np.bincount(index[rows], gap[rows], NUM_BINS)).sum() / n for rows in picked]
    return float(np.std(errors, ddof=1))


def nll(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """(n, K) logits and (n,) int columns of the labels -> (n,) float64 nats."""
    logits = logits.astype(np.float64)
    return scipy.special.logsumexp(logits, axis=1) - logits[np.arange(len(logits)), targets]


def brier(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """(n, K) logits and (n,) int columns of the labels -> (n,) float64 in [0, 2]."""
    probabilities = scipy.special.softmax(logits.astype(np.float64), axis=1)
    return np.square(probabilities - np.eye(logits.shape[1])[targets]).sum(axis=1)


def fit_temperature(logits: np.ndarray, targets: np.ndarray) -> float:
    """Returns the temperature in [e^-5, e^5] that minimises the mean `nll` of (n, K) logits and (n,) targets."""
    # The mean is convex in 1 / temperature, so it has one minimum over log temperature.
    mean = lambda log: float(np.mean(nll(logits.astype(np.float64) / np.exp(log), targets)))
    return float(np.exp(scipy.optimize.minimize_scalar(mean, bounds=(-5, 5), method="bounded").x))


def evaluate(features: FeatureStore, config, floors: FloorCache) -> list[dict]:
    """Runs the protocol.

    Args:
      features: store of a model and labelled data.
      config: resolved; `eval.linear_probe` is read.
      floors: cache of the raw pixels' values.

    Returns:
      One result per metric, as fitted and then temperature scaled; lower is better. Results of `calibration_error`
      hold their bins as `reliability`.

    Raises:
      Skipped: no test split, no labels, one class only, or a test label that is not in the training split. Without a
        labelled validation split it carries the results that need no temperature.
    """
    data, settings = features.data, config.eval.linear_probe
    labels = linear_probe.split_labels(data)
    layer = linear_probe.default_layer(features)
    fitted = linear_probe.of_layers(features, labels, (layer,), settings)
    own = _measured(fitted, lambda split: features.layers(split)[layer], labels)

    @functools.cache
    def pixels() -> dict:
        found = linear_probe.of_pixels(features, labels, settings)
        return _measured(found, lambda split: raw_pixels(getattr(data, split).images), labels)

    name = raw_pixels_name(data.train.images)
    key = {"protocol": PROTOCOL, "data": data.fingerprint, "c_values": linear_probe.grid_of(settings)}
    key |= {"max_iterations": settings.max_iterations, "floor": name}
    common = {"n": len(labels["test"]), "protocol": PROTOCOL, "split": "test", "layer": layer, "C": fitted.c}
    rows = []
    for (metric, variant), told in own.items():
        of_floor = lambda which=(metric, variant): pixels()[which]["value"]
        floor = {name: floors.get(of_floor, metric=metric, variant=variant, **key)}
        rows.append({"metric": metric, "variant": variant, "floor": floor, **told, **common})
    if "validation" not in labels:
        raise Skipped("no labelled validation split to fit a temperature to", rows)
    return rows


def _measured(fitted: linear_probe.FittedProbe, x, labels: dict[str, np.ndarray]) -> dict[tuple[str, str], dict]:
    """Returns {(metric, variant): value and details}; `x` maps the name of a split to its features."""
    classes = fitted.classifier.classes
    if not np.isin(labels["test"], classes).all():
        raise Skipped("the test split has a class that the training split lacks")
    logits, targets = fitted.logits(x("test")), np.searchsorted(classes, labels["test"])
    temperatures = {AS_FITTED: 1.0}
    if "validation" in labels:
        known = np.isin(labels["validation"], fitted.held_out.classes)
        columns = np.searchsorted(fitted.held_out.classes, labels["validation"][known])
        temperatures[SCALED] = fit_temperature(fitted.held_out_logits(x("validation")[known]), columns)
    found = {}
    for variant, temperature in temperatures.items():
        scaled = logits.astype(np.float64) / temperature
        sure, hits = scipy.special.softmax(scaled, axis=1).max(axis=1), scaled.argmax(axis=1) == targets
        bins = reliability(sure, hits)
        told = {"temperature": temperature} if variant == SCALED else {}
        row = {"value": calibration_error(bins), "standard_error": calibration_uncertainty(sure, hits)}
        found["calibration_error", variant] = {**row, "reliability": bins, **told}
        for metric, values in (("probe_nll", nll(scaled, targets)), ("brier_score", brier(scaled, targets))):
            found[metric, variant] = {"value": float(values.mean()), "standard_error": standard_error(values), **told}
    return {(metric, variant): found[metric, variant] for metric in METRICS for variant in temperatures}
