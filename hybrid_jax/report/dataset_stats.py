"""Statistics of a data set before training: counts, sizes, pixel values, copies, speed.

Dimensions: n images, H W C image.
"""

import dataclasses
import hashlib
import itertools
import sys
import time

import numpy as np
import tqdm

from hybrid_jax.data import folder, pipeline
from hybrid_jax.data.dataset import DataSet, Split
from hybrid_jax.errors import reject
from hybrid_jax.models import tokens

MOMENT_IMAGES = 10_000
CROPPED = 0.2  # share of the area; images that lose more to the crop are counted
# Of a larger split only the first images, which are a random sample, are read: minutes at most.
_SCANNED_BYTES = 2**32
_READ_AT_ONCE = 2**25  # bytes
_ENDLESS = 2**31  # steps
_PSNR_IMAGES = 1_000  # as many as training reports


@dataclasses.dataclass(frozen=True)
class Scan:
    """The findings of one pass over the first k images of a split.

    Attributes:
      digests: (k,) uint64, equal where the pixels at the run's size are equal.
      grey: (k,) bool, all channels equal.
      constant: (k,) bool, one colour throughout.
      mean, std: (C,) float64 over the pixels of the first 10,000 images, on the 0..255 scale.
    """

    digests: np.ndarray
    grey: np.ndarray
    constant: np.ndarray
    mean: np.ndarray
    std: np.ndarray


def splits_of(data: DataSet) -> dict[str, Split]:
    """Returns the splits that exist: train, validation, test, then the probes' own."""
    labelled, validation = data.labelled or (None, None)
    # Without a validation split of their own, the probes use that of the run.
    extra = None if validation is data.validation else validation
    named = {"train": data.train, "validation": data.validation, "test": data.test}
    named |= {"labelled": labelled, "labelled_validation": extra}
    return {name: split for name, split in named.items() if split is not None}


def scan(name: str, split: Split) -> Scan:
    """Reads the first 4 GiB of a split's pixels, 32 MiB at a time."""
    image_bytes = int(np.prod(split.images.shape[1:]))
    count = min(len(split.images), max(1, _SCANNED_BYTES // image_bytes))
    at_once = max(1, _READ_AT_ONCE // image_bytes)
    digests, flags, moments = np.empty(count, np.uint64), np.empty((2, count), bool), _Moments(split.images.shape[-1])
    bar = tqdm.tqdm(total=count, desc=f"reading {name}", unit=" images", file=sys.stderr, delay=3, leave=False)
    with bar as progress:
        for start in range(0, count, at_once):
            images = split.images[start : min(start + at_once, count)]
            rows = slice(start, start + len(images))
            found = [hashlib.blake2b(image.tobytes(), digest_size=8).digest() for image in images]
            digests[rows] = np.frombuffer(b"".join(found), np.uint64)
            flags[0, rows] = _all_true(images == images[..., :1])
            flags[1, rows] = _all_true(images == images[:, :1, :1])
            moments.add(images[: max(0, MOMENT_IMAGES - start)])
            progress.update(len(images))
    mean, std = moments.result()
    return Scan(digests, flags[0], flags[1], mean, std)


def _all_true(of_pixels: np.ndarray) -> np.ndarray:
    """(b, H, W, C) bool -> (b,) bool."""
    return np.asarray(of_pixels.reshape(len(of_pixels), -1).all(axis=1))


class _Moments:
    """Exact sums, so that the result does not depend on how the images were cut into chunks."""

    def __init__(self, channels: int):
        self._count, self._sum, self._squares = 0, np.zeros(channels, np.int64), np.zeros(channels, np.int64)

    def add(self, images: np.ndarray) -> None:
        self._count += int(np.prod(images.shape[:3]))
        self._sum += images.sum(axis=(0, 1, 2), dtype=np.int64)
        self._squares += np.square(images, dtype=np.uint16).sum(axis=(0, 1, 2), dtype=np.int64)

    def result(self) -> tuple[np.ndarray, np.ndarray]:
        mean = self._sum / self._count
        return mean, np.sqrt(np.maximum(self._squares / self._count - mean**2, 0))


def split_row(split: Split, scanned: Scan) -> dict:
    """Returns the entry of one split in `data.json`."""
    return {
        "images": len(split.images),
        "shape": list(split.images.shape[1:]),
        "where": "memory" if isinstance(split.images, np.ndarray) else "disk",
        "bytes": int(split.images.nbytes),
        "scanned": len(scanned.digests),
        "grey": int(scanned.grey.sum()),
        "constant": int(scanned.constant.sum()),
        "first_constant": _name(split, int(scanned.constant.argmax())) if scanned.constant.any() else None,
    } | _copies(split, scanned.digests)


def class_counts(data: DataSet, splits: dict[str, Split]) -> dict | None:
    """Returns {"names": class names, "counts": {split: images of each}}; None where no split has labels."""
    labels = {name: split.labels for name, split in splits.items() if split.labels is not None}
    if not labels:
        return None
    count = max(len(data.class_names or ()), *(int(found.max(initial=-1)) + 1 for found in labels.values()))
    names = list(data.class_names or ())
    names += [str(i) for i in range(len(names), count)]
    counts = {split: np.bincount(found, minlength=count).tolist() for split, found in labels.items()}
    return {"names": names, "counts": counts}


def _copies(split: Split, digests: np.ndarray) -> dict:
    """The number of images that repeat an earlier one, and the first such pair."""
    _, first, group = np.unique(digests, return_index=True, return_inverse=True)
    repeats = first[group] != np.arange(len(digests))
    at = int(repeats.argmax())
    pair = [_name(split, int(first[group][at])), _name(split, at)] if repeats.any() else None
    return {"copies": int(repeats.sum()), "first_copy": pair}


def shared_images(splits: dict[str, Split], scans: dict[str, Scan]) -> list[dict]:
    """Returns a row for each pair of a training split and an evaluation split that share images."""
    rows = []
    for learnt, judged in itertools.product(("train", "labelled"), ("validation", "labelled_validation", "test")):
        if learnt not in splits or judged not in splits:
            continue
        ours, theirs = scans[learnt].digests, scans[judged].digests
        leaked = np.isin(theirs, ours)
        if leaked.any():
            at = int(leaked.argmax())
            pair = [_name(splits[learnt], int((ours == theirs[at]).argmax())), _name(splits[judged], at)]
            rows.append({"from": learnt, "to": judged, "images": int(leaked.sum()), "first": pair})
    return rows


def _name(split: Split, row: int) -> str | int:
    """The file of an image; its row in the split where there are no files."""
    return row if split.names is None else split.names[row]


def original_sizes(splits: dict[str, Split], height: int, width: int) -> dict | None:
    """Returns height and width before resizing (extremes and median by area) and its effects; None if unknown."""
    known = [split.sizes for split in splits.values() if split.sizes is not None]
    if not known:
        return None
    sizes = np.concatenate(known).astype(np.int64)
    by_area = sizes[np.argsort(sizes.prod(axis=1), kind="stable")]
    scale = np.maximum(height / sizes[:, 0], width / sizes[:, 1])
    kept = height * width / (sizes.prod(axis=1) * scale**2)
    middle = {"min": by_area[0], "median": by_area[len(by_area) // 2], "max": by_area[-1]}
    return {name: found.tolist() for name, found in middle.items()} | {
        "images": len(sizes),
        "enlarged": int(np.count_nonzero(scale > 1)),
        "cropped": int(np.count_nonzero(kept < 1 - CROPPED)),
    }


def skipped_files(config, splits: dict[str, Split]) -> int:
    """Returns the number of unreadable files in the splits of the folder that are used."""
    data = config.data
    if data.name != "folder" or data.on_error != "skip":
        return 0
    used = {data[f"{role}_split"] for role in ("train", "validation", "test", "labelled")}
    files = folder.scan(data.path).splits
    return sum(len(files[name]) for name in used & set(files)) - sum(len(s.names or ()) for s in splits.values())


def batch_numbers(config, num_images: int) -> dict:
    """Returns the batch size, steps and left-out images per epoch, and the epochs of the run.

    Raises:
      UserError: the batch is larger than the training split.
    """
    batch, total = config.train.batch_size, config.train.total_steps
    steps = pipeline.steps_per_epoch(num_images, batch)
    left_out = num_images - steps * batch
    return {
        "batch_size": batch,
        "steps_per_epoch": steps,
        "left_out_per_epoch": left_out,
        "total_steps": total,
        "epochs": total / steps,
    }


def token_numbers(config) -> dict:
    """Returns the numbers that describe an image as tokens."""
    spec = tokens.TokenSpec.from_config(config)
    return {
        "kind": spec.kind,
        "patches": spec.num_patches,
        "patch_size": spec.patch_size,
        "tokens_per_patch": spec.tokens_per_patch,
        "vocabulary": spec.vocab_size,
    }


def palette_psnr(config, images) -> float | None:
    """Returns the PSNR in dB that training reports; None for intensity tokens, infinite for a lossless palette.

    Raises:
      UserError: the images have fewer colours than the palette.
    """
    spec = tokens.TokenSpec.from_config(config)
    if spec.kind != "palette":
        return None
    try:
        colours = tokens.fit_palette(images, spec.vocab_size)
    except ValueError as error:
        raise reject("model.palette_size", spec.vocab_size, f"the data have {error}") from error
    return tokens.palette_psnr(images[:_PSNR_IMAGES], spec, tokens.Palette.from_colours(colours))


def images_per_second(config, images, seconds: float) -> float:
    """Returns the speed of reading and batching alone, measured for at least `seconds`."""
    batches = pipeline.batches(images, config.seed, config.train.batch_size, 0, _ENDLESS)
    start, done = time.perf_counter(), 0
    while (spent := time.perf_counter() - start) < seconds or not done:
        done += len(next(batches))
    return done / spent
