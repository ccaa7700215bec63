"""Saves and restores the fitted joint anomaly score of a checkpoint.

`anomaly/<step>.npz` in the workdir holds the fitted statistics, with a checksum of the parameters they belong to.
"""

import json
import os
import pathlib
from typing import Any

import numpy as np

from hybrid_jax.anomaly.joint_score import JointScore, Measures, code_length
from hybrid_jax.errors import UserError
from hybrid_jax.multihost.coordination import is_first
from hybrid_jax.storage import checkpoint, integrity
from hybrid_jax.storage.files import DAMAGE, read_arrays, write_arrays

FORMAT = 1


def measured(measures: dict[str, np.ndarray]) -> Measures:
    """Returns the measures of a batch of images from the result of `models.hybrid.measures`."""
    patches = measures.get("patch_log_prob")
    return Measures(
        default=measures["default"],
        last=measures["last"],
        nll=None if patches is None else -patches.sum(axis=1, dtype=np.float64),
        code_length=code_length(measures["shown"]),
    )


def joined(parts: list[Measures]) -> Measures:
    """Returns the measures of several chunks, concatenated."""
    names = vars(parts[0])
    columns: dict[str, list[Any]] = {name: [getattr(part, name) for part in parts] for name in names}
    whole: dict[str, Any] = {k: None if v[0] is None else np.concatenate(v) for k, v in columns.items()}
    return Measures(**whole)


def save(workdir: str | os.PathLike, model, score: JointScore) -> None:
    """Writes `anomaly/<step>.npz` atomically, from the first process only.

    Files of deleted checkpoints are removed.
    """
    about = {
        "format": FORMAT,
        "parameters": integrity.of_model(model),
        "layers": model.measured_layers,
    }
    path = path_of(workdir, model.step)
    write_arrays(path, {"about": np.array(json.dumps(about | score.about)), **score.arrays})
    checkpoints = checkpoint.directory(workdir)
    if is_first() and checkpoints.is_dir():
        for old in path.parent.glob("*.npz"):
            if old != path and not (checkpoints / old.stem).is_dir():
                old.unlink(missing_ok=True)


def load(model) -> JointScore:
    """Returns the score saved for a model's checkpoint.

    Raises:
      UserError: there is no file, it cannot be read, or it was fitted to other parameters.
    """
    found = find(model)
    if found is None:
        raise UserError(f"anomaly_score: step {model.step} has no fitted statistics; {_remedy(model)}")
    return found


def find(model) -> JointScore | None:
    """As `load`, but returns None if the checkpoint has no statistics."""
    path = None if model.workdir is None else path_of(model.workdir, model.step)
    if path is None or not path.exists():
        return None
    try:
        arrays = read_arrays(path)
        about = json.loads(str(arrays.pop("about")))
        score = JointScore(arrays, about)
        score.check(model.has_likelihood)
    except DAMAGE as error:
        raise UserError(f"{path}: is damaged ({type(error).__name__}); {_remedy(model)}") from error
    if about.get("kind", "J1") != "J1":
        raise UserError(f"{path}: holds a score of an earlier version that is no longer computed; {_remedy(model)}")
    if about.get("format") != FORMAT or about.get("parameters") != integrity.of_model(model):
        raise UserError(f"{path}: was fitted to other parameters than those of step {model.step}; {_remedy(model)}")
    return score


def path_of(workdir: str | os.PathLike, step: int) -> pathlib.Path:
    """Returns the path of the statistics of a step's checkpoint."""
    return pathlib.Path(workdir) / "anomaly" / f"{step}.npz"


def _remedy(model) -> str:
    workdir = "" if model.workdir is None else f" --workdir={model.workdir}"
    return f"run: python -m hybrid_jax.main --mode=eval{workdir} --step={model.step}"
