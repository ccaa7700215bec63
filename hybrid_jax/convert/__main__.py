"""Imports and exports weights.

python -m hybrid_jax.convert from_image_gpt DIR --workdir=OUT [--palette=FILE.npy] [--data_name=NAME ...]
python -m hybrid_jax.convert to_image_gpt --workdir=DIR --output=FOLDER [--step=latest|best|N]
python -m hybrid_jax.convert to_safetensors --workdir=DIR --output=FILE.safetensors [--step=...]
python -m hybrid_jax.convert to_stablehlo --workdir=DIR --output=FILE [--layer=NAME] [--step=...]
"""

import argparse
import pathlib
import signal
import sys

from absl import logging

from hybrid_jax import config as config_lib
from hybrid_jax.convert import Say, from_image_gpt
from hybrid_jax.errors import UserError
from hybrid_jax.utils.cli import Parser, exit_code, say

# The data to evaluate a converted model on; size and channels are given by the model.
DATA_FIELDS = tuple(
    name
    for name, field in config_lib.FIELDS.items()
    if name.startswith("data.") and name not in ("data.image_size", "data.channels") and field.default is not None
)


def _to(flags: argparse.Namespace, say: Say) -> None:
    """Runs one of the three `to_...` commands."""
    from hybrid_jax.convert import export, image_gpt
    from hybrid_jax.inference import load as loading

    output = pathlib.Path(flags.output).expanduser()
    file_wanted = flags.command != "to_image_gpt"
    if flags.command == "to_safetensors" and output.suffix != ".safetensors":
        raise UserError(f"--output={output}: must be a file name that ends in .safetensors")
    if file_wanted and (output.is_dir() or not output.parent.is_dir()):
        raise UserError(f"--output={output}: must be a file in an existing folder")
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
    parser = Parser("python -m hybrid_jax.convert", description=__doc__.split("\n")[0], allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, parser_class=Parser, metavar="COMMAND")
    one = commands.add_parser(
        "from_image_gpt", help="convert a Hugging Face Image GPT to a workdir", allow_abbrev=False
    )
    one.add_argument(
        "source", metavar="DIR", help="folder with config.json, model.safetensors, preprocessor_config.json"
    )
    one.add_argument("--workdir", required=True, help="the workdir to write")
    one.add_argument("--palette", help="an .npy file of (K, 3) colours in [-1, 1]; default: the clusters in DIR")
    one.add_argument("--scan_layers", action="store_true", help="stack the blocks, for forks with model.scan_layers")
    for name in DATA_FIELDS:
        field = config_lib.FIELDS[name]
        text = f"{field.meaning} (default: {field.default!r})".replace("%", "%%")
        one.add_argument(f"--{name.replace('.', '_', 1)}", dest=name, type=type(field.default), help=text, metavar="X")
    for name, text in {
        "to_image_gpt": "write a folder for Hugging Face, if the model is an Image GPT",
        "to_safetensors": "write all parameters to one file",
        "to_stablehlo": "write the features as compiled code (jax.export) that runs without hybrid_jax",
    }.items():
        other = commands.add_parser(name, help=text, allow_abbrev=False)
        other.add_argument("--workdir", required=True, help="workdir of a trained model")
        other.add_argument(
            "--output", required=True, help="folder to write" if name == "to_image_gpt" else "file to write"
        )
        other.add_argument("--step", default="latest", help="checkpoint to use: latest, best, or a step")
        if name == "to_stablehlo":
            other.add_argument("--layer", help="layer of the features; default: as in --mode=embed")
    return parser.parse_args(argv)


def _run(argv: list[str]) -> None:
    flags = _parse(argv)
    if flags.command != "from_image_gpt":
        return _to(flags, say)
    data = {name: value for name in DATA_FIELDS if (value := getattr(flags, name)) is not None}
    from_image_gpt(flags.source, flags.workdir, flags.palette, data, flags.scan_layers, say)


def main(argv: list[str]) -> int:
    """Entry point of `python -m hybrid_jax.convert`; returns the exit code, 2 for a user error."""
    # Treated as Ctrl-C: partial files are removed.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # Silences log lines of Orbax.
    logging.set_verbosity(logging.FATAL)
    return exit_code(lambda: _run(argv))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
