"""Metrics: rows of `metrics.jsonl`, results in `eval/<step>.json`, speed, the progress line."""

import contextlib
import json
import math
import os
import pathlib
import time
from collections.abc import Iterator, Mapping


class Clock:
    """Speed and time left, excluding evaluations."""

    def __init__(self, batch: int, total: int, start: int):
        """Starts the clock at step `start` of a run of `total` steps of `batch` images."""
        self._batch, self._total, self._start = batch, total, start
        self._first = self._last = (start, time.perf_counter())

    def rates(self, step: int) -> dict[str, float]:
        """Returns images per second since the last call."""
        now = time.perf_counter()
        before, then = self._last
        self._last = (step, now)
        if before == self._start:
            # The first interval includes compilation, so it does not count for the time left.
            self._first = self._last
        return {"images_per_second": (step - before) * self._batch / (now - then)}

    def seconds_left(self, step: int) -> float:
        """Returns the estimated seconds for the remaining steps; NaN if unknown."""
        (first, then), (last, now) = self._first, self._last
        return (self._total - step) * (now - then) / (last - first) if last > first else math.nan

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Stops the clock inside the block."""
        start = time.perf_counter()
        yield
        spent = time.perf_counter() - start
        self._first, self._last = ((s, t + spent) for s, t in (self._first, self._last))


def read(workdir: str | os.PathLike) -> list[dict]:
    """Returns the rows of `metrics.jsonl` by ascending step; for a repeated step the last row.

    Skips incomplete lines (of a run killed while writing); returns no rows if the file is missing.
    """
    path = pathlib.Path(workdir) / "metrics.jsonl"
    rows = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            row = json.loads(line)
            rows[row["step"]] = row
        except (json.JSONDecodeError, TypeError, KeyError):
            continue
    return [rows[step] for step in sorted(rows)]


def results_path(workdir: str | os.PathLike, step: int) -> pathlib.Path:
    """Returns the results file of a step's evaluation, which exists once the evaluation is complete."""
    return pathlib.Path(workdir) / "eval" / f"{step}.json"


def headline(results: list[dict]) -> dict[str, float]:
    """Returns {metric: value of its first result}; results on the validation split, used for selection, are skipped."""
    return {row["metric"]: row["value"] for row in reversed(results) if row.get("split") != "validation"}


def read_headline(workdir: str | os.PathLike, step: int) -> dict[str, float]:
    """Returns the headline values of a finished evaluation."""
    return headline(json.loads(results_path(workdir, step).read_text(encoding="utf-8")))


def progress_line(step: int, total: int, metrics: Mapping[str, float], seconds_left: float) -> str:
    """Returns the progress line: losses, speed, time left (if finite)."""
    parts = [f"step {step:>{len(str(total))}}/{total}", f"loss {metrics['loss']:.4f}"]
    if "generative_loss" in metrics:
        parts.append(f"nll {metrics['generative_loss']:.4f} nats/token")
    if "contrastive_loss" in metrics:
        accuracy = metrics["contrastive_accuracy"]
        parts.append(f"contrastive {metrics['contrastive_loss']:.4f} (accuracy {accuracy:.2f})")
    parts.append(f"{metrics['images_per_second']:,.0f} images/s")
    if not math.isfinite(seconds_left):
        return "  ".join([*parts, "(compilation included)"])
    minutes, seconds = divmod(round(seconds_left), 60)
    hours, minutes = divmod(minutes, 60)
    parts.append(f"{hours}:{minutes:02}:{seconds:02} left")
    return "  ".join(parts)
