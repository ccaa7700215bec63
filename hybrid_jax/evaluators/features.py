"""Shared by the evaluators: a store of features, raw pixels, and a cache of floors that no checkpoint changes.

Dimensions: n images, H W C image, D features.
"""

import json
import pathlib
from collections.abc import Callable, Hashable
from typing import Any

import numpy as np

from hybrid_jax.storage.files import write_whole

SPLITS = ("train", "validation", "test")
PIXEL_SIDE = 32


class Skipped(Exception):  # noqa: N818 - not an error
    """An evaluator cannot run on this data or this checkpoint; the message is the reason.

    Attributes:
      found: results of the parts that could run.
    """

    def __init__(self, reason: str, found: list[dict] | None = None):
        super().__init__(reason)
        self.found = found or []


class FeatureStore:
    """Features of a model on the splits of a data set, and its samples, each computed once.

    Evaluators and the report share one store, so that no features are extracted and no samples drawn twice.

    Attributes:
      model: a model as returned by `hybrid_jax.load`, with `features(images)`, `default_layer`, `sample(...)`.
      data: a data set with `train`, `validation`, `test`; the last two may be None.
      workdir: directory in which evaluators store fitted statistics; None = nowhere.
      normed: whether layers are also extracted after the norm that follows them, such as `decoder/3:normed`.
    """

    def __init__(self, model, data, normed: bool = False, workdir: pathlib.Path | None = None):
        self.model, self.data, self.normed, self.workdir = model, data, normed, workdir
        self._found: dict[str, dict[str, np.ndarray]] = {}
        self._samples: dict[tuple[int, float], np.ndarray] = {}
        self._once: dict[Hashable, Any] = {}

    def layers(self, split: str) -> dict[str, np.ndarray]:
        """Returns {layer: (n, D) float32} of the whole split.

        Raises:
          ValueError: a feature is not finite.
        """
        if split not in self._found:
            asked = {"normed": True} if self.normed else {}
            self._found[split] = self.model.features(getattr(self.data, split).images, **asked)
            for name, values in self._found[split].items():
                if not np.isfinite(values).all():
                    raise ValueError(f"layer {name!r}: features of the {split} split are not finite")
        return self._found[split]

    def default(self, split: str) -> np.ndarray:
        """Returns the default layer's (n, D) float32 of the whole split."""
        return self.layers(split)[self.model.default_layer]

    def at_least(self, split: str, num: int) -> np.ndarray:
        """Returns the default layer of the whole split if already extracted, else of its first `num` images.

        The result is (m, D) float32, for the first m images.
        """
        if split in self._found:
            return self.default(split)
        return self.model.embed(getattr(self.data, split).images[:num])

    def first(self, split: str, num: int) -> dict[str, np.ndarray]:
        """Returns {layer: (m, D) float32} of the first `num` images of a split, or of all if there are fewer."""
        if split in self._found:
            return {name: values[:num] for name, values in self._found[split].items()}
        return self.model.features(getattr(self.data, split).images[:num])

    def rows(self, split: str, indices: np.ndarray) -> np.ndarray:
        """Returns the default layer's (len(indices), D) float32 of some images of a split."""
        if split in self._found:
            return self.default(split)[indices]
        return self.model.embed(getattr(self.data, split).images[indices])

    def embed(self, images: np.ndarray) -> np.ndarray:
        """Returns the default layer's (n, D) float32 of a few images, padded to batches of the usual shape."""
        size = -(-len(images) // self.model.config.eval.batch_size) * self.model.config.eval.batch_size
        return self.model.embed(np.resize(images, (size, *images.shape[1:])))[: len(images)]

    def samples(self, num: int, seed: int, temperature: float = 1.0) -> np.ndarray:
        """Returns (num, H, W, C) uint8 samples of the model, reusing earlier ones if there are enough.

        Raises:
          UserError: the model has no likelihood.
        """
        key = seed, temperature
        if len(self._samples.get(key, ())) < num:
            self._samples[key] = self.model.sample(seed, num, temperature=temperature)
        return self._samples[key][:num]

    def once(self, name: Hashable, compute: Callable[[], Any]) -> Any:
        """Returns the result of `compute`, such as a fitted classifier, computed once per name."""
        if name not in self._once:
            self._once[name] = compute()
        return self._once[name]

    def known(self, name: Hashable) -> Any:
        """Returns the result that `once` keeps under this name, or None."""
        return self._once.get(name)


class FloorCache:
    """Floors that depend on the data and the protocol only, cached in `directory`/floors.json.

    Attributes:
      path: of the file; None = nothing is cached.
    """

    def __init__(self, directory: pathlib.Path | None):
        self.path = None if directory is None else pathlib.Path(directory) / "floors.json"

    def get(self, compute: Callable[[], float], **key) -> float:
        """Returns the floor stored under `key`, or computes and stores it.

        Args:
          compute: returns the floor.
          **key: everything the floor depends on, as JSON values.
        """
        name = json.dumps(key, sort_keys=True)
        known = self._read()
        if name not in known:
            known[name] = float(compute())
            self._write(known)
        return known[name]

    def _read(self) -> dict[str, float]:
        try:
            return json.loads(self.path.read_text()) if self.path else {}
        except (FileNotFoundError, json.JSONDecodeError):
            return {}  # a damaged cache costs a recomputation, nothing else

    def _write(self, known: dict[str, float]) -> None:
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(self.path, json.dumps(known, indent=1))


def raw_pixels(images: np.ndarray) -> np.ndarray:
    """Pixels as features, the floor of every representation.

    Images of more than 32 pixels on a side are averaged over square blocks down to at most that: a classifier on more
    pixels would cost far more than the evaluation of the model.

    Args:
      images: (n, H, W, C) uint8.

    Returns:
      (n, h*w*C) float32 in [0, 1].
    """
    n, height, width, channels = images.shape
    block = _block(images)
    if block > 1:
        images = np.pad(images, ((0, 0), (0, -height % block), (0, -width % block), (0, 0)), mode="edge")
        rows, columns = images.shape[1] // block, images.shape[2] // block
        blocks = images.reshape(n, rows, block, columns, block, channels)
        images = blocks.mean(axis=(2, 4), dtype=np.float32)
    # In one pass: another copy of a training split takes longer than the division.
    return np.divide(images.reshape(n, -1), np.float32(255), dtype=np.float32)


def raw_pixels_name(images: np.ndarray) -> str:
    """Returns the name of `raw_pixels` of these images in results."""
    block = _block(images)
    if block == 1:
        return "raw pixels"
    return f"raw pixels averaged to {-(-images.shape[1] // block)}x{-(-images.shape[2] // block)}"


def _block(images: np.ndarray) -> int:
    return -(-max(images.shape[1:3]) // PIXEL_SIDE)


def has_split(data, split: str) -> bool:
    """Returns whether `data` has images in a split."""
    found = getattr(data, split)
    return found is not None and len(found.images) > 0


def require_split(data, split: str, labels: bool = False):
    """Returns a split of `data` that has images, and labels if asked.

    Raises:
      Skipped: the split has no images or no labels.
    """
    if not has_split(data, split):
        raise Skipped(f"the data has no {split} split")
    found = getattr(data, split)
    if labels and found.labels is None:
        raise Skipped("the data has no labels")
    return found


def validation_row(row: dict, value: float, n: int, **more) -> dict:
    """Returns a result on the validation split, for choosing checkpoints and settings.

    Args:
      row: the result on the test split, whose protocol it follows.
      value: in the metric's unit.
      n: number of validation images.
      **more: further entries.
    """
    kept = ("metric", "protocol", "variant", "layer", "layers", "setting", "classifier", "C", "k", "temperature")
    return {key: row[key] for key in kept if key in row} | {"value": value, "n": n, "split": "validation"} | more


def standard_error(values: np.ndarray) -> float | None:
    """Returns the standard error of the mean of (n,) values; None for fewer than two."""
    return float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None
