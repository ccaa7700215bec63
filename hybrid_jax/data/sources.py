"""Data sources, and how a data set is divided into training, validation and test splits."""

import dataclasses
import gzip
import hashlib
import pathlib
import zlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial

import numpy as np

from hybrid_jax.data import decode, folder, pipeline, store
from hybrid_jax.data.dataset import DataSet, Split
from hybrid_jax.data.embedded import CLASS_NAMES
from hybrid_jax.data.store import Chunk
from hybrid_jax.errors import UserError, reject
from hybrid_jax.utils.cli import printable
from hybrid_jax.utils.runtime import cache_folder

_DEBIAN_FASHION_MNIST = pathlib.Path("/usr/share/datasets/fashion-mnist")
_SPLIT_FIELDS = ("train_split", "validation_split", "test_split", "labelled_split")
_NAMED_CLASSES = 3  # class names to list in a note
FIELD = "data.exclude_classes"
ROLE = "held_out"


@dataclasses.dataclass(frozen=True)
class _Source:
    """A source of splits; each is read by a call that may add to `notes`, and has a digest of its pixels.

    Without a split `test`, `test_percent` of the training split are held out for it (0 = none).
    """

    splits: dict[str, Callable[[], tuple[Split, str]]]
    class_names: tuple[str, ...] | None
    test_percent: float = 0
    notes: list[str] = dataclasses.field(default_factory=list)


def load(config) -> DataSet:
    """Reads the data set of a resolved config; only `config.data` matters.

    If `data.test_split` is `test` and the data have no such split, a folder holds out 10 % and the digits 20 % of the
    training split; then `data.validation_split` may hold out a share of the rest. Both are drawn with a fixed
    seed, not config.seed, so that all runs are evaluated on the same images. Splits above `data.memory_gib` stay on
    disk.

    Raises:
      UserError: data are unknown, missing or damaged, a split is unknown, or there are too few images.
    """
    data = config.data
    source = _SOURCES.get(data.name, _open_tfds)(data)
    share = _validation_percent(data.validation_split)
    _check_splits(data, source, share)
    named = [data[field] for field in _SPLIT_FIELDS if data[field] in source.splits]
    whole = {name: source.splits[name]() for name in named}
    roles = _roles(data, source, share, {name: len(split.images) for name, (split, _) in whole.items()})
    labels = {name: split.labels for name, (split, _) in whole.items()}
    roles = leave_out(tuple(data.exclude_classes), roles, labels)
    splits: dict[str, Split] = {}
    for role, (name, rows) in roles.items():
        # In a fixed random order, so that the first images are a random sample.
        split = whole[name][0].take(rows[pipeline.mixed_order(len(rows))])
        fits = split.images.nbytes <= data.memory_gib * 2**30
        splits[role] = split.in_memory() if fits else split
        if not fits:
            source.notes.append(f"{role}: {split.images.nbytes / 2**30:.1f} GiB, read from disk (data.memory_gib)")
    source.notes.extend(_unlearnable(splits, source.class_names))
    if ROLE in splits:
        source.notes.append(f"held out (data.exclude_classes): {len(splits[ROLE].images):,} test images")
    fingerprint = _fingerprint(data, whole, source.class_names)
    train, validation, test = splits["train"], splits.get("validation"), splits.get("test")
    probes = None
    if "labelled" in splits:
        probes = splits["labelled"], splits.get("labelled_validation", validation)
    # They contain names of folders, with arbitrary characters.
    notes = tuple(map(printable, source.notes))
    class_names = source.class_names and tuple(map(printable, source.class_names))
    unseen = splits.get(ROLE)
    return DataSet(data.name, train, validation, test, class_names, fingerprint, notes, probes, unseen)


def _roles(data, source: _Source, share: float, sizes: dict[str, int]) -> dict[str, tuple[str, np.ndarray]]:
    """Returns the rows of each role: {role: (split, rows)}."""
    roles = {
        field.removesuffix("_split"): (data[field], np.arange(sizes[data[field]]))
        for field in _SPLIT_FIELDS
        if data[field] in sizes
    }

    def hold_out(role: str, origin: str, percent: float) -> None:
        name, rows = roles[origin]
        kept, held = pipeline.hold_out(len(rows), percent)
        if not len(kept):
            raise reject("data.path", data.path, _too_few(len(held), origin, f"hold out {percent:g} % for {role}"))
        source.notes.append(f"{role} split: seeded {percent:g} % of {name}, {len(held)} images")
        roles[origin], roles[role] = (name, rows[kept]), (name, rows[held])

    if data.test_split == "test" and "test" not in sizes:
        hold_out("test", "train", source.test_percent)
    if share:
        hold_out("validation", "train", share)
        if "labelled" in roles:
            hold_out("labelled_validation", "labelled", share)
        if "validation" in source.splits:
            source.notes.append("the split `validation` of the data is not used: data.validation_split is a share")
    return roles


def _too_few(count: int, origin: str, wanted: str) -> str:
    kind = "training" if origin == "train" else origin
    images = f"{count} {kind} images are" if count > 1 else f"1 {kind} image is"
    return f"{images} too few to {wanted}"


def _unlearnable(splits: dict[str, Split], class_names: tuple[str, ...] | None) -> list[str]:
    """Returns a note if classes have no training images."""
    probes = splits.get("labelled", splits["train"])
    if class_names is None or probes.labels is None:
        return []
    counts = np.bincount(probes.labels, minlength=len(class_names))
    missing = [class_names[i] for i in np.flatnonzero(counts == 0)]
    if not missing:
        return []
    listed = ", ".join(missing[:_NAMED_CLASSES]) + (", ..." if len(missing) > _NAMED_CLASSES else "")
    return [f"{len(missing)} of {len(class_names)} classes have no training images, probes cannot learn them: {listed}"]


def _validation_percent(text: str) -> float:
    """Returns the percentage in `data.validation_split`; 0 if it names a split or is empty."""
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
    asked = [("train_split", known, []), ("test_split", known | drawn, ["empty"]), ("labelled_split", known, ["empty"])]
    if not share:
        asked.append(("validation_split", known, ["a share such as 10%", "empty"]))
    used: set[str] = set()
    for field, choices, others in asked:
        name = data[field]
        if not name and others:
            continue
        # Splits of other fields are excluded: training images must not be evaluated on.
        if name not in choices - used:
            allowed = ", ".join([*sorted(choices - used), *others])
            raise reject(f"data.{field}", name, f"must be one of: {allowed}")
        used.add(name)


def _fingerprint(data, whole: dict[str, tuple[Split, str]], class_names: tuple[str, ...] | None) -> str:
    """Depends on pixels, labels and splits; not on the location of images or caches."""
    chosen = [data[field] for field in _SPLIT_FIELDS] + [tuple(data.exclude_classes)] * bool(data.exclude_classes)
    digest = hashlib.blake2b(ascii((class_names, chosen)).encode(), digest_size=16)
    for name, (split, pixels) in sorted(whole.items()):
        digest.update(ascii((name, split.images.shape, pixels)).encode())
        digest.update(b"none" if split.labels is None else split.labels.astype("<i4").tobytes())
    return digest.hexdigest()


def _array_split(images: np.ndarray, labels: np.ndarray, data) -> tuple[Split, str]:
    fitted = decode.fit_images(list(images), tuple(data.image_size), data.channels)
    return Split(fitted, labels.astype(np.int32)), store.digest_of(fitted)


def _stored_split(name: str, key: str, data, chunks: Callable[[], Iterator[Chunk]], total: int) -> store.Store:
    """Opens or creates the store of a split at the size and channels of the config."""
    shape = (*data.image_size, data.channels)
    label = "".join(c if c.isalnum() else "-" for c in name)
    place = cache_folder(data.cache) / f"{label}-{'x'.join(map(str, shape))}-{store.key_of(key, shape)}"
    return store.open_or_make(place, shape, chunks, total)


def _open_folder(data) -> _Source:
    """An image folder; without `test/`, 10 % of the training images are the test split."""
    layout = folder.scan(data.path)
    notes = [f"ignored {layout.num_ignored} images outside the split folders"] if layout.num_ignored else []

    def read(split: str) -> tuple[Split, str]:
        names, size = layout.splits[split], tuple(data.image_size)
        chunks = partial(decode.chunks, layout.root, names, size, data.channels, data.on_error)
        key = folder.fingerprint(layout.root, names)
        made = _stored_split(f"folder-{split}", key, data, chunks, len(names))
        if made.skipped and data.on_error == "stop":
            raise decode.unreadable(made.skipped[0])
        if not made.names:
            raise reject("data.path", data.path, f"no image can be read; the first: {made.skipped[0]}")
        if made.skipped:
            notes.append(f"{split}: skipped {len(made.skipped)} unreadable images, the first: {made.skipped[0]}")
        labels = layout.labels(split, made.names)
        if labels is None and layout.class_names and split != "train":
            notes.append(f"{split}: no labels, because images are outside the class folders")
        return Split(made.images, labels, made.names, made.sizes), made.digest

    return _Source({split: partial(read, split) for split in layout.splits}, layout.class_names, 10, notes)


def _open_digits(data) -> _Source:
    """scikit-learn's 1,797 digits of 8x8 pixels, 0..16 scaled to 0..255; 20 % are the test split."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)
    train = partial(_array_split, images, digits.target, data)
    return _Source({"train": train}, tuple(map(str, digits.target_names)), 20)


def _open_fashion_mnist(data) -> _Source:
    """The IDX files in `data.path` (empty = those of the Debian package), else the prepared tfds set."""
    root = pathlib.Path(data.path).expanduser() if data.path else _DEBIAN_FASHION_MNIST
    kinds = ("images-idx3", "labels-idx1")
    stems = {"train": "train", "test": "t10k"}
    files = {split: [root / f"{stem}-{kind}-ubyte.gz" for kind in kinds] for split, stem in stems.items()}
    if all(file.is_file() for pair in files.values() for file in pair):
        splits: dict[str, Callable[[], tuple[Split, str]]] = {
            s: partial(_read_idx_split, pair, data) for s, pair in files.items()
        }
        return _Source(splits, CLASS_NAMES, notes=[f"read from {root}"])
    try:
        return _open_tfds(data)
    except UserError as error:
        raise UserError(f"{error}; or: apt-get install dataset-fashion-mnist, with data.path empty") from error


def _read_idx_split(pair: list[pathlib.Path], data) -> tuple[Split, str]:
    images, labels = map(read, pair)
    return _array_split(images, labels, data)


def _open_embedded(data) -> _Source:
    """The images that ship with the package, prepared as a tfds set on first use."""
    from hybrid_jax.data.embedded import builder

    return _tfds_source(builder.open_embedded(data.path), data)


def _open_tfds(data) -> _Source:
    """A prepared tfds set; nothing is downloaded."""
    from hybrid_jax.data.tfds import reader

    return _tfds_source(reader.open_named(data.name, data.path, tuple(_SOURCES)), data)


def _tfds_source(prepared, data) -> _Source:
    def chunks(split: str) -> Iterator[Chunk]:
        for images, labels in prepared.chunks(split):
            sizes = np.array([image.shape[:2] for image in images], np.int32)
            yield Chunk(decode.fit_images(images, tuple(data.image_size), data.channels), labels, None, sizes)

    def read(split: str) -> tuple[Split, str]:
        key = folder.fingerprint(prepared.data_path, [file.name for file in prepared.files(split)])
        made = _stored_split(f"{prepared.name}-{split}", key, data, partial(chunks, split), prepared.splits[split])
        secret = made.labels is None or (made.labels < 0).any()
        return Split(made.images, None if secret else made.labels, None, made.sizes), made.digest

    splits: dict[str, Callable[[], tuple[Split, str]]] = {split: partial(read, split) for split in prepared.splits}
    return _Source(splits, prepared.class_names, notes=[f"read from {prepared.data_path}"])


_SOURCES = {
    "embedded": _open_embedded,
    "fashion_mnist": _open_fashion_mnist,
    "digits": _open_digits,
    "folder": _open_folder,
}


def read(file: pathlib.Path) -> np.ndarray:
    """Returns the uint8 array of a gzipped IDX file of unsigned bytes, of any shape.

    Raises:
      UserError: the file cannot be read.
    """
    try:
        content = gzip.decompress(file.read_bytes())
        shape = np.frombuffer(content, ">i4", content[3], 4)
        return np.frombuffer(content, np.uint8, offset=4 + 4 * len(shape)).reshape(shape)
    except (OSError, EOFError, IndexError, ValueError, zlib.error) as error:
        raise reject("data.path", str(file), f"is not a readable IDX file ({error})") from error


Roles = dict[str, tuple[str, np.ndarray]]


def leave_out(classes: tuple[int, ...], roles: Roles, labels: Mapping[str, np.ndarray | None]) -> Roles:
    """Removes the images of some classes from every role; those of `test` become the role `held_out`.

    Args:
      classes: labels of the classes; empty = none.
      roles: {role: (split, rows)}.
      labels: {split: (n,) labels, or None}.

    Returns:
      {role: (split, rows)}, rows in the same order.

    Raises:
      UserError: the data have no labels, a class has no training image, or no class is left to train on.
    """
    if not classes:
        return roles
    if any(labels[name] is None for name, _ in roles.values()):
        raise reject(FIELD, classes, "must be empty, the data has no labels")
    found = {role: np.asarray(labels[name])[rows] for role, (name, rows) in roles.items()}
    known = sorted(set(found["train"].tolist()))
    if unknown := sorted(set(classes) - set(known)):
        raise reject(FIELD, classes, f"has {unknown[0]}; must be labels of training images: {_listed(known)}")
    if set(classes) >= set(known):
        raise reject(FIELD, classes, "must leave a class to train on")
    kept: Roles = {}
    for role, (name, rows) in roles.items():
        out = np.isin(found[role], classes)
        kept[role] = name, rows[~out]
        if role == "test":
            kept[ROLE] = name, rows[out]
    return kept


def _listed(labels: list[int]) -> str:
    return f"{labels[0]} to {labels[-1]}" if len(labels) > 10 else ", ".join(map(str, labels))
