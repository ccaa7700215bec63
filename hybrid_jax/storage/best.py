"""Selection of checkpoints: the best by a validation metric, and those that `--step` names.

The metric is read from `eval/<step>.json`.
"""

import contextlib
import json
import math
import os
import pathlib
from collections.abc import Iterable

from hybrid_jax.config import BEST_METRICS
from hybrid_jax.errors import UserError, reject
from hybrid_jax.metrics import results_path
from hybrid_jax.multihost import coordination
from hybrid_jax.storage.checkpoint import Checkpoints, DamagedError


def check(config) -> None:
    """Raises UserError if evaluations during training do not measure `checkpoint.best_metric`."""
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
            raise reject("checkpoint.best_metric", metric, f"must be {measured} if model.token_kind={kind!r}")
    elif evaluator == "few_label" and not (config.eval.few_label.shares or config.eval.few_label.per_class):
        raise reject("checkpoint.best_metric", metric, "needs eval.few_label.shares or eval.few_label.per_class")


def check_data(config, data) -> None:
    """Raises UserError if evaluators cannot measure `checkpoint.best_metric` on these data."""
    metric = config.checkpoint.best_metric
    if not metric:
        return
    evaluator, _ = BEST_METRICS[metric]
    for split in ("validation", "test"):
        found = getattr(data, split)
        if found is None or not len(found.images):
            raise reject("checkpoint.best_metric", metric, f"needs a {split} split, which the data do not have")
    if evaluator != "likelihood" and (data.train.labels is None or data.validation.labels is None):
        raise reject("checkpoint.best_metric", metric, "needs labels, which the data do not have")


def best_step(workdir: str | os.PathLike, metric: str, steps: Iterable[int]) -> int | None:
    """Returns the step with the best validation metric; the earliest of equals.

    Args:
      workdir: folder of the run.
      metric: one of `BEST_METRICS`, or empty.
      steps: steps with a checkpoint.

    Returns:
      A step, or None if none was evaluated or `metric` is empty.
    """
    if not metric:
        return None
    _, higher = BEST_METRICS[metric]
    values = {step: value for step in sorted(steps) if (value := _value(workdir, metric, step)) is not None}
    return (max if higher else min)(values, key=values.__getitem__, default=None)


def _value(workdir: str | os.PathLike, metric: str, step: int) -> float | None:
    """Returns the first value of a metric on the validation split, or None."""
    try:
        rows = json.loads(results_path(workdir, step).read_text(encoding="utf-8"))
        found = [r["value"] for r in rows if (r["metric"], r["split"]) == (metric, "validation")]
        return float(found[0]) if found and math.isfinite(found[0]) else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def choose_steps(
    workdir: str | os.PathLike, step: int | str | None, checkpoints: Checkpoints, told: str = ""
) -> list[int]:
    """Returns the candidate steps for `step`, in order; the first intact checkpoint is to be used.

    Args:
      workdir: folder of the run.
      step: None or `latest`, `best`, or a step.
      checkpoints: checkpoints of the workdir.
      told: flag and value for error messages; by default --workdir and --step.

    Raises:
      UserError: there is no checkpoint, or none that matches `step`.
    """
    steps = checkpoints.steps()
    if not steps:
        raise UserError(f"{told or f'--workdir={workdir}'}: holds no checkpoint; train first, with --mode=train")
    with coordination.raise_on_all_processes(UserError):
        metric = _best_metric(workdir, checkpoints) if step == "best" else ""
        chosen = choose(workdir, step, steps, metric, told or f"--step={step}")
    # On shared file systems, results may become visible to processes at different times.
    return coordination.broadcast_from_process_zero(chosen)


def _best_metric(workdir: str | os.PathLike, checkpoints: Checkpoints) -> str:
    """Returns the metric in `config.json`, which a resumed run may change, else that of the newest checkpoint."""
    try:
        nested = json.loads((pathlib.Path(workdir) / "config.json").read_text(encoding="utf-8"))
        return str(nested["checkpoint"]["best_metric"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        pass
    for step in reversed(checkpoints.steps()):
        with contextlib.suppress(DamagedError):
            return checkpoints.config(step).checkpoint.best_metric
    return ""


def choose(workdir: str | os.PathLike, step: int | str | None, steps: list[int], metric: str, told: str) -> list[int]:
    """Returns the candidate steps for `step`, newest first.

    Args:
      workdir: folder of the run.
      step: None or `latest` (all, newest first), `best`, or a step.
      steps: steps with a checkpoint.
      metric: metric of `best`; empty if the run has none.
      told: flag and value for error messages.

    Raises:
      UserError: there is no such step, or `best` has no metric or no evaluation.
    """
    listed = ", ".join(map(str, steps))
    if step in (None, "latest"):
        return sorted(steps, reverse=True)
    if step == "best":
        if metric not in BEST_METRICS:
            how = "train with --config.checkpoint.best_metric=... and --config.eval.every_steps above 0"
            raise UserError(f"{told}: this run has no checkpoint.best_metric; {how}, or use one of {listed}")
        best = best_step(workdir, metric, steps)
        if best is None:
            how = "continue training until the next evaluation, or run --mode=eval --step=N"
            raise UserError(f"{told}: no checkpoint has a validation {metric} yet; {how}; checkpoints: {listed}")
        return [best]
    if str(step) not in map(str, steps):
        raise UserError(f"{told}: must be latest, best or one of {listed}")
    return [int(step)]
