"""What a run will see of its data, before any training: numbers, warnings, and a sheet of images."""

import json
import math
import os
import pathlib
from collections.abc import Callable

from hybrid_jax import config as config_lib
from hybrid_jax import data_numbers, evaluators
from hybrid_jax.data import sources
from hybrid_jax.data_sheet import write_sheet
from hybrid_jax.data_warnings import find_warnings
from hybrid_jax.errors import UserError

LISTED_CLASSES = 20
_SPEED_SECONDS = 1.0
_LONGEST_NAME = 24  # letters of a class in the table


def summarise(config, workdir: str | os.PathLike, log: Callable[[str], None] = print) -> dict:
    """Looks at the data of a config as training will see it; what training would refuse is refused.

    Writes `data.png` (images and views) and `data.json` (what is returned).

    Args:
      config: a config from `get_config()` with overrides.
      workdir: folder of the run; created if missing.
      log: takes the lines of the summary.

    Returns:
      The content of `data.json`: counts, sizes in pixels, pixel values on the 0..255 scale, and `warnings`, each with
      `kind` and `line`.

    Raises:
      UserError: a mistake in the config, the data or the workdir.
    """
    config_lib.validate(config)
    workdir = pathlib.Path(workdir)
    data = sources.load(config)
    # What would stop training comes before what takes longer, and before anything is written.
    data_numbers.batch_numbers(config, len(data.train.images))
    evaluators.check(data.for_evaluation(config.eval.max_images), config)
    _create(workdir)
    summary = _numbers(config, data)
    summary["warnings"] = find_warnings(config, summary)
    for line in summary_lines(summary):
        log(line)
    _write(workdir, config, data, summary)
    log(f"wrote {workdir / 'data.png'} (images and views) and {workdir / 'data.json'} (these numbers)")
    return summary


def _numbers(config, data) -> dict:
    """The content of `data.json` but for the warnings."""
    splits = data_numbers.splits_of(data)
    scans = {name: data_numbers.scan(name, split) for name, split in splits.items()}
    psnr = data_numbers.palette_psnr(config, data.train.images)
    return {
        "name": data.name,
        "path": config.data.path,
        "fingerprint": data.fingerprint,
        "splits": {name: data_numbers.split_row(split, scans[name]) for name, split in splits.items()},
        "shared_images": data_numbers.shared_images(splits, scans),
        "classes": data_numbers.class_counts(data, splits),
        "notes": list(data.notes),
        "skipped_files": data_numbers.skipped_files(config, splits),
        "original_sizes": data_numbers.original_sizes(splits, *config.data.image_size),
        "pixels": {
            "images": min(data_numbers.MOMENT_IMAGES, len(scans["train"].digests)),
            "mean": scans["train"].mean.tolist(),
            "std": scans["train"].std.tolist(),
        },
        "batches": data_numbers.batch_numbers(config, len(data.train.images)),
        "tokens": data_numbers.token_numbers(config),
        # JSON knows no infinity.
        "palette_psnr": psnr if psnr is None or math.isfinite(psnr) else None,
        "images_per_second": data_numbers.images_per_second(config, data.train.images, _SPEED_SECONDS),
    }


def _create(workdir: pathlib.Path) -> None:
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--workdir={workdir}: cannot be written ({error.strerror})") from error


def _write(workdir: pathlib.Path, config, data, summary: dict) -> None:
    counts = ", ".join(f"{row['images']:,} {name.replace('_', ' ')}" for name, row in summary["splits"].items())
    title = f"{_title(summary)}: {counts}"
    try:
        write_sheet(workdir / "data.png", config, data, data_numbers.splits_of(data), title)
        temporary = workdir / "data.tmp"
        temporary.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
        temporary.replace(workdir / "data.json")
    except OSError as error:
        raise UserError(f"--workdir={workdir}: cannot be written ({error.strerror or error})") from error


def _title(summary: dict) -> str:
    height, width, channels = summary["splits"]["train"]["shape"]
    kind = "colour" if channels == 3 else "grey"
    return f"{summary['name']}{' ' * bool(summary['path'])}{summary['path']}, {height} x {width} {kind}"


def summary_lines(summary: dict) -> list[str]:
    """Returns what is printed, from the content of `data.json`."""
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
        return ["no classes: evaluators that need labels will be skipped"]
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
    constant = f"{train['constant']:,} of one colour throughout"
    if isinstance(train["first_constant"], str):
        constant += f" (first {train['first_constant']})"
    first = train["first_copy"]
    copies = f"{train['copies']:,} copies of another" + (f" (first {_pair(first)})" if first else "")
    return [*lines, f"  of {part}{train['scanned']:,} training images: {grey}{constant}, {copies}"]


def _size_lines(sizes: dict | None) -> list[str]:
    if sizes is None:
        return []
    if sizes["min"] == sizes["max"]:
        extremes = f"{' x '.join(map(str, sizes['min']))}, all"
    else:
        extremes = ", ".join(f"{name} {' x '.join(map(str, sizes[name]))}" for name in ("min", "median", "max"))
        extremes += " (by area)"
    hint = "; a data.image_size of their shape would keep more" if sizes["cropped"] > sizes["images"] / 2 else ""
    cropped = f"{sizes['cropped']:,} lose more than {data_numbers.CROPPED:.0%} of their area to the crop{hint}"
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
    left_out = f", {batches['left_out_per_epoch']:,} images left out, others each time"
    epoch = f"{batches['steps_per_epoch']:,} steps an epoch{left_out if batches['left_out_per_epoch'] else ''}"
    run = f"{batches['total_steps']:,} steps are {batches['epochs']:.1f} epochs"
    patch, per_patch = tokens["patch_size"], tokens["tokens_per_patch"]
    quality = f", PSNR {summary['palette_psnr']:.2f} dB" if summary["palette_psnr"] is not None else ""
    return [
        f"batches: {batches['batch_size']:,} images; {epoch}; {run}",
        f"tokens: {tokens['patches']:,} patches of {patch} x {patch} pixels, {per_patch:,} tokens each "
        f"({tokens['patches'] * per_patch:,} an image), {tokens['vocabulary']:,} values ({tokens['kind']}{quality})",
        f"input: {summary['images_per_second']:,.0f} images/s, reading and batching alone",
    ]
