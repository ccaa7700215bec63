"""Data sets as splits of uint8 images, in memory or on disk."""

import dataclasses
from typing import Any

import numpy as np

from hybrid_jax.data.store import StoredImages
from hybrid_jax.errors import reject


@dataclasses.dataclass(frozen=True)
class Split:
    """Images of one split.

    Attributes:
      images: (n, H, W, C) uint8, in memory or read on demand.
      labels: (n,) int32, or None if unknown.
      names: names of the image files, or None.
      sizes: (n, 2) int32, height and width before resizing, in pixels; or None.
    """

    images: np.ndarray | StoredImages
    labels: np.ndarray | None
    names: list[str] | None = None
    sizes: np.ndarray | None = None

    def take(self, rows: np.ndarray) -> "Split":
        """Returns the given rows in order; images on disk are not read."""
        return Split(
            self.images.select(rows) if isinstance(self.images, StoredImages) else self.images[rows],
            None if self.labels is None else self.labels[rows],
            None if self.names is None else [self.names[row] for row in rows],
            None if self.sizes is None else self.sizes[rows],
        )

    def in_memory(self) -> "Split":
        """Returns the same split with its images in memory."""
        if isinstance(self.images, np.ndarray):
            return self
        return dataclasses.replace(self, images=self.images.to_memory())


@dataclasses.dataclass(frozen=True)
class DataSet:
    """A data set as a run uses it. Splits are disjoint and in a fixed random order.

    Attributes:
      name: as in config.data.name.
      train: the training split.
      validation: the validation split, or None.
      test: the test split, or None.
      labelled: training and validation split of the probes, if different from `train` and `validation`.
      class_names: names in the order of the labels, or None.
      fingerprint: hex digest of pixels, labels, splits and order.
      notes: lines for the log.
      held_out: test images of classes excluded from all other splits, or None.
    """

    name: str
    train: Split
    validation: Split | None
    test: Split | None
    class_names: tuple[str, ...] | None
    fingerprint: str
    notes: tuple[str, ...]
    labelled: tuple[Split, Split | None] | None = None
    held_out: Split | None = None

    def check(self, fingerprint: str | None, path: str) -> None:
        """Raises UserError if a checkpoint's fingerprint is of other data; `path` is config.data.path."""
        if fingerprint is not None and self.fingerprint != fingerprint:
            allowed = "the images, labels or splits differ from those the workdir was trained on; restore them"
            raise reject("data.path", path, f"{allowed}, or train in another --workdir")

    def for_evaluation(self, max_images: int) -> "DataSet":
        """Returns the data for evaluators: the probes' `train` and `validation`, at most `max_images` per split.

        Splits are in random order, so the first images are kept. `notes` lists the splits that were cut.
        """
        train, validation = self.labelled or (self.train, self.validation)
        splits: dict[str, Any] = {
            "train": train,
            "validation": validation,
            "test": self.test,
            "held_out": self.held_out,
        }
        notes = []
        for name, split in splits.items():
            if split is not None and len(split.images) > max_images:
                kind = f"{len(split.images):,} {name.replace('_', ' ')}"
                notes.append(f"evaluators use {max_images:,} of {kind} images (eval.max_images)")
                splits[name] = split.take(np.arange(max_images))
        seen = f"{self.fingerprint}, at most {max_images}" if notes else self.fingerprint
        return dataclasses.replace(self, **splits, labelled=None, fingerprint=seen, notes=tuple(notes))

    def in_memory(self) -> "DataSet":
        """Returns the same data with the images of all splits but `labelled` in memory."""
        names = ("train", "validation", "test", "held_out")
        splits: dict[str, Any] = {name: split.in_memory() for name in names if (split := getattr(self, name))}
        return dataclasses.replace(self, **splits)
