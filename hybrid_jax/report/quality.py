"""The report's table of sample quality: each measure of the samples beside those of what takes their place."""

import html

from hybrid_jax.evaluators.sample_quality import HISTOGRAMS, REAL, SHOWN, TRAINING
from hybrid_jax.report.metric_names import metric_of

_WORST, _SUSPECT = "no better than histogram samples", "more than among real images: look for copies"


def table(results: list[dict]) -> str:
    """Returns the results that judge samples, as HTML; empty where there are none."""
    rows = [row for row in results if metric_of(row).samples]
    if not rows:
        return ""
    baselines = [SHOWN] if any(SHOWN in row["floor"] for row in rows) else []
    heads = ("measure", "samples", "real images", *baselines, HISTOGRAMS, "what it says")
    head = "".join(f"<th>{html.escape(text)}</th>" for text in heads)
    body = "".join(_table_row(row, baselines) for row in rows)
    first = rows[0]
    caption = (
        f"{first['n']:,} samples at temperature {first['temperature']:g}, compared with as many training images in the "
        f"features of the frozen encoder {first['encoder']} (protocol {first['protocol']}). Real images and histogram "
        "samples (every token drawn by itself from its position's values) were measured in the samples' place: a model "
        "should come close to the former, which none is asked to beat, and far from the latter. ± is one standard "
        "error over images. All of it depends on the encoder and on the number of samples: compare runs on the same "
        "data where both are equal, and never with a published FID."
    )
    return f'<div class="wide"><table><tr>{head}</tr>{body}</table></div><p class="caption">{html.escape(caption)}</p>'


def _table_row(row: dict, baselines: list[str]) -> str:
    metric, words, floor = metric_of(row), verdict(row), row["floor"]
    value = metric.tell(row["value"])
    if row.get("standard_error"):
        value += f" ± {metric.tell(row['standard_error'])}"
    title = f"{metric.title} {row['variant']}" if "variant" in row else metric.title
    shown = [floor.get(name) for name in (_real(row), *baselines, HISTOGRAMS)]
    tone = "bad" if words.startswith((_SUSPECT, _WORST)) else ""
    cells = [
        ("", f"{html.escape(title)}<small>{html.escape('; '.join(_details(row)))}</small>"),
        ("tight", html.escape(value)),
        *(("tight", "" if other is None else html.escape(metric.tell(other))) for other in shown),
        (tone, html.escape(words)),
    ]
    return "<tr>" + "".join(f'<td class="{kind}">{text}</td>' for kind, text in cells) + "</tr>"


def verdict(row: dict) -> str:
    """Returns where a result lies between those of real images and of histogram samples, in words."""
    metric, value = metric_of(row), row["value"]
    real, blind = row["floor"][_real(row)], row["floor"][HISTOGRAMS]
    if row["metric"] == "near_copy_share":
        return _copies(row, real)
    span = metric.lead(real, blind)
    if span <= 0:
        return "histogram samples do as well as real images: it tells nothing here"
    share = metric.lead(value, blind) / span
    if share <= 0:
        return _WORST
    if metric.lower and real > 0:
        return f"{value / real:.2g} times that of real images; histogram samples: {blind / real:.2g} times"
    return f"{min(share, 1):.0%} of the way from histogram samples to real images"


def _copies(row: dict, real: float) -> str:
    count = row["exact_copies"]
    exact = f"exact copies: {count}" if count else "no exact copy"
    if row["value"] - real > 2 * (row.get("standard_error") or 0):
        return f"{_SUSPECT} ({exact})"
    return f"no more than among real images ({exact})"


def _real(row: dict) -> str:
    return REAL if REAL in row["floor"] else TRAINING


def _details(row: dict) -> list[str]:
    metric = metric_of(row)
    details = [metric.meaning, *(["lower is better"] if "distance" in row["metric"] else [])]
    if row.get("median_distance") is not None:
        medians = f"{row['median_distance']:.3g} (test images: {row['test_median_distance']:.3g})"
        details.append(f"median distance to the nearest training image {medians}")
    if row.get("labeller_accuracy") is not None:
        details.append(f"the naming classifier is right on {row['labeller_accuracy']:.1%} of the test images")
    return details
