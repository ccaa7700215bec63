"""The report's samples beside training images, their nearest training images, and completions beside originals.

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
from hybrid_jax.report.images import FEWEST_BANK_IMAGES, shown_split
from hybrid_jax.report.page import Section, paragraph, strips
from hybrid_jax.report.plots import image_uri
from hybrid_jax.utils.image_grid import HIDDEN, laid_out, rgb

COMPLETED, COMPLETIONS = 8, 2
SAMPLES_IN_A_ROW, NEAREST = 4, 9


def sections(features: FeatureStore, num: int, seed: int) -> list[Section]:
    """Draws `num` samples and up to 8 completions, all at temperature 1.

    Args:
      features: of a model and its data.
      num: samples; with 0 there are no sections.
      seed: of the draws.

    Returns:
      The sections; none where the model has no likelihood.
    """
    if not num or not features.model.has_likelihood:
        return []
    samples = features.samples(num, seed)
    found = [("Samples", _beside_real_images(samples, features) + _nearest(samples, features))]
    completed = _completions(features, min(COMPLETED, num), seed)
    return found + ([("Completions", completed)] if completed else [])


def compilations(features: FeatureStore, config) -> list[Callable[[], object]]:
    """Returns functions that compile the completions of `sections` ahead of time."""
    num = config.eval.report_samples
    if not num or not features.model.has_likelihood:
        return []
    spec, pool = features.model.spec, getattr(features.data, shown_split(features.data)).images
    count = COMPLETIONS * min(COMPLETED, num, len(pool))
    return [features.model.drawing(count, kept_patches(spec, _kept_rows(spec), None))]


def _beside_real_images(samples: np.ndarray, features: FeatureStore) -> str:
    real = features.data.train.images[: len(samples)]
    halves = "".join(
        f'<div><h3>{title}</h3><img src="{image_uri(laid_out(rgb(images[:, None]), SAMPLES_IN_A_ROW))}" alt=""></div>'
        for title, images in (("Samples", samples), ("Training images", real))
    )
    caption = (
        f"Left: the first {len(samples)} images that the model drew, unconditionally, token by token at temperature 1; "
        "none was selected. Right: training images. Samples should look like the training images and differ from each "
        f"other. Noise means that the likelihood is not learnt yet, sameness that it has collapsed.{_lossy(features)}"
    )
    return f'<div class="pair">{halves}</div>{paragraph(caption, "caption")}'


def _lossy(features: FeatureStore) -> str:
    spec: TokenSpec = features.model.spec
    if spec.kind == "palette":
        split = shown_split(features.data)
        psnr = palette_psnr(getattr(features.data, split).images[:FEWEST_BANK_IMAGES], spec, features.model.palette)
        quality = f"PSNR of {split} images: {psnr:.1f} dB" if math.isfinite(psnr) else "here without loss"
        return f" Samples are palette images: every pixel has one of {spec.vocab_size} colours ({quality})."
    if is_lossy(spec):
        return f" Samples have {spec.vocab_size} levels instead of 256."
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
    equal = f"Of {len(samples)} samples {copies or 'none'} equal" + "s" * (copies < 2)
    caption = (
        f"Memorization check, in groups of three: a sample; the nearest of {len(train):,} training images in pixels; "
        f"the nearest of {len(bank):,} by cosine similarity of the model's features. A sample that shows the same "
        "object as its neighbour in every detail is a copy; the same kind of object in another shape is what a model "
        f"should draw. {equal} its nearest training image in every pixel. The evaluator sample_quality counts near "
        "copies among many more samples."
    )
    return "<h3>Nearest training images</h3>" + _strips(groups[:NEAREST], caption)


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
        f"Groups of four: an image of the {split} split{unseen}; its upper {kept} of {height} rows, which are all that "
        "the model is given (blue: hidden); two completions. They need not equal the original: good completions "
        "continue the given rows without a seam, and differ where these leave a choice."
    )
    return _strips(groups, caption)


def _strips(groups: np.ndarray, caption: str) -> str:
    return strips([image_uri(laid_out(rgb(group[None]), 1)) for group in groups], caption)


def _kept_rows(spec: TokenSpec) -> int:
    return spec.height // spec.patch_size // 2 * spec.patch_size
