"""Image sets that tfds has prepared, read without TensorFlow from tfrecord or array_record."""

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
    """A set of images that lies prepared on disk.

    Attributes:
      name: the set, `set/config` where it has configs.
      data_path: the folder of its files.
      splits: split name -> number of images.
      class_names: of the feature `label`, in the order of the labels; None where it is absent or no class.
      builder: what tfds knows of the set.
    """

    name: str
    data_path: pathlib.Path
    splits: dict[str, int]
    class_names: tuple[str, ...] | None
    builder: tfds.core.DatasetBuilder = dataclasses.field(repr=False)

    @classmethod
    def from_builder(cls, builder: tfds.core.DatasetBuilder) -> "Prepared":
        """Wraps the builder of a set that is prepared.

        Raises:
          UserError: damaged, without images, or in a format that cannot be read safely.
        """
        info, path = builder.info, pathlib.Path(builder.data_path)
        name = "/".join(filter(None, (builder.name, builder.builder_config and builder.builder_config.name)))
        if not info.splits:
            raise _damaged(path, "no dataset_info.json")
        kind = info.file_format.value
        if kind not in records.READERS:
            other = path.parents[name.count("/") + 1] / "array_record"
            allowed = f"is prepared as {kind}, must be as {' or '.join(records.READERS)}"
            # Formats do not mix in one directory.
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
        """Reads a split once in file order, in parts that bound the memory; every byte read is checked.

        Args:
          split: one of `splits`.
          size: at most so many images a part; large images come in smaller parts.

        Yields:
          images: b arrays (h, w, c), uint8 or uint16, as stored; h and w may differ.
          labels: (b,) int32, -1 where tfds keeps a label secret; None where `class_names` is None.

        Raises:
          UserError: no such split; a file is missing, cut off, changed or holds other than the stated number.
        """
        features = self.builder.info.features
        names = ("image",) if self.class_names is None else ("image", "label")
        # Other features are left alone: decoding those of some sets takes longer than the image.
        wanted = tfds.features.FeaturesDict({name: features[name] for name in names})
        with ThreadPoolExecutor() as pool:
            for file, part in self._parts(split, size):
                try:
                    yield records.decode(wanted, part, pool)
                except records.DamagedError as error:
                    raise _damaged(self.data_path, f"{file.name}: {error}") from error

    def _parts(self, split: str, size: int) -> Iterator[tuple[pathlib.Path, list[bytes]]]:
        """The undecoded records of a split, file by file."""
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
    """Opens a set that lies prepared; never downloads, never runs the set's own code.

    Args:
      name: `set`, `set/config` or `set:version`.
      path: where prepared sets lie; empty = the default of tfds, which honours TFDS_DATA_DIR.
      others: names that are no tfds sets but allowed, for the error line.

    Raises:
      UserError: an unknown set, or one that is not prepared, damaged, without images or of another format.
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
        allowed = f"is not prepared in {root}{hint}; to prepare it: {command(name, path)}"
        raise reject("data.name", name, allowed)
    return prepared


def find(name: str, root: str) -> Prepared | None:
    """Opens a set prepared under `root`; None where it is not.

    Raises:
      UserError: what lies there is damaged, without images or of another format.
    """
    try:
        # From its files, not by `tfds.builder`: the code of some sets imports TensorFlow.
        builder = read_only_builder.builder_from_files(name, data_dir=root)
    except tfds.core.DatasetNotFoundError:
        return None
    except Exception as error:  # whatever the parsers of its two JSON files raise
        folder = pathlib.Path(root, base_name(name))
        raise _damaged(folder, f"dataset_info.json or features.json: {records.line(error)}") from error
    return Prepared.from_builder(builder)


def data_root(path: str) -> str:
    """Returns the directory of prepared sets: `path`, or the default of tfds where it is empty.

    Raises:
      UserError: it is an address, not a directory.
    """
    root = os.path.expanduser(path or tfds.core.constants.DATA_DIR)
    if "://" in root:
        raise reject("data.path", root, "must be a directory of this machine; buckets can be mounted")
    return root


def base_name(name: str) -> str:
    """`set/config:version` -> `set`."""
    return name.partition("/")[0].partition(":")[0]


def is_name(name: str) -> bool:
    """Whether a name has the form that tfds can parse."""
    return re.fullmatch(r"\w+(/[\w.-]+)?(:[\d.]+)?", name) is not None


def command(name: str, path: str) -> str:
    """Returns the command line that prepares a set in `path` (empty = the default of tfds)."""
    folder = f" --data_dir={shlex.quote(path)}" if path else ""
    return f"python -m hybrid_jax.data.prepare {shlex.quote(name)}{folder}"


def check_features(name: str, features: tfds.features.FeatureConnector) -> None:
    """Raises UserError where a set has no feature `image` that can be read without TensorFlow."""
    image = _feature(features, "image")
    if image is None or len(getattr(image, "shape", None) or ()) != 3 or image.np_dtype not in (np.uint8, np.uint16):
        raise reject("data.name", name, "must be a set with a feature `image` of 8 or 16 bits")
    if isinstance(image, tfds.features.Image) and image.np_dtype == np.uint16 and image.shape[-1] != 1:
        raise reject("data.name", name, "16-bit images must be grey: no decoder here keeps 16 bits of colour")


def _feature(features: tfds.features.FeatureConnector, name: str) -> tfds.features.FeatureConnector | None:
    return dict(features.items()).get(name) if isinstance(features, tfds.features.FeaturesDict) else None


def _configs_on_disk(folder: pathlib.Path) -> list[str]:
    return sorted(f"{folder.name}/{path.parents[1].name}" for path in folder.glob("*/*/features.json"))


def _damaged(path: pathlib.Path, reason: str) -> UserError:
    return reject("data.path", str(path), f"is damaged ({reason}); delete it and run again")
