"""The command `python -m hybrid_jax.compression`: compress, decompress, and a comparison with PNG and WebP."""

import argparse
import io
import math
import os
import pathlib
import sys
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging
from PIL import Image

from hybrid_jax import coding_steps, compression, inference
from hybrid_jax.caches import keep_compiled_programs
from hybrid_jax.data.folder import find_images
from hybrid_jax.data.inputs import open_inputs
from hybrid_jax.errors import UserError, explain, explained_memory
from hybrid_jax.text import printable

_FORMATS: dict[str, dict[str, Any]] = {
    "PNG": {"format": "png", "optimize": True},
    "lossless WebP": {"format": "webp", "lossless": True, "quality": 100, "method": 6},
}
_SIDE = 16_383  # pixels at most, of a WebP


class Row(NamedTuple):
    """One size of the same images.

    Attributes:
      name: what was measured.
      bytes: of all images.
      bits_per_dim: bits per value of a pixel.
    """

    name: str
    bytes: float
    bits_per_dim: float


def read_images(model: inference.Model, source: str) -> np.ndarray:
    """Reads an .npy file, an image or a folder of images, none of which is resized or converted.

    Returns:
      (n, h, w) or (n, h, w, c) uint8; of an .npy file the pixels stay on disk.

    Raises:
      UserError: nothing there, an unreadable file, or an image of another size or mode than the model's.
    """
    path = pathlib.Path(source).expanduser()
    open_inputs(path)  # for what it refuses
    if path.is_dir():
        return np.stack([_read_image(model, path / name) for name in find_images(path)])
    if path.suffix.lower() == ".npy":
        return np.load(path, mmap_mode="r", allow_pickle=False)
    return _read_image(model, path)[None]


def _read_image(model: inference.Model, path: pathlib.Path) -> np.ndarray:
    height, width, channels = model.spec.image_shape
    wanted = ((width, height), "L" if channels == 1 else "RGB")
    try:
        with Image.open(path) as image:
            found = (image.size, image.mode)
            pixels = np.asarray(image) if found == wanted else None
    except Exception as error:  # decoders meet damaged files with errors of every type
        raise UserError(f"{path}: cannot be read as an image ({' '.join(str(error).split())})") from error
    if pixels is None:
        raise UserError(
            f"{path} of {found[0][0]}x{found[0][1]} pixels, {found[1]}: must be {width}x{height}, {wanted[1]}"
        )
    return pixels


def compare(model: inference.Model, images: np.ndarray, batch_size: int | None = None) -> tuple[list[Row], str]:
    """Compresses images, restores them, and gives the size beside the model's own prediction, PNG and WebP.

    Args:
      model: with a likelihood.
      images: as `compression.compress` takes them.
      batch_size: as there.

    Returns:
      The sizes, and a line about the seconds and about what they leave out.

    Raises:
      UserError: as `compression.compress`, or where what comes back is not what went in.
    """
    start = time.perf_counter()
    data = compression.compress(model, images, batch_size, show_progress=True)
    middle = time.perf_counter()
    restored = compression.decompress(model, data, show_progress=True)
    end = time.perf_counter()
    steps = coding_steps.Steps(model)
    whole = np.asarray(images).reshape(restored.shape)
    if not np.array_equal(restored, steps.decode(steps.encode(whole))):
        raise UserError("compression: the restored images are not those that were compressed")
    stream = compression.unpack(data).stream.nbytes
    predicted = -float(model.token_log_prob(whole).sum(dtype=np.float64)) / math.log(2) / 8
    sizes: dict[str, float] = {
        "raw": restored.size,
        "predicted by the model (-log2 p)": predicted,
        "coded, the stream alone": stream,
        "coded, the whole file": len(data),
        # What the stream restores, so that all sizes are of the same pixels.
        **_other_formats(restored),
    }
    rows = [Row(name, size, 8 * size / restored.size) for name, size in sizes.items()]
    values = sum(leaf.size for leaf in jax.tree.leaves(model.params))
    told = (
        f"{_lossy(model)}, stream {100 * (stream / predicted - 1):+.2f} % of the prediction; "
        f"{middle - start:.1f} s to compress with compilation, {end - middle:.1f} s to restore; "
        f"the model's own {values:,} parameters ({4 * values:,} bytes) are in none of the sizes"
    )
    return rows, told


def _other_formats(images: np.ndarray) -> dict[str, int]:
    across = math.ceil(math.sqrt(len(images)))
    down = -(-len(images) // across)
    if max(across * images.shape[2], down * images.shape[1]) > _SIDE:
        raise UserError(f"--input of {len(images)} images: must be fewer, so that one WebP holds them all")
    blank = ((0, across * down - len(images)), (0, 0), (0, 0), (0, 0))
    tiles = np.pad(images, blank).reshape(down, across, *images.shape[1:])
    sheet = tiles.transpose(0, 2, 1, 3, 4).reshape(down * images.shape[1], across * images.shape[2], -1)
    sizes = {f"{name}, a file for each image": sum(_size(x, name) for x in images) for name in _FORMATS}
    return sizes | {f"{name}, all images in one": _size(sheet, name) for name in _FORMATS}


def _size(image: np.ndarray, name: str) -> int:
    """Returns the bytes of a file of one (h, w, c) uint8 image."""
    file = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[2] == 1 else image).save(file, **_FORMATS[name])
    return file.tell()


def _lossy(model: inference.Model) -> str:
    if compression.exact(model):
        return "lossless"
    what = "colours of the palette" if model.spec.kind == "palette" else f"{model.spec.vocab_size} levels"
    return f"lossy: {what} (the tokens are restored exactly, and the sizes are of their images)"


def _table(rows: list[Row]) -> Iterator[str]:
    yield f"{'':<36}{'bytes':>12}{'bits/dim':>10}"
    for row in rows:
        yield f"{row.name:<36}{row.bytes:>12,.0f}{row.bits_per_dim:>10.3f}"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        raise UserError(f"{message}; see --help")


def _parse(argv: list[str]) -> argparse.Namespace:
    about = (compression.__doc__ or "").partition("\n")[0]
    parser = _Parser("python -m hybrid_jax.compression", description=about, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, parser_class=_Parser)
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
    if getattr(flags, "batch_size", None) is not None and flags.batch_size < 1:
        raise UserError(f"--batch_size={flags.batch_size}: must be at least 1")
    target = _target(flags) if flags.command != "compare" else None
    data = _read_file(flags.input) if flags.command == "decompress" else None
    model = inference.load(flags.workdir, flags.step, _say)
    try:
        with explained_memory("give a lower --batch_size when compressing"):
            if data is not None:
                images = compression.decompress(model, data, show_progress=True)
            else:
                images = read_images(model, flags.input)
                if target is None:
                    rows, told = compare(model, images, flags.batch_size)
                    return _say("\n".join([f"step {model.step}: {len(images)} images, {told}", *_table(rows)]))
                data = compression.compress(model, images, flags.batch_size, show_progress=True)
    except UserError as error:
        raise UserError(f"--input={flags.input}: {error}") from error
    assert target is not None
    _write(target, images if flags.command == "decompress" else data)
    per = 8 * len(data) / math.prod((len(images), *model.spec.image_shape))
    _say(f"step {model.step}: {len(images)} images, {len(data):,} bytes, {per:.3f} bits/dim, {_lossy(model)}: {target}")


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


def _say(line: str) -> None:
    print(printable(line, keep="\n"), flush=True)


def main(argv: list[str]) -> int:
    """Entry point of `python -m hybrid_jax.compression`; returns the exit code, 2 at a mistake to mend."""
    # Orbax logs its own steps and warnings.
    logging.set_verbosity(logging.FATAL)
    # JAX is imported already, so that it must be told.
    keep_compiled_programs()
    jax.config.update("jax_compilation_cache_dir", os.environ.get("JAX_COMPILATION_CACHE_DIR") or None)
    try:
        _run(_parse(argv))
    except BaseException as error:
        told = explain(error)
        if told is None:
            raise
        print(printable(told[0]), file=sys.stderr)
        return told[1]
    return 0
