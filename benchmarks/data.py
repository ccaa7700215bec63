"""How fast images come, beside the train step that consumes them.

python -m benchmarks.data --config=configs/quickstart.py

Reads the config's data set from memory and from disk; decodes its images as PNG files in a folder, then finds them
again; reads crops of photographs that are larger; makes two views by every recipe; replaces pixels by the colours of a
palette, by table and by comparing with every colour. All parts but decoding take turns; medians are told, and their
ratio to the step.
"""

import itertools
import pathlib
import sys
import tempfile
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from PIL import Image
from sklearn.datasets import load_sample_images

from benchmarks import step
from benchmarks.command_line import CONFIG
from hybrid_jax import config as config_lib
from hybrid_jax.data import augment, pipeline, sources, store
from hybrid_jax.data.store import Chunk
from hybrid_jax.models import tokens

_BATCHES = 40  # a call of the pipeline
_FILES = 5_000
_CROPS = 20_000
_COLOURS = 512
_VIEWS = 256

Parts = dict[str, tuple[int, Callable[[], object]]]


def main(argv: list[str]) -> None:
    """Prints the table."""
    flags.FLAGS(argv)
    config = CONFIG.value
    config_lib.validate(config)
    with tempfile.TemporaryDirectory() as folder:
        parts = {step.WHOLE_STEP: (config.train.batch_size, step.whole_step(config).call)}
        parts |= readers(config, pathlib.Path(folder)) | views(config) | quantisers()
        seconds = step.measure({name: call for name, (_, call) in parts.items()}, rounds=5)
        files = decoding(config, pathlib.Path(folder))
    print(f"jax {jax.__version__}, {jax.device_count()} x {jax.devices()[0].device_kind}")
    speeds = {name: parts[name][0] / spent for name, spent in seconds.items()} | files
    print("| part | images/s | x the step |\n|---|---|---|")
    for name, speed in speeds.items():
        print(f"| {name} | {speed:,.0f} | {speed / speeds[step.WHOLE_STEP]:,.1f} |")


def readers(config, folder: pathlib.Path) -> Parts:
    """The input pipeline by itself: batches of a split in memory and on disk."""
    batch = config.train.batch_size
    memory = sources.load(config).train.images
    with config.unlocked():
        config.data.memory_gib = 0.0
    crops = np.concatenate([_crops(photograph) for photograph in load_sample_images().images])[:_CROPS]
    larger = store.open_or_make(folder / "crops", crops.shape[1:], lambda: [Chunk(crops)], len(crops)).images
    held = {"from memory": memory, "from disk": sources.load(config).train.images, "from disk, 64x64x3": larger}

    def reader(images) -> Callable[[], object]:
        # One pipeline, read on from call to call: a run starts its threads once.
        batches = pipeline.batches(images, 0, batch, 0, 10**9)
        return lambda: sum(len(part) for part in itertools.islice(batches, _BATCHES))

    return {name: (batch * _BATCHES, reader(images)) for name, images in held.items()}


def _crops(photograph: np.ndarray) -> np.ndarray:
    corners = itertools.product(range(0, photograph.shape[0] - 64, 4), range(0, photograph.shape[1] - 64, 4))
    return np.stack([photograph[y : y + 64, x : x + 64] for y, x in corners])


def decoding(config, folder: pathlib.Path) -> dict[str, float]:
    """Images a second of a folder of PNG files: decoded into the cache, and found there again; once each."""
    images = sources.load(config).train.images[:_FILES]
    (folder / "files").mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image.squeeze()).save(folder / "files" / f"{i}.png")
    with config.unlocked():
        config.data.name, config.data.path, config.data.cache = "folder", str(folder / "files"), str(folder / "cache")
    found = {}
    for name in ("PNG files, decoded", "PNG files, found again"):
        start = time.perf_counter()
        sources.load(config)
        found[name] = len(images) / (time.perf_counter() - start)
    return found


def views(config) -> Parts:
    """Two views of 32x32 colour images by every recipe."""
    images = jnp.asarray(np.concatenate([_crops(p) for p in load_sample_images().images])[:_VIEWS, ::2, ::2])

    def viewer(recipes) -> Callable[[], object]:
        make = jax.jit(
            lambda key: [augment.augment(jax.random.fold_in(key, i), images, r) for i, r in enumerate(recipes)]
        )
        return lambda: make(jax.random.key(0))

    return {f"two views, {name}": (_VIEWS, viewer(recipes)) for name, recipes in augment.RECIPES.items()}


def quantisers() -> Parts:
    """32x32 colour images as palette tokens: by table, and by the distance to every colour."""
    rng = np.random.default_rng(0)
    spec = tokens.TokenSpec("palette", _COLOURS, 1, 32, 32, 3)
    palette = jax.device_put(tokens.Palette.from_colours(rng.uniform(-1, 1, (_COLOURS, 3))))
    images = jnp.asarray(rng.integers(0, 256, (_VIEWS, 32, 32, 3), dtype=np.uint8))
    table = jax.jit(lambda images, palette: tokens.encode(images, spec, palette))

    @jax.jit
    def compare(images, palette):
        differences = [images[..., c, None] / 127.5 - 1 - palette.colours[:, c] for c in range(3)]
        return jnp.argmin(sum(jnp.square(d) for d in differences), axis=-1)

    named = {"palette, by table": table, "palette, every colour compared": compare}
    return {name: (_VIEWS, lambda call=call: call(images, palette)) for name, call in named.items()}


if __name__ == "__main__":
    main(sys.argv)
