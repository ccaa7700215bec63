"""Small data sets and models that several tests share: real 8x8 digits, features that are known, random parameters."""

import json
import re
import signal
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import tiny
from sklearn.datasets import load_digits

from hybrid_jax import train
from hybrid_jax.config import default_config
from hybrid_jax.errors import Preempted
from hybrid_jax.inference.model import Model
from hybrid_jax.metrics import results_path
from hybrid_jax.models import hybrid

FEW = {"train": slice(0, 600), "validation": slice(600, 800), "test": slice(800, 1000)}
ALL = {"train": slice(0, 900), "validation": slice(900, 1200), "test": slice(1200, 1797)}


def split(images, labels=None):
    """One split of a data set."""
    return SimpleNamespace(images=images, labels=labels)


def digits(cuts=FEW):
    """A data set of (n, 8, 8, 1) uint8 images with labels; `cuts` say which are whose, None that a split is absent."""
    pixels, labels = load_digits(return_X_y=True)
    images, labels = (pixels * 15).astype(np.uint8).reshape(-1, 8, 8, 1), labels.astype(np.int32)
    splits = {name: None if cut is None else split(images[cut], labels[cut]) for name, cut in cuts.items()}
    return SimpleNamespace(**splits, class_names=list("0123456789"), name="digits", fingerprint="digits")


def flat(images):
    """(n, H, W, C) uint8 -> (n, HWC) float64 in [0, 1]."""
    return images.reshape(len(images), -1) / 255


class FeatureModel:
    """A model of given features and nothing else.

    Args:
      layers: {name: function of (n, H, W, C) uint8 images to (n, D)}; one layer, the pixels, where nothing is given.
      default: the default layer.

    `calls` counts the passes over images, `embedded` the images that `embed` saw.
    """

    has_likelihood, has_contrastive, step, palette = False, True, 1, None

    def __init__(self, layers=None, default="encoder", config=None):
        self.layers, self.default_layer, self.config = layers or {"encoder": flat}, default, config
        self.calls = self.embedded = 0

    def features(self, images):
        self.calls += 1
        return {name: layer(images).astype(np.float32) for name, layer in self.layers.items()}

    def embed(self, images, layer=None):
        self.embedded += len(images)
        return self.layers[layer or self.default_layer](images).astype(np.float32)


def root_pixel_model():
    """Its features are the pixels' square roots, and in the first layer every other one."""
    root = lambda images: np.sqrt(flat(images))
    return FeatureModel({"encoder/1": lambda images: root(images)[:, ::2], "encoder": root})


def untrained(config=None, palette=None, seed=0, step=0):
    """A real model of a config, by default of tests/tiny.py, with its initial parameters."""
    config = config or tiny.get_config()
    return Model(config, hybrid.init_params(hybrid.build_model(config), jax.random.key(seed), palette), palette, step)


def config_of(*evaluators, **changes):
    """The default config with these evaluators alone and one C for the probe; `knn__k=5` sets that field of `eval`."""
    config = default_config()
    config.eval.anomaly.num_images = 0
    config.eval.evaluators, config.eval.linear_probe.c_values = evaluators, (0.1,)
    config.eval.update_from_flattened_dict({key.replace("__", "."): value for key, value in changes.items()})
    return config


def evaluated(workdir, step, value, metric="knn_accuracy", test=0.0):
    """Writes the results of a step: a metric on the validation and on the test split."""
    rows = [{"metric": metric, "split": split, "value": v} for split, v in (("test", test), ("validation", value))]
    path = results_path(workdir, step)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows))


def interrupt_after(config, workdir, steps, log=lambda line: None, **more):
    """Trains for `steps` steps, as a run that is asked to stop during the last of them; each step must be logged."""

    def stop(line):
        log(line)
        if re.match(rf"step +{steps - 1}/", line):
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(Preempted, match=r"same command continues"):
        train.train_and_evaluate(config, workdir, stop, **more)
