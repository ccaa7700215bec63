"""Reader of prepared tfds image sets (tfrecord or array_record), without TensorFlow."""

import dataclasses
import os
import pathlib
import re
import shlex
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core import read_only_builder

from hybrid_jax.config import nearest
from hybrid_jax.data.tfds import records
from hybrid_jax.errors import UserError, reject

_CHUNK_BYTES = 16 << 20  # of encoded images: about 150 photographs, which decode to some 100 MB


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A prepared image set on disk.

    Attributes:
      name: `set`, or `set/config` for sets with configs.
      data_path: folder of its files.
      splits: {split: number of images}.
      class_names: names of the classes of feature `label`, in the order of the labels; None without class labels.
      builder: tfds builder of the set.
    """

    name: str
    data_path: pathlib.Path
    splits: dict[str, int]
    class_names: tuple[str, ...] | None
    builder: tfds.core.DatasetBuilder = dataclasses.field(repr=False)

    @classmethod
    def from_builder(cls, builder: tfds.core.DatasetBuilder) -> "Prepared":
        """Wraps the builder of a prepared set.

        Raises:
          UserError: the set is damaged, has no images, or has an unsupported format.
        """
        info, path = builder.info, pathlib.Path(builder.data_path)
        name = "/".join(filter(None, (builder.name, builder.builder_config and builder.builder_config.name)))
        if not info.splits:
            raise _damaged(path, "no dataset_info.json")
        kind = info.file_format.value
        if kind not in records.READERS:
            other = path.parents[name.count("/") + 1] / "array_record"
            allowed = f"is prepared as {kind}, must be {' or '.join(records.READERS)}"
            # One directory cannot mix formats.
            raise reject("data.name", name, f"{allowed}: {command(name, str(other))} and set data.path={other}")
        check_features(name, info.features)
        label = _feature(info.features, "label")
        class_names = tuple(label.names) if isinstance(label, tfds.features.ClassLabel) else None
        return cls(name, path, {split: info.splits[split].num_examples for split in info.splits}, class_names, builder)

    @property
    def file_format(self) -> str:
        """One of records.READERS."""
        return self.builder.info.file_format.value

    def files(self, split: str) -> list[pathlib.Path]:
        """Returns the record files of a split, in the order they are read.

        Raises:
          UserError: no such split, or a file is missing.
        """
        if split not in self.splits:
            raise UserError(f"{self.name} has no split {split!r}; it has: {', '.join(self.splits)}")
        files = [pathlib.Path(file) for file in self.builder.info.splits[split].filepaths]
        for file in files:
            if not file.is_file():
                raise _damaged(self.data_path, f"{file.name} is missing")
        return files

    def chunks(self, split: str, size: int = 1000) -> Iterator[records.Decoded]:
        """Reads a split in file order, in parts of bounded memory; checksums of all records are verified.

        Args:
          split: one of `splits`.
          size: maximum images per part; parts of large images are smaller.

        Yields:
          b images (h, w, c), uint8 or uint16, as stored, of possibly different h and w; and (b,) int32 labels, -1 for
          hidden labels, or None if `class_names` is None.

        Raises:
          UserError: there is no such split; a file is missing, truncated or damaged, or has a wrong number of
            records.
        """
        features = self.builder.info.features
        names = ("image",) if self.class_names is None else ("image", "label")
        # Other features are not decoded: for some sets they take longer than the image.
        wanted = tfds.features.FeaturesDict({name: features[name] for name in names})
        with ThreadPoolExecutor() as pool:
            for file, part in self._parts(split, size):
                try:
                    yield records.decode(wanted, part, pool)
                except records.DamagedError as error:
                    raise _damaged(self.data_path, f"{file.name}: {error}") from error

    def _parts(self, split: str, size: int) -> Iterator[tuple[pathlib.Path, list[bytes]]]:
        """Yields undecoded records of a split, file by file."""
        read, files = records.READERS[self.file_format], self.files(split)
        for file, length in zip(files, self.builder.info.splits[split].shard_lengths, strict=True):
            part: list[bytes] = []
            weight = found = 0
            try:
                for record in read(file):
                    if len(part) == size or (part and weight + len(record) > _CHUNK_BYTES):
                        yield file, part
                        part, weight = [], 0
                    part.append(record)
                    weight, found = weight + len(record), found + 1
            except (records.DamagedError, OSError) as error:
                raise _damaged(self.data_path, f"{file.name}: {error}") from error
            if found != length:
                raise _damaged(self.data_path, f"{file.name}: {found} records, must be {length}")
            if part:
                yield file, part


def open_named(name: str, path: str, others: tuple[str, ...]) -> Prepared:
    """Opens a prepared set; never downloads, never runs the set's code.

    Args:
      name: `set`, `set/config` or `set:version`.
      path: folder of prepared sets; empty = the default of tfds, which honours TFDS_DATA_DIR.
      others: allowed names that are not tfds sets, for the error message.

    Raises:
      UserError: the set is unknown, not prepared, damaged, without images, or has an unsupported format.
    """
    root = data_root(path)
    base = base_name(name)
    on_disk = {entry.name for entry in pathlib.Path(root).glob("*/")}
    known = {*tfds.list_builders(with_community_datasets=False), *on_disk}
    if base not in known or not is_name(name):
        allowed = f"no such data set{nearest(base, {*known, *others})}"
        raise reject("data.name", name, f"{allowed}; must be {', '.join(others)} or a prepared tfds set")
    prepared = find(name, root)
    if prepared is None:
        there = _configs_on_disk(pathlib.Path(root, base))
        hint = f" ({', '.join(there)} is there)" if there else ""
        allowed = f"is not prepared in {root}{hint}; run {command(name, path)}"
        raise reject("data.name", name, allowed)
    return prepared


def find(name: str, root: str) -> Prepared | None:
    """Opens a set prepared under `root`; returns None if it is not prepared.

    Raises:
      UserError: the set is damaged, has no images, or has an unsupported format.
    """
    try:
        # From files, not by `tfds.builder`, since the code of some sets imports TensorFlow.
        builder = read_only_builder.builder_from_files(name, data_dir=root)
    except tfds.core.DatasetNotFoundError:
        return None
    except Exception as error:  # raised by the parsers of two JSON files
        folder = pathlib.Path(root, base_name(name))
        raise _damaged(folder, f"dataset_info.json or features.json: {records.line(error)}") from error
    return Prepared.from_builder(builder)


def data_root(path: str) -> str:
    """Returns the directory of prepared sets: `path`, or the default of tfds if it is empty.

    Raises:
      UserError: it is a URL.
    """
    root = os.path.expanduser(path or tfds.core.constants.DATA_DIR)
    if "://" in root:
        raise reject("data.path", root, "must be a local directory; buckets can be mounted")
    return root


def base_name(name: str) -> str:
    """`set/config:version` -> `set`."""
    return name.partition("/")[0].partition(":")[0]


def is_name(name: str) -> bool:
    """Returns whether tfds can parse a name."""
    return re.fullmatch(r"\w+(/[\w.-]+)?(:[\d.]+)?", name) is not None


def command(name: str, path: str) -> str:
    """Returns the command that prepares a set in `path` (empty = the default of tfds)."""
    folder = f" --data_dir={shlex.quote(path)}" if path else ""
    return f"python -m hybrid_jax.data.prepare {shlex.quote(name)}{folder}"


def check_features(name: str, features: tfds.features.FeatureConnector) -> None:
    """Raises UserError unless a set has a feature `image` that can be read without TensorFlow."""
    image = _feature(features, "image")
    if image is None or len(getattr(image, "shape", None) or ()) != 3 or image.np_dtype not in (np.uint8, np.uint16):
        raise reject("data.name", name, "must be a set with a feature `image` of 8 or 16 bits")
    if isinstance(image, tfds.features.Image) and image.np_dtype == np.uint16 and image.shape[-1] != 1:
        raise reject("data.name", name, "must not have 16-bit colour images: only 16-bit grey images can be decoded")


def _feature(features: tfds.features.FeatureConnector, name: str) -> tfds.features.FeatureConnector | None:
    return dict(features.items()).get(name) if isinstance(features, tfds.features.FeaturesDict) else None


def _configs_on_disk(folder: pathlib.Path) -> list[str]:
    return sorted(f"{folder.name}/{path.parents[1].name}" for path in folder.glob("*/*/features.json"))


def _damaged(path: pathlib.Path, reason: str) -> UserError:
    return reject("data.path", str(path), f"is damaged ({reason}); delete it and run again")
