"""Evaluators: each takes a checkpoint and a data set through one named protocol."""

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
# `log` tells what they do, and `between` is called on the way where they take minutes.
TELLING = ("anomaly", "finetune")


_TOLD_SECONDS = 10


def check(data, config) -> None:
    """Raises UserError at once for a setting that the data cannot serve, rather than after training."""
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
    """Runs the evaluators that `config.eval.evaluators` names, in that order, after the anomaly score is fitted.

    Args:
      model: a restored checkpoint, as `hybrid_jax.load` returns.
      data: a data set with `train`, `validation`, `test` and `fingerprint`.
      config: resolved; only `eval` and `seed` are read.
      cache_dir: where floors that no checkpoint changes are kept; None computes them anew.
      log: takes one line for every evaluator that is skipped, be it in part, and one on the seconds that each took,
        where they are many; the first that reads features has theirs too.
      features: of the same model and data; the report can then use the same.
      between: called before each evaluator and on the way of long ones; may raise to end the evaluation.

    Returns:
      What becomes `eval/<step>.json`: results `{metric, value, n, protocol, split, floor, seed, ...}`,
      floor `{name: value}` in the metric's unit.

    Raises:
      UserError: a setting that the data cannot serve.
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
