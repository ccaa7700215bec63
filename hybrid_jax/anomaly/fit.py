"""The joint anomaly score of a checkpoint: fitted on validation images, stored beside it, restored.

`anomaly/<step>.npz` in the workdir holds what was fitted, with a checksum of the parameters it was fitted to. A score
is chosen by synthetic outliers, none of which is among those that results are reported on.

Dimensions: n images, H W C image.
"""

import json
import os
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.ndimage

from hybrid_jax.anomaly import joint_score
from hybrid_jax.anomaly.detection import auroc
from hybrid_jax.anomaly.joint_score import FEWEST_IMAGES, JointScore, Measures, code_length, white_axes
from hybrid_jax.errors import UserError
from hybrid_jax.multihost.coordination import is_first
from hybrid_jax.storage import checkpoint, integrity
from hybrid_jax.storage.files import DAMAGE, read_arrays, write_arrays

Maker = Callable[[np.ndarray, np.random.Generator], np.ndarray]

SALT = 0.05  # share of pixels
BEND = 0.08  # of the image's side, standard deviation of a displacement
FORMAT = 1
AXES_IMAGES = 5_000  # training images
_CHOICE_IMAGES = 250


def pasted(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Puts a rectangle of half the height and width of the next image into each, somewhere."""
    n, height, width, _ = images.shape
    down, across = -(-height // 2), -(-width // 2)
    made = images.copy()
    for i in range(n):
        top, left = rng.integers(height - down + 1), rng.integers(width - across + 1)
        window = np.s_[top : top + down, left : left + across]
        made[i][window] = images[(i + 1) % n][window]
    return made


def salted(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Makes 5 % of the pixels black or white."""
    shape = (*images.shape[:3], 1)
    return np.where(rng.random(shape) < SALT, rng.choice(np.array([0, 255], np.uint8), shape), images)


def bent(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Moves pixels by smooth random displacements."""
    n, height, width, _ = images.shape
    side = max(height, width)
    field = scipy.ndimage.gaussian_filter(rng.normal(size=(n, 2, height, width)), (0, 0, side / 7, side / 7))
    field *= BEND * side / np.maximum(field.std(axis=(2, 3), keepdims=True), 1e-9)
    grid = np.indices((height, width))
    made = np.empty_like(images)
    for i, image in enumerate(images):
        for channel in range(image.shape[2]):
            moved = scipy.ndimage.map_coordinates(image[..., channel], grid + field[i], np.float64, 1, mode="nearest")
            made[i, ..., channel] = np.rint(moved)
    return made


def mixed(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Takes the mean of each image and the next."""
    return ((images.astype(np.uint16) + np.roll(images, 1, axis=0)) // 2).astype(np.uint8)


def rolled(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Shifts each image by half its height and width; what leaves at one side enters at the other."""
    return np.roll(images, (images.shape[1] // 2, images.shape[2] // 2), axis=(1, 2))


def faded(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Halves the contrast around the image's own mean."""
    mean = images.mean(axis=(1, 2, 3), keepdims=True)
    return np.rint(mean + 0.5 * (images - mean)).astype(np.uint8)


SYNTHETIC: dict[str, Maker] = {
    "pasted": pasted,
    "salted": salted,
    "bent": bent,
    "mixed": mixed,
    "rolled": rolled,
    "faded": faded,
}


def measured(measures: dict[str, np.ndarray]) -> Measures:
    """Returns the measures of a batch of images, given what `models.hybrid.measures` returned."""
    patches = measures.get("patch_log_prob")
    return Measures(
        middle=measures["middle"],
        last=measures["last"],
        nll=None if patches is None else -patches.sum(axis=1, dtype=np.float64),
        worst_patch=None if patches is None else -patches.min(axis=1).astype(np.float64),
        code_length=code_length(measures["shown"]),
    )


def joined(parts: list[Measures]) -> Measures:
    """Returns the measures of several chunks, one after the other."""
    names = vars(parts[0])
    columns: dict[str, list[Any]] = {name: [getattr(part, name) for part in parts] for name in names}
    whole: dict[str, Any] = {k: None if v[0] is None else np.concatenate(v) for k, v in columns.items()}
    return Measures(**whole)


def fit(
    model, images: np.ndarray, seed: int, log: Callable[[str], None] = print, axes: dict[str, np.ndarray] | None = None
) -> tuple[JointScore, dict]:
    """Fits the joint score, J1 or J2 by what tells synthetic outliers better.

    To choose, both are fitted on the first half of the images and told apart the second half from outliers made of it.

    Args:
      model: whose checkpoint it is.
      images: (n, H, W, C) uint8 of the data, n >= 50, not trained on.
      seed: of the outliers.
      log: takes a line on what was chosen.
      axes: of the features, as `joint_score.fit` takes them.

    Returns:
      The score, and how it was chosen: {kind: {outliers: AUROC}}.
    """
    half, rng = len(images) // 2, np.random.default_rng(seed)
    source = images[half : half + _CHOICE_IMAGES]
    made = [make(source, rng) for make in SYNTHETIC.values()]
    # In one pass, so that no further shape is compiled.
    found = model.measures(np.concatenate([images, *made]))
    measures, starts = found.take(np.s_[: len(images)]), range(len(images), len(found), len(source))
    first, second = joint_score.fit(measures.take(np.s_[:half]), axes=axes), measures.take(np.s_[half:])
    outliers = {
        name: found.take(np.s_[start : start + len(source)]) for name, start in zip(SYNTHETIC, starts, strict=True)
    }
    choice = {
        kind: {name: auroc(first.score(second, kind), first.score(m, kind)) for name, m in outliers.items()}
        for kind in joint_score.KINDS
    }
    mean = {kind: float(np.mean(list(choice[kind].values()))) for kind in choice}
    kind = max(joint_score.KINDS, key=lambda kind: mean[kind])
    told = ", ".join(f"{kind} {value:.3f}" for kind, value in mean.items())
    alone = "" if model.has_likelihood else "; without a likelihood J1 is the features' distance alone"
    log(f"anomaly score: {kind}, fitted on {len(images):,} images (AUROC on synthetic outliers: {told}){alone}")
    return joint_score.fit(measures, kind, axes), choice


def fitted(features, config, log: Callable[[str], None] = print) -> JointScore | None:
    """Fits the joint score of an evaluation's model, once.

    Args:
      features: an `evaluators.features.FeatureStore`, which keeps the result.
      config: resolved; `seed` and `eval.anomaly` are read.
      log: takes a line on what was fitted, or why nothing was.

    Returns:
      The score, or None where none is asked for or the images are too few.
    """
    return features.once("joint score", lambda: _fitted(features, config, log))


def _fitted(features, config, log: Callable[[str], None]) -> JointScore | None:
    data, limit = features.data, config.eval.anomaly.num_images
    if not limit:
        return None
    held_out = data.validation is not None and len(data.validation.images) > 0
    images = (data.validation if held_out else data.train).images[:limit]
    if len(images) < FEWEST_IMAGES:
        log(f"anomaly score: not fitted, {len(images)} validation images are fewer than {FEWEST_IMAGES}")
        return None
    if not held_out:
        log("anomaly score: no validation split, so fitted on training images, which the model knows: it is too strict")
    score, choice = fit(features.model, images, config.seed, log, _axes(features))
    about = {"n": len(images), "split": "validation" if held_out else "train", "choice": choice}
    about["n_axes"] = min(AXES_IMAGES, len(data.train.images))
    return JointScore(score.kind, score.arrays, about)


def _axes(features) -> dict[str, np.ndarray]:
    """Of the first training images, which are many: validation images are too few for directions of little variance."""
    found = features.first("train", AXES_IMAGES)
    names = zip(joint_score.LAYERS, features.model.measured_layers, strict=True)
    return {name: white_axes(found[layer]) for name, layer in names}


def save(workdir: str | os.PathLike, model, score: JointScore) -> None:
    """Writes `anomaly/<step>.npz`, whole or not at all; of several processes the first does.

    Those of checkpoints that are gone are removed.
    """
    about = {
        "format": FORMAT,
        "kind": score.kind,
        "parameters": integrity.of_model(model),
        "layers": model.measured_layers,
    }
    path = path_of(workdir, model.step)
    write_arrays(path, {"about": np.array(json.dumps(about | score.about)), **score.arrays})
    checkpoints = checkpoint.directory(workdir)
    if is_first() and checkpoints.is_dir():
        for old in path.parent.glob("*.npz"):
            if old != path and not (checkpoints / old.stem).is_dir():
                old.unlink(missing_ok=True)


def load(model) -> JointScore:
    """Reads what `save` wrote for a model's checkpoint.

    Raises:
      UserError: there is nothing, it cannot be read, or it was fitted to other parameters.
    """
    found = find(model)
    if found is None:
        raise UserError(f"anomaly_score: step {model.step} has no fitted statistics; {_remedy(model)}")
    return found


def find(model) -> JointScore | None:
    """As `load`, but None where the checkpoint has no statistics."""
    path = None if model.workdir is None else path_of(model.workdir, model.step)
    if path is None or not path.exists():
        return None
    try:
        arrays = read_arrays(path)
        about = json.loads(str(arrays.pop("about")))
        score = JointScore(about["kind"], arrays, about)
        score.check(model.has_likelihood)
    except DAMAGE as error:
        raise UserError(f"{path}: is damaged ({type(error).__name__}); {_remedy(model)}") from error
    if about.get("format") != FORMAT or about.get("parameters") != integrity.of_model(model):
        raise UserError(f"{path}: was fitted to other parameters than those of step {model.step}; {_remedy(model)}")
    return score


def path_of(workdir: str | os.PathLike, step: int) -> pathlib.Path:
    """Returns where the statistics of a step's checkpoint lie."""
    return pathlib.Path(workdir) / "anomaly" / f"{step}.npz"


def _remedy(model) -> str:
    workdir = "" if model.workdir is None else f" --workdir={model.workdir}"
    return f"run: python -m hybrid_jax.main --mode=eval{workdir} --step={model.step}"
