"""Which checkpoint is the best, by a metric of the validation split, and which one `--step` means.

The metric is read from `eval/<step>.json`, never from memory.
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
      metric: one of `BEST_METRICS`, or empty.
      steps: that have a checkpoint.

    Returns:
      A step, or None where none of them was evaluated, or there is no metric.
    """
    if not metric:
        return None
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


def choose_steps(
    workdir: str | os.PathLike, step: int | str | None, checkpoints: Checkpoints, told: str = ""
) -> list[int]:
    """Returns the steps that `step` stands for, of which the first undamaged is meant.

    Args:
      workdir: of the run.
      step: None or `latest`, `best`, or a step.
      checkpoints: of that workdir.
      told: the flag and value that an error names; by default those of --workdir and --step.

    Raises:
      UserError: no checkpoint, or none that `step` could mean.
    """
    steps = checkpoints.steps()
    if not steps:
        raise UserError(f"{told or f'--workdir={workdir}'}: holds no checkpoint; train first, with --mode=train")
    with coordination.raise_on_all_processes(UserError):
        metric = _best_metric(workdir, checkpoints) if step == "best" else ""
        chosen = choose(workdir, step, steps, metric, told or f"--step={step}")
    # The results' files may reach one process later than another.
    return coordination.broadcast_from_process_zero(chosen)


def _best_metric(workdir: str | os.PathLike, checkpoints: Checkpoints) -> str:
    """Returns the metric of `config.json`, which a resumed run may change, else the newest checkpoint's."""
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
    """Returns the steps that a step's name stands for, the newest first.

    Args:
      workdir: of the run.
      step: None or `latest` (the newest, then those before it), `best`, or a step.
      steps: that have a checkpoint.
      metric: what `best` goes by; empty where the run has none.
      told: the flag and value that an error names.

    Raises:
      UserError: no such step; `best` without a metric or without an evaluation.
    """
    listed = ", ".join(map(str, steps))
    if step in (None, "latest"):
        return sorted(steps, reverse=True)
    if step == "best":
        if metric not in BEST_METRICS:
            how = "train with --config.checkpoint.best_metric=... and --config.eval.every_steps above 0"
            raise UserError(f"{told}: this run chose no checkpoint.best_metric; {how}, or take one of {listed}")
        best = best_step(workdir, metric, steps)
        if best is None:
            how = "train on to the next evaluation, or --mode=eval --step=N"
            raise UserError(f"{told}: no checkpoint has a validation {metric} yet; {how}; there are {listed}")
        return [best]
    if str(step) not in map(str, steps):
        raise UserError(f"{told}: must be latest, best or one of {listed}")
    return [int(step)]
