"""Which checkpoint `--step` means: the newest, the best, or one by its number."""

import contextlib
import json
import os
import pathlib

from hybrid_jax import distributed, retention
from hybrid_jax.checkpoint import Checkpoints, DamagedError
from hybrid_jax.config import BEST_METRICS
from hybrid_jax.errors import UserError


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
    with distributed.together(UserError):
        metric = _best_metric(workdir, checkpoints) if step == "best" else ""
        chosen = choose(workdir, step, steps, metric, told or f"--step={step}")
    # The results' files may reach one process later than another.
    return distributed.from_first(chosen)


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
        best = retention.best_step(workdir, metric, steps)
        if best is None:
            how = "train on to the next evaluation, or --mode=eval --step=N"
            raise UserError(f"{told}: no checkpoint has a validation {metric} yet; {how}; there are {listed}")
        return [best]
    if str(step) not in map(str, steps):
        raise UserError(f"{told}: must be latest, best or one of {listed}")
    return [int(step)]
