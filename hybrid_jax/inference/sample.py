"""Mode `sample`: writes samples, or completions of a user's images, as a PNG sheet and an .npy file."""

import os
import pathlib
import sys
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import tqdm
from PIL import Image

from hybrid_jax import sharding
from hybrid_jax.data.inputs import open_inputs
from hybrid_jax.errors import UserError, oom_advice
from hybrid_jax.inference import load as loading
from hybrid_jax.inference import model as model_lib
from hybrid_jax.inference.generation import kept_patches, known_pixels
from hybrid_jax.utils.image_grid import HIDDEN, laid_out

EXACTLY = {"temperature": 1.0}  # from the model's own distribution
SHOWN = 256  # most images on a sheet
_IN_A_ROW = 12  # most images in a row


def sample_workdir(
    workdir: str | os.PathLike,
    step: str | None = None,
    num: int | None = None,
    source: str | os.PathLike | None = None,
    output: str | os.PathLike | None = None,
    kept: tuple[int | None, int | None] = (None, None),
    how: Mapping[str, Any] = EXACTLY,
    seed: int = 0,
    batch_size: int | None = None,
    log: Callable[[str], None] = print,
) -> pathlib.Path:
    """Runs --mode=sample: restores the model on all devices and writes samples or completions.

    Args:
      workdir: of a trained model.
      step: the checkpoint; None = the newest.
      num: number of samples, by default 64; with `source` number of completions of each image, by default 1.
      source: images to complete: a folder, an image or an .npy file; None = samples.
      output: the PNG; None = `sample.png` in the workdir. The same name with .npy holds the pixels:
        (num, H, W, C) uint8, for completions (images, num, H, W, C).
      kept: number of pixel rows, or of patches, that completions keep; (None, None) = the upper half.
      how: `temperature`, `top_k` and `top_p` of `Model.sample`.
      seed: the same seed draws the same images.
      batch_size: images at a time, fewer if memory requires it; None = that of the checkpoint's evaluations.
      log: takes progress lines.

    Returns:
      The path of the PNG.

    Raises:
      UserError: a mistake the user can fix, in one line; nothing is written then.
    """
    target = pathlib.Path(output or pathlib.Path(workdir) / "sample.png").expanduser()
    if target.suffix != ".png" or target.is_dir():
        raise UserError(f"--output={target}: must be a file that ends in .png")
    if not os.access(target.parent, os.W_OK):
        raise UserError(f"--output={target}: cannot be written")
    if num is not None and num < 1:
        raise UserError(f"--num={num}: must be at least 1")
    if source is None and kept != (None, None):
        raise UserError("--input is missing: --num_rows and --num_patches need images to complete")
    model = loading.load(workdir, step, log, sharding.all_devices())
    model.config.eval.batch_size = batch_size or model.config.eval.batch_size
    with oom_advice(f"give --config and a lower --config.eval.batch_size, here {model.config.eval.batch_size}"):
        if source is None:
            images = _drawn(model, np.zeros((num or 64, *model.spec.image_shape), np.uint8), 0, seed, how)
            sheet, told = laid_out(images[:SHOWN, None], _IN_A_ROW), f"{len(images)} samples"
        else:
            images, sheet, told = _completed(model, source, num or 1, kept, seed, how)
    _write(target, images, sheet)
    lossy = ", in palette colours" if model.spec.kind == "palette" else ""
    settings = ", ".join(f"{name} {value:g}" for name, value in how.items() if value is not None)
    log(f"step {model.step}: {told}{lossy}, {settings}: {target}, {target.with_suffix('.npy').name}")
    return target


def _drawn(
    model: model_lib.Model, images, num_patches: int, rng: int | jax.Array, how: Mapping[str, Any]
) -> np.ndarray:
    """Returns (n, H, W, C) uint8 images sampled given their first patches, with a progress bar."""
    parts = []
    with tqdm.tqdm(total=len(images), desc="sampling", unit=" images", file=sys.stderr, delay=1) as progress:
        for part in model.completions(images, num_patches, rng, **how):
            parts.append(part)
            progress.update(len(part))
    return np.concatenate(parts)


def _completed(
    model: model_lib.Model,
    source: str | os.PathLike,
    num: int,
    kept: tuple[int | None, int | None],
    seed: int,
    how: Mapping[str, Any],
) -> tuple[np.ndarray, np.ndarray, str]:
    """Returns completions (images, num, H, W, C), their sheet, and their description."""
    spec = model.spec
    if kept == (None, None):
        kept = (spec.height // spec.patch_size // 2 * spec.patch_size, None)
    num_patches = kept_patches(spec, *kept)
    try:
        inputs = open_inputs(source)
    except UserError as error:
        raise UserError(f"--input={error}") from error
    keys = [jax.random.fold_in(jax.random.key(seed), i) for i in range(num)]
    images = np.stack([_drawn(model, inputs, num_patches, key, how) for key in keys], axis=1)
    few = next(inputs.chunks((spec.height, spec.width), spec.channels, max(1, SHOWN // (2 + num)), "stop")).images
    begun = np.where(known_pixels(spec, num_patches), few, np.array(HIDDEN, np.uint8))
    groups = [
        np.stack([np.broadcast_to(x, shown.shape) for x in (image, shown, *drawn)])
        for image, shown, drawn in zip(few, begun, images, strict=False)
    ]
    told = f"{num} of each of {len(images)} images, {num_patches} of {spec.num_patches} patches kept"
    return images, laid_out(np.stack(groups), max(1, _IN_A_ROW // (2 + num))), f"completions, {told}"


def _write(target: pathlib.Path, images: np.ndarray, sheet: np.ndarray) -> None:
    """Writes both files atomically, to temporary files that are renamed."""
    names = [target.with_suffix(".npy"), target]
    temporaries = [name.with_name(f"{name.name}.{os.getpid()}.incomplete") for name in names]
    try:
        with temporaries[0].open("wb") as file:
            np.save(file, images)
        Image.fromarray(sheet).save(temporaries[1], "png", optimize=True)
        for temporary, name in zip(temporaries, names, strict=True):
            temporary.replace(name)
    except OSError as error:
        raise UserError(f"--output={target}: cannot be written ({error.strerror or error})") from error
    finally:
        for temporary in temporaries:
            temporary.unlink(missing_ok=True)
