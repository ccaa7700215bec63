"""Runs hybrid_jax's own commands and notes when they said what. No jax here: on a GPU only one process can have it."""

import os
import pathlib
import subprocess
import sys
import time
from typing import NamedTuple

from benchmarks.gpu.record import ROOT, work_folder

_KEPT_LINES, _KEPT_CHARACTERS = 80, 160
TINY_MODEL = (
    "model.width=16", "model.num_heads=2", "model.encoder_layers=1", "model.decoder_layers=1", "model.dtype=float32",
    "train.batch_size=16",
)  # fmt: skip


class Said(NamedTuple):
    """What a command did: exit code, seconds, and (seconds since its start, line) of its output."""

    code: int
    seconds: float
    lines: list[tuple[float, str]]

    def entry(self) -> dict[str, object]:
        """Returns the parts of an entry; raises RuntimeError where the command failed."""
        if self.code:
            raise RuntimeError(f"exit code {self.code}: {self.lines[-1][1] if self.lines else 'said nothing'}")
        return {"seconds": self.seconds, "lines": self.lines[-_KEPT_LINES:]}


def run(
    *words: str,
    program: tuple[str, ...] = ("-m", "hybrid_jax.main"),
    environment: dict[str, str] | None = None,
    until: str = "",
) -> Said:
    """Runs a command to its end.

    Args:
      words: its flags.
      program: what Python runs: a module, or a file of the checkout.
      environment: changes of it.
      until: what a line begins with, after which the process is killed; empty = none.
    """
    begin, lines = time.perf_counter(), []
    command = [sys.executable, "-u", *program, *words]
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | (environment or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            sys.stderr.write(line)
            lines.append((round(time.perf_counter() - begin, 2), line.rstrip()[:_KEPT_CHARACTERS]))
            if until and line.startswith(until):
                process.kill()
                return Said(0, lines[-1][0], lines)
    return Said(process.returncode, time.perf_counter() - begin, lines)


def settings(*changes: str) -> list[str]:
    """Returns `section.field=value` as flags."""
    return [f"--config.{change}" for change in changes]


def trained(tiny: bool) -> pathlib.Path:
    """Returns the workdir of configs/quickstart.py, which is trained if no stage has trained it yet."""
    folder = work_folder() / ("trained_tiny" if tiny else "trained")
    changes = ["eval.every_steps=-1", "log.gradients=False", "eval.anomaly.num_images=0"]
    if tiny:
        changes += ["train.total_steps=4", *TINY_MODEL]
    run("--config=configs/quickstart.py", f"--workdir={folder}", *settings(*changes)).entry()
    return folder
