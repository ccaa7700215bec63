"""The report's results: one row per subject, all of them folded below, and the subjects that were not measured."""

from hybrid_jax.evaluators.features import has_split
from hybrid_jax.evaluators.sample_quality import HISTOGRAMS, SHOWN
from hybrid_jax.report import verdicts
from hybrid_jax.report.page import Section, cell, folded, paragraph, table
from hybrid_jax.report.verdicts import SUBJECTS, metric_of

_LEGEND = (
    "A floor is the result of the same protocol without the model: features or likelihoods that do not beat it are of "
    "no use for that task. ± is one standard error over test images (few labels: and over draws of the labels). Of "
    "several variants the table shows the one with the best validation accuracy, else the first."
)


def lead(model, data, results: list[dict]) -> str:
    """Returns in which subjects the model beats its floors, in one sentence."""
    found = {subject: verdicts.verdict(row) for subject, row in summary(results).items()}
    parts = []
    for kind in (verdicts.BETTER, verdicts.WITHIN, verdicts.WORSE):
        subjects = [_inside(subject) for subject, words in found.items() if words.startswith(kind)]
        parts += [f"{kind} in {_listed(subjects)}"] * bool(subjects)
    return f"{model.step:,} training steps on {data.name}: {'; '.join(parts) or 'nothing was evaluated'}."


def _inside(title: str) -> str:
    """A title as it reads inside a sentence."""
    return title[0].lower() + title[1:]


def _listed(words: list[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def summary(results: list[dict]) -> dict[str, dict]:
    """Returns the row that stands for each subject.

    It is the first row of the subject or, of variants with the same setting, the one with the best validation accuracy.
    """
    rank = {evaluator: place for place, evaluator in enumerate(SUBJECTS)}
    first: dict[str, dict] = {}
    for row in sorted(results, key=lambda row: rank.get(metric_of(row).evaluator, len(rank))):
        first.setdefault(SUBJECTS.get(metric_of(row).evaluator, metric_of(row).title), row)
    same = lambda row, other: all(row.get(key) == other.get(key) for key in ("metric", "setting"))
    score = lambda row: row.get("validation_accuracy") or 0
    return {subject: max((r for r in results if same(r, row)), key=score) for subject, row in first.items()}


def sections(model, data, results: list[dict]) -> list[Section]:
    """Returns the section of the results.

    Args:
      model: its config says which evaluators ran.
      data: its splits and labels, which some evaluators need.
      results: without those of the validation split and the details of outlier detection.
    """
    shown = [_summary_row(subject, row) for subject, row in summary(results).items()]
    body = table(("subject", "protocol", "value", "floor", "verdict"), shown) if shown else paragraph("No results.")
    body += paragraph(_not_measured(model, data, results), "note")
    if results:
        body += paragraph(_LEGEND, "note")
    samples = [row for row in results if verdicts.judges_samples(row)]
    others = [row for row in results if not verdicts.judges_samples(row)]
    if others:
        body += folded(f"All results ({len(others)})", _all(others))
    if samples:
        body += folded(f"All measures of sample quality ({len(samples)})", _samples(samples))
    return [("Results", body)]


def _summary_row(subject: str, row: dict) -> list[str]:
    words = verdicts.verdict(row)
    shown = row if verdicts.judges_samples(row) else row | {"floor": verdicts.best_floor(row)}
    return [
        cell(subject),
        cell(verdicts.title(row), row["protocol"]),
        cell(verdicts.value(row), tone="tight"),
        cell(verdicts.floors(shown) or "none"),
        cell(words, tone=verdicts.tone(words)),
    ]


def _not_measured(model, data, results: list[dict]) -> str:
    measured = {metric_of(row).evaluator for row in results}
    reasons: dict[str, list[str]] = {}
    for evaluator, subject in SUBJECTS.items():
        if evaluator not in measured:
            reasons.setdefault(_reason(evaluator, model, data), []).append(_inside(subject))
    listed = [f"{_listed(subjects)} ({reason})" for reason, subjects in reasons.items()]
    return f"Not measured: {'; '.join(listed)}." if listed else ""


def _reason(evaluator: str, model, data) -> str:
    config = model.config.eval
    if evaluator not in config.evaluators:
        return "not in eval.evaluators"
    if evaluator == "transfer" and not config.transfer.name:
        return "eval.transfer.name is empty"
    if not has_split(data, "test"):
        return "no test split"
    if evaluator in ("likelihood", "sample_quality"):
        return "skipped, see the log" if model.has_likelihood else "no generative branch"
    labelled = data.train.labels is not None and data.test.labels is not None
    return "skipped, see the log" if labelled or evaluator == "ood" else "no labels"


def _all(results: list[dict]) -> str:
    rows = []
    for row in results:
        words = verdicts.verdict(row)
        rows.append([
            cell(verdicts.title(row), "; ".join(_details(row))),
            cell(verdicts.value(row), tone="tight"),
            cell(verdicts.floors(row) or "none"),
            cell(words, tone=verdicts.tone(words)),
            cell(f"{row['n']:,} {row['split']}", tone="tight"),
            cell(row["protocol"], tone="tight"),
        ])  # fmt: skip
    return table(("result", "value", "floor", "verdict", "images", "protocol"), rows)


def _details(row: dict) -> list[str]:
    """The settings of a result and remarks on it."""
    metric = metric_of(row)
    known = {
        "layer": "{layer}",
        "C": "C = {C:g}",
        "k": "k = {k}",
        "temperature": "temperature {temperature:.3g}",
        "learning_rate": "learning rate {learning_rate:g}",
        "epochs": "{epochs} epochs",
        "n_train": "{n_train:,} labels",
        "clean_value": "{clean_value:.1%} on the same images unchanged",
    }
    details = ["lower is better"] if metric.lower else []
    details += [template.format(**row) for key, template in known.items() if row.get(key) is not None]
    if row.get("train_value") is not None:
        details.append(f"{metric.text(row['train_value'])} on {row['train_n']:,} training images")
    for grid, key, name in (("c_values", "C", "C"), ("learning_rates", "learning_rate", "learning rate")):
        if len(row.get(grid, ())) > 1 and row[key] == max(row[grid]):
            details.append(f"the largest {name} of the grid: a wider grid may give more")
    if row.get("converged") is False:
        details.append("the solver stopped at its iteration limit")
    return details + ([row["note"]] if row.get("note") else [])


def _samples(results: list[dict]) -> str:
    """All measures of the samples, each beside those of the baselines."""
    baselines = [SHOWN] if any(SHOWN in row["floor"] for row in results) else []
    rows, first = [], results[0]
    for row in results:
        metric, words = metric_of(row), verdicts.verdict(row)
        floor = [row["floor"].get(name) for name in (verdicts.real_images(row), *baselines, HISTOGRAMS)]
        rows.append([
            cell(verdicts.title(row), "; ".join([metric.meaning, *_sample_details(row)])),
            cell(verdicts.value(row), tone="tight"),
            *("" if found is None else cell(metric.text(found), tone="tight") for found in floor),
            cell(words, tone=verdicts.tone(words)),
        ])  # fmt: skip
    caption = (
        f"{first['n']:,} samples at temperature {first['temperature']:g}, compared with as many training images in the "
        f"features of the frozen encoder {first['encoder']} (protocol {first['protocol']}). Two baselines were "
        "measured in the same way: real images, to which a model should come close, and histogram samples (every token "
        "drawn independently from the values at its position), which it should leave far behind. ± is one standard "
        "error over images. All values depend on the encoder and on the number of samples: compare runs only where "
        "both and the data are equal, and never with a published FID."
    )
    heads = ("measure", "samples", "real images", *baselines, HISTOGRAMS, "verdict")
    return table(heads, rows) + paragraph(caption, "note")


def _sample_details(row: dict) -> list[str]:
    details = []
    if row.get("median_distance") is not None:
        medians = f"{row['median_distance']:.3g} (test images: {row['test_median_distance']:.3g})"
        details.append(f"median distance to the nearest training image {medians}")
    if row.get("labeller_accuracy") is not None:
        details.append(f"the labelling classifier has {row['labeller_accuracy']:.1%} test accuracy")
    return details
