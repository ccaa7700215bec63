"""Weights from other programs and for other programs.

python -m hybrid_jax.convert.__main__ from_image_gpt DIR --workdir=OUT [--palette=FILE.npy] [--data_name=NAME ...]
python -m hybrid_jax.convert.__main__ to_image_gpt --workdir=DIR --output=FOLDER [--step=latest|best|N]
python -m hybrid_jax.convert.__main__ to_safetensors --workdir=DIR --output=FILE.safetensors [--step=...]
python -m hybrid_jax.convert.__main__ to_stablehlo --workdir=DIR --output=FILE [--layer=NAME] [--step=...]
"""

import argparse
import contextlib
import os
import pathlib
import signal
import sys
from collections.abc import Callable

import ml_collections
import numpy as np
from absl import logging

from hybrid_jax import config as config_lib
from hybrid_jax.errors import UserError
from hybrid_jax.utils.cli import Parser, exit_code, say

Say = Callable[[str], None]
# Where the images lie that a converted model is evaluated on; their size and channels are the model's.
DATA_FIELDS = tuple(
    name
    for name, field in config_lib.FIELDS.items()
    if name.startswith("data.") and name not in ("data.image_size", "data.channels") and field.default is not None
)


def from_image_gpt(
    source: str | os.PathLike,
    workdir: str | os.PathLike,
    palette: str | os.PathLike | None = None,
    data: dict[str, object] | None = None,
    scan_layers: bool = False,
    say: Say = print,
) -> None:
    """Makes a workdir, with a checkpoint at step 0, of a Hugging Face Image GPT.

    `hybrid_jax.load`, `--mode=eval`, `--mode=embed` and `--fork_from` take it; `--mode=train` refuses it, since there
    is no optimizer state.

    Args:
      source: the folder with `config.json`, `model.safetensors`, `preprocessor_config.json`.
      workdir: to be made; without checkpoints where it exists.
      palette: an .npy of (K, 3) colours in [-1, 1], where the folder has none.
      data: fields of our config by dotted name, `data.name` and the like: what the model is evaluated on.
      scan_layers: as `model.scan_layers`.
      say: takes lines for the user.

    Raises:
      UserError: the folder cannot be read or is of another model, or the workdir has checkpoints.
    """
    from hybrid_jax.convert import image_gpt
    from hybrid_jax.storage import checkpoint

    if any(path.name.isdigit() or "damaged" in path.name for path in checkpoint.directory(workdir).glob("*")):
        raise UserError(f"--workdir={workdir}: has checkpoints already; choose another")
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
    chosen = "" if "data.name" in (data or {}) else " (--data_name chooses)"
    say(f"to be evaluated on data.name={config.data.name!r}{chosen}, in batches of {config.eval.batch_size}")


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
    # The pixels' table is not saved: it follows from the colours.
    palette = tokens.Palette(jnp.asarray(colours), None)
    arrays = unflatten_dict({name: jnp.asarray(value) for name, value in params.items()}, sep="/")
    state = TrainState(jnp.zeros((), jnp.int32), arrays, None, None, palette)
    with lock.held(workdir), contextlib.closing(checkpoint.Checkpoints(workdir, config)) as checkpoints:
        checkpoints.save(state, config, None)
        checkpoints.wait()
        with writable(workdir):
            write_whole(workdir / "config.json", config_lib.to_json(config))


def _to(flags: argparse.Namespace, say: Say) -> None:
    """Does one of the three `to_...`."""
    from hybrid_jax.convert import export, image_gpt
    from hybrid_jax.inference import load as loading

    output = pathlib.Path(flags.output).expanduser()
    file_wanted = flags.command != "to_image_gpt"
    if flags.command == "to_safetensors" and output.suffix != ".safetensors":
        raise UserError(f"--output={output}: must be a file that ends in .safetensors")
    if file_wanted and (output.is_dir() or not output.parent.is_dir()):
        raise UserError(f"--output={output}: must be a file in a folder that exists")
    model = loading.load(flags.workdir, flags.step, say)
    if flags.command == "to_image_gpt":
        image_gpt.write_folder(output, model)
    elif flags.command == "to_safetensors":
        export.write_safetensors(output, model)
    else:
        export.write_stablehlo(output, model, flags.layer)
    what = f", layer {flags.layer or model.default_layer}" if flags.command == "to_stablehlo" else ""
    say(f"wrote {output}: step {model.step}{what}")


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = Parser("python -m hybrid_jax.convert.__main__", description=__doc__.split("\n")[0], allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, parser_class=Parser, metavar="COMMAND")
    one = commands.add_parser("from_image_gpt", help="a workdir of a Hugging Face Image GPT", allow_abbrev=False)
    one.add_argument(
        "source", metavar="DIR", help="folder with config.json, model.safetensors, preprocessor_config.json"
    )
    one.add_argument("--workdir", required=True, help="the workdir to be made")
    one.add_argument("--palette", help="an .npy of (K, 3) colours in [-1, 1]; default: the folder's clusters")
    one.add_argument("--scan_layers", action="store_true", help="stack the blocks, for forks with model.scan_layers")
    for name in DATA_FIELDS:
        field = config_lib.FIELDS[name]
        text = f"{field.meaning} (default: {field.default!r})".replace("%", "%%")
        one.add_argument(f"--{name.replace('.', '_', 1)}", dest=name, type=type(field.default), help=text, metavar="X")
    for name, text in {
        "to_image_gpt": "a Hugging Face Image GPT, where the model is one",
        "to_safetensors": "all parameters in one file",
        "to_stablehlo": "the features as compiled code (jax.export) that needs no hybrid_jax",
    }.items():
        other = commands.add_parser(name, help=text, allow_abbrev=False)
        other.add_argument("--workdir", required=True, help="of a trained model")
        other.add_argument("--output", required=True, help="the folder" if name == "to_image_gpt" else "the file")
        other.add_argument("--step", default="latest", help="which checkpoint: latest, best, or its step")
        if name == "to_stablehlo":
            other.add_argument("--layer", help="whose features; default: as `embed`")
    return parser.parse_args(argv)


def _run(argv: list[str]) -> None:
    flags = _parse(argv)
    if flags.command != "from_image_gpt":
        return _to(flags, say)
    data = {name: value for name in DATA_FIELDS if (value := getattr(flags, name)) is not None}
    from_image_gpt(flags.source, flags.workdir, flags.palette, data, flags.scan_layers, say)


def main(argv: list[str]) -> int:
    """Entry point of `python -m hybrid_jax.convert.__main__`; returns the exit code, 2 at a mistake to mend."""
    # As Ctrl-C: what is half written is removed.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # Orbax logs steps of its own.
    logging.set_verbosity(logging.FATAL)
    return exit_code(lambda: _run(argv))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
