"""Mode `data`: a data set as training will see it, before any training: numbers, warnings, a sheet of images."""

import json
import math
import os
import pathlib
from collections.abc import Callable, Iterator

from hybrid_jax import config as config_lib
from hybrid_jax import evaluators
from hybrid_jax.data import sources
from hybrid_jax.data.augment import recipes_from_config
from hybrid_jax.report import dataset_stats
from hybrid_jax.report.dataset_sheet import write_sheet
from hybrid_jax.storage.files import replacing, writable, write_whole

LISTED_CLASSES = 20
_SPEED_SECONDS = 1.0
_LONGEST_NAME = 24  # letters of a class in the table
IMBALANCE = 20
ENLARGED = 0.25  # share of images
GREY = 0.9  # share of images
TINY_STD = 8.0  # on the 0..255 scale
_NAMED = 3
_COLOUR_STEPS = ("saturation", "hue", "grayscale")


def summarise(config, workdir: str | os.PathLike, log: Callable[[str], None] = print) -> dict:
    """Summarises the data of a config as training will see it, and refuses what training would refuse.

    Writes `data.png` (images and views) and `data.json` (the returned summary).

    Args:
      config: a config from `get_config()` with overrides.
      workdir: folder of the run; created if missing.
      log: called with each line of the summary.

    Returns:
      The content of `data.json`: counts, sizes in pixels, pixel values on the 0..255 scale, and `warnings`, each with
      `kind` and `line`.

    Raises:
      UserError: a mistake in the config, the data or the workdir.
    """
    config_lib.validate(config)
    workdir = pathlib.Path(workdir)
    data = sources.load(config)
    # Mistakes come first: before slow work, and before anything is written.
    dataset_stats.batch_numbers(config, len(data.train.images))
    evaluators.check(data.for_evaluation(config.eval.max_images), config)
    with writable(workdir):
        workdir.mkdir(parents=True, exist_ok=True)
    summary = _numbers(config, data)
    summary["warnings"] = find_warnings(config, summary)
    for line in summary_lines(summary):
        log(line)
    with writable(workdir):
        with replacing(workdir / "data.png") as picture:
            write_sheet(picture, config, data, dataset_stats.splits_of(data), _heading(summary))
        write_whole(workdir / "data.json", json.dumps(summary, indent=2) + "\n")
    log(f"wrote {workdir / 'data.png'} (images and views) and {workdir / 'data.json'} (these numbers)")
    return summary


def _numbers(config, data) -> dict:
    """The content of `data.json` without the warnings."""
    splits = dataset_stats.splits_of(data)
    scans = {name: dataset_stats.scan(name, split) for name, split in splits.items()}
    psnr = dataset_stats.palette_psnr(config, data.train.images)
    return {
        "name": data.name,
        "path": config.data.path,
        "fingerprint": data.fingerprint,
        "splits": {name: dataset_stats.split_row(split, scans[name]) for name, split in splits.items()},
        "shared_images": dataset_stats.shared_images(splits, scans),
        "classes": dataset_stats.class_counts(data, splits),
        "notes": list(data.notes),
        "skipped_files": dataset_stats.skipped_files(config, splits),
        "original_sizes": dataset_stats.original_sizes(splits, *config.data.image_size),
        "pixels": {
            "images": min(dataset_stats.MOMENT_IMAGES, len(scans["train"].digests)),
            "mean": scans["train"].mean.tolist(),
            "std": scans["train"].std.tolist(),
        },
        "batches": dataset_stats.batch_numbers(config, len(data.train.images)),
        "tokens": dataset_stats.token_numbers(config),
        # JSON knows no infinity.
        "palette_psnr": psnr if psnr is None or math.isfinite(psnr) else None,
        "images_per_second": dataset_stats.images_per_second(config, data.train.images, _SPEED_SECONDS),
    }


def _heading(summary: dict) -> str:
    counts = ", ".join(f"{row['images']:,} {name.replace('_', ' ')}" for name, row in summary["splits"].items())
    return f"{_title(summary)}: {counts}"


def _title(summary: dict) -> str:
    height, width, channels = summary["splits"]["train"]["shape"]
    kind = "colour" if channels == 3 else "grey"
    return f"{summary['name']}{' ' * bool(summary['path'])}{summary['path']}, {height} x {width} {kind}"


def summary_lines(summary: dict) -> list[str]:
    """Returns the printed lines for the content of `data.json`."""
    rows = summary["splits"].items()
    width = max(len(name) for name in summary["splits"])
    lines = [f"data {_title(summary)} (height x width)"]
    lines += [
        f"  {name:{width}}  {row['images']:>9,} images  {_size(row['bytes'])} {_where(row)}" for name, row in rows
    ]
    lines += [f"  {note}" for note in summary["notes"]]
    lines += _class_lines(summary["classes"])
    lines += _pixel_lines(summary)
    lines += _training_lines(summary)
    warnings = [f"warning: {warning['line']}" for warning in summary["warnings"]]
    return lines + (warnings or ["warnings: none"])


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:.1f} MiB" if num_bytes < 2**29 else f"{num_bytes / 2**30:.1f} GiB"


def _where(row: dict) -> str:
    return "in memory" if row["where"] == "memory" else "on disk, read batch by batch"


def _class_lines(classes: dict | None) -> list[str]:
    if classes is None:
        return ["no labels: evaluators that need them will be skipped"]
    names, counts = classes["names"], classes["counts"]
    if len(names) > LISTED_CLASSES:
        lines = [f"classes: {len(names):,}"]
        for split, found in counts.items():
            low, high = (found.index(extreme(found)) for extreme in (min, max))
            lines.append(f"  {split}: from {found[low]:,} images ({names[low]}) to {found[high]:,} ({names[high]})")
        return lines
    names = [name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 3] + "..." for name in names]
    width = max(map(len, [*names, "classes"]))
    widths = {split: max(len(split), 9) for split in counts}
    lines = [f"{'classes':{width}}" + "".join(f"  {split:>{widths[split]}}" for split in counts)]
    for i, name in enumerate(names):
        lines.append(f"{name:{width}}" + "".join(f"  {counts[s][i]:>{widths[s]},}" for s in counts))
    return lines


def _pixel_lines(summary: dict) -> list[str]:
    pixels, train, lines = summary["pixels"], summary["splits"]["train"], _size_lines(summary["original_sizes"])
    mean, std = (" ".join(f"{value:.1f}" for value in pixels[name]) for name in ("mean", "std"))
    channels = ", red green blue" if len(pixels["mean"]) == 3 else ""
    lines.append(f"pixels: mean {mean}, std {std} (0..255{channels}; {pixels['images']:,} random training images)")
    part = "" if train["scanned"] == train["images"] else "the first "
    grey = f"{train['grey']:,} grey, " if train["shape"][2] == 3 else ""
    constant = f"{train['constant']:,} of a single colour"
    if isinstance(train["first_constant"], str):
        constant += f" (first {train['first_constant']})"
    first = train["first_copy"]
    copies = f"{train['copies']:,} copies of another image" + (f" (first {_pair(first)})" if first else "")
    return [*lines, f"  of {part}{train['scanned']:,} training images: {grey}{constant}, {copies}"]


def _size_lines(sizes: dict | None) -> list[str]:
    if sizes is None:
        return []
    if sizes["min"] == sizes["max"]:
        extremes = f"all {' x '.join(map(str, sizes['min']))}"
    else:
        extremes = ", ".join(f"{name} {' x '.join(map(str, sizes[name]))}" for name in ("min", "median", "max"))
        extremes += " (by area)"
    hint = "; a data.image_size of their aspect ratio would keep more" if sizes["cropped"] > sizes["images"] / 2 else ""
    cropped = f"{sizes['cropped']:,} lose more than {dataset_stats.CROPPED:.0%} of their area by cropping{hint}"
    return [
        f"original sizes: {extremes}",
        f"  of {sizes['images']:,} images: {sizes['enlarged']:,} enlarged, {cropped}",
    ]


def _pair(pair: list) -> str:
    """Two images by file name, or by row where there are no files."""
    first, second = (name if isinstance(name, str) else f"row {name}" for name in pair)
    return f"{first} = {second}"


def _training_lines(summary: dict) -> list[str]:
    batches, tokens = summary["batches"], summary["tokens"]
    left_out = f", each leaving out {batches['left_out_per_epoch']:,} random images"
    epoch = f"{batches['steps_per_epoch']:,} steps per epoch{left_out if batches['left_out_per_epoch'] else ''}"
    run = f"{batches['total_steps']:,} steps = {batches['epochs']:.1f} epochs"
    patch, per_patch = tokens["patch_size"], tokens["tokens_per_patch"]
    quality = f", PSNR {summary['palette_psnr']:.2f} dB" if summary["palette_psnr"] is not None else ""
    return [
        f"batches: {batches['batch_size']:,} images; {epoch}; {run}",
        f"tokens: {tokens['patches']:,} patches of {patch} x {patch} pixels, {per_patch:,} tokens per patch "
        f"({tokens['patches'] * per_patch:,} per image), {tokens['vocabulary']:,} values ({tokens['kind']}{quality})",
        f"input: {summary['images_per_second']:,.0f} images/s (reading and batching only)",
    ]


def find_warnings(config, summary: dict) -> list[dict[str, str]]:
    """Returns `{"kind": name, "line": text}` for each problem, none for healthy data.

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
            f"the {learnt} split contains {row['images']:,} of the {summary['splits'][row['to']]['scanned']:,} "
            f"{judged} images{example}: results will look better than they are; remove the copies",
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
        yield "missing_class", f"no image of {_listed(missing)} in the {split}: add images"
    if single:
        yield "single_image", f"only one image of {_listed(single)} in the {split}: add images or merge classes"
    present = {name: count for name, count in counts.items() if count}
    low, high = (extreme(present, key=present.__getitem__) for extreme in (min, max))
    if present[high] > IMBALANCE * present[low]:
        yield (
            "imbalance",
            f"{present[high]:,} images of {high} but {present[low]:,} of {low} in the {split}: accuracy will mostly "
            "reflect the large classes; add images of the small ones",
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
            "enlarged, which costs time and adds no information: lower data.image_size",
        )
    if channels == 3 and train["grey"] >= GREY * train["scanned"]:
        yield (
            "grey",
            f"{train['grey']:,} of {train['scanned']:,} training images are grey: data.channels=1 holds them in a "
            "third of the values",
        )
    if max(pixels["std"]) < TINY_STD:
        yield (
            "flat",
            f"pixel values vary little (std {max(pixels['std']):.1f} of 255): check that they use the whole range; "
            "16-bit files are read as 0..65535",
        )


def _of_the_run(config, summary: dict) -> Iterator[tuple[str, str]]:
    batches, images = summary["batches"], summary["splits"]["train"]["images"]
    steps = batches["steps_per_epoch"]
    if steps < 2:
        yield (
            "few_steps",
            f"an epoch is a single batch ({batches['batch_size']:,} of {images:,} images): lower train.batch_size",
        )
    if batches["total_steps"] < steps:
        seen = batches["total_steps"] * batches["batch_size"]
        yield (
            "short_run",
            f"train.total_steps={batches['total_steps']} is less than one epoch ({steps:,} steps): only {seen:,} of "
            f"{images:,} images are seen",
        )
    recipes = recipes_from_config(config.augment)
    ignored = [step for step in _COLOUR_STEPS if any(getattr(recipe, step) > 0 for recipe in recipes)]
    if ignored and config.data.channels == 1 and config.objective.contrastive_weight > 0:
        yield (
            "colour_steps",
            f"the augmentation steps {', '.join(ignored)} need colour and are skipped at data.channels=1: use "
            "augment.recipe=grey_small for grey images",
        )
