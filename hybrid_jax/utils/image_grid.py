"""Grids of images, enlarged or reduced to thumbnails.

Dimensions: n groups of images, H W C image.
"""

import numpy as np

THUMBNAIL = 84  # pixels
HIDDEN = (198, 212, 230)  # bluish, unlike any grey value


def rgb(images: np.ndarray) -> np.ndarray:
    """(..., H, W, C) -> (..., H, W, 3); grey becomes three equal channels."""
    return np.broadcast_to(images, (*images.shape[:-1], 3))


def resized(image: np.ndarray) -> np.ndarray:
    """(H, W, C) uint8 -> RGB, enlarged by an integer factor to at least 84 pixels, or reduced to 84."""
    from PIL import Image

    colour = rgb(image)
    longest = max(image.shape[:2])
    if longest <= THUMBNAIL:
        factor = -(-THUMBNAIL // longest)
        return colour.repeat(factor, axis=0).repeat(factor, axis=1)
    height, width = (max(1, round(side * THUMBNAIL / longest)) for side in image.shape[:2])
    return np.asarray(Image.fromarray(np.ascontiguousarray(colour)).resize((width, height), Image.Resampling.BOX))


def laid_out(groups: np.ndarray, in_a_row: int) -> np.ndarray:
    """(n, tiles, H, W, 3) uint8 -> one image, several groups in a row."""
    tiles = [[resized(image) for image in group] for group in groups]
    height, width = tiles[0][0].shape[:2]
    # Groups of one tile form a regular grid.
    gap, space = 4, 24 if len(tiles[0]) > 1 else 4
    across, down = width + gap, height + 2 * gap
    group_width = len(tiles[0]) * across + space
    rows, columns = -(-len(tiles) // in_a_row), min(in_a_row, len(tiles))
    canvas = np.full((rows * down, columns * group_width - space, 3), 255, np.uint8)
    for i, group in enumerate(tiles):
        for j, tile in enumerate(group):
            top, left = i // in_a_row * down, i % in_a_row * group_width + j * across
            canvas[top : top + height, left : left + width] = tile
    return canvas
