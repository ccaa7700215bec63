"""The claims and their verdicts: supported, not supported, undecided, or premise not reproduced.

C1: the hybrid is as discriminative as the contrastive arm. C2: it is as robust out of distribution as the generative
arm, by three metrics that must all agree. C3: its likelihood is at most 2 % worse. A premise states the advantage that
the hybrid is to keep: the contrastive arm is more discriminative, the generative arm more robust.

Dimensions: S seeds, n images, m outliers.
"""

import dataclasses
import math
from collections.abc import Callable

import numpy as np

from hybrid_jax.comparison import statistics
from hybrid_jax.comparison.arms import AT_FLOPS, CONTRASTIVE, GENERATIVE
from hybrid_jax.comparison.measures import INLIERS, Measured
from hybrid_jax.comparison.statistics import Interval

LIKELIHOODS = ("bits_per_dim", "nats_per_token")
LIKELIHOOD_MARGIN = 1.02
EQUAL_STEPS, EQUAL_FLOPS = "equal steps", "equal FLOPs"
TABLES = {EQUAL_STEPS: "", EQUAL_FLOPS: AT_FLOPS}
WHOLE, ALL = "C2", "all"
HOLDS = "the claim holds"

Runs = list[Measured]  # of one arm, by seed


@dataclasses.dataclass(frozen=True)
class Claim:
    """One comparison of the hybrid with a pure arm, where the hybrid must not be worse by more than a margin.

    Attributes:
      name: name of the claim.
      metric: the metric compared.
      margin: in the metric's unit.
      reference: the pure arm.
      other: the arm that the reference must beat; otherwise there is no advantage to keep.
    """

    name: str
    metric: str
    margin: float
    reference: str
    other: str


CLAIMS = (
    Claim("C1", "linear_probe_accuracy", 0.01, CONTRASTIVE, GENERATIVE),
    Claim("C2 corrupted images", "corruption_accuracy", 0.01, GENERATIVE, CONTRASTIVE),
    Claim("C2 share retained", "corruption_share_retained", 0.02, GENERATIVE, CONTRASTIVE),
    Claim("C2 outliers", "ood_auroc", 0.02, GENERATIVE, CONTRASTIVE),
)


def judge(runs: dict[str, Runs], hybrids: list[str]) -> list[dict]:
    """Judges every hybrid at equal steps and, if those arms were trained, at equal FLOPs.

    Args:
      runs: {arm: one `Measured` per seed, the same seeds in the same order for every arm}.
      hybrids: the arms that are judged.

    Returns:
      Rows `claim, arm, table, metric, estimate, lower, upper, margin, verdict, premise`; C2 as a whole and the verdict
      on all three claims have no estimate. Infinite bounds are None. Empty if a pure arm is missing.
    """
    rows: list[dict] = []
    for arm in hybrids:
        for table, suffix in TABLES.items():
            pure = {name: runs.get(name + suffix, []) for name in (GENERATIVE, CONTRASTIVE)}
            if all(pure.values()):
                rows += [{"arm": arm, "table": table, **row} for row in _judge_one(runs[arm], pure)]
    return [_noted(row, rows) for row in rows]


def _judge_one(hybrid: Runs, pure: dict[str, Runs]) -> list[dict]:
    rows = [_row(claim, hybrid, pure) for claim in CLAIMS]
    parts = [row["verdict"] for row in rows if row["claim"].startswith(WHOLE)]
    rows.append(_verdict(WHOLE, _all_of(parts)))
    rows.append(_likelihood_row(hybrid, pure[GENERATIVE]))
    whole = _all_of([row["verdict"] for row in rows if row["claim"] in ("C1", WHOLE, "C3")])
    return [*rows, _verdict(ALL, HOLDS if whole == statistics.SUPPORTED else whole)]


def _row(claim: Claim, hybrid: Runs, pure: dict[str, Runs]) -> dict:
    found = difference(claim.metric, hybrid, pure[claim.reference])
    beats = difference(claim.metric, pure[claim.reference], pure[claim.other])
    verdict = statistics.not_worse(found, claim.margin)
    premise = {
        "text": f"{claim.reference} beats {claim.other}",
        **_numbers(beats),
        "holds": beats.lower > 0,
    }
    return {
        "claim": claim.name,
        "metric": claim.metric,
        "reference": claim.reference,
        **_numbers(found),
        "margin": claim.margin,
        "verdict": verdict if premise["holds"] else statistics.NOT_REPRODUCED,
        "verdict_without_premise": verdict,
        "premise": premise,
    }


def _likelihood_row(hybrid: Runs, generative: Runs) -> dict:
    metric = next(row["metric"] for row in hybrid[0].metrics if row["metric"] in LIKELIHOODS)
    found = difference(metric, hybrid, generative, factor=LIKELIHOOD_MARGIN)
    verdict = statistics.below(found)
    reference = float(np.mean([run.value(metric) for run in generative]))
    return {
        "claim": "C3",
        "metric": metric,
        "reference": GENERATIVE,
        **_numbers(found),
        "margin": LIKELIHOOD_MARGIN,
        "reference_value": reference,
        "ratio": float(np.mean([run.value(metric) for run in hybrid])) / reference,
        "verdict": verdict,
        "verdict_without_premise": verdict,
        "premise": None,
    }


def _verdict(claim: str, verdict: str) -> dict:
    empty = dict.fromkeys(("metric", "estimate", "lower", "upper", "margin", "premise"))
    return {"claim": claim, **empty, "verdict": verdict}


def _all_of(verdicts: list[str]) -> str:
    """Combines verdicts: one `not supported` decides, then a premise not reproduced, then one undecided."""
    for decisive in (statistics.NOT_SUPPORTED, statistics.NOT_REPRODUCED, statistics.UNDECIDED):
        if decisive in verdicts:
            return decisive
    return statistics.SUPPORTED


def _noted(row: dict, rows: list[dict]) -> dict:
    """Adds a note to a verdict that holds under equal steps but not under equal FLOPs."""
    same = [r for r in rows if (r["arm"], r["claim"]) == (row["arm"], row["claim"]) and r["table"] == EQUAL_FLOPS]
    good = (statistics.SUPPORTED, HOLDS)
    only = row["table"] == EQUAL_STEPS and row["verdict"] in good and same and same[0]["verdict"] not in good
    return row | ({"note": "under equal steps only"} if only else {})


def _numbers(found: Interval) -> dict[str, float | None]:
    bounded = lambda x: x if math.isfinite(x) else None
    return {"estimate": found.estimate, "lower": bounded(found.lower), "upper": bounded(found.upper)}


def difference(metric: str, one: Runs, two: Runs, factor: float = 1.0) -> Interval:
    """Returns the interval of (metric of `one`) - factor * (metric of `two`), seed by seed on the same images."""
    each = [a.value(metric) - factor * b.value(metric) for a, b in zip(one, two, strict=True)]
    return statistics.interval(each, _image_variance(metric)(one, two, factor))


def _image_variance(metric: str) -> Callable[[Runs, Runs, float], float]:
    special = {"corruption_share_retained": _of_share, "ood_auroc": _of_auroc}
    return special.get(metric, lambda one, two, factor: _of_mean(metric, one, two, factor))


def _of_mean(metric: str, one: Runs, two: Runs, factor: float) -> float:
    return statistics.mean_variance(_stacked(one, metric) - factor * _stacked(two, metric))


def _of_share(one: Runs, two: Runs, factor: float) -> float:
    parts = [(_stacked(one, name), _stacked(two, name)) for name in ("corruption_accuracy", "corruption_clean")]
    return statistics.share_variance(parts[0], parts[1])


def _of_auroc(one: Runs, two: Runs, factor: float) -> float:
    names = [name for name in one[0].per_image if name.startswith("ood/") and name != f"ood/{INLIERS}"]
    return statistics.auroc_variance([_wins(one, name) - _wins(two, name) for name in names])


def _wins(runs: Runs, name: str) -> np.ndarray:
    """(n, m), averaged over seeds."""
    each = [statistics.wins(run.per_image[f"ood/{INLIERS}"], run.per_image[name]) for run in runs]
    return np.mean(each, axis=0)


def _stacked(runs: Runs, name: str) -> np.ndarray:
    return np.stack([np.asarray(run.per_image[name], np.float64) for run in runs])
