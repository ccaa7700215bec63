"""Loads a trained model from its workdir."""

import os
from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh

from hybrid_jax import sharding
from hybrid_jax.errors import UserError
from hybrid_jax.inference.model import Model
from hybrid_jax.models import hybrid, tokens
from hybrid_jax.storage.best import choose_steps
from hybrid_jax.storage.checkpoint import Checkpoints, DamagedError


def load(
    workdir: str | os.PathLike,
    step: int | str | None = None,
    log: Callable[[str], None] = print,
    mesh: Mesh | None = None,
) -> Model:
    """Loads a trained model; needs no data set, optimizer or config file.

    Args:
      workdir: `--workdir` of the training.
      step: the checkpoint; None or "latest" = the newest that is not damaged, "best" = the best by
        `checkpoint.best_metric`.
      log: takes a line for each damaged checkpoint.
      mesh: its devices share every batch; None = the default device alone.

    Returns:
      The model.

    Raises:
      UserError: no checkpoint, an unknown step, or all are damaged.
    """
    checkpoints = Checkpoints(workdir)
    try:
        chosen = choose_steps(workdir, step, checkpoints)
        for candidate in chosen:
            try:
                return _load_step(checkpoints, candidate, mesh, workdir)
            except DamagedError as error:
                log(str(error))
    finally:
        checkpoints.close()
    raise UserError(f"--workdir={workdir}: no undamaged checkpoint among {', '.join(map(str, chosen))}")


def _load_step(checkpoints: Checkpoints, step: int, mesh: Mesh | None, workdir: str | os.PathLike) -> Model:
    config = checkpoints.config(step)
    spec = tokens.TokenSpec.from_config(config)
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0]) if mesh is None else sharding.replicated(mesh)
    module, abstract = hybrid.build_model(config), tokens.abstract_palette(spec)
    shapes = jax.eval_shape(lambda p: hybrid.init_params(module, jax.random.key(0), p), abstract)
    part = "ema_params" if config.train.ema_decay > 0 else "params"
    targets = {part: shapes} if abstract is None else {part: shapes, "palette": abstract.colours}
    placed = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), targets)
    parts, meta = checkpoints.restore(step, placed)
    palette = None
    if abstract is not None:
        made = tokens.Palette.from_colours(np.asarray(parts["palette"]))
        palette = sharding.place(made, jax.tree.map(lambda _: here, made))
    return Model(config, parts[part], palette, meta["step"], mesh, meta["fingerprint"], workdir)
