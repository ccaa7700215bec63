"""A comparison as text: the claims, and a table of the measurements of each arm."""

import collections
import statistics

from hybrid_jax.comparison.claims import ALL, EQUAL_FLOPS, EQUAL_STEPS, LIKELIHOODS, WHOLE

COLUMNS = {
    "linear_probe_accuracy": "linear probe",
    "corruption_accuracy": "corrupted",
    "corruption_share_retained": "retained",
    "ood_auroc": "outliers",
    "bits_per_dim": "bits/dim",
    "nats_per_token": "nats/token",
}
SENTENCES = {
    "C1": "as discriminative as contrastive learning: accuracy of a linear probe",
    "C2 corrupted images": "as robust as generative pre-training: accuracy on corrupted images",
    "C2 share retained": "as robust as generative pre-training: share of the clean accuracy retained",
    "C2 outliers": "as robust as generative pre-training: outlier detection (AUROC)",
    "C2": "as robust as generative pre-training: all three measures",
    "C3": "no cost in likelihood: at most 2% above the generative arm",
    ALL: "all three claims together",
}

Values = dict[tuple[str, str], list[float]]


def values(runs: list[dict]) -> Values:
    """Returns {(arm, metric): one value per seed}."""
    found: Values = collections.defaultdict(list)
    for row in runs:
        found[row["arm"], row["metric"]].append(row["value"])
    return dict(found)


def cell(metric: str, numbers: list[float]) -> str:
    """Returns mean and deviation over seeds; accuracies in per cent."""
    scale, digits = (1, 4) if metric in LIKELIHOODS else (100, 2)
    mean = f"{scale * statistics.mean(numbers):.{digits - (metric in LIKELIHOODS)}f}"
    return mean + (f" ± {scale * statistics.stdev(numbers):.{digits}f}" if len(numbers) > 1 else "")


def amount(metric: str, value: float | None) -> str:
    """Returns a difference with its sign, in points or in the likelihood's unit; "unbounded" for None."""
    if value is None:
        return "unbounded"
    return f"{value:+.4f}" if metric in LIKELIHOODS else f"{100 * value:+.2f}"


def difference(row: dict) -> tuple[str, str]:
    """Returns a claim's difference and its bounds; for the likelihood in per cent of the reference."""
    if row["metric"] not in LIKELIHOODS or "reference_value" not in row:
        low, high = (amount(row["metric"], row[key]) for key in ("lower", "upper"))
        return amount(row["metric"], row["estimate"]), f"[{low}, {high}]"
    # The row has the margin subtracted.
    per_cent = lambda x: "unbounded" if x is None else f"{100 * (x / row['reference_value'] + row['margin'] - 1):+.2f}"
    return f"{per_cent(row['estimate'])}%", f"[{per_cent(row['lower'])}, {per_cent(row['upper'])}]"


def margin(row: dict) -> str:
    """Returns how much worse the hybrid may be."""
    return "2%" if row["metric"] in LIKELIHOODS else f"{100 * row['margin']:.1f} points"


def premise(row: dict) -> str:
    """Returns the premise of a verdict and whether the runs show it; empty if there is none."""
    found = row["premise"]
    if found is None:
        return ""
    numbers = " ".join(difference({**found, "metric": row["metric"]}))
    return f"{found['text']}: {'yes' if found['holds'] else 'not shown'} ({numbers})"


def settings(overrides: dict) -> str:
    """Returns {field: value} as text."""
    return ", ".join(f"{name} = {value:g}" for name, value in overrides.items())


def text(result: dict) -> str:
    """Returns the content of `compare.json` for the terminal."""
    lines = _aligned(measured(result))
    for arm in dict.fromkeys(row["arm"] for row in result["claims"]):
        for table in (EQUAL_STEPS, EQUAL_FLOPS):
            rows = [row for row in result["claims"] if (row["arm"], row["table"]) == (arm, table)]
            lines += [f"claims about {arm}, {table}:"] * bool(rows) + [_line(row) for row in rows]
    if not result["claims"]:
        lines.append("no claim is judged: that needs the arms generative, contrastive and a hybrid")
    return "\n".join(lines)


def measured(result: dict) -> list[list[str]]:
    """Returns a table of the metrics: a header, a row for each arm, and one for the floors."""
    found = values(result["runs"])
    floors = {row["metric"]: row["value"] for row in result["floors"]}
    metrics = [name for name in COLUMNS if name in floors]
    rows = [["arm", *(COLUMNS[name] for name in metrics)]]
    for arm in dict.fromkeys(row["arm"] for row in result["runs"]):
        rows.append([arm, *(cell(m, found[arm, m]) if (arm, m) in found else "-" for m in metrics)])
    return [*rows, ["raw pixels, histogram", *(cell(m, [floors[m]]) for m in metrics)]]


def _aligned(rows: list[list[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _line(row: dict) -> str:
    note = f" ({row['note']})" if row.get("note") else ""
    if row["estimate"] is None:
        return f"  {row['claim'] if row['claim'] == WHOLE else 'all'}: {row['verdict'].upper()}{note}"
    numbers = f"{' '.join(difference(row))}, margin {margin(row)}"
    why = f"; {premise(row)}" if row["premise"] else ""
    return f"  {row['claim']}: {numbers}: {row['verdict']}{note}{why}"
