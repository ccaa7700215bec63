"""Small colour images for experiments: tiles of photographs, the test tiles from photographs of their own.

python -m benchmarks.tiles --output=photographs [--size=32] PHOTOGRAPH...

Each photograph is shrunk twice, to short sides of 12 and of 6 tiles, and cut without overlap. Of the sorted photographs
every sixth is for testing: `test/`, the others `train/`, a folder that `data.name=folder` reads.
"""

import pathlib
import sys

from PIL import Image

from benchmarks import common
from hybrid_jax.utils.cli import exit_code

TILES_ALONG, TEST_EVERY = (12, 6), 6


def main() -> None:
    """Cuts the photographs."""
    parser = common.parser(__doc__)
    parser.add_argument("--output", type=pathlib.Path, required=True, help="the folder to write")
    parser.add_argument("--size", type=int, default=32, help="side of a tile, in pixels")
    parser.add_argument("photographs", nargs="+", type=pathlib.Path)
    given, counts = parser.parse_args(), {"train": 0, "test": 0}
    for number, photograph in enumerate(sorted(given.photographs)):
        split = "test" if number % TEST_EVERY == TEST_EVERY - 1 else "train"
        (given.output / split).mkdir(parents=True, exist_ok=True)
        whole = Image.open(photograph).convert("RGB")
        for along in TILES_ALONG:
            factor = along * given.size / min(whole.size)
            sides = [max(round(side * factor), given.size) for side in whole.size]
            small = whole.resize(sides, Image.Resampling.BOX)
            for top in range(0, small.height - given.size + 1, given.size):
                for left in range(0, small.width - given.size + 1, given.size):
                    tile = small.crop((left, top, left + given.size, top + given.size))
                    tile.save(given.output / split / f"{photograph.stem}_{along}_{top:04}_{left:04}.png")
                    counts[split] += 1
    told = f"{counts['train']:,} training and {counts['test']:,} test tiles"
    print(f"{len(given.photographs)} photographs: {told}")


if __name__ == "__main__":
    sys.exit(exit_code(main))
