"""Evaluators: each applies one named protocol to a checkpoint and a data set."""

import pathlib
import time
from collections.abc import Callable

from hybrid_jax.evaluators import (
    adversarial,
    anomaly,
    calibration,
    corruptions,
    few_label,
    finetune,
    knn,
    likelihood,
    linear_probe,
    ood,
    sample_quality,
    transfer,
)
from hybrid_jax.evaluators.features import FeatureStore, FloorCache, Skipped

Evaluator = Callable[..., list[dict]]

EVALUATORS: dict[str, Evaluator] = {
    "anomaly": anomaly.evaluate,
    "linear_probe": linear_probe.evaluate,
    "few_label": few_label.evaluate,
    "knn": knn.evaluate,
    "likelihood": likelihood.evaluate,
    "sample_quality": sample_quality.evaluate,
    "calibration": calibration.evaluate,
    "corruptions": corruptions.evaluate,
    "adversarial": adversarial.evaluate,
    "ood": ood.evaluate,
    "transfer": transfer.evaluate,
    "finetune": finetune.evaluate,
}
# These also take `log`, and `between`, which the slow ones call.
TELLING = ("anomaly", "finetune")


_TOLD_SECONDS = 10


def check(data, config) -> None:
    """Raises UserError before training for a setting that does not fit the data."""
    if "knn" in config.eval.evaluators:
        knn.check(data, config)
    if "sample_quality" in config.eval.evaluators:
        sample_quality.check(config)
    if "transfer" in config.eval.evaluators:
        transfer.check(config)


def evaluate(
    model,
    data,
    config,
    cache_dir: pathlib.Path | None = None,
    log: Callable[[str], None] = print,
    features: FeatureStore | None = None,
    between: Callable[[], None] = lambda: None,
) -> list[dict]:
    """Fits the anomaly score, then runs the evaluators of `config.eval.evaluators` in their order.

    Args:
      model: a restored checkpoint, as returned by `hybrid_jax.load`.
      data: a data set with `train`, `validation`, `test` and `fingerprint`.
      config: resolved; only `eval` and `seed` are read.
      cache_dir: directory for floors that do not depend on the checkpoint; None = they are not cached.
      log: takes one line for each evaluator that is skipped or partly skipped, and, if all took 10 s or more, one with
        the seconds of each. The first evaluator that reads features includes their extraction.
      features: a store of the same model and data, to share with the report; None = a new one.
      between: called before each evaluator and during long ones; may raise to end the evaluation.

    Returns:
      The content of `eval/<step>.json`: results `{metric, value, n, protocol, split, floor, seed, ...}`, with
      `floor` as `{name: value}` in the metric's unit.

    Raises:
      UserError: a setting that does not fit the data.
    """
    features = features or FeatureStore(model, data, config.eval.linear_probe.normed)
    floors = FloorCache(cache_dir)
    results, seconds = [], {}
    for name in ("anomaly",) * (config.eval.anomaly.num_images > 0) + tuple(config.eval.evaluators):
        between()
        started = time.monotonic()
        try:
            more = {"log": log, "between": between} if name in TELLING else {}
            found = EVALUATORS[name](features, config, floors, **more)
        except Skipped as reason:
            found = reason.found
            log(f"{name}: {'partly ' if found else ''}skipped, {reason}")
        results += [{**row, "seed": config.seed} for row in found]
        seconds[name] = time.monotonic() - started
    if sum(seconds.values()) >= _TOLD_SECONDS:
        log("  seconds: " + ", ".join(f"{name} {took:.0f}" for name, took in seconds.items()))
    return results
