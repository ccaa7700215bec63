"""Metric writers: `metrics.jsonl`, TensorBoard if installed, Weights & Biases if configured.

A resumed run continues all of them. `metrics.jsonl` and `eval/<step>.json` are authoritative: rows after the last
checkpoint of an interrupted run are dropped, and values that may be missing from the other writers are sent again.
"""

import contextlib
import errno
import hashlib
import importlib.util
import json
import math
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TextIO

import numpy as np

from hybrid_jax import metrics as metrics_lib
from hybrid_jax.config import to_json
from hybrid_jax.errors import reject
from hybrid_jax.multihost.coordination import is_first
from hybrid_jax.storage.files import write_whole

KEYS = ("generative_loss", "contrastive_loss")


class Board(Protocol):
    """A writer of scalar curves."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Adds a point to each curve."""

    def close(self) -> None:
        """Flushes and closes the writer."""


class MetricsWriter:
    """Writes one row per logged step to all writers, on the first process only."""

    def __init__(
        self,
        workdir: str | os.PathLike,
        start_step: int,
        config=None,
        images: Callable[[], np.ndarray] | None = None,
    ):
        """Opens the writers of `workdir` to continue after `start_step`.

        Args:
          workdir: folder of the run.
          start_step: the last step to keep.
          config: shown as text; names the Weights & Biases project.
          images: function that returns (n, H, W, C) uint8 training images, shown once.

        Raises:
          UserError: Weights & Biases cannot be started.
        """
        self._file: TextIO | None = None
        self._boards: list[Board] = []
        if not is_first():
            return
        path = pathlib.Path(workdir) / "metrics.jsonl"
        rows = _drop_after(path, start_step) if path.exists() else []
        # Only the newest row may not have reached the boards before the run was killed.
        last = rows[-1]["step"] if start_step and rows else start_step
        with contextlib.suppress(ImportError):
            self._boards.append(TensorBoard(workdir, last, start_step, config, images))
        if config is not None and config.log.wandb_project:
            self._boards.append(WeightsAndBiases(workdir, config))
        self._file = path.open("a", encoding="utf-8")
        for row in rows[-1:] if start_step else ():
            self.scalars(row["step"], {k: v for k, v in row.items() if k != "step" and isinstance(v, float | int)})
        for step in _evaluated(workdir, last, start_step):
            self.scalars(step, metrics_lib.read_headline(workdir, step))

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes the metrics of one step; the file has null for the loss of an absent branch."""
        row = {"step": step} | {key: metrics.get(key) for key in KEYS} | dict(metrics)
        row = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
        if self._file is not None:
            if os.fstat(self._file.fileno()).st_nlink == 0:
                # Writes to a removed file would be lost silently.
                raise FileNotFoundError(errno.ENOENT, "metrics.jsonl was removed", self._file.name)
            self._file.write(json.dumps(row) + "\n")
            self._file.flush()
        self.scalars(step, metrics)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Writes values to the boards only, not to the file."""
        for board in self._boards:
            board.scalars(step, values)

    def close(self) -> None:
        """Closes the writers."""
        if self._file is not None:
            self._file.close()
        for board in self._boards:
            board.close()


class TensorBoard:
    """TensorBoard event files in the workdir: scalars, the config as text, some training images."""

    def __init__(self, workdir: str | os.PathLike, purge: int, start_step: int, config, images):
        """Opens a new event file; TensorBoard drops points of earlier files from step `purge` on."""
        from tensorboardX import SummaryWriter  # optional, and slow to import

        before = list(pathlib.Path(workdir).glob("events.out.tfevents.*"))
        # The suffix distinguishes files created within one second.
        suffix = f".{len(before)}" if before else ""
        self._writer = SummaryWriter(str(workdir), purge_step=purge if before else None, filename_suffix=suffix)
        if config is not None:
            indented = "".join(f"    {line}\n" for line in to_json(config).splitlines())
            self._writer.add_text("config", indented, start_step)
        if images is not None and start_step == 0:
            row = np.concatenate(list(images()), axis=1)
            colour = np.repeat(row, 3, axis=2) if row.shape[2] == 1 else row
            self._writer.add_image("training_images", colour, 0, dataformats="HWC")
        self._writer.flush()

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Adds a point to each curve."""
        for key, value in values.items():
            self._writer.add_scalar(key, value, step)
        self._writer.flush()

    def close(self) -> None:
        """Flushes and closes the event file."""
        self._writer.close()


class WeightsAndBiases:
    """A Weights & Biases run; a resumed workdir continues the same run."""

    def __init__(self, workdir: str | os.PathLike, config):
        """Starts or continues the run; raises UserError if it cannot be started."""
        import wandb  # type: ignore[import-not-found, import-untyped, unused-ignore]  # an extra

        folder, project = pathlib.Path(workdir).absolute(), config.log.wandb_project
        name = hashlib.sha256(str(folder).encode(errors="surrogateescape")).hexdigest()[:16]
        try:
            self._run: Any = wandb.init(
                project=project, id=name, name=folder.name, resume="allow", dir=str(folder), config=config.to_dict()
            )
        except Exception as error:  # no network, no account, no access to the project
            reason = " ".join(str(error).split())[:200]
            allowed = f"cannot be started ({reason}); WANDB_MODE=offline needs no network, an empty field turns it off"
            raise reject("log.wandb_project", project, allowed) from error

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Adds a point to each curve; Weights & Biases drops steps below its newest, which were sent before."""
        self._run.log({key: float(value) for key, value in values.items()}, step=step)

    def close(self) -> None:
        """Sends the remaining values and ends the run."""
        self._run.finish()


def check(config) -> None:
    """Raises UserError if Weights & Biases is configured but not installed."""
    project = config.log.wandb_project
    if not (project and is_first()):
        return
    found = importlib.util.find_spec("wandb")
    # A folder of this name, left by offline runs, is not a package.
    if found is None or found.origin is None:
        raise reject("log.wandb_project", project, "needs wandb, which is not installed: pip install wandb")


def _evaluated(workdir: str | os.PathLike, first: int, last: int) -> list[int]:
    """Returns the steps from `first` to `last` that have readable results, in ascending order."""
    found = []
    for path in (pathlib.Path(workdir) / "eval").glob("*.json"):
        if path.stem.isdecimal() and max(first, 1) <= int(path.stem) <= last:
            try:
                metrics_lib.read_headline(workdir, int(path.stem))
            except (OSError, ValueError, KeyError, TypeError, AttributeError):
                continue
            found.append(int(path.stem))
    return sorted(found)


def _drop_after(path: pathlib.Path, step: int) -> list[dict]:
    """Removes rows after `step`; returns the others."""
    kept = [row for row in metrics_lib.read(path.parent) if row["step"] <= step]
    write_whole(path, "".join(json.dumps(row) + "\n" for row in kept))
    return kept
