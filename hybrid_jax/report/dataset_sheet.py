"""A picture of a data set: images of each split, and views as the encoder gets them.

Dimensions: n images, H W C image, N patches.
"""

import dataclasses
import pathlib
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from hybrid_jax.data.dataset import DataSet, Split
from hybrid_jax.report.images import class_name
from hybrid_jax.report.views import sample_views
from hybrid_jax.utils.image_grid import resized

_WIDTH = 1160  # pixels that rows of small images fill
_MARGIN, _GAP = 24, 8
_MOST_COLUMNS, _NARROWEST = 12, 72  # pixels; labels of narrower tiles would be unreadable
_SPLIT_ROWS = {"train": 2}
_VIEW_IMAGES, _VIEW_PAIRS = 6, 5
_TITLE, _HEADING, _LABEL = 32, 40, 24  # heights
_INK, _PALE, _OUTLINE = (30, 36, 44), (108, 117, 128), (214, 219, 225)


@dataclasses.dataclass(frozen=True)
class _Block:
    """A heading over rows of labelled tiles.

    Attributes:
      title, note: the heading, and a note in pale letters beside it.
      rows: of (tile, label).
      paired: whether the tiles of a row, except the first, form pairs.
    """

    title: str
    note: str
    rows: list[list[tuple[np.ndarray, str]]]
    paired: bool = False

    def shift(self, column: int) -> int:
        """Returns the pixels that a column's tile moves to the right: those of a pair towards each other."""
        if not self.paired or column == 0:
            return 0
        return 3 if column % 2 else -3


def write_sheet(path: pathlib.Path, config, data: DataSet, splits: dict[str, Split], title: str) -> None:
    """Draws the first images of each split and, where there are views, several pairs of views of some images.

    Args:
      path: of the PNG.
      config: resolved.
      data: where views and class names come from.
      splits: by name, in the order of the sheet.
      title: the top line.
    """
    cell = max(_NARROWEST, resized(data.train.images[0]).shape[1])
    # Seven, so that an image and three pairs fit beside each other.
    columns = min(_MOST_COLUMNS, max(7, (_WIDTH + _GAP) // (cell + _GAP)))
    blocks = [_split_block(name, split, data, columns) for name, split in splits.items()]
    views = _views_block(config, data, columns)
    canvas = _drawn(title, [*blocks, *([views] if views else [])], cell, columns)
    canvas.save(path, "png", optimize=True)


def _split_block(name: str, split: Split, data: DataSet, columns: int) -> _Block:
    images = split.images[: columns * _SPLIT_ROWS.get(name, 1)]
    tiles = [(resized(image), _label(split, row, data)) for row, image in enumerate(images)]
    note = f"first {len(tiles)} of {len(split.images):,} images, in the run's random order"
    rows = [list(tiles[start : start + columns]) for start in range(0, len(tiles), columns)]
    return _Block(name.replace("_", " "), note, rows)


def _label(split: Split, row: int, data: DataSet) -> str:
    """The class of an image, else its file, else nothing."""
    if split.labels is not None:
        return class_name(data, int(split.labels[row]))
    return "" if split.names is None else pathlib.PurePosixPath(split.names[row]).stem


def _views_block(config, data: DataSet, columns: int) -> _Block | None:
    """Rows of an image and several draws of its two views; None where the run has no views."""
    pairs = min(_VIEW_PAIRS, (columns - 1) // 2)
    few = data.train.images[:_VIEW_IMAGES]
    # Every image several times in one batch, since each position of a batch draws its own views.
    repeated = dataclasses.replace(data, train=Split(few.repeat(pairs, axis=0), None))
    sample = sample_views(config, repeated, len(few) * pairs)
    if sample is None:
        return None
    views = sample.as_encoder_gets().reshape(len(few), pairs * 2, *few.shape[1:3], 3)
    letters = [f"{pair + 1}{view}" for pair in range(pairs) for view in "ab"]
    rows = []
    for image, drawn in zip(few, views, strict=True):
        tiles = [(resized(view), letter) for view, letter in zip(drawn, letters, strict=True)]
        rows.append([(resized(image), "image"), *tiles])
    note = f"recipe {config.augment.recipe}: an image, then {pairs} draws of its views a and b"
    if sample.kept is not None:
        note += f"; the encoder gets {sample.share_kept()} patches, the others are blue"
    return _Block("views", note, rows, paired=True)


def _drawn(title: str, blocks: Sequence[_Block], cell: int, columns: int) -> Image.Image:
    tile_height = blocks[0].rows[0][0][0].shape[0]
    down, width = tile_height + _LABEL, 2 * _MARGIN + columns * (cell + _GAP) - _GAP
    height = _MARGIN + _TITLE + sum(_HEADING + len(block.rows) * down for block in blocks)
    canvas = Image.new("RGB", (width, height + _MARGIN // 2), "white")
    draw = ImageDraw.Draw(canvas)
    large, medium, small = (_font(size) for size in (20, 15, 11))
    draw.text((_MARGIN, _MARGIN), _shortened(title, large, width - 2 * _MARGIN), _INK, large, anchor="lt")
    top = _MARGIN + _TITLE
    for block in blocks:
        draw.text((_MARGIN, top + 24), block.title, _INK, medium, anchor="ls")
        beside = _MARGIN + medium.getlength(block.title) + 10
        draw.text(
            (beside, top + 24), _shortened(block.note, small, width - _MARGIN - beside), _PALE, small, anchor="ls"
        )
        top += _HEADING - 6
        for row in block.rows:
            for column, (tile, label) in enumerate(row):
                left = _MARGIN + column * (cell + _GAP) + block.shift(column)
                _draw_tile(canvas, draw, tile, (left + (cell - tile.shape[1]) // 2, top))
                centre = (left + cell / 2, top + tile_height + 14)
                draw.text(centre, _shortened(label, small, cell), _PALE, small, anchor="ms")
            top += down
        top += 6
    return canvas


def _draw_tile(canvas: Image.Image, draw: ImageDraw.ImageDraw, tile: np.ndarray, place: tuple[int, int]) -> None:
    left, top = place
    # The outline shows where a pale image ends.
    draw.rectangle((left - 1, top - 1, left + tile.shape[1], top + tile.shape[0]), outline=_OUTLINE)
    canvas.paste(Image.fromarray(np.ascontiguousarray(tile)), place)


def _font(size: int) -> ImageFont.FreeTypeFont:
    """Matplotlib's font, which has more letters for class names than Pillow's."""
    import matplotlib

    return ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf", size)


def _shortened(text: str, font: ImageFont.FreeTypeFont, room: float) -> str:
    """The text, without its middle where it is wider than `room` pixels."""
    text = " ".join(text.split())
    if font.getlength(text) <= room:
        return text
    for keep in range(len(text) - 1, 1, -1):
        short = f"{text[: keep - keep // 2]}…{text[len(text) - keep // 2 :]}"
        if font.getlength(short) <= room:
            return short
    return ""
