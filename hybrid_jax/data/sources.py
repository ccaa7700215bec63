"""Data sets as uint8 images in RAM, cut into training, validation and test splits."""

import dataclasses
import gzip
import hashlib
import pathlib
import zlib
from collections.abc import Callable
from functools import partial

import numpy as np

from hybrid_jax.data import folder, pipeline
from hybrid_jax.data.embedded import CLASS_NAMES
from hybrid_jax.errors import UserError, reject

_DEBIAN_FASHION_MNIST = pathlib.Path("/usr/share/datasets/fashion-mnist")


@dataclasses.dataclass(frozen=True)
class Split:
    """images: (n, H, W, C) uint8; labels: (n,) int32, or None where they are not known."""

    images: np.ndarray
    labels: np.ndarray | None


@dataclasses.dataclass(frozen=True)
class DataSet:
    """What a run sees of a data set.

    Attributes:
      name: as in config.data.name.
      train, validation, test: disjoint splits; the last two may be None.
      class_names: in the order of the labels, or None.
      fingerprint: hex digest of pixels, labels, splits and order; changes when the data does.
      notes: lines for the log.
    """

    name: str
    train: Split
    validation: Split | None
    test: Split | None
    class_names: tuple[str, ...] | None
    fingerprint: str
    notes: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class _Source:
    """Splits that are read when called, which may add to `notes`.

    Where there is no split `test`, `test_percent` of the training split take its place (0 = none do).
    """

    splits: dict[str, Callable[[], Split]]
    class_names: tuple[str, ...] | None
    test_percent: float = 0
    notes: list[str] = dataclasses.field(default_factory=list)


def load(config) -> DataSet:
    """Reads the data set of a resolved config into RAM; only `config.data` matters.

    Where a folder or the digits have no split `test` but one is asked for, 10 % or 20 % of the training
    split take its place; then `data.validation_split` may hold out a share of the rest. Both are drawn with a
    fixed seed, whatever config.seed is: runs with different seeds are judged on the same images.

    Raises:
      UserError: unknown, missing or damaged data, an unknown split, or too few images.
    """
    data = config.data
    source = _SOURCES.get(data.name, _open_tfds)(data)
    share = _validation_percent(data.validation_split)
    draw_test = data.test_split == "test" and "test" not in source.splits and source.test_percent > 0
    _check_splits(data, source, share)
    train, validation, test = source.splits[data.train_split](), None, None
    if draw_test:
        train, test = _hold_out("test", train, source.test_percent, data, source.notes)
    elif data.test_split:
        test = source.splits[data.test_split]()
    if share:
        train, validation = _hold_out("validation", train, share, data, source.notes)
    elif data.validation_split:
        validation = source.splits[data.validation_split]()
    if share and "validation" in source.splits:
        source.notes.append("the data's own split `validation` is left out: data.validation_split is a share of train")
    train = _mixed(train)
    validation, test = (None if split is None else _mixed(split) for split in (validation, test))
    fingerprint = _fingerprint((train, validation, test), source.class_names)
    return DataSet(data.name, train, validation, test, source.class_names, fingerprint, tuple(source.notes))


def _mixed(split: Split) -> Split:
    """The same images in a fixed random order: the first of them are a sample, not the first class."""
    order = pipeline.mixed_order(len(split.images))
    return Split(split.images[order], None if split.labels is None else split.labels[order])


def _validation_percent(text: str) -> float:
    """The share that `data.validation_split` asks for; 0 where it names a split or is empty."""
    if not text.endswith("%"):
        return 0
    try:
        percent = float(text[:-1])
    except ValueError:
        percent = 0
    if not 0 < percent < 100:
        raise reject("data.validation_split", text, "a share must lie above 0% and below 100%")
    return percent


def _check_splits(data, source: _Source, share: float) -> None:
    known = set(source.splits)
    drawn = {"test"} if source.test_percent else set()
    asked = [("train_split", known, []), ("test_split", known | drawn, ["empty"])]
    if not share:
        asked.append(("validation_split", known, ["a share such as 10%", "empty"]))
    used: set[str] = set()
    for field, choices, others in asked:
        name = data[field]
        if not name and others:
            continue
        # A split that another field names is no choice: what is trained on must not be judged on.
        if name not in choices - used:
            allowed = ", ".join([*sorted(choices - used), *others])
            raise reject(f"data.{field}", name, f"must be one of: {allowed}")
        used.add(name)


def _hold_out(name: str, split: Split, percent: float, data, notes: list[str]) -> tuple[Split, Split]:
    kept, held = pipeline.hold_out(len(split.images), percent)
    if not len(kept):
        allowed = f"{len(held)} training images are too few to hold out {percent:g} % for {name}"
        raise reject("data.path", data.path, allowed)
    notes.append(f"{name} split: seeded {percent:g} % of {data.train_split}, {len(held)} images")
    rest, drawn = (
        Split(split.images[part], None if split.labels is None else split.labels[part]) for part in (kept, held)
    )
    return rest, drawn


def _fingerprint(splits: tuple[Split | None, ...], class_names: tuple[str, ...] | None) -> str:
    digest = hashlib.blake2b(ascii(class_names).encode(), digest_size=16)
    for split in splits:
        for array in (split.images, split.labels) if split else ():
            digest.update(ascii(None if array is None else (array.shape, array.dtype.str)).encode())
            if array is not None:
                digest.update(np.ascontiguousarray(array).data)
        digest.update(b"end")
    return digest.hexdigest()


def _fit_split(images: np.ndarray, labels: np.ndarray, data) -> Split:
    fitted = folder.fit_images(list(images), tuple(data.image_size), data.channels)
    return Split(fitted, labels.astype(np.int32))


def _open_folder(data) -> _Source:
    """An image folder; without a `test/`, 10 % of the training images take its place."""
    layout = folder.scan(data.path)
    notes = [f"ignored {layout.num_ignored} images outside the split folders"] if layout.num_ignored else []

    def read(split: str) -> Split:
        size, names = tuple(data.image_size), layout.splits[split]
        images, kept, skipped = folder.read_images(layout.root, names, size, data.channels, data.on_error)
        if skipped:
            notes.append(f"{split}: skipped {len(skipped)} unreadable images, the first: {skipped[0]}")
        labels = layout.labels(split, kept)
        if labels is None and layout.class_names:
            notes.append(f"{split}: no labels, because images lie outside the training split's classes")
        return Split(images, labels)

    return _Source({split: partial(read, split) for split in layout.splits}, layout.class_names, 10, notes)


def _open_digits(data) -> _Source:
    """scikit-learn's 1,797 digits of 8x8 pixels, 0..16 scaled to 0..255; 20 % are the test split."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)
    train = partial(_fit_split, images, digits.target, data)
    return _Source({"train": train}, tuple(map(str, digits.target_names)), 20)


def _open_fashion_mnist(data) -> _Source:
    """The IDX files of `data.path` (empty = the Debian package's), else the set prepared by tfds."""
    root = pathlib.Path(data.path).expanduser() if data.path else _DEBIAN_FASHION_MNIST
    kinds = ("images-idx3", "labels-idx1")
    stems = {"train": "train", "test": "t10k"}
    files = {split: [root / f"{stem}-{kind}-ubyte.gz" for kind in kinds] for split, stem in stems.items()}
    if all(file.is_file() for pair in files.values() for file in pair):
        splits: dict[str, Callable[[], Split]] = {s: partial(_read_idx_split, pair, data) for s, pair in files.items()}
        return _Source(splits, CLASS_NAMES, notes=[f"read from {root}"])
    try:
        return _open_tfds(data)
    except UserError as error:
        raise UserError(f"{error}; or: apt-get install dataset-fashion-mnist, with data.path empty") from error


def _read_idx_split(pair: list[pathlib.Path], data) -> Split:
    images, labels = map(_read_idx, pair)
    return _fit_split(images, labels, data)


def _read_idx(file: pathlib.Path) -> np.ndarray:
    """The array of a gzipped IDX file of unsigned bytes."""
    try:
        content = gzip.decompress(file.read_bytes())
        shape = np.frombuffer(content, ">i4", content[3], 4)
        return np.frombuffer(content, np.uint8, offset=4 + 4 * len(shape)).reshape(shape)
    except (OSError, EOFError, IndexError, ValueError, zlib.error) as error:
        raise reject("data.path", str(file), f"is not a readable IDX file ({error})") from error


def _open_embedded(data) -> _Source:
    """The images shipped with the package, prepared as a tfds set on first use."""
    from hybrid_jax.data.embedded import builder

    return _tfds_source(builder.open_embedded(data.path), data)


def _open_tfds(data) -> _Source:
    """Any tfds set that lies prepared as array_record; nothing is ever downloaded."""
    from hybrid_jax.data.embedded import builder

    return _tfds_source(builder.open_named(data.name, data.path, tuple(_SOURCES)), data)


def _tfds_source(prepared, data) -> _Source:
    from hybrid_jax.data.embedded import builder

    def read(split: str) -> Split:
        images, labels = builder.read_split(prepared, split, tuple(data.image_size), data.channels)
        return Split(images, labels)

    splits: dict[str, Callable[[], Split]] = {split: partial(read, split) for split in prepared.info.splits}
    return _Source(splits, builder.class_names(prepared), notes=[f"read from {prepared.data_path}"])


_SOURCES = {
    "embedded": _open_embedded,
    "fashion_mnist": _open_fashion_mnist,
    "digits": _open_digits,
    "folder": _open_folder,
}
