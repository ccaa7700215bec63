"""The report's robustness: accuracy by severity, images under each corruption, reliability, accuracy under attack."""

import math

import numpy as np

from hybrid_jax import corruptions
from hybrid_jax.evaluators import calibration
from hybrid_jax.report.curves import COLOURS, GREY, figure_uri, new_figure, styled
from hybrid_jax.report.page import captioned

FEWEST_IN_A_BIN = 10
FAMILIES = {
    "noise": ("gaussian_noise", "shot_noise", "impulse_noise"),
    "blur": ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    "weather": ("snow", "frost", "fog", "brightness"),
    "digital": ("contrast", "elastic_transform", "pixelate", "jpeg_compression"),
}


def sections(results: list[dict], data) -> list[tuple[str, str]]:
    """Returns (title, HTML) of each section that the results have something for.

    Args:
      results: as `evaluators.evaluate` returns them.
      data: whose first test image is shown corrupted.
    """
    found = []
    corrupted = [row for row in results if row["metric"] == "corruption_accuracy"]
    reliabilities = {row["variant"]: row for row in results if row["metric"] == "calibration_error"}
    attacks = [row for row in results if row["metric"] == "adversarial_accuracy"]
    if corrupted:
        found.append(("Corrupted images", _by_severity(corrupted[0]) + _sheet(corrupted[0], data.test.images[:1])))
    if attacks:
        found.append(("Images under attack", _by_epsilon(attacks)))
    if reliabilities:
        found.append(("Calibration", _reliability(reliabilities)))
    return found


def _by_severity(row: dict) -> str:
    figure, panels = _panels(4, 2, 8.6, 5.6)
    for axes, (family, kinds) in zip(panels, FAMILIES.items(), strict=True):
        axes.axhline(row["clean_value"], color="#566270", linestyle="--", linewidth=1.2)
        for colour, kind in zip(COLOURS, kinds, strict=False):
            for name, style in (("floor_accuracy", ":"), ("accuracy", "-")):
                points = {int(severity): value for severity, value in row[name][kind].items()}
                label = kind.replace("_", " ") if style == "-" else None
                marker = "o" if style == "-" else None
                axes.plot(*zip(*sorted(points.items()), strict=True), style, color=colour, label=label, marker=marker)
        axes.set_title(family, fontsize=10)
        axes.legend(frameon=False, fontsize=7.5, loc="lower left")
        axes.set_xticks(row["severities"])
        axes.set(ylim=(0, 1), xlabel="severity")
        axes.yaxis.set_major_formatter("{x:.0%}")
    caption = (
        f"Accuracy of the linear probe on {row['n']:,} test images under CIFAR-10-C-style corruptions (the kinds and "
        "strengths of that set, drawn anew; the frost is drawn, not photographed). The probe learnt from clean images "
        f"only. Dashed: the same images clean, {row['clean_value']:.1%}. Dotted: the raw pixels' probe "
        f"({row['floor_clean_value']:.1%} clean) under the same corruption. A good "
        "representation stays near the dashed line and above its dotted one."
    )
    return captioned(figure_uri(figure), caption)


def _sheet(row: dict, image: np.ndarray) -> str:
    severity = max(row["severities"])
    shown = {"clean": image[0]}
    for kind in corruptions.MAIN:
        shown[kind] = corruptions.corrupt(image, kind, severity, row["corruption_seed"])[0]
    figure, panels = _panels(len(shown), 4, 8.6, 8.2)
    for axes, (name, pixels) in zip(panels, shown.items(), strict=True):
        axes.imshow(np.broadcast_to(pixels, (*pixels.shape[:2], 3)), interpolation="nearest")
        axes.set_title(name.replace("_", " "), fontsize=9)
        axes.set_axis_off()
    caption = f"The first test image under each corruption at severity {severity}, the strongest that was measured."
    return captioned(figure_uri(figure), caption)


def _by_epsilon(rows: list[dict]) -> str:
    figure, axes = new_figure(6.4, 3.4)
    steps = [0, *(row["epsilon"] for row in rows)]
    clean = rows[0]["clean_value"]
    lines = {"noise of the same size": "noise_value", "FGSM, one step": "fgsm_value"}
    curves = {label: [clean, *(row[key] for row in rows)] for label, key in lines.items()}
    curves[f"PGD, {rows[0]['steps']} steps"] = [clean, *(row["value"] for row in rows)]
    for colour, (label, values) in zip((COLOURS[2], COLOURS[3], COLOURS[1]), curves.items(), strict=True):
        axes.plot(steps, values, color=colour, marker="o", label=label)
    floor = [min(row["floor"].values()) for row in rows]
    axes.plot(
        steps[1:], floor, color=GREY, linewidth=3, marker="o", label="raw pixels' probe under its own PGD", zorder=1
    )
    axes.legend(frameon=False, fontsize=8)
    axes.set(ylim=(0, 1), xlabel="largest change of a pixel, grey levels of 255", ylabel="accuracy")
    axes.yaxis.set_major_formatter("{x:.0%}")
    caption = (
        f"Accuracy of the linear probe on {rows[0]['n']:,} test images that an attacker changed who knows encoder and "
        "probe; noise of the same size shows how much is due to the direction alone. Nothing here was trained against "
        "attacks, so a steep fall is usual. It is an upper bound: a stronger attack may find more."
    )
    return captioned(figure_uri(figure), caption)


def _reliability(rows: dict[str, dict]) -> str:
    figure, panels = _panels(len(rows), len(rows), 4.3 * len(rows), 3.9)
    for axes, (variant, row) in zip(panels, rows.items(), strict=True):
        bins = row["reliability"]
        middles, width = [(b["low"] + b["high"]) / 2 for b in bins], bins[0]["high"] - bins[0]["low"]
        share = [b["count"] / row["n"] for b in bins]
        axes.bar(middles, share, width * 0.94, color=GREY, label="share of the images")
        axes.plot([0, 1], [0, 1], color="#566270", linestyle="--", linewidth=1.2, label="perfect")
        drawn = [b for b in bins if b["count"] >= FEWEST_IN_A_BIN]
        points = [b["confidence"] for b in drawn], [b["accuracy"] for b in drawn]
        errors = [math.sqrt(b["accuracy"] * (1 - b["accuracy"]) / b["count"]) for b in drawn]
        axes.errorbar(*points, yerr=errors, color=COLOURS[0], marker="o", label="linear probe")
        axes.set_title(f"{variant}: error {row['value']:.2%}", fontsize=10)
        axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence", ylabel="accuracy")
        axes.legend(frameon=False, fontsize=8, loc="upper left")
    temperature = rows.get(calibration.SCALED, {}).get("temperature")
    scaled = f" Right: logits divided by {temperature:.3g}, chosen on the validation split." if temperature else ""
    caption = (
        f"Is the probe right as often as it believes? {next(iter(rows.values()))['n']:,} test images in "
        f"{calibration.NUM_BINS} bins of its confidence: below the dashed line it is too sure, above it too modest. A "
        f"bin of fewer than {FEWEST_IN_A_BIN} images is not drawn; bars are one standard error. The expected "
        "calibration error is the mean distance from that line, over images."
    )
    return captioned(figure_uri(figure), caption + scaled)


def _panels(count: int, in_a_row: int, width: float, height: float):
    """A figure of several axes in the report's style."""
    figure, first = new_figure(width, height)
    first.remove()
    rows = -(-count // in_a_row)
    return figure, [styled(figure.add_subplot(rows, in_a_row, i + 1)) for i in range(count)]
