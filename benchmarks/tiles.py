"""Small colour images for experiments: tiles of photographs, the test tiles from photographs of their own.

python -m benchmarks.tiles --output=photographs [--size=32] PHOTOGRAPH...

Each photograph is shrunk twice, to short sides of 12 and of 6 tiles, and cut without overlap. Of the sorted photographs
every sixth is for testing: `test/`, the others `train/`, a folder that `data.name=folder` reads.
"""

import pathlib
import sys
from collections.abc import Iterator

from absl import flags
from PIL import Image

OUTPUT = flags.DEFINE_string("output", None, "The folder to write.", required=True)
SIZE = flags.DEFINE_integer("size", 32, "Side of a tile, in pixels.", lower_bound=1)
TILES_ALONG = (12, 6)
TEST_EVERY = 6


def main(argv: list[str]) -> None:
    """Cuts the photographs."""
    photographs = sorted(pathlib.Path(name) for name in flags.FLAGS(argv)[1:])
    if not photographs:
        sys.exit("error: name at least one photograph")
    counts = {"train": 0, "test": 0}
    for number, photograph in enumerate(photographs):
        split = "test" if number % TEST_EVERY == TEST_EVERY - 1 else "train"
        folder = pathlib.Path(OUTPUT.value) / split
        folder.mkdir(parents=True, exist_ok=True)
        with Image.open(photograph) as whole:
            for name, tile in tiles(whole.convert("RGB"), SIZE.value):
                tile.save(folder / f"{photograph.stem}_{name}.png")
                counts[split] += 1
    print(f"{len(photographs)} photographs: {counts['train']:,} training and {counts['test']:,} test tiles")


def tiles(photograph: Image.Image, size: int) -> Iterator[tuple[str, Image.Image]]:
    """Yields the tiles of a photograph, and where they lie as a name."""
    for along in TILES_ALONG:
        factor = along * size / min(photograph.size)
        small = photograph.resize([max(round(side * factor), size) for side in photograph.size], Image.Resampling.BOX)
        for top in range(0, small.height - size + 1, size):
            for left in range(0, small.width - size + 1, size):
                yield f"{along}_{top:04}_{left:04}", small.crop((left, top, left + size, top + size))


if __name__ == "__main__":
    main(sys.argv)
