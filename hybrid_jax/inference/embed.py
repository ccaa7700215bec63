"""Mode `embed`: writes features and log-likelihoods of a user's images to one npz, in bounded memory."""

import os
import pathlib
import sys
import tempfile
from collections.abc import Callable
from typing import Any, BinaryIO

import numpy as np
import tqdm

from hybrid_jax.data.inputs import Inputs, open_inputs
from hybrid_jax.errors import UserError, oom_advice
from hybrid_jax.inference import load as loading
from hybrid_jax.inference import model as model_lib
from hybrid_jax.utils.cli import printable


def embed_workdir(
    workdir: str | os.PathLike,
    source: str | os.PathLike,
    output: str | os.PathLike | None = None,
    step: str | None = None,
    layer: str | None = None,
    on_error: str = "stop",
    batch_size: int | None = None,
    log: Callable[[str], None] = print,
) -> pathlib.Path:
    """Runs --mode=embed: restores the model and writes the result of `Model.embed_files` as an npz.

    Args:
      workdir: of a trained model.
      source: a folder, an image or an .npy file.
      output: the npz, replaced if it exists; None = `embed.npz` in the workdir.
      step: the checkpoint; None = the newest.
      layer: the layer of the features; None = the default layer.
      on_error: `stop` at an unreadable file, or `skip` it.
      batch_size: images at a time; None = that of the checkpoint's evaluations.
      log: takes progress lines.

    Returns:
      The path of the npz.

    Raises:
      UserError: a mistake the user can fix, in one line; nothing is written then.
    """
    target = pathlib.Path(output or pathlib.Path(workdir) / "embed.npz").expanduser()
    if target.suffix != ".npz" or target.is_dir():
        raise UserError(f"--output={target}: must be a file that ends in .npz")
    try:
        inputs = open_inputs(source)
    except UserError as error:
        raise UserError(f"--input={error}") from error
    model = loading.load(workdir, step, log)
    model.config.eval.batch_size = batch_size or model.config.eval.batch_size
    advice = f"give --config and a lower --config.eval.batch_size, here {model.config.eval.batch_size}"
    try:
        # Unnamed if the system allows it, so that not even a killed run leaves it behind.
        with tempfile.TemporaryFile(dir=target.parent) as rows, oom_advice(advice):
            columns = _embed(model, inputs, layer, on_error, rows)
            _save(target, columns)
    except OSError as error:
        raise UserError(f"--output={target}: cannot be written ({error.strerror or error})") from error
    if inputs.skipped:
        log(f"skipped {len(inputs.skipped)} unreadable images, the first: {printable(inputs.skipped[0])}")
    shapes = ", ".join(f"{name} {column.shape}" for name, column in columns.items())
    log(f"step {model.step}, layer {layer or model.default_layer}: {shapes}: {target}")
    return target


def _embed(
    model: model_lib.Model, inputs: Inputs, layer: str | None, on_error: str, rows: BinaryIO
) -> dict[str, np.ndarray]:
    """Returns the columns of the npz; the largest, the features, are mapped from the file `rows`."""
    found: dict[str, list[np.ndarray]] = {}
    shape = (0, 0)
    with tqdm.tqdm(total=len(inputs), desc="embedding", unit=" images", file=sys.stderr, delay=1) as progress:
        for part in model.embed_batches(inputs, layer, on_error):
            features = part.pop("features")
            rows.write(np.ascontiguousarray(features).data)
            shape = (shape[0] + len(features), features.shape[1])
            for name, column in part.items():
                found.setdefault(name, []).append(column)
            progress.update(shape[0] + len(inputs.skipped) - progress.n)
    rows.flush()
    columns = {name: np.concatenate(parts) for name, parts in found.items()}
    stored = np.memmap(rows, np.float32, "r", shape=shape)
    return {"names": columns.pop("names"), "features": stored} | columns


def _save(target: pathlib.Path, columns: dict[str, Any]) -> None:
    """Writes the npz atomically, to a temporary file that is renamed."""
    temporary = target.with_name(f"{target.name}.{os.getpid()}.incomplete")
    try:
        with temporary.open("wb") as file:
            np.savez(file, **columns)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
