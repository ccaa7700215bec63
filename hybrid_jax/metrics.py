"""Where metrics go: `metrics.jsonl`, TensorBoard if it is installed, the progress line, and `eval/<step>.json`."""

import contextlib
import json
import math
import os
import pathlib
import time
from collections.abc import Iterator, Mapping
from typing import TextIO

from hybrid_jax.distributed import is_first

KEYS = ("generative_loss", "contrastive_loss")


class MetricsWriter:
    """Appends one JSON object a line to `metrics.jsonl`, and TensorBoard scalars if tensorboardX is there.

    A resumed run continues both: what an interrupted run wrote after its last checkpoint is dropped, so no
    step appears twice.
    """

    def __init__(self, workdir: str | os.PathLike, start_step: int):
        """Opens the files of `workdir` to go on after `start_step`; of several processes only the first writes."""
        self._file: TextIO | None = None
        self._board = None
        if not is_first():
            return
        path = pathlib.Path(workdir) / "metrics.jsonl"
        if path.exists():
            _drop_after(path, start_step)
        self._file = path.open("a", encoding="utf-8")
        try:
            from tensorboardX import SummaryWriter  # optional, and slow to import
        except ImportError:
            pass
        else:
            # The suffix keeps two files of one second apart.
            purge, suffix = (start_step + 1, f".{start_step}") if start_step else (None, "")
            self._board = SummaryWriter(str(workdir), purge_step=purge, filename_suffix=suffix)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes the metrics of one step; the loss of an absent branch is null."""
        row = {"step": step} | {key: metrics.get(key) for key in KEYS} | dict(metrics)
        row = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
        if self._file is not None:
            self._file.write(json.dumps(row) + "\n")
            self._file.flush()
        self.scalars(step, metrics)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Writes values to TensorBoard only."""
        if self._board is not None:
            for key, value in values.items():
                self._board.add_scalar(key, value, step)
            self._board.flush()

    def close(self) -> None:
        """Closes the files."""
        if self._file is not None:
            self._file.close()
        if self._board is not None:
            self._board.close()


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


def _drop_after(path: pathlib.Path, step: int) -> None:
    kept = [row for row in read(path.parent) if row["step"] <= step]
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
    temporary.replace(path)


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
