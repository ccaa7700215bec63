"""How fast images come, beside the train step that consumes them.

python -m benchmarks.data --config=configs/quickstart.py

Reads the config's data set from memory and from disk; decodes its images as PNG files in a folder, then finds them
again; reads crops of photographs that are larger; makes two views by every recipe; replaces pixels by the colours of a
palette, by table and by comparing with every colour. All parts but decoding take turns; medians are told, and their
ratio to the step.
"""

import itertools
import pathlib
import tempfile
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

from benchmarks import common, step
from benchmarks.config_flag import given_config
from hybrid_jax.data import augment, pipeline, sources, store
from hybrid_jax.data.store import Chunk
from hybrid_jax.models import tokens
from hybrid_jax.utils import cli

_BATCHES = 40  # a call of the pipeline
_FILES, _CROPS, _COLOURS, _VIEWS = 5_000, 20_000, 512, 256

Parts = dict[str, tuple[int, Callable[[], object]]]


def main() -> None:
    """Prints the table."""
    config = given_config()
    crops = np.concatenate([_crops(photograph) for photograph in load_sample_images().images])
    with tempfile.TemporaryDirectory() as folder:
        parts: Parts = {step.WHOLE_STEP: (config.train.batch_size, step.whole_step(config).call)}
        parts |= readers(config, pathlib.Path(folder), crops[:_CROPS]) | views(crops[:_VIEWS, ::2, ::2]) | quantisers()
        seconds = step.medians({name: call for name, (_, call) in parts.items()}, rounds=5)
        speeds = {name: parts[name][0] / spent for name, spent in seconds.items()}
        speeds |= decoding(config, pathlib.Path(folder))
    print(common.device_line())
    rows = [(name, f"{speed:,.0f}", f"{speed / speeds[step.WHOLE_STEP]:,.1f}") for name, speed in speeds.items()]
    print(common.table("part|images/s|x the step", rows))


def _crops(photograph: np.ndarray) -> np.ndarray:
    corners = itertools.product(range(0, photograph.shape[0] - 64, 4), range(0, photograph.shape[1] - 64, 4))
    return np.stack([photograph[y : y + 64, x : x + 64] for y, x in corners])


def readers(config, folder: pathlib.Path, crops: np.ndarray) -> Parts:
    """The input pipeline by itself: batches of a split in memory and on disk."""
    batch, memory = config.train.batch_size, sources.load(config).train.images
    with config.unlocked():
        config.data.memory_gib = 0.0
    larger = store.open_or_make(folder / "crops", crops.shape[1:], lambda: [Chunk(crops)], len(crops)).images
    held = {"from memory": memory, "from disk": sources.load(config).train.images, "from disk, 64x64x3": larger}

    def reader(images) -> Callable[[], object]:
        # One pipeline, read on from call to call: a run starts its threads once.
        batches = pipeline.batches(images, 0, batch, 0, 10**9)
        return lambda: sum(len(part) for part in itertools.islice(batches, _BATCHES))

    return {name: (batch * _BATCHES, reader(images)) for name, images in held.items()}


def decoding(config, folder: pathlib.Path) -> dict[str, float]:
    """Images a second of a folder of PNG files: decoded into the cache, and found there again; once each."""
    images, found = sources.load(config).train.images[:_FILES], {}
    (folder / "files").mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image.squeeze()).save(folder / "files" / f"{i}.png")
    with config.unlocked():
        config.data.name, config.data.path, config.data.cache = "folder", str(folder / "files"), str(folder / "cache")
    for name in ("PNG files, decoded", "PNG files, found again"):
        start = time.perf_counter()
        sources.load(config)
        found[name] = len(images) / (time.perf_counter() - start)
    return found


def views(images: np.ndarray) -> Parts:
    """Two views of 32x32 colour images by every recipe."""
    placed = jnp.asarray(images)

    def viewer(recipes) -> Callable[[], object]:
        key = lambda key, i: jax.random.fold_in(key, i)
        make = jax.jit(lambda seed: [augment.augment(key(seed, i), placed, r) for i, r in enumerate(recipes)])
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
    cli.run_cli(main, __doc__)
