"""A tfds set of 20 pictures by formula; `python tests/tiles.py` wrote tests/data/tfrecord_set with TensorFlow 2.21.

Without TensorFlow it can be prepared as array_record only.
"""

import io
import pathlib

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from hybrid_jax.data.tfds import reader

SIZES = {"train": 14, "test": 6}
CLASS_NAMES = ("even", "odd")


def pixels(split, i):
    """Picture i of a split: (32, 32, 3) uint8."""
    tiles = np.random.default_rng([len(split), i]).integers(0, 256, (4, 4, 3), np.uint8)
    return tiles.repeat(8, 0).repeat(8, 1)


class Tiles(tfds.core.GeneratorBasedBuilder):
    """Train: labels in turn. Test: labels are secret, as tfds marks them."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {
            "id": tfds.features.Text(),
            "image": tfds.features.Image(shape=(32, 32, 3)),
            "label": tfds.features.ClassLabel(names=CLASS_NAMES),
        }
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
        )

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in SIZES}

    def _generate_examples(self, split):
        for i in range(SIZES[split]):
            label = -1 if split == "test" else i % 2
            yield i, {"id": f"{split}_{i}", "image": Image.fromarray(pixels(split, i)), "label": label}


def prepare(root, file_format):
    """Prepares the set under `root`, each split in two files."""
    tfds.disable_progress_bar()
    shards = tfds.download.DownloadConfig(num_shards=2)
    Tiles(data_dir=root, file_format=file_format).download_and_prepare(download_config=shards)


def prepare_pictures(root, pictures, shape, dtype=np.uint8):
    """Prepares a set of encoded images (bytes) without labels; returns it opened."""

    class Pictures(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = tfds.features.FeaturesDict({"image": tfds.features.Image(shape=shape, dtype=dtype)})
            return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(pictures)}

        def _generate_examples(self, pictures):
            for i, picture in enumerate(pictures):
                yield i, {"image": io.BytesIO(picture)}

    Pictures(data_dir=root, file_format="array_record").download_and_prepare()
    return reader.open_named("pictures", str(root), ())


def encoded(image, suffix="png"):
    """A PIL image as the bytes of a file."""
    stream = io.BytesIO()
    image.save(stream, suffix)
    return stream.getvalue()


if __name__ == "__main__":
    prepare(pathlib.Path(__file__).parent / "data/tfrecord_set", "tfrecord")
