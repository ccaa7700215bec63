"""The report's augmented views, and the steps of the augmentation in a table.

Dimensions: n images, H W C image, N patches.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from hybrid_jax.data import augment
from hybrid_jax.data.augment import BLUR_SIGMA, RECIPES, SOLARIZE_FROM, Recipe, recipes_from_config
from hybrid_jax.report.page import Section, cell, folded, paragraph, strips, table
from hybrid_jax.report.plots import image_uri
from hybrid_jax.utils.image_grid import HIDDEN, laid_out, rgb


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

    def as_encoder_gets(self) -> np.ndarray:
        """Returns the views, (n, 2, H, W, 3) uint8, with dropped patches painted over."""
        views = rgb(self.views)
        if self.kept is None:
            return views
        patch, (height, width) = self.patch_size, views.shape[2:4]
        grid = self.kept.reshape(*views.shape[:2], height // patch, width // patch, 1)
        return np.where(grid.repeat(patch, axis=2).repeat(patch, axis=3), views, np.array(HIDDEN, np.uint8))

    def share_kept(self) -> str:
        """Returns how many patches of a view the encoder gets."""
        return "all" if self.kept is None else f"{np.count_nonzero(self.kept[0, 0])} of {self.kept.shape[2]}"


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

    # Compiled as a whole, since step by step it would take seconds.
    views, kept = jax.jit(draw_both)(jax.random.key(config.seed))
    mask = None if kept is None else (np.asarray(kept)[..., None] == np.arange(num_patches)).any(axis=2)
    return SampleViews(images, np.asarray(views).round().astype(np.uint8), mask, patch_size)


def sections(sample: SampleViews | None, config) -> list[Section]:
    """Returns the section of the views; none where there are no views."""
    return [] if sample is None else [("Views", sheet(sample) + recipe_table(config))]


def sheet(sample: SampleViews) -> str:
    """Returns images, their views and, where patches are dropped, the views as the encoder gets them, as HTML."""
    groups, more = [rgb(sample.images)[:, None], rgb(sample.views)], ""
    if sample.kept is not None:
        groups.append(sample.as_encoder_gets())
        more = f" Last, the views as the encoder gets them: {sample.share_kept()} patches, drawn anew at each step."
    caption = (
        f"Groups of {'three' if sample.kept is None else 'five'}: a training image, then its two augmented views. The "
        "contrastive loss asks the encoder to recognise the two as one image. Good views still show what the image is "
        f"about; if you cannot tell, the augmentation is too strong.{more}"
    )
    return strips([image_uri(laid_out(group[None], 1)) for group in np.concatenate(groups, axis=1)], caption)


def recipe_table(config) -> str:
    """Returns the steps of the augmentation in their order, with the fields that set them, as HTML."""
    rows, recipe = [[cell(text) for text in row] for row in _rows(config)], config.augment.recipe
    if not rows:
        return paragraph(f"Augmentation {recipe}: no step is active, so both views are the image itself.", "note")
    steps = table(("step", "strength", "set by"), rows)
    return folded(f"Augmentation {recipe}: steps in their order, drawn anew for each view", steps)


def _rows(config) -> list[tuple[str, str, str]]:
    """(step, strength in words, where it is set) of the steps that are active in either view of these images."""
    rows = []
    views = [_steps(recipe, config) for recipe in recipes_from_config(config.augment)]
    for (step, first, field), (other_step, second, _) in zip(*views, strict=True):
        if first or second:
            apart = f"first view: {first or 'never'}; second view: {second or 'never'}"
            strength = first if first == second else apart
            rows.append((step if first else other_step, strength, _origin(config.augment, field)))
    return rows


def _steps(recipe: Recipe, config) -> list[tuple[str, str, str]]:
    """(step, strength in words, field of the recipe) of all steps; no words where a step is inactive."""
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
    """The row above the `steps` of the jitter; no words where all of them always happen in the table's order."""
    sometimes = [f"{recipe.jitter_probability:.0%} of the time"] if steps and recipe.jitter_probability < 1 else []
    shuffled = ["in one random order for the whole batch"] if recipe.random_order and len(steps) > 1 else []
    name = f"jitter: the steps below up to {steps[-1]}" if steps else "jitter"
    return name, ", ".join(sometimes + shuffled), "jitter_probability"


def _origin(augment, field: str) -> str:
    """The field that sets the strength of a step, and the value of the recipe where it is overridden."""
    if field not in augment:
        return "the recipe itself"
    if field not in {f.name for f in dataclasses.fields(Recipe)} or augment[field] is None:
        return f"augment.{field}"
    own = dict.fromkeys(f"{getattr(recipe, field):g}" for recipe in RECIPES[augment.recipe])
    return f"augment.{field} = {augment[field]:g} instead of the recipe's {' and '.join(own)}"
