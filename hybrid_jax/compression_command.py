"""The command `python -m hybrid_jax.compression`: compress, decompress, compare."""

import argparse
import contextlib
import math
import os
import pathlib
from collections.abc import Iterator

import jax
import numpy as np
from absl import logging
from PIL import Image

from hybrid_jax import compression
from hybrid_jax.compression_sizes import compare, lossy, table
from hybrid_jax.data.folder import find_images
from hybrid_jax.data.inputs import open_inputs
from hybrid_jax.errors import UserError, oom_advice
from hybrid_jax.inference import load as loading
from hybrid_jax.inference import model as model_lib
from hybrid_jax.utils.cli import Parser, exit_code, say
from hybrid_jax.utils.runtime import keep_compiled_programs


def read_images(model: model_lib.Model, source: str) -> np.ndarray:
    """Reads an .npy file, an image or a folder of images, none of which is resized or converted.

    Returns:
      (n, h, w) or (n, h, w, c) uint8; of an .npy file the pixels stay on disk.

    Raises:
      UserError: nothing there, an unreadable file, or an image of another size or mode than the model's.
    """
    path = pathlib.Path(source).expanduser()
    try:
        open_inputs(path)  # for what it refuses
    except UserError as error:
        raise UserError(f"--input={error}") from error
    if path.is_dir():
        return np.stack([_read_image(model, path / name) for name in find_images(path)])
    if path.suffix.lower() == ".npy":
        return np.load(path, mmap_mode="r", allow_pickle=False)
    return _read_image(model, path)[None]


def _read_image(model: model_lib.Model, path: pathlib.Path) -> np.ndarray:
    height, width, channels = model.spec.image_shape
    wanted = ((width, height), "L" if channels == 1 else "RGB")
    try:
        with Image.open(path) as image:
            found = (image.size, image.mode)
            pixels = np.asarray(image) if found == wanted else None
    except Exception as error:  # decoders meet damaged files with errors of every type
        raise UserError(f"--input={path}: cannot be read as an image ({' '.join(str(error).split())})") from error
    if pixels is None:
        raise UserError(
            f"--input={path} of {found[0][0]}x{found[0][1]} pixels, {found[1]}: must be {width}x{height}, {wanted[1]}"
        )
    return pixels


def _parse(argv: list[str]) -> argparse.Namespace:
    about = (compression.__doc__ or "").partition("\n")[0]
    parser = Parser("python -m hybrid_jax.compression", description=about, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, parser_class=Parser)
    images = "an .npy of uint8 images, an image or a folder, of exactly the model's size"
    for name, about, source, output in (
        ("compress", "images -> one file", images, "the file"),
        ("decompress", "that file -> images", "the file", "an .npy: (n, H, W, C) uint8"),
        ("compare", "the sizes beside PNG and lossless WebP", images, None),
    ):
        command = commands.add_parser(name, help=about, description=about, allow_abbrev=False)
        command.add_argument("--workdir", required=True, help="of the trained model")
        command.add_argument("--step", help="which checkpoint: a number, latest (the default) or best")
        command.add_argument("--input", required=True, help=source)
        if output:
            command.add_argument("--output", required=True, help=output)
        if name != "decompress":
            command.add_argument("--batch_size", type=int, help="images at a time (default: as its evaluations)")
    return parser.parse_args(argv)


def _run(flags: argparse.Namespace) -> None:
    size = getattr(flags, "batch_size", None)
    if size is not None and size < 1:
        raise UserError(f"--batch_size={size}: must be at least 1")
    if flags.command == "compare":
        model = loading.load(flags.workdir, flags.step, say)
        images = read_images(model, flags.input)
        with _about(flags.input):
            rows, told = compare(model, images, size)
        say("\n".join([f"step {model.step}: {len(images)} images, {told}", *table(rows)]))
        return
    target = _target(flags)
    content: np.ndarray | bytes
    if flags.command == "compress":
        model = loading.load(flags.workdir, flags.step, say)
        images = read_images(model, flags.input)
        with _about(flags.input):
            content = data = compression.compress(model, images, size, show_progress=True)
    else:
        data = _read_file(flags.input)
        model = loading.load(flags.workdir, flags.step, say)
        with _about(flags.input):
            content = images = compression.decompress(model, data, show_progress=True)
    _write(target, content)
    per = 8 * len(data) / math.prod((len(images), *model.spec.image_shape))
    say(f"step {model.step}: {len(images)} images, {len(data):,} bytes, {per:.3f} bits/dim, {lossy(model)}: {target}")


@contextlib.contextmanager
def _about(source: str) -> Iterator[None]:
    """Says of an error which input it is about, and of lacking memory what helps."""
    try:
        with oom_advice("give a lower --batch_size when compressing"):
            yield
    except UserError as error:
        raise UserError(f"--input={source}: {error}") from error


def _target(flags: argparse.Namespace) -> pathlib.Path:
    target = pathlib.Path(flags.output).expanduser()
    if target.is_dir() or (flags.command == "decompress" and target.suffix != ".npy"):
        raise UserError(f"--output={target}: must be a file{' that ends in .npy' * (flags.command == 'decompress')}")
    if not os.access(target.parent, os.W_OK):
        raise UserError(f"--output={target}: cannot be written")
    return target


def _read_file(name: str) -> bytes:
    try:
        return pathlib.Path(name).expanduser().read_bytes()
    except OSError as error:
        raise UserError(f"--input={name}: cannot be read ({error.strerror})") from error


def _write(target: pathlib.Path, content: np.ndarray | bytes) -> None:
    """Writes a file beside its place and renames it."""
    temporary = target.with_name(f"{target.name}.{os.getpid()}.incomplete")
    try:
        with temporary.open("wb") as file:
            file.write(content) if isinstance(content, bytes) else np.save(file, content)
        temporary.replace(target)
    except OSError as error:
        raise UserError(f"--output={target}: cannot be written ({error.strerror or error})") from error
    finally:
        temporary.unlink(missing_ok=True)


def main(argv: list[str]) -> int:
    """Entry point of `python -m hybrid_jax.compression`; returns the exit code, 2 at a mistake to mend."""
    # Orbax logs its own steps and warnings.
    logging.set_verbosity(logging.FATAL)
    # JAX is imported already, so that it must be told.
    keep_compiled_programs()
    jax.config.update("jax_compilation_cache_dir", os.environ.get("JAX_COMPILATION_CACHE_DIR") or None)
    return exit_code(lambda: _run(_parse(argv)))
