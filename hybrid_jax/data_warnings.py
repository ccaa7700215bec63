"""What is wrong or unwise about a data set for a run, one line each, with what to do about it."""

from collections.abc import Iterator

from hybrid_jax.data.augment import recipes_from_config

IMBALANCE = 20
ENLARGED = 0.25  # share of images
GREY = 0.9  # share of images
TINY_STD = 8.0  # on the 0..255 scale
_NAMED = 3
_COLOUR_STEPS = ("saturation", "hue", "grayscale")


def find_warnings(config, summary: dict) -> list[dict[str, str]]:
    """Returns `{"kind": name, "line": text}` for each thing to mend, none for healthy data.

    Args:
      config: resolved.
      summary: the content of `data.json` without its warnings.
    """
    found = [*_of_copies(summary), *_of_classes(summary), *_of_images(summary), *_of_the_run(config, summary)]
    return [{"kind": kind, "line": line} for kind, line in found]


def _of_copies(summary: dict) -> Iterator[tuple[str, str]]:
    for row in summary["shared_images"]:
        learnt, judged = (row[side].replace("_", " ") for side in ("from", "to"))
        first, second = row["first"]
        example = f" (first {first} = {second})" if isinstance(first, str) else ""
        yield (
            "leak",
            f"{row['images']:,} of {summary['splits'][row['to']]['scanned']:,} {judged} images are also {learnt} "
            f"images{example}: results will look better than they are; remove the copies",
        )


def _of_classes(summary: dict) -> Iterator[tuple[str, str]]:
    classes = summary["classes"]
    learnt = "labelled" if "labelled" in summary["splits"] else "train"
    if classes is None or learnt not in classes["counts"]:
        return
    counts = dict(zip(classes["names"], classes["counts"][learnt], strict=True))
    split = f"{learnt} split"
    missing, single = ([name for name, count in counts.items() if count == few] for few in (0, 1))
    if missing:
        yield "missing_class", f"no image in the {split} of {_listed(missing)}: cannot be learnt; add images"
    if single:
        yield "single_image", f"one image in the {split} of {_listed(single)}: add images or merge classes"
    present = {name: count for name, count in counts.items() if count}
    low, high = (extreme(present, key=present.__getitem__) for extreme in (min, max))
    if present[high] > IMBALANCE * present[low]:
        yield (
            "imbalance",
            f"{present[high]:,} images of {high} but {present[low]:,} of {low} in the {split}: accuracy will mostly "
            "tell how well the large classes do; add images of the small ones",
        )


def _listed(names: list[str]) -> str:
    listed = ", ".join(names[:_NAMED])
    if len(names) == 1:
        return f"class {listed}"
    return f"{len(names):,} classes ({listed}{', ...' if len(names) > _NAMED else ''})"


def _of_images(summary: dict) -> Iterator[tuple[str, str]]:
    sizes, train, pixels = summary["original_sizes"], summary["splits"]["train"], summary["pixels"]
    height, width, channels = train["shape"]
    if sizes and sizes["enlarged"] > ENLARGED * sizes["images"]:
        yield (
            "enlarged",
            f"{sizes['enlarged']:,} of {sizes['images']:,} images are smaller than {height} x {width} and are "
            "enlarged, which costs time and adds nothing: lower data.image_size",
        )
    if channels == 3 and train["grey"] >= GREY * train["scanned"]:
        yield (
            "grey",
            f"{train['grey']:,} of {train['scanned']:,} training images are grey: data.channels=1 would do, at a third "
            "of the values",
        )
    if max(pixels["std"]) < TINY_STD:
        yield (
            "flat",
            f"pixels differ little (std {max(pixels['std']):.1f} of 255): are the values scaled to the whole range? "
            "16-bit files are read as 0..65535",
        )


def _of_the_run(config, summary: dict) -> Iterator[tuple[str, str]]:
    batches, images = summary["batches"], summary["splits"]["train"]["images"]
    steps = batches["steps_per_epoch"]
    if steps < 2:
        yield (
            "few_steps",
            f"an epoch is a single batch of {batches['batch_size']:,} of {images:,} images: lower train.batch_size",
        )
    if batches["total_steps"] < steps:
        seen = batches["total_steps"] * batches["batch_size"]
        yield (
            "short_run",
            f"train.total_steps={batches['total_steps']} is less than an epoch ({steps:,} steps): only {seen:,} of "
            f"{images:,} images are seen",
        )
    recipes = recipes_from_config(config.augment)
    ignored = [step for step in _COLOUR_STEPS if any(getattr(recipe, step) > 0 for recipe in recipes)]
    if ignored and config.data.channels == 1 and config.objective.contrastive_weight > 0:
        yield (
            "colour_steps",
            f"{', '.join(ignored)} of the augmentation need colour and are left out at data.channels=1: "
            "augment.recipe=grey_small is made for grey images",
        )
