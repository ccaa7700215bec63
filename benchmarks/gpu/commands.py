"""Runs hybrid_jax's own commands. No jax here: on a GPU only one process can have it."""

import pathlib

from benchmarks.common import run
from benchmarks.gpu.record import work_folder

TINY_MODEL = (
    "model.width=16", "model.num_heads=2", "model.encoder_layers=1", "model.decoder_layers=1", "model.dtype=float32",
    "train.batch_size=16",
)  # fmt: skip


def settings(*changes: str) -> list[str]:
    """Returns `section.field=value` as flags."""
    return [f"--config.{change}" for change in changes]


def trained(tiny: bool) -> pathlib.Path:
    """Returns the workdir of configs/quickstart.py, which is trained if no stage has trained it yet."""
    folder = work_folder() / ("trained_tiny" if tiny else "trained")
    changes = ["eval.every_steps=-1", "log.gradients=False", "eval.anomaly.num_images=0"]
    if tiny:
        changes += ["train.total_steps=4", *TINY_MODEL]
    run("--config=configs/quickstart.py", f"--workdir={folder}", *settings(*changes)).checked()
    return folder
