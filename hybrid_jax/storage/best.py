"""The best checkpoint: by a metric of the validation split, read from `eval/<step>.json`, never from memory."""

import json
import math
import os
from collections.abc import Iterable

from hybrid_jax.config import BEST_METRICS
from hybrid_jax.errors import reject
from hybrid_jax.metrics import results_path


def check(config) -> None:
    """Raises UserError where evaluations during training cannot give `checkpoint.best_metric`."""
    metric = config.checkpoint.best_metric
    if not metric:
        return
    evaluator, _ = BEST_METRICS[metric]
    if config.eval.every_steps <= 0:
        allowed = f"needs evaluations during training, set eval.every_steps (now {config.eval.every_steps}) above 0"
        raise reject("checkpoint.best_metric", metric, allowed)
    if evaluator not in config.eval.evaluators:
        raise reject("checkpoint.best_metric", metric, f"needs {evaluator!r} among eval.evaluators")
    if evaluator == "likelihood":
        measured = "nats_per_token" if config.model.token_kind == "palette" else "bits_per_dim"
        if config.objective.generative_weight == 0:
            raise reject("checkpoint.best_metric", metric, "needs objective.generative_weight above 0")
        if metric != measured:
            kind = config.model.token_kind
            raise reject("checkpoint.best_metric", metric, f"must be {measured} where model.token_kind={kind!r}")
    elif evaluator == "few_label" and not (config.eval.few_label.shares or config.eval.few_label.per_class):
        raise reject("checkpoint.best_metric", metric, "needs eval.few_label.shares or eval.few_label.per_class")


def check_data(config, data) -> None:
    """Raises UserError where they cannot on these data, as evaluators see them."""
    metric = config.checkpoint.best_metric
    if not metric:
        return
    evaluator, _ = BEST_METRICS[metric]
    for split in ("validation", "test"):
        found = getattr(data, split)
        if found is None or not len(found.images):
            raise reject("checkpoint.best_metric", metric, f"needs a {split} split, which the data have not")
    if evaluator != "likelihood" and (data.train.labels is None or data.validation.labels is None):
        raise reject("checkpoint.best_metric", metric, "needs labels, which the data have not")


def best_step(workdir: str | os.PathLike, metric: str, steps: Iterable[int]) -> int | None:
    """Returns which of the steps has the best evaluation on the validation split; of equals the earlier.

    Args:
      workdir: of the run.
      metric: one of `BEST_METRICS`.
      steps: that have a checkpoint.

    Returns:
      A step, or None where none of them was evaluated.
    """
    _, higher = BEST_METRICS[metric]
    values = {step: value for step in sorted(steps) if (value := _value(workdir, metric, step)) is not None}
    return (max if higher else min)(values, key=values.__getitem__, default=None)


def _value(workdir: str | os.PathLike, metric: str, step: int) -> float | None:
    """Returns the first value of a metric on the validation split; None without a readable one."""
    try:
        rows = json.loads(results_path(workdir, step).read_text(encoding="utf-8"))
        found = [r["value"] for r in rows if (r["metric"], r["split"]) == (metric, "validation")]
        return float(found[0]) if found and math.isfinite(found[0]) else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
