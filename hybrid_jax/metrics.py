"""What was measured: rows of `metrics.jsonl`, results of `eval/<step>.json`, the speed, the progress line."""

import contextlib
import json
import math
import os
import pathlib
import time
from collections.abc import Iterator, Mapping


class Clock:
    """Speed and time left, without the time that evaluations take."""

    def __init__(self, batch: int, total: int, start: int):
        """Starts the clock of a run of `total` steps of `batch` images, at step `start`."""
        self._batch, self._total, self._start = batch, total, start
        self._first = self._last = (start, time.perf_counter())

    def rates(self, step: int) -> dict[str, float]:
        """Returns images per second since the last call."""
        now = time.perf_counter()
        before, then = self._last
        self._last = (step, now)
        if before == self._start:
            # The first interval holds compilation, which says nothing about the time left.
            self._first = self._last
        return {"images_per_second": (step - before) * self._batch / (now - then)}

    def seconds_left(self, step: int) -> float:
        """Returns the seconds that the remaining steps take at the speed so far."""
        (first, then), (last, now) = self._first, self._last
        return (self._total - step) * (now - then) / (last - first) if last > first else math.nan

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves what happens inside out of the count."""
        start = time.perf_counter()
        yield
        spent = time.perf_counter() - start
        self._first, self._last = ((s, t + spent) for s, t in (self._first, self._last))


def read(workdir: str | os.PathLike) -> list[dict]:
    """Returns the rows of `metrics.jsonl` by ascending step; of a repeated step the last.

    A line that is no such row (a run killed while it wrote) is left out; a missing file has none.
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
    """Returns where the results of a step's evaluation are written once it is complete."""
    return pathlib.Path(workdir) / "eval" / f"{step}.json"


def headline(results: list[dict]) -> dict[str, float]:
    """Returns {metric: value of its first result on another split than validation, which is for choosing}."""
    return {row["metric"]: row["value"] for row in reversed(results) if row.get("split") != "validation"}


def read_headline(workdir: str | os.PathLike, step: int) -> dict[str, float]:
    """Returns the headline values of a finished evaluation."""
    return headline(json.loads(results_path(workdir, step).read_text(encoding="utf-8")))


def progress_line(step: int, total: int, metrics: Mapping[str, float], seconds_left: float) -> str:
    """Returns what the user watches: losses, speed, time left (unknown where it is not finite)."""
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
