"""The report's samples: drawn from nothing, completions beside originals, and the nearest training images.

Dimensions: n images, H W C image, D features.
"""

import math
from collections.abc import Callable

import numpy as np

from hybrid_jax.evaluators.features import FeatureStore, raw_pixels
from hybrid_jax.evaluators.knn import nearest
from hybrid_jax.evaluators.sample_metrics import nearest_distance
from hybrid_jax.evaluators.sample_quality import as_tokens_show, is_lossy
from hybrid_jax.inference.generation import kept_patches
from hybrid_jax.models.tokens import TokenSpec, palette_psnr
from hybrid_jax.report.images import FEWEST_BANK_IMAGES, image_uri, shown_split
from hybrid_jax.report.page import captioned
from hybrid_jax.utils.image_grid import HIDDEN, laid_out, rgb

COMPLETED, COMPLETIONS = 8, 2
SAMPLES_IN_A_ROW, THREES_IN_A_ROW, FOURS_IN_A_ROW = 8, 3, 2


def sections(features: FeatureStore, num: int, seed: int) -> list[tuple[str, str]]:
    """Draws `num` samples and up to 8 completions, all at temperature 1.

    Args:
      features: of a model and its data.
      num: samples; with 0 there are no sections.
      seed: of the draws.

    Returns:
      (title, HTML) of each section; none where the model has no likelihood.
    """
    if not num or not features.model.has_likelihood:
        return []
    samples = features.samples(num, seed)
    body = [_unconditional(samples, features), _nearest(samples, features)]
    found = [("Samples", "".join(body))]
    completed = _completions(features, min(COMPLETED, num), seed)
    return found + ([("Completions", completed)] if completed else [])


def compilations(features: FeatureStore, config) -> list[Callable[[], object]]:
    """Returns what compiles the completions that `sections` draws; of more rows of patches than one."""
    num = config.eval.report_samples
    if not num or not features.model.has_likelihood:
        return []
    spec, pool = features.model.spec, getattr(features.data, shown_split(features.data)).images
    count = COMPLETIONS * min(COMPLETED, num, len(pool))
    return [features.model.drawing(count, kept_patches(spec, _kept_rows(spec), None))]


def _unconditional(samples: np.ndarray, features: FeatureStore) -> str:
    model = features.model
    caption = (
        f"{len(samples)} images that the model drew from nothing, one token after the other, each at random by its "
        "own probabilities (temperature 1). The first that came, none picked. They should look like the training "
        "images and differ from each other: noise means that the likelihood is not learnt yet, sameness that it "
        f"has collapsed.{_colours(model, features)}"
    )
    return captioned(image_uri(laid_out(rgb(samples[:, None]), SAMPLES_IN_A_ROW)), caption)


def _colours(model, features: FeatureStore) -> str:
    spec: TokenSpec = model.spec
    if spec.kind == "palette":
        split = shown_split(features.data)
        psnr = palette_psnr(getattr(features.data, split).images[:FEWEST_BANK_IMAGES], spec, model.palette)
        quality = f"PSNR of {split} images in them: {psnr:.1f} dB" if math.isfinite(psnr) else "which lose nothing here"
        return f" They are palette images: every pixel is one of {spec.vocab_size} colours, which is lossy ({quality})."
    if is_lossy(spec):
        return f" Their values have {spec.vocab_size} levels instead of 256, which is lossy."
    return ""


def _nearest(samples: np.ndarray, features: FeatureStore) -> str:
    """Groups of three: a sample, the nearest training image in pixels, the nearest in the model's features."""
    train = features.data.train.images
    bank = features.at_least("train", FEWEST_BANK_IMAGES)
    _, by_pixels = nearest_distance(raw_pixels(samples), raw_pixels(train))
    _, by_features = nearest(features.embed(samples), bank, 1)
    groups = np.stack([samples, train[by_pixels], train[by_features[:, 0]]], axis=1)
    shown = as_tokens_show(train[by_pixels], features.model.spec, features.model.palette)
    copies = int(np.sum((samples == shown).all(axis=(1, 2, 3))))
    equal = {0: "None of the samples equals", 1: "1 sample equals"}.get(copies, f"{copies} samples equal")
    caption = (
        f"Has the model memorised? Groups of three: a sample; the nearest of {len(train):,} training images, pixel by "
        f"pixel; the nearest of {len(bank):,} by cosine of the model's own features. Where the second or third shows "
        "the same object to the detail, the sample is a copy; the same kind of object in another shape is what a model "
        f"should draw. {equal} its nearest training image in every pixel. The evaluator sample_quality counts near "
        "copies among many more samples."
    )
    return captioned(image_uri(laid_out(rgb(groups), THREES_IN_A_ROW)), caption)


def _completions(features: FeatureStore, num: int, seed: int) -> str:
    """Groups of four: an image, its kept rows, two completions; empty where the image has one row of patches."""
    model, split = features.model, shown_split(features.data)
    height, kept = model.spec.height, _kept_rows(model.spec)
    if not kept:
        return ""
    pool = getattr(features.data, split).images
    images = pool[np.unique(np.linspace(0, len(pool) - 1, num).astype(int))]
    # In one call, so that one shape is compiled; each row draws for itself.
    drawn = model.complete(np.repeat(images, COMPLETIONS, axis=0), kept, seed)
    drawn = drawn.reshape(len(images), COMPLETIONS, *images.shape[1:])
    begun = rgb(images).copy()
    begun[:, kept:] = HIDDEN
    groups = np.concatenate([rgb(images)[:, None], begun[:, None], rgb(drawn)], axis=1)
    unseen = "" if split == "train" else ", which the model has never seen"
    caption = (
        f"Groups of four: an image of the {split} split{unseen}; its upper {kept} of {height} rows, all that the model "
        "is given (blue: what it is not); two completions drawn from them. They need not equal the original: good "
        "ones continue what is given without a seam, and differ where it leaves a choice."
    )
    return captioned(image_uri(laid_out(groups, FOURS_IN_A_ROW)), caption)


def _kept_rows(spec: TokenSpec) -> int:
    return spec.height // spec.patch_size // 2 * spec.patch_size
