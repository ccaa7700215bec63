"""Real 8x8 digits as a data set, and a model that is a function of their pixels, for tests of evaluators."""

from types import SimpleNamespace

import numpy as np
from sklearn.datasets import load_digits

from hybrid_jax.config import default_config

CUTS = {"train": slice(0, 600), "validation": slice(600, 800), "test": slice(800, 1000)}


def digits(cuts=CUTS):
    """A data set of (n, 8, 8, 1) uint8 images with labels; `cuts` say which are whose."""
    pixels, labels = load_digits(return_X_y=True)
    images = (pixels * 15).astype(np.uint8).reshape(-1, 8, 8, 1)
    splits = {
        name: SimpleNamespace(images=images[cut], labels=labels[cut].astype(np.int32)) for name, cut in cuts.items()
    }
    return SimpleNamespace(**splits, class_names=list("0123456789"), name="digits", fingerprint="digits")


class PixelModel:
    """Its features are the pixels' square roots; `embedded` counts the images that `embed` saw."""

    default_layer = "encoder"

    def __init__(self):
        self.embedded = 0

    def features(self, images):
        x = np.sqrt(images.reshape(len(images), -1) / 255).astype(np.float32)
        return {"encoder/1": x[:, ::2], "encoder": x}

    def embed(self, images, layer=None):
        self.embedded += len(images)
        return self.features(images)[layer or self.default_layer]


def settings(**changes):
    """The default config with one C for the probe; `corruptions__num_images=5` sets that field of `eval`."""
    config = default_config()
    config.eval.linear_probe.c_values = (0.1,)
    config.eval.update_from_flattened_dict({key.replace("__", "."): value for key, value in changes.items()})
    return config
