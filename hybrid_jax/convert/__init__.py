"""Import and export of weights; see `python -m hybrid_jax.convert --help`."""

import contextlib
import os
import pathlib
from collections.abc import Callable

import ml_collections
import numpy as np

from hybrid_jax import config as config_lib
from hybrid_jax.errors import UserError

Say = Callable[[str], None]


def from_image_gpt(
    source: str | os.PathLike,
    workdir: str | os.PathLike,
    palette: str | os.PathLike | None = None,
    data: dict[str, object] | None = None,
    scan_layers: bool = False,
    say: Say = print,
) -> None:
    """Converts a Hugging Face Image GPT to a workdir with a checkpoint at step 0.

    The workdir works with `hybrid_jax.load`, `--mode=eval`, `--mode=embed` and `--fork_from`, but not with
    `--mode=train`, since there is no optimizer state.

    Args:
      source: folder with `config.json`, `model.safetensors`, `preprocessor_config.json`.
      workdir: folder to write; must have no checkpoints if it exists.
      palette: an .npy file of (K, 3) colours in [-1, 1], if the folder has none.
      data: `data` fields of the config by dotted name, for the data to evaluate on.
      scan_layers: as `model.scan_layers`.
      say: function that prints a line.

    Raises:
      UserError: the folder cannot be read or has another model, or the workdir has checkpoints.
    """
    from hybrid_jax.convert import image_gpt
    from hybrid_jax.storage import checkpoint

    if any(path.name.isdigit() or "damaged" in path.name for path in checkpoint.directory(workdir).glob("*")):
        raise UserError(f"--workdir={workdir}: already has checkpoints; choose another --workdir")
    npy = None if palette is None else pathlib.Path(palette)
    fields, params, colours = image_gpt.read_folder(pathlib.Path(source), npy, scan_layers)
    config = config_lib.default_config()
    config.update_from_flattened_dict(fields | (data or {}))
    config_lib.validate(config)
    _write(pathlib.Path(workdir), config, params, colours)
    side, count = config.data.image_size[0], sum(x.size for x in params.values())
    model = (
        f"{config.model.decoder_layers} blocks of width {config.model.width}, {len(colours)} colours, {side} x {side}"
    )
    say(f"wrote {workdir}: {count:,} parameters, {model}, step 0")
    chosen = "" if "data.name" in (data or {}) else " (set by --data_name)"
    say(f"evaluation: data.name={config.data.name!r}{chosen}, batches of {config.eval.batch_size}")


def _write(
    workdir: pathlib.Path, config: ml_collections.ConfigDict, params: dict[str, np.ndarray], colours: np.ndarray
) -> None:
    import jax.numpy as jnp
    from flax.traverse_util import unflatten_dict

    from hybrid_jax.models import tokens
    from hybrid_jax.storage import checkpoint, lock
    from hybrid_jax.storage.files import writable, write_whole
    from hybrid_jax.train_state import TrainState

    with writable(workdir):
        checkpoint.directory(workdir).mkdir(parents=True, exist_ok=True)
    # The table of nearest colours is not saved.
    palette = tokens.Palette(jnp.asarray(colours), None)
    arrays = unflatten_dict({name: jnp.asarray(value) for name, value in params.items()}, sep="/")
    state = TrainState(jnp.zeros((), jnp.int32), arrays, None, None, palette)
    with lock.held(workdir), contextlib.closing(checkpoint.Checkpoints(workdir, config)) as checkpoints:
        checkpoints.save(state, config, None)
        checkpoints.wait()
        with writable(workdir):
            write_whole(workdir / "config.json", config_lib.to_json(config))
