"""The report's views: what the recipe does, in a table, and a sheet of images with their views.

Dimensions: n images, H W C image, N patches.
"""

import dataclasses
import html

import jax
import jax.numpy as jnp
import numpy as np

from hybrid_jax.data import augment
from hybrid_jax.data.augment import BLUR_SIGMA, RECIPES, SOLARIZE_FROM, Recipe, recipes_from_config
from hybrid_jax.report.images import image_uri
from hybrid_jax.utils.image_grid import HIDDEN, laid_out

COLUMNS = {3: 3, 5: 2}  # tiles of a group -> groups side by side


@dataclasses.dataclass(frozen=True)
class SampleViews:
    """Images and two views of each.

    Attributes:
      images: (n, H, W, C) uint8.
      views: (n, 2, H, W, C) uint8.
      kept: (n, 2, N) bool, the patches that the encoder gets; None where it gets all.
      patch_size: side of a patch.
    """

    images: np.ndarray
    views: np.ndarray
    kept: np.ndarray | None
    patch_size: int


def sample_views(config, data, count: int = 8) -> SampleViews | None:
    """Returns the first `count` training images with two views of each; None where there are no views."""
    if config.objective.contrastive_weight == 0:
        return None
    images, patch_size = data.train.images[:count], config.model.patch_size
    height, width = images.shape[1:3]
    num_patches = height // patch_size * (width // patch_size)
    recipes = augment.recipes_from_config(config.augment)

    def draw(key: jax.Array, recipe: augment.Recipe):
        view_key, keep_key = jax.random.split(key)
        kept = augment.keep_patches(keep_key, len(images), num_patches, config.augment.view_keep)
        return augment.augment(view_key, images, recipe), kept

    def draw_both(key: jax.Array):
        pairs = [draw(*each) for each in zip(jax.random.split(key), recipes, strict=True)]
        return jax.tree.map(lambda *pair: jnp.stack(pair, axis=1), *pairs)

    # Compiled as a whole: step by step it would take seconds.
    views, kept = jax.jit(draw_both)(jax.random.key(config.seed))
    mask = None if kept is None else (np.asarray(kept)[..., None] == np.arange(num_patches)).any(axis=2)
    return SampleViews(images, np.asarray(views).round().astype(np.uint8), mask, patch_size)


def sheet(sample: SampleViews) -> tuple[str, str]:
    """Draws images, their views and, where patches are dropped, what is left of the views.

    Returns:
      PNG data URI and caption.
    """
    caption = (
        "a training image, then its two augmented views. The contrastive loss asks the encoder to recognise the two as "
        "one image. Good views still show what the image is about; if you cannot tell, they are too strong."
    )
    groups = np.concatenate([sample.images[:, None], sample.views], axis=1)
    groups = np.broadcast_to(groups, (*groups.shape[:4], 3))
    if sample.kept is None:
        return image_uri(laid_out(groups, COLUMNS[3])), f"Groups of three: {caption}"
    groups = np.concatenate([groups, _without_dropped(groups[:, 1:], sample.kept, sample.patch_size)], axis=1)
    share = np.count_nonzero(sample.kept[0, 0]), sample.kept.shape[2]
    more = f" Last, the views as the encoder gets them: {share[0]} of {share[1]} patches, drawn anew at each step."
    return image_uri(laid_out(groups, COLUMNS[5])), f"Groups of five: {caption}{more}"


def _without_dropped(views: np.ndarray, kept: np.ndarray, patch: int) -> np.ndarray:
    """(n, 2, H, W, 3), (n, 2, N) -> the same views, dropped patches painted over."""
    height, width = views.shape[2:4]
    grid = kept.reshape(*kept.shape[:2], height // patch, width // patch, 1)
    pixels = grid.repeat(patch, axis=2).repeat(patch, axis=3)
    return np.where(pixels, views, np.array(HIDDEN, np.uint8))


def recipe_table(config) -> str:
    """Returns the steps that make a view, in their order, with the fields that set them, as HTML."""
    heads = "".join(f"<th>{text}</th>" for text in ("step", "strength", "set by"))
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in _rows(config))
    name = html.escape(config.augment.recipe)
    if not body:
        return f"<p>Recipe <b>{name}</b>: no step is active, so both views are the image itself.</p>"
    return (
        f"<p>Recipe <b>{name}</b>, in the order of its steps, all drawn anew for each view:</p>"
        f'<div class="wide"><table><tr>{heads}</tr>{body}</table></div>'
    )


def _rows(config) -> list[tuple[str, str, str]]:
    """(step, strength in words, where it is set) of the steps that do anything to these images in either view."""
    rows = []
    views = [_steps(recipe, config) for recipe in recipes_from_config(config.augment)]
    for (step, first, field), (other_step, second, _) in zip(*views, strict=True):
        if first or second:
            apart = f"first view: {first or 'never'}; second view: {second or 'never'}"
            strength = first if first == second else apart
            rows.append((step if first else other_step, strength, _origin(config.augment, field)))
    return rows


def _steps(recipe: Recipe, config) -> list[tuple[str, str, str]]:
    """(step, strength in words, field of the recipe) of all steps, without words where it does nothing."""
    keep, colour = config.augment.view_keep, config.data.channels == 3
    around = lambda strength: f"factor {1 - strength:g} to {1 + strength:g}" if strength else ""
    often = lambda probability: f"{probability:.0%} of the time" if probability else ""
    area, sigma = (
        f"{recipe.crop_min_area:.0%} to 100% of the area",
        f"sigma {BLUR_SIGMA[0]:g} to {BLUR_SIGMA[1]:g} pixels",
    )
    saturation, hue, grayscale = (colour * x for x in (recipe.saturation, recipe.hue, recipe.grayscale))
    jitter = [
        ("brightness", around(recipe.brightness), "brightness"),
        ("contrast", around(recipe.contrast), "contrast"),
        ("saturation", around(saturation), "saturation"),
        ("hue", f"shifted by up to {hue:g} of the colour circle" if hue else "", "hue"),
    ]
    return [
        ("crop, resized", area if recipe.crop_min_area < 1 else "", "crop_min_area"),
        ("horizontal flip", often(recipe.flip), "flip"),
        _jitter(recipe, [step for step, strength, _ in jitter if strength]),
        *jitter,
        ("colour removed", often(grayscale), "grayscale"),
        ("blur", f"{often(recipe.blur)}, {sigma}" if recipe.blur else "", "blur"),
        (f"values from {SOLARIZE_FROM} up inverted (solarize)", often(recipe.solarize), "solarize"),
        ("patches kept", f"{keep:.0%}, drawn at random" if keep < 1 else "", "view_keep"),
    ]


def _jitter(recipe: Recipe, steps: list[str]) -> tuple[str, str, str]:
    """The row above the jitter's `steps`; without words where they always happen, in the order of the table."""
    sometimes = [f"{recipe.jitter_probability:.0%} of the time"] if steps and recipe.jitter_probability < 1 else []
    shuffled = ["in one random order for the whole batch"] if recipe.random_order and len(steps) > 1 else []
    name = f"jitter: the steps below up to {steps[-1]}" if steps else "jitter"
    return name, ", ".join(sometimes + shuffled), "jitter_probability"


def _origin(augment, field: str) -> str:
    """Where a step's strength is set, and the recipe's own where it is overridden."""
    if field not in augment:
        return "the recipe itself"
    if field not in {f.name for f in dataclasses.fields(Recipe)} or augment[field] is None:
        return f"augment.{field}"
    own = dict.fromkeys(f"{getattr(recipe, field):g}" for recipe in RECIPES[augment.recipe])
    return f"augment.{field} = {augment[field]:g} instead of the recipe's {' and '.join(own)}"
