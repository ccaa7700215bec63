"""Sets prepared by tfds: the builder of the embedded one, and reading any of them without TensorFlow."""

import contextlib
import io
import os
import pathlib
from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core import read_only_builder

from hybrid_jax.config import nearest
from hybrid_jax.data import folder
from hybrid_jax.data.embedded import CLASS_NAMES
from hybrid_jax.errors import reject

_HERE = pathlib.Path(__file__).parent
_RECORDS_AT_ONCE = 1000


class FashionMnist12k(tfds.core.GeneratorBasedBuilder):
    """The first 10,000 training and 2,000 test images of Fashion-MNIST, in their original order."""

    name = "fashion_mnist_12k"
    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        # `Tensor`, not `Image`: tfds encodes an array as an Image with TensorFlow only.
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
        with np.load(_HERE / "fashion_mnist_12k.npz") as arrays:
            images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            yield i, {"image": image[..., None], "label": int(label)}


def open_embedded(path: str) -> tfds.core.DatasetBuilder:
    """Returns the builder of the embedded set; prepares it as array_record where it is not.

    Any number of processes may call this at once.

    Args:
      path: where prepared sets lie; empty = the default of tfds, which honours TFDS_DATA_DIR.

    Raises:
      UserError: the directory cannot be written, or what lies there is damaged.
    """
    root = _root(path)
    try:
        builder = FashionMnist12k(data_dir=root)
        if not builder.data_path.exists():
            _prepare(builder)
            builder = FashionMnist12k(data_dir=root)
    except OSError as error:
        allowed = f"{root} cannot hold the embedded set ({error.strerror or error}); name a writable directory"
        raise reject("data.path", path, allowed) from error
    return _checked(builder)


def _root(path: str) -> str:
    return os.path.expanduser(path or tfds.core.constants.DATA_DIR)


def _prepare(builder: FashionMnist12k) -> None:
    # tfds prints two lines and draws progress bars, which only hide those of the run.
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            builder.download_and_prepare(file_format="array_record")
        except OSError:
            # Each process writes a directory of its own and renames it; all but the first fail to.
            if not builder.data_path.exists():
                raise


def open_named(name: str, path: str, others: tuple[str, ...]) -> tfds.core.DatasetBuilder:
    """Returns the builder of any tfds set that lies prepared as array_record; never downloads.

    Args:
      name: `set`, `set/config` or `set:version`.
      path: where prepared sets lie; empty = the default of tfds, which honours TFDS_DATA_DIR.
      others: names that are no tfds sets but allowed, for the error line.

    Raises:
      UserError: an unknown set, or one that is not prepared, damaged, without images or of another format.
    """
    root = _root(path)
    base = name.partition("/")[0].partition(":")[0]
    on_disk = {entry.name for entry in pathlib.Path(root).glob("*/")}
    known = {*tfds.list_builders(with_community_datasets=False), *on_disk}
    if base not in known:
        allowed = f"no such data set{nearest(base, {*known, *others})}"
        raise reject("data.name", name, f"{allowed}; must be {', '.join(others)} or a prepared tfds set")
    try:
        # From its files, not by `tfds.builder`: the code of some sets imports TensorFlow.
        builder = read_only_builder.builder_from_files(name, data_dir=root)
    except ValueError as error:
        allowed = f"is not prepared in {root}; to prepare it: {_command(name, root)}"
        raise reject("data.name", name, allowed) from error
    kind = _checked(builder).info.file_format.value
    if kind != "array_record":
        other = os.path.join(root, "array_record")  # tfds does not mix formats in one directory
        allowed = f"is prepared as {kind}, must be as array_record: {_command(name, other)}"
        raise reject("data.name", name, f"{allowed} and set data.path={other}")
    image = _feature(builder, "image")
    if image is None or len(getattr(image, "shape", ())) != 3 or image.np_dtype not in (np.uint8, np.uint16):
        raise reject("data.name", name, "must be a set with a feature `image` of 8 or 16 bits")
    return builder


def _command(name: str, data_dir: str) -> str:
    # Not `tfds build`: that needs Apache Beam as well.
    builder = f"tfds.builder('{name}', data_dir='{data_dir}', file_format='array_record')"
    code = f"import tensorflow_datasets as tfds; {builder}.download_and_prepare()"
    return f'pip install tensorflow && python -c "{code}"'


def _checked(builder: tfds.core.DatasetBuilder) -> tfds.core.DatasetBuilder:
    if not builder.info.splits:
        raise _damaged(builder, "no dataset_info.json")
    return builder


def _damaged(builder: tfds.core.DatasetBuilder, reason: str) -> Exception:
    return reject("data.path", str(builder.data_path), f"is damaged ({reason}); delete it and run again")


def _feature(builder: tfds.core.DatasetBuilder, name: str) -> tfds.features.FeatureConnector | None:
    return dict(builder.info.features.items()).get(name)


def class_names(builder: tfds.core.DatasetBuilder) -> tuple[str, ...] | None:
    """Returns the names of the classes of the feature `label`; None where it is absent or no class."""
    label = _feature(builder, "label")
    return tuple(label.names) if isinstance(label, tfds.features.ClassLabel) else None


def read_split(
    builder: tfds.core.DatasetBuilder, split: str, size: tuple[int, int], channels: int
) -> tuple[np.ndarray, np.ndarray | None]:
    """Reads a prepared split into RAM, which also checks that all of it is intact.

    Returns:
      images: (n, *size, channels) uint8, fitted as `folder.fit_images` does.
      labels: (n,) int32; None where there are no classes or tfds keeps them secret.

    Raises:
      UserError: the files are damaged.
    """
    labelled = class_names(builder) is not None
    try:
        source = builder.as_data_source(split)
        images = np.empty((len(source), *size, channels), np.uint8)
        labels = np.empty(len(source), np.int32)
        for start in range(0, len(source), _RECORDS_AT_ONCE):
            # One by one, records are read several times slower.
            records = source.__getitems__(range(len(source))[start : start + _RECORDS_AT_ONCE])
            part = slice(start, start + len(records))
            images[part] = folder.fit_images([record["image"] for record in records], size, channels)
            labels[part] = [record["label"] for record in records] if labelled else 0
    except RuntimeError as error:
        raise _damaged(builder, str(error).partition("\n")[0]) from error
    return images, labels if labelled and (labels >= 0).all() else None  # tfds: -1 = secret
