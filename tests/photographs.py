"""Real photographs for tests: the two that scikit-learn ships, cut into tiles."""

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images


def tiles(side: int, stride: int) -> dict[str, np.ndarray]:
    """Returns {photograph: (n, side, side, 3) uint8}."""
    found = {}
    for name, photo in zip(("china", "flower"), load_sample_images().images, strict=True):
        height, width = photo.shape[:2]
        corners = [(y, x) for y in range(0, height - side + 1, stride) for x in range(0, width - side + 1, stride)]
        found[name] = np.stack([photo[y : y + side, x : x + side] for y, x in corners])
    return found


def write(root, side: int = 32, stride: int = 64, suffix: str = ".png") -> None:
    """Writes the tiles as files, each photograph a class folder."""
    for name, images in tiles(side, stride).items():
        (root / name).mkdir(parents=True)
        for i, image in enumerate(images):
            Image.fromarray(image).save(root / name / f"{i:04}{suffix}")
