"""Lossless compression of images by a trained model's likelihood, and the way back.

    python examples/compress_images.py compress --workdir=DIR --input=IMAGES --output=FILE
    python examples/compress_images.py decompress --workdir=DIR --input=FILE --output=FILE.npy
    python examples/compress_images.py compare --workdir=DIR --input=IMAGES

An arithmetic coder (a range coder of `constriction`, extra `compress`) spends -log2 p bits on a token of probability p.
The decoder must compute every p to the last bit as the coder did: both run the same compiled functions on batches of
the same shape. A file is therefore restored for certain only with the same checkpoint, the same versions, and the same
kind of device, processor and number of cores. The file names them all; where one differs it is refused, and a checksum
of the pixels detects whatever else may go wrong.

Dimensions: n images, B images of a batch, N patches, S tokens per patch, V vocabulary, H W C image.
"""

import argparse
import contextlib
import hashlib
import importlib.metadata
import io
import json
import math
import os
import pathlib
import struct
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tqdm
from absl import logging
from PIL import Image

import hybrid_jax
from hybrid_jax.data.folder import find_images
from hybrid_jax.data.inputs import open_inputs
from hybrid_jax.errors import UserError, oom_advice
from hybrid_jax.inference.generation import Generator
from hybrid_jax.inference.model import NO_LIKELIHOOD, Model
from hybrid_jax.models import hybrid
from hybrid_jax.models import tokens as tokens_lib
from hybrid_jax.models.sampler import incremental_model
from hybrid_jax.storage.files import replacing
from hybrid_jax.utils.cli import Parser, exit_code, say
from hybrid_jax.utils.runtime import keep_compiled_programs, processor

# Magic, format, n, H, W, C, B, CRC-32 of the pixels, digest of the model, bytes of the environment's JSON.
HEAD = struct.Struct("<8sHI3HII16sH")
MAGIC, FORMAT = b"hybridjx", 1
CRC = struct.Struct("<I")  # of everything before it, at the end of the file
FORMATS: dict[str, dict[str, Any]] = {
    "PNG": {"format": "png", "optimize": True},
    "lossless WebP": {"format": "webp", "lossless": True, "quality": 100, "method": 6},
}
WEBP_SIDE = 16_383  # pixels at most


class Packed(NamedTuple):
    """A file's parts."""

    num: int  # n
    shape: tuple[int, int, int]  # (H, W, C)
    batch: int  # B; the last batch is padded
    pixels: int  # CRC-32 of the restored images
    digest: bytes  # of the model
    environment: dict[str, Any]  # what the probabilities depend on beside it
    stream: np.ndarray  # uint32 words of the range coder


def pack(parts: Packed) -> bytes:
    """Returns the file."""
    environment = json.dumps(parts.environment, separators=(",", ":")).encode()
    numbers = (parts.num, *parts.shape, parts.batch, parts.pixels, parts.digest, len(environment))
    data = HEAD.pack(MAGIC, FORMAT, *numbers) + environment + parts.stream.astype("<u4").tobytes()
    return data + CRC.pack(zlib.crc32(data))


def unpack(data: bytes) -> Packed:
    """Reads a file's parts.

    Raises:
      UserError: it is no such file, of another format, or not the bytes that were written.
    """
    if not data.startswith(MAGIC):
        raise UserError("not images that hybrid_jax compressed")
    if len(data) < HEAD.size + CRC.size or CRC.unpack(data[-CRC.size :])[0] != zlib.crc32(data[: -CRC.size]):
        raise UserError("compressed images: the file is damaged (truncated or changed)")
    _, form, num, height, width, channels, batch, pixels, digest, length = HEAD.unpack(data[: HEAD.size])
    if form != FORMAT:
        raise UserError(f"compressed images of format {form}: must be {FORMAT}, the one that this version knows")
    try:
        environment = json.loads(data[HEAD.size : HEAD.size + length])
        stream = np.frombuffer(data[HEAD.size + length : -CRC.size], "<u4").astype(np.uint32)
        if not isinstance(environment, dict):
            raise ValueError("no object")
    except (ValueError, RecursionError) as error:
        raise UserError("compressed images: the header or the stream is not one that was written") from error
    return Packed(num, (height, width, channels), batch, pixels, digest, environment, stream)


class Coder:
    """Compresses with one model and restores; on one device, whatever mesh the model was loaded with.

    Attributes:
      model: the model.
      exact: whether tokens are pixels; else the images of the tokens are what is restored: compression is lossy.
    """

    def __init__(self, model: Model):
        """Takes a model.

        Raises:
          UserError: it has no likelihood, or the range coder is not installed.
        """
        if not model.has_likelihood:
            raise UserError(f"compression: {NO_LIKELIHOOD}")
        try:
            import constriction  # an extra
        except ImportError as error:
            raise UserError("compression needs constriction: pip install 'hybrid_jax[compress]'") from error
        self.model, self._queue = model, constriction.stream.queue
        # 24-bit probabilities, none of them 0: every token can be coded, the least likely with 24 bits.
        self._family = constriction.stream.model.Categorical(perfect=False)
        self.exact = model.spec.kind == "intensity" and model.spec.vocab_size == 256
        self._module = hybrid.build_model(model.config)
        self._arguments = jax.device_put((model.params, model.palette), jax.local_devices()[0])
        self._programs: dict[int, tuple[dict[str, Any], dict[str, Any]]] = {}
        self._digest = _digest(model)

    def compress(self, images: np.ndarray, batch_size: int | None = None) -> bytes:
        """Codes images in one stream: token t of all images of a batch, then token t + 1.

        Args:
          images: (n, H, W, C), or (n, H, W) where C = 1; uint8, of exactly the model's shape.
          batch_size: images at a time, as far as memory allows; None = as the checkpoint's evaluations.

        Returns:
          The file.

        Raises:
          UserError: images of another shape or dtype, or probabilities that are not finite.
        """
        images = self._checked(images)
        batch = self._batch_size(len(images), batch_size or self.model.config.eval.batch_size)
        (functions, environment), encoder, pixels = self._program(batch), self._queue.RangeEncoder(), 0
        for first in range(0, len(images), batch):
            coded = np.asarray(_encode(images[first : first + batch], self.model.spec, self._arguments[1]))
            # One row for each token in generation order.
            columns = iter(np.ascontiguousarray(coded.reshape(len(coded), -1).T))

            def code(probabilities: np.ndarray, columns=columns) -> np.ndarray:
                symbols = next(columns)
                encoder.encode(symbols, self._family, probabilities)
                return symbols

            self._walk(functions, batch, len(coded), code)
            pixels = zlib.crc32(self._images(coded).data, pixels)
        shape, stream = self.model.spec.image_shape, encoder.get_compressed()
        return pack(Packed(len(images), shape, batch, pixels, self._digest, environment, stream))

    def decompress(self, data: bytes) -> np.ndarray:
        """Restores the (n, H, W, C) uint8 images of a file that `compress` made on the same kind of machine.

        Raises:
          UserError: no such file, a damaged one, or one of another model, machine or version; never wrong images.
        """
        packed = unpack(data)
        if (packed.shape, packed.digest) != (self.model.spec.image_shape, self._digest):
            raise UserError("compressed images of another checkpoint: must be restored with the one that coded them")
        # Of a file of unknown origin: what `compress` would never do might not fit into memory.
        if not packed.num or not 1 <= packed.batch <= self._batch_size(packed.num, packed.num):
            raise UserError(f"compressed images: n={packed.num} in batches of {packed.batch}, which no such file has")
        functions, environment = self._program(packed.batch)
        for name, here in environment.items():
            if packed.environment.get(name) != here:
                coded = f"compressed images, coded with {name}={str(packed.environment.get(name))[:80]}"
                raise UserError(f"{coded}: must be restored with the same; here it is {here}")
        decoder = self._queue.RangeDecoder(packed.stream)
        code = lambda probabilities: decoder.decode(self._family, probabilities)
        counts = [min(packed.batch, packed.num - first) for first in range(0, packed.num, packed.batch)]
        images = np.concatenate([self._images(self._walk(functions, packed.batch, count, code)) for count in counts])
        if zlib.crc32(images.data) != packed.pixels:
            raise UserError("compressed images: what was restored are not the images that were coded; it is not kept")
        return images

    def shown(self, images: np.ndarray) -> np.ndarray:
        """Returns what is restored of images: the (n, H, W, C) uint8 images of their tokens."""
        return self._images(_encode(self._checked(images), self.model.spec, self._arguments[1]))

    def _images(self, coded: Any) -> np.ndarray:
        """(b, N, S) int32 -> (b, H, W, C) uint8."""
        return np.ascontiguousarray(_decode(coded, self.model.spec, self._arguments[1]))

    def _walk(self, functions: dict[str, Any], batch: int, count: int, code: Callable) -> np.ndarray:
        """Goes through a batch in generation order.

        Args:
          functions: of `_program`.
          batch: B.
          count: how many images the batch has; the rest of it is padding, whose tokens are all 0.
          code: (count, V) float32 probabilities of the next token -> (count,) int32, that token.

        Returns:
          (count, N, S) int32.
        """
        spec, args = self.model.spec, self._arguments
        tokens = np.zeros((batch, spec.num_patches, spec.tokens_per_patch), np.int32)
        cache, progress, probabilities = functions["begin"](*args)
        for i in tqdm.trange(spec.num_patches, desc="patches", file=sys.stderr, delay=1):
            if i:
                # Copies, as a device of the host may read the array itself, later.
                before = tokens[:, i - 1 : i].copy()
                cache, progress, probabilities = functions["patch"](*args, cache, before, np.int32(i - 1))
            for j in range(spec.tokens_per_patch):
                if j:
                    last = tokens[:, i, j - 1].copy()
                    progress, probabilities = functions["token"](*args, progress, last, np.int32(j - 1))
                found = np.asarray(probabilities)[:count]
                try:
                    tokens[:count, i, j] = code(found)
                # What constriction raises.
                except ValueError as error:
                    raise UserError("compression: the model gives probabilities that are not finite") from error
                except AssertionError as error:
                    raise UserError("compressed images: the stream is none of this model's") from error
        return tokens[:count]

    def _checked(self, images: np.ndarray) -> np.ndarray:
        images, shape = np.asarray(images), self.model.spec.image_shape
        whole = images[..., None] if images.ndim == 3 and shape[2] == 1 else images
        # Resizing, which other methods do, could not be undone.
        if whole.shape[1:] != shape or whole.dtype != np.uint8 or not len(whole):
            allowed = f"must be uint8 (n, {', '.join(map(str, shape))}), n at least 1, exactly the model's shape"
            raise UserError(f"images of shape {images.shape} and dtype {images.dtype}: {allowed}")
        return whole

    def _batch_size(self, count: int, at_once: int) -> int:
        """Returns how many of `count` images to code together, in batches as full as can be."""
        most = Generator(self._module, None).batch_size(count, at_once)
        return -(-count // -(-count // most))

    def _program(self, batch: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """Compiles for a batch size, once.

        Returns:
          The functions, each of (params, palette, ...), which give the probabilities (B, V) float32 of a token last:
            begin: () -> cache, progress, those of token 0 of patch 0.
            patch: (cache, patch (B, 1, S), i) -> cache, progress, those of token 0 of patch i + 1.
            token: (progress, token (B,), j) -> progress, those of token j + 1 of the patch.
          And what their results depend on beside their arguments.
        """
        if batch in self._programs:
            return self._programs[batch]
        # The functions' names are part of the program, and so of what a file depends on.
        module, size = self._module, self.model.spec.tokens_per_patch
        params, palette = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), self._arguments)
        index = jax.ShapeDtypeStruct((), jnp.int32)

        def opened(steps, cache, inputs, i):
            progress, cache = steps.open(cache, inputs, i)
            log_probs, progress = steps.log_probs(progress, jnp.int32(0))
            return cache, progress, jnp.exp(log_probs)

        def begin(params, palette):
            steps = incremental_model(module, params, palette)
            inputs, cache = steps.start(steps.empty_cache(batch), jnp.zeros((batch, 0, size), jnp.int32))
            return opened(steps, cache, inputs, jnp.int32(0))

        def token(params, palette, progress, last, j):
            steps = incremental_model(module, params, palette)
            log_probs, progress = steps.log_probs(steps.update(progress, j, last), j + 1)
            return progress, jnp.exp(log_probs)

        def patch(params, palette, cache, before, i):
            steps = incremental_model(module, params, palette)
            inputs, cache = steps.close(cache, before, i)
            return opened(steps, cache, inputs, i + 1)

        cache, progress, _ = jax.eval_shape(begin, params, palette)
        before = jax.ShapeDtypeStruct((batch, 1, size), jnp.int32)
        lowered = {
            "begin": jax.jit(begin).lower(params, palette),
            "patch": jax.jit(patch, donate_argnums=2).lower(params, palette, cache, before, index),
        }
        if size > 1:
            last = jax.ShapeDtypeStruct((batch,), jnp.int32)
            lowered["token"] = jax.jit(token).lower(params, palette, progress, last, index)
        made = {name: each.compile() for name, each in lowered.items()}
        return self._programs.setdefault(batch, (made, _environment(lowered)))


_encode = jax.jit(tokens_lib.encode, static_argnums=1)
_decode = jax.jit(tokens_lib.decode, static_argnums=1)


def _environment(lowered: dict[str, Any]) -> dict[str, Any]:
    """Returns what decides, beside the arguments, which bits the functions give."""
    # Sums are split over the cores, so their rounding may depend on how many there are.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    text = "\n".join([os.environ.get("XLA_FLAGS", ""), *(lowered[name].as_text() for name in sorted(lowered))])
    return {
        **{name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "constriction")},
        "device": jax.local_devices()[0].device_kind,
        "processor": processor(),
        "cores": cores,
        "program": hashlib.blake2b(text.encode(), digest_size=8).hexdigest(),
    }


def _digest(model: Model) -> bytes:
    """Returns 16 bytes that tell parameters, colours and shape from any others."""
    shape = repr((model.spec, json.dumps(model.config.model.to_dict(), sort_keys=True)))
    digest = hashlib.blake2b(shape.encode(), digest_size=16)
    colours = None if model.palette is None else model.palette.colours
    for path, leaf in jax.tree_util.tree_leaves_with_path((model.params, colours)):
        array = np.asarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.digest()


def compare(coder: Coder, images: np.ndarray, batch_size: int | None = None) -> Iterator[str]:
    """Compresses images and restores them; yields a line about it, then a table of sizes beside PNG and WebP.

    Raises:
      UserError: as `Coder.compress`, or what comes back is not what went in.
    """
    start = time.perf_counter()
    data = coder.compress(images, batch_size)
    middle = time.perf_counter()
    restored = coder.decompress(data)
    end = time.perf_counter()
    if not np.array_equal(restored, coder.shown(images)):
        raise UserError("compression: the restored images are not those that were compressed")
    whole, stream = np.asarray(images).reshape(restored.shape), unpack(data).stream.nbytes
    predicted = -float(coder.model.token_log_prob(whole).sum(dtype=np.float64)) / math.log(2) / 8
    values = sum(leaf.size for leaf in jax.tree.leaves(coder.model.params))
    yield (
        f"step {coder.model.step}: {len(images)} images, {lossy(coder)}, "
        f"stream {100 * (stream / predicted - 1):+.2f} % of the prediction; "
        f"{middle - start:.1f} s to compress with compilation, {end - middle:.1f} s to restore; "
        f"the model's own {values:,} parameters ({4 * values:,} bytes) are in none of the sizes"
    )
    sizes: dict[str, float] = {
        "raw": restored.size,
        "predicted by the model (-log2 p)": predicted,
        "coded, the stream alone": stream,
        "coded, the whole file": len(data),
        # Of what the stream restores, so that all sizes are of the same pixels.
        **_other_formats(restored),
    }
    yield f"{'':<36}{'bytes':>12}{'bits/dim':>10}"
    for name, size in sizes.items():
        yield f"{name:<36}{size:>12,.0f}{8 * size / restored.size:>10.3f}"


def lossy(coder: Coder) -> str:
    """Says whether what is restored is what was compressed."""
    if coder.exact:
        return "lossless"
    spec = coder.model.spec
    what = "colours of the palette" if spec.kind == "palette" else f"{spec.vocab_size} levels"
    return f"lossy: {what} (the tokens are restored exactly, and the sizes are of their images)"


def _other_formats(images: np.ndarray) -> dict[str, int]:
    """Returns {format: bytes} of a file for each image, and of one file with all of them."""
    across = math.ceil(math.sqrt(len(images)))
    down = -(-len(images) // across)
    if max(across * images.shape[2], down * images.shape[1]) > WEBP_SIDE:
        raise UserError(f"{len(images)} images: must be fewer, so that one WebP holds them all")
    blank = ((0, across * down - len(images)), (0, 0), (0, 0), (0, 0))
    tiles = np.pad(images, blank).reshape(down, across, *images.shape[1:])
    sheet = tiles.transpose(0, 2, 1, 3, 4).reshape(down * images.shape[1], across * images.shape[2], -1)
    sizes = {f"{name}, a file for each image": sum(_size(x, name) for x in images) for name in FORMATS}
    return sizes | {f"{name}, all images in one": _size(sheet, name) for name in FORMATS}


def _size(image: np.ndarray, name: str) -> int:
    file = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[2] == 1 else image).save(file, **FORMATS[name])
    return file.tell()


def read_images(source: str, shape: tuple[int, int, int]) -> np.ndarray:
    """Reads an .npy file, an image or a folder of images, none of which is resized or converted.

    Returns:
      (n, h, w) or (n, h, w, c) uint8; of an .npy file the pixels stay on disk.

    Raises:
      UserError: nothing there, an unreadable file, or an image of another size or mode than `shape`, (H, W, C).
    """
    path = pathlib.Path(source).expanduser()
    open_inputs(path)  # for what it refuses
    if path.is_dir():
        return np.stack([_read_image(path / name, shape) for name in find_images(path)])
    if path.suffix.lower() == ".npy":
        return np.load(path, mmap_mode="r", allow_pickle=False)
    return _read_image(path, shape)[None]


def _read_image(path: pathlib.Path, shape: tuple[int, int, int]) -> np.ndarray:
    height, width, channels = shape
    wanted = ((width, height), "L" if channels == 1 else "RGB")
    try:
        with Image.open(path) as image:
            found = (image.size, image.mode)
            pixels = np.asarray(image) if found == wanted else None
    except Exception as error:  # decoders meet damaged files with errors of every type
        raise UserError(f"{path}: cannot be read as an image ({' '.join(str(error).split())})") from error
    if pixels is None:
        size = f"{found[0][0]}x{found[0][1]} pixels, {found[1]}"
        raise UserError(f"{path} of {size}: must be {width}x{height}, {wanted[1]}")
    return pixels


def parse(argv: list[str]) -> argparse.Namespace:
    """Reads the command line."""
    about = (__doc__ or "").partition("\n")[0]
    parser = Parser("python examples/compress_images.py", description=about, allow_abbrev=False)
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


def run(flags: argparse.Namespace) -> None:
    """Does what the command line asks for."""
    size, restores = getattr(flags, "batch_size", None), flags.command == "decompress"
    if size is not None and size < 1:
        raise UserError(f"--batch_size={size}: must be at least 1")
    target = _target(flags) if flags.command != "compare" else None
    model = hybrid_jax.load(flags.workdir, flags.step, say)
    with _prefixed("--input="):
        given: Any = _read_file(flags.input) if restores else read_images(flags.input, model.spec.image_shape)
    with _prefixed(f"--input={flags.input}: "), oom_advice("give a lower --batch_size when compressing"):
        coder = Coder(model)
        if target is None:
            say("\n".join(compare(coder, given, size)))
            return
        made = coder.decompress(given) if restores else coder.compress(given, size)
    _write(target, made)
    images, data = (made, given) if restores else (given, made)
    per = 8 * len(data) / math.prod((len(images), *model.spec.image_shape))
    say(f"step {model.step}: {len(images)} images, {len(data):,} bytes, {per:.3f} bits/dim, {lossy(coder)}: {target}")


@contextlib.contextmanager
def _prefixed(flag: str) -> Iterator[None]:
    """Says of a mistake which flag it is about."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{flag}{error}") from error


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
        raise UserError(f"{name}: cannot be read ({error.strerror})") from error


def _write(target: pathlib.Path, content: np.ndarray | bytes) -> None:
    try:
        with replacing(target) as temporary, temporary.open("wb") as file:
            file.write(content) if isinstance(content, bytes) else np.save(file, content)
    except OSError as error:
        raise UserError(f"--output={target}: cannot be written ({error.strerror or error})") from error


def main(argv: list[str]) -> int:
    """Returns the exit code, 2 for a mistake to mend."""
    # Orbax logs its own steps and warnings.
    logging.set_verbosity(logging.FATAL)
    # JAX is imported already, so that it must be told.
    keep_compiled_programs()
    jax.config.update("jax_compilation_cache_dir", os.environ.get("JAX_COMPILATION_CACHE_DIR") or None)
    return exit_code(lambda: run(parse(argv)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
