"""The tfds builder of the embedded set."""

import contextlib
import io
import pathlib
from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds

from hybrid_jax.data.embedded import CLASS_NAMES
from hybrid_jax.data.tfds import reader
from hybrid_jax.errors import reject

_HERE = pathlib.Path(__file__).parent


class FashionMnist12k(tfds.core.GeneratorBasedBuilder):
    """The first 10,000 training and 2,000 test images of Fashion-MNIST, in their original order."""

    name = "fashion_mnist_12k"
    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        # `Tensor`, not `Image`: tfds needs TensorFlow to encode an `Image`.
        features = {
            "image": tfds.features.Tensor(shape=(28, 28, 1), dtype=np.uint8),
            "label": tfds.features.ClassLabel(names=CLASS_NAMES),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description="A part of Fashion-MNIST (Xiao, Rasul & Vollgraf 2017, arXiv 1708.07747).",
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("image", "label"),
            homepage="https://github.com/zalandoresearch/fashion-mnist",
            license=(_HERE / "LICENSE").read_text(encoding="utf-8"),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager) -> dict[str, Iterator]:
        return {split: self._generate_examples(split) for split in ("train", "test")}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict]]:
        with np.load(_HERE / "fashion_mnist_12k.npz", allow_pickle=False) as arrays:
            images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            yield i, {"image": image[..., None], "label": int(label)}


def open_embedded(path: str) -> reader.Prepared:
    """Returns the embedded set; prepares it as array_record on first use.

    Several processes may call this at once.

    Args:
      path: folder of prepared sets; empty = the default of tfds, which honours TFDS_DATA_DIR.

    Raises:
      UserError: the directory is not writable, or the prepared set is damaged.
    """
    root = reader.data_root(path)
    try:
        builder = FashionMnist12k(data_dir=root)
        if not builder.data_path.exists():
            _prepare(builder)
            builder = FashionMnist12k(data_dir=root)
    except OSError as error:
        allowed = (
            f"{root} is not writable ({error.strerror or error}); must be a writable directory for the embedded set"
        )
        raise reject("data.path", path, allowed) from error
    return reader.Prepared.from_builder(builder)


def _prepare(builder: FashionMnist12k) -> None:
    # Output and progress bars of tfds would clutter the run's log.
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            builder.download_and_prepare(file_format="array_record")
        except OSError:
            # Each process writes its own directory and renames it; only the first succeeds.
            if not builder.data_path.exists():
                raise
