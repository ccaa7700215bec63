"""The report of a comparison: one page that presumes no knowledge of the method or the package."""

from hybrid_jax.comparison import figures, statistics, table
from hybrid_jax.comparison.claims import ALL, EQUAL_FLOPS, EQUAL_STEPS, HOLDS, WHOLE
from hybrid_jax.report import page as html_page
from hybrid_jax.report.page import Section, cell, figure, grid, paragraph

_TONES = {statistics.SUPPORTED: "good", HOLDS: "good", statistics.NOT_SUPPORTED: "bad"}
_CLAIMS = (
    "The claims: one network trained with both losses is as discriminative as contrastive learning, as robust as "
    "generative pre-training, and as good a model of the images. "
)
_OUTCOMES = {
    HOLDS: "These runs support all three.",
    statistics.NOT_SUPPORTED: "These runs contradict at least one.",
    statistics.NOT_REPRODUCED: "These runs cannot decide: one of the pure arms lacks the advantage that the hybrid is "
    "supposed to keep.",
    statistics.UNDECIDED: "These runs are undecided: the differences are too small for this many seeds and test "
    "images.",
}
_ARMS = (
    "<p>A network can learn from images without labels in two ways. <b>Contrastive</b> learning trains it to recognise "
    "two altered copies of an image as the same; its features separate kinds of objects well. <b>Generative</b> "
    "pre-training trains it to predict every pixel from those before; it gives the likelihood of an image, and its "
    "features are said to be more robust. The <b>hybrid</b> is one network trained with both losses at once (Kim, Kim "
    "and Lee 2021, arXiv 2106.06162). The claim is that nothing is lost: it is as discriminative as the first, as "
    "robust as the second, and its likelihood is at most 2% worse.</p>"
    "<p>All arms have the same architecture. For each seed they are trained on the same images in the same order from "
    "the same initial values; then the weights are frozen and all arms are evaluated on the same test images.</p>"
)
_METRICS = (
    "<ul><li><b>linear probe</b>: accuracy of a linear classifier of the frozen features on test images; layers and "
    "attention mask were chosen on validation images.</li>"
    "<li><b>corrupted</b>: the same for corrupted images (noise, blur, weather, compression); the classifier is "
    "trained on clean images only. <b>retained</b>: that accuracy divided by the accuracy on the same images without "
    "corruption.</li>"
    "<li><b>outliers</b>: probability that an image of another kind lies further from the training images in feature "
    "space than a test image does (AUROC, mean over kinds); 50% is chance.</li>"
    "<li><b>bits/dim</b>: negative log-likelihood per pixel value, in bits; lower is better.</li></ul>"
)
_ABOUT = {
    EQUAL_STEPS: "Every arm is trained for the same number of steps on the same images: the primary comparison.",
    EQUAL_FLOPS: "Here the pure arms are trained longer, until they have used as much computation as the hybrid needs "
    "for its two losses: the choice of a user with a fixed budget.",
}


def page(result: dict, data) -> str:
    """Returns the HTML page of the content of `compare.json` and the data set compared on."""
    where = {"embedded": "the embedded Fashion-MNIST subset"}.get(data.name, data.name)
    counts = f"{len(data.train.images):,} training images, {len(data.test.images):,} test images"
    seeds = f"{len(result['seeds'])} seed" + "s" * (len(result["seeds"]) > 1)
    head = paragraph(lead(result), "lead")
    head += paragraph(f"{counts}; {len(result['arms'])} arms, {seeds}.", "facts")
    judged = list(dict.fromkeys(row["arm"] for row in result["claims"]))
    curve = figures.trade_off(result)
    sections: list[Section] = [
        ("Background", _ARMS),
        *_verdict_sections(result["claims"], judged[:1]),
        *([("Verdicts on other hybrids", _others(result["claims"], judged[1:]))] if judged[1:] else []),
        ("Measurements", _METRICS + _measured(result) + _runs(result)),
        ("Outliers by kind", figure(*figures.pairs(result), beside=True)),
        *([("Discrimination against likelihood", figure(*curve, beside=True))] if curve else []),
        ("Method", _method(result)),
    ]
    return html_page.page(f"Hybrid, generative and contrastive pre-training on {where}", head, sections)


def lead(result: dict) -> str:
    """Returns the claims and their outcome in two sentences."""
    whole = [row for row in result["claims"] if (row["claim"], row["table"]) == (ALL, EQUAL_STEPS)]
    if not whole:
        return "No claim is judged: that needs the arms generative, contrastive and a hybrid."
    note = " At equal computation the verdict differs, see below." if whole[0].get("note") else ""
    return _CLAIMS + _OUTCOMES[whole[0]["verdict"]] + note


def _verdict_sections(claims: list[dict], arms: list[str]) -> list[Section]:
    heads = ("claim", "hybrid minus reference", "95% bounds", "margin", "premise", "verdict")
    found = []
    for arm in arms:
        for kind, about in _ABOUT.items():
            rows = [row for row in claims if (row["arm"], row["table"]) == (arm, kind)]
            if rows:
                shown = html_page.table(heads, [_verdict_row(row) for row in rows])
                shown += figure(*figures.claims(rows), beside=True)
                found.append((f"Verdicts on {arm}: {kind}", paragraph(about) + shown))
    return found


def _verdict_row(row: dict) -> list[str]:
    claim = cell("All three" if row["claim"] == ALL else row["claim"], table.SENTENCES[row["claim"]])
    verdict = cell(row["verdict"], row.get("note", ""), _TONES.get(row["verdict"], ""))
    if row["estimate"] is None:
        return [claim, "", "", "", "", verdict]
    numbers = (*table.difference(row), table.margin(row))
    premise = table.premise(row)
    return [claim, *(cell(number, tone="tight") for number in numbers), cell(premise) if premise else "", verdict]


def _others(claims: list[dict], arms: list[str]) -> str:
    """The verdicts on further hybrids, one line per hybrid and comparison."""
    names = {"C1": "C1", WHOLE: WHOLE, "C3": "C3", ALL: "all three"}
    found = {(row["arm"], row["table"], row["claim"]): row["verdict"] for row in claims}
    lines = []
    for arm, kind in dict.fromkeys((row["arm"], row["table"]) for row in claims if row["arm"] in arms):
        verdicts = [found[arm, kind, name] for name in names]
        lines.append([cell(arm), cell(kind), *(cell(words, tone=_TONES.get(words, "")) for words in verdicts)])
    return html_page.table(("arm", "comparison", *names.values()), lines)


def _measured(result: dict) -> str:
    heads, *lines = table.measured(result)
    note = "Mean ± standard deviation over seeds; accuracies and AUROC in per cent, on test images."
    rows = [[cell(text, tone="tight") for text in line] for line in lines]
    return html_page.table(heads, rows, stacked=False) + paragraph(note, "note")


def _runs(result: dict) -> str:
    caption = (
        "Every run: a dot is one seed, a black bar the mean over seeds, a grey line the floor (raw pixels; for the "
        "likelihood a histogram of every position). Higher is better except for the likelihood."
    )
    return grid(figure(*drawn) for drawn in figures.runs(result)) + paragraph(caption, "caption")


def _method(result: dict) -> str:
    tuned = {base: table.settings(chosen) for base, chosen in result["tuned"].items()}
    settings = "; ".join(f"{base}: {chosen or 'the config unchanged'}" for base, chosen in tuned.items())
    tries, share = result["config"]["compare"]["trials"], result["config"]["compare"]["trial_share"]
    parts = [
        "Differences are taken per seed on the same test images. Their bounds are mean ∓ t(.95, S - 1) "
        "√(var / S + v), where var is the variance over the S seeds and v the variance due to the choice of test "
        "images (for a mean its variance over images, else a bootstrap). A claim is supported if the lower bound lies "
        "above minus the margin, not supported if the upper bound lies below it, and undecided otherwise.",
        f"A claim rests on a premise. {WHOLE} requires that the generative arm is more robust than the contrastive "
        "arm, C1 that the contrastive arm is more discriminative than the generative arm. Otherwise there is no "
        "advantage to keep, and the verdict is that the premise is not reproduced.",
        f"Each arm was tuned first, with {tries} tries of {share:.0%} of the steps, on validation images and with a "
        "seed that is not judged: the pure arms over learning rate and weight decay, the hybrid, which takes these "
        f"from the generative arm, over the weight of its contrastive loss. Chosen: {settings}."
        if tries > 1
        else "No arm was tuned: all have the learning rate and weights of the config.",
        "Other data, model sizes or budgets may lead to other verdicts.",
    ]
    return "".join(map(paragraph, parts))
