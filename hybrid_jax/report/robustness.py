"""The report's robustness: corrupted images, images under attack, and calibration."""

import math

import numpy as np

from hybrid_jax import corruptions
from hybrid_jax.evaluators import calibration
from hybrid_jax.report.images import thumbnail
from hybrid_jax.report.page import Section, figure, folded, grid, paragraph
from hybrid_jax.report.plots import COLOURS, GREY, MUTED, figure_uri, image_uri, new_figure
from hybrid_jax.report.verdicts import SUBJECTS
from hybrid_jax.utils.image_grid import resized

FEWEST_IN_A_BIN = 10
FAMILIES = {
    "noise": ("gaussian_noise", "shot_noise", "impulse_noise"),
    "blur": ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    "weather": ("snow", "frost", "fog", "brightness"),
    "digital": ("contrast", "elastic_transform", "pixelate", "jpeg_compression"),
}


def sections(results: list[dict], data) -> list[Section]:
    """Returns the sections that the results have something for.

    Args:
      results: as `evaluators.evaluate` returns them.
      data: whose first test image is shown corrupted.
    """
    of = lambda metric: [row for row in results if row["metric"] == metric]
    corrupted, attacks, errors = of("corruption_accuracy"), of("adversarial_accuracy"), of("calibration_error")
    found = {
        "corruptions": corrupted and _by_severity(corrupted[0]) + _sheet(corrupted[0], data.test.images[:1]),
        "adversarial": attacks and _by_epsilon(attacks),
        "calibration": errors and _reliability(errors),
    }
    return [(SUBJECTS[name], body) for name, body in found.items() if body]


def _by_severity(row: dict) -> str:
    figures = []
    for family, kinds in FAMILIES.items():
        drawn, axes = new_figure()
        axes.axhline(row["clean_value"], color=MUTED, linestyle="--", linewidth=1.2)
        for colour, kind in zip(COLOURS, kinds, strict=False):
            for name, style in (("floor_accuracy", ":"), ("accuracy", "-")):
                points = {int(severity): value for severity, value in row[name][kind].items()}
                label = kind.replace("_", " ") if style == "-" else None
                marker = "o" if style == "-" else None
                axes.plot(*zip(*sorted(points.items()), strict=True), style, color=colour, label=label, marker=marker)
        axes.legend(frameon=False, fontsize=7.5, loc="lower left")
        axes.set_xticks(row["severities"])
        axes.set(ylim=(0, 1), xlabel="severity", ylabel="accuracy")
        axes.yaxis.set_major_formatter("{x:.0%}")
        figures.append(figure(figure_uri(drawn), family.capitalize()))
    caption = (
        f"Accuracy of the linear probe, trained on clean images only, on {row['n']:,} test images under "
        "CIFAR-10-C-style corruptions (the kinds and strengths of that set, implemented anew; frost is drawn, not "
        f"photographed). Dashed: the same images clean, {row['clean_value']:.1%}. Dotted: the probe of raw pixels "
        f"({row['floor_clean_value']:.1%} clean) under the same corruption. Good features stay close to the dashed "
        "line and above the dotted one."
    )
    return grid(figures) + paragraph(caption, "caption")


def _sheet(row: dict, image: np.ndarray) -> str:
    severity = max(row["severities"])
    shown = {"clean": image[0]}
    for kind in corruptions.MAIN:
        shown[kind] = corruptions.corrupt(image, kind, severity, row["corruption_seed"])[0]
    images = [thumbnail(image_uri(resized(pixels)), kind.replace("_", " ")) for kind, pixels in shown.items()]
    title = f"The first test image under each corruption at severity {severity}, the strongest that was measured"
    return folded(title, f'<div class="thumbs">{"".join(images)}</div>')


def _by_epsilon(rows: list[dict]) -> str:
    drawn, axes = new_figure(5.2, 3.4)
    steps = [0, *(row["epsilon"] for row in rows)]
    clean = rows[0]["clean_value"]
    lines = {"noise of the same size": "noise_value", "FGSM, one step": "fgsm_value"}
    curves = {label: [clean, *(row[key] for row in rows)] for label, key in lines.items()}
    curves[f"PGD, {rows[0]['steps']} steps"] = [clean, *(row["value"] for row in rows)]
    for colour, (label, values) in zip((COLOURS[2], COLOURS[3], COLOURS[1]), curves.items(), strict=True):
        axes.plot(steps, values, color=colour, marker="o", label=label)
    floor = [min(row["floor"].values()) for row in rows]
    label = "probe of raw pixels under its own PGD"
    axes.plot(steps[1:], floor, color=GREY, linewidth=3, marker="o", label=label, zorder=1)
    axes.legend(frameon=False, fontsize=8)
    axes.set(ylim=(0, 1), xlabel="largest change of a pixel, of 255 grey levels", ylabel="accuracy")
    axes.yaxis.set_major_formatter("{x:.0%}")
    caption = (
        f"Accuracy of the linear probe on {rows[0]['n']:,} test images that an attacker with full knowledge of encoder "
        "and probe has changed. Noise of the same size shows how much of the loss is due to the direction of the "
        "change. The model was not trained against attacks, so a steep fall is usual. The accuracies are upper bounds: "
        "a stronger attack may find more."
    )
    return figure(figure_uri(drawn), caption, beside=True)


def _reliability(rows: list[dict]) -> str:
    figures = []
    for row in rows:
        drawn, axes = new_figure(4.3, 3.6)
        bins = row["reliability"]
        middles, width = [(b["low"] + b["high"]) / 2 for b in bins], bins[0]["high"] - bins[0]["low"]
        share = [b["count"] / row["n"] for b in bins]
        axes.bar(middles, share, width * 0.94, color=GREY, label="share of the images")
        axes.plot([0, 1], [0, 1], color=MUTED, linestyle="--", linewidth=1.2, label="perfect calibration")
        shown = [b for b in bins if b["count"] >= FEWEST_IN_A_BIN]
        points = [b["confidence"] for b in shown], [b["accuracy"] for b in shown]
        errors = [math.sqrt(b["accuracy"] * (1 - b["accuracy"]) / b["count"]) for b in shown]
        axes.errorbar(*points, yerr=errors, color=COLOURS[0], marker="o", label="linear probe")
        axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence", ylabel="accuracy")
        axes.legend(frameon=False, fontsize=8, loc="upper left")
        temperature = row.get("temperature")
        how = f": logits divided by {temperature:.3g}, chosen on the validation split" if temperature else ""
        caption = f"{row['variant'].capitalize()}{how}. Expected calibration error: {row['value']:.2%}."
        figures.append(figure(figure_uri(drawn), caption))
    caption = (
        f"Confidence and accuracy of the linear probe on {rows[0]['n']:,} test images, in {calibration.NUM_BINS} bins: "
        "below the dashed line the probe is overconfident, above it underconfident. Bins of fewer than "
        f"{FEWEST_IN_A_BIN} images are not drawn; bars are one standard error. The expected calibration error is the "
        "mean distance from the dashed line over images."
    )
    return grid(figures) + paragraph(caption, "caption")
