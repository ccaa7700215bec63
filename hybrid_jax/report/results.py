"""The report's results: how each metric is named and told, and each result beside its floor."""

import html

from hybrid_jax.evaluators.features import has_split
from hybrid_jax.report import quality
from hybrid_jax.report.metric_names import METRICS, Metric, metric_of
from hybrid_jax.report.reference import Comparison

MOST_DIFFERENCES = 5
VARIANTS = {
    "default": "default layer",
    "best_layer": "best layer by validation",
    "last_four": "last four layers together",
}


def summary(model, data, results: list[dict]) -> str:
    """Returns the run in words: each metric's first result beside its floor, and what is absent."""
    headlines: dict[str, dict] = {}
    for row in results:
        if metric_of(row).headline:
            headlines.setdefault(row["metric"], row)
    told = "; ".join(_clause(row) for row in headlines.values()) or "nothing was evaluated"
    text = f"After {model.step:,} steps on {data.name}: {told}."
    have = {metric_of(row).title for row in results}
    usual = {m.title: m for m in METRICS.values() if m.headline and not m.samples}
    missing = [m for title, m in usual.items() if title not in have]
    reasons = [f"{_inside(m.title)} ({_reason(m, model, data)})" for m in missing]
    return text + (f" Not measured: {', '.join(reasons)}." if reasons else "")


def _reason(metric: Metric, model, data) -> str:
    if not has_split(data, "test"):
        return "no test split"
    if metric.share and (data.train.labels is None or data.test.labels is None):
        return "no labels"
    if metric.lower and not model.has_likelihood:
        return "no generative branch"
    return "not asked for"


def _inside(title: str) -> str:
    """A title as it reads inside a sentence."""
    return title[0].lower() + title[1:]


def _clause(row: dict) -> str:
    metric = metric_of(row)
    clause = f"{_inside(_title(row))} {metric.tell(row['value'])}"
    if metric.samples:
        return f"{clause} ({quality.verdict(row)})"
    floors = row.get("floor") or {}
    if floors:
        clause += f" ({_floors(row)}: {verdict(row)})"
    return clause


def verdict(row: dict) -> str:
    """Returns how a result compares with the best of its floors; within two standard errors it does not."""
    floors = row.get("floor") or {}
    if not floors:
        return "no floor applies"
    metric = metric_of(row)
    lead = min(metric.lead(row["value"], floor) for floor in floors.values())
    if abs(lead) <= 2 * (row.get("standard_error") or 0):
        return f"no clear difference, {metric.gap(lead)}"
    return f"{'better' if lead > 0 else 'worse'} than its floor by {metric.gap(lead)}"


def table(results: list[dict]) -> str:
    """Returns the results beside their floors, as HTML."""
    if not results:
        return "<p>There are no results.</p>"
    heads = ("result", "value", "floor", "against the floor", "images", "protocol")
    head = "".join(f"<th>{text}</th>" for text in heads)
    caption = (
        "A floor is what the same protocol gives without the model: features or likelihoods that do not beat "
        "it are of no use for that task. ± is one standard error over test images (few labels: and "
        "over draws of the labels); a difference within two of them is called unclear."
    )
    rows = "".join(_table_row(row) for row in results)
    return f'<div class="wide"><table><tr>{head}</tr>{rows}</table></div><p class="caption">{caption}</p>'


def _table_row(row: dict) -> str:
    metric, words = metric_of(row), verdict(row)
    value = metric.tell(row["value"])
    if row.get("standard_error"):
        value += f" ± {metric.tell(row['standard_error'], unit=False)}"
    tone = {"worse": "bad", "better": "good"}.get(words.split()[0], "")
    cells = [
        ("", f"{html.escape(_title(row))}<small>{html.escape('; '.join(_details(row)))}</small>"),
        ("tight", html.escape(value)),
        ("", html.escape(_floors(row) or "none")),
        (tone, html.escape(words)),
        ("tight", html.escape(f"{row['n']:,} {row['split']}")),
        ("tight", html.escape(row["protocol"])),
    ]
    return "<tr>" + "".join(f'<td class="{kind}">{text}</td>' for kind, text in cells) + "</tr>"


def _title(row: dict) -> str:
    title = metric_of(row).title
    return f"{title}, {VARIANTS.get(row['variant'], row['variant'])}" if "variant" in row else title


def _floors(row: dict) -> str:
    metric = metric_of(row)
    return ", ".join(f"{name} {metric.tell(value)}" for name, value in (row.get("floor") or {}).items())


def _details(row: dict) -> list[str]:
    details = ["lower is better"] if metric_of(row).lower else []
    known = {"layer": "{}", "C": "C = {:g}", "k": "k = {}", "temperature": "temperature {:g}"}
    known |= {"learning_rate": "learning rate {:g}", "epochs": "{} epochs"}
    details += [text.format(row[key]) for key, text in known.items() if row.get(key) is not None]
    if len(row.get("c_values", ())) > 1 and row["C"] == max(row["c_values"]):
        details.append("the largest C that was tried: a wider grid may give more")
    if len(row.get("learning_rates", ())) > 1 and row["learning_rate"] == max(row["learning_rates"]):
        details.append("the largest learning rate that was tried")
    if row.get("n_train"):
        details.append(f"{row['n_train']:,} labels")
    if row.get("train_value") is not None:
        details.append(f"{metric_of(row).tell(row['train_value'])} on {row['train_n']:,} training images")
    if row.get("clean_value") is not None:
        details.append(f"{row['clean_value']:.1%} on the same images unchanged")
    if row.get("converged") is False:
        details.append("the solver stopped at its iteration limit")
    return details + ([row["note"]] if row.get("note") else [])


def reference_note(comparison: Comparison | None, model) -> str:
    """Returns where the grey curves come from, how this run differs and what a gap means."""
    if comparison is None:
        return "No reference curve is drawn: none was recorded on this data with these tokens."
    reference = comparison.reference
    values = [(METRICS[name], reference.result[name]) for name in METRICS if name in reference.result]
    reached = ", ".join(f"{_inside(metric.title)} {metric.tell(value)}" for metric, value in values)
    told = [f"{name} {own} (reference {theirs})" for name, own, theirs in comparison.differences[:MOST_DIFFERENCES]]
    if len(comparison.differences) > len(told):
        told.append(f"{len(comparison.differences) - len(told)} more fields")
    text = (
        f"Grey: the reference run {reference.name}, {reference.config.train.total_steps:,} steps, which in the end "
        f"reached {reached}."
    )
    if told:
        text += (
            f" Yours differs in: {', '.join(told)}. A loss that stays above the grey curve long after the warm-up, or "
            "an accuracy below it, without one of these as the reason, points to the learning rate or the data."
        )
    else:
        text += (
            " Yours has the same settings, so the curves should coincide but for the seed's chance. If they do not, "
            "look at the versions of the libraries and at changes in the code."
        )
    if model.has_contrastive and "contrastive_loss" not in comparison.curves:
        text += (
            " The contrastive curves stand alone: no reference has this batch size, temperature and views, "
            "which set their scale."
        )
    return text
