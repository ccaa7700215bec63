"""The report of a comparison: one page for a reader who knows neither the method nor this package."""

import html

from hybrid_jax.comparison import figures, statistics, table
from hybrid_jax.comparison.claims import ALL, EQUAL_FLOPS, EQUAL_STEPS, HOLDS, WHOLE
from hybrid_jax.report import page as report_page

_CLASSES = {statistics.SUPPORTED: "good", HOLDS: "good", statistics.NOT_SUPPORTED: "bad"}
_ANSWERS = {
    HOLDS: "Here it is: all three claims are supported.",
    statistics.NOT_SUPPORTED: "Here it is not: at least one of the claims is contradicted.",
    statistics.NOT_REPRODUCED: "Here this cannot be answered: a specialist does not have the lead that would be kept.",
    statistics.UNDECIDED: "These runs cannot decide: seeds and test images leave too much room.",
}
_ARMS = (
    "<p>A network can learn from images without labels in two ways. A <b>contrastive</b> one learns to recognise two "
    "altered copies of an image as the same; its features tell kinds of things apart well. A <b>generative</b> one "
    "learns to predict every pixel from those before; it knows how likely an image is, and its features are said to "
    "bear disturbance better. The <b>hybrid</b> is one network trained with both losses at once (Kim, Kim and Lee "
    "2021, arXiv 2106.06162). The claim is that nothing is lost: it is as discriminative as the first, as robust as "
    "the second, and its likelihood costs no more than 2 %.</p>"
    "<p>All three arms are the same network, trained here on the same images in the same order from the same initial "
    "values, seed by seed. Then their weights are frozen and the same test images are put to them.</p>"
)
_METRICS = (
    "<ul><li><b>linear probe</b>: share of test images that a linear classifier of the frozen features names rightly; "
    "layers and mask were chosen on validation images.</li>"
    "<li><b>corrupted</b>: the same for disturbed images (noise, blur, weather, compression); the classifier has seen "
    "clean ones only. <b>retained</b>: that accuracy over the accuracy on the same images clean.</li>"
    "<li><b>outliers</b>: chance that an image of another kind lies further from the training images' features than a "
    "test image does (AUROC, mean over kinds); 50 % is a coin's.</li>"
    "<li><b>bits/dim</b>: what it would take to store a pixel value with the model; lower is better.</li></ul>"
)


def page(result: dict, data) -> str:
    """Returns the HTML of what `compare.json` holds; `data` says how many images there were."""
    where = {"embedded": "the embedded Fashion-MNIST subset"}.get(data.name, data.name)
    title = f"Can one network do both? Hybrid pre-training on {where}"
    counts = f"{len(data.train.images):,} training, {len(data.test.images):,} test images"
    seeds = f"{len(result['seeds'])} seed" + "s" * (len(result["seeds"]) > 1)
    facts = f"{counts}; {len(result['arms'])} arms, {seeds}."
    body = [
        f"<h1>{html.escape(title)}</h1>",
        f'<p class="lead">{html.escape(lead(result))}</p>',
        f'<p class="facts">{html.escape(facts)}</p>',
        report_page.section("The question", _ARMS),
    ]
    judged = list(dict.fromkeys(row["arm"] for row in result["claims"]))
    for kind in (EQUAL_STEPS, EQUAL_FLOPS):
        rows = [row for row in result["claims"] if (row["arm"], row["table"]) == (judged[0], kind)]
        if rows:
            shown = _verdicts(rows) + report_page.captioned(*figures.claims(rows))
            body.append(report_page.section(f"Verdicts on {judged[0]}: {kind}", _about(kind) + shown))
    if len(judged) > 1:
        body.append(report_page.section("Other hybrids", _others(result["claims"], judged[1:])))
    measured = _METRICS + _measured(result) + report_page.captioned(*figures.runs(result))
    body.append(report_page.section("What was measured", measured))
    body.append(report_page.section("Outliers by kind", report_page.captioned(*figures.pairs(result))))
    curve = figures.trade_off(result)
    if curve:
        body.append(report_page.section("Discrimination against likelihood", report_page.captioned(*curve)))
    body.append(report_page.section("How it was judged", _judged(result)))
    return report_page.page(title, body)


def lead(result: dict) -> str:
    """Returns the answer in two sentences."""
    whole = [row for row in result["claims"] if (row["claim"], row["table"]) == (ALL, EQUAL_STEPS)]
    if not whole:
        return "No claim is judged: that takes the arms generative, contrastive and a hybrid."
    question = "Is one network trained with both losses as discriminative as contrastive learning, as robust as "
    question += "generative pre-training, and as good a model of the images? "
    note = " At equal computation the verdict is another; see below." if whole[0].get("note") else ""
    return question + _ANSWERS[whole[0]["verdict"]] + note


def _about(kind: str) -> str:
    if kind == EQUAL_STEPS:
        return "<p>Every arm trained for the same number of steps on the same images: the primary comparison.</p>"
    return (
        "<p>Here the specialists trained longer, until they had used the computation that the hybrid needs for two "
        "losses: what a user with one budget would choose between.</p>"
    )


def _verdicts(rows: list[dict]) -> str:
    heads = ("claim", "hybrid less reference", "95 % bounds", "margin", "premise", "verdict")
    lines = "".join(_verdict(row) for row in rows)
    head = "".join(f"<th>{name}</th>" for name in heads)
    return f'<div class="wide"><table><tr>{head}</tr>{lines}</table></div>'


def _others(claims: list[dict], arms: list[str]) -> str:
    """The verdicts on further hybrids, one line each and table."""
    names = ("C1", WHOLE, "C3", ALL)
    found = {(row["arm"], row["table"], row["claim"]): row["verdict"] for row in claims}
    lines = []
    for arm, kind in dict.fromkeys((row["arm"], row["table"]) for row in claims if row["arm"] in arms):
        cells = "".join(f'<td class="{_CLASSES.get(v, "")}">{v}</td>' for v in (found[arm, kind, n] for n in names))
        lines.append(f"<tr><td>{html.escape(arm)}</td><td>{kind}</td>{cells}</tr>")
    head = "".join(f"<th>{word}</th>" for word in ("arm", "table", "C1", WHOLE, "C3", "all three"))
    return f'<div class="wide"><table><tr>{head}</tr>{"".join(lines)}</table></div>'


def _verdict(row: dict) -> str:
    name = html.escape(row["claim"] if row["claim"] != ALL else "All three")
    claim = f"<b>{name}</b><small>{html.escape(table.SENTENCES[row['claim']])}</small>"
    note = f"<small>{html.escape(row['note'])}</small>" if row.get("note") else ""
    verdict = f'<td class="{_CLASSES.get(row["verdict"], "")}">{html.escape(row["verdict"])}{note}</td>'
    if row["estimate"] is None:
        return f'<tr><td>{claim}</td><td colspan="4"></td>{verdict}</tr>'
    numbers = (*table.difference(row), table.margin(row))
    cells = "".join(f"<td>{html.escape(number)}</td>" for number in numbers)
    return f"<tr><td>{claim}</td>{cells}<td><small>{html.escape(table.premise(row))}</small></td>{verdict}</tr>"


def _measured(result: dict) -> str:
    found = table.values(result["runs"])
    floors = {row["metric"]: row["value"] for row in result["floors"]}
    metrics = [name for name in table.COLUMNS if name in floors]
    head = "".join(f"<th>{html.escape(word)}</th>" for word in ("arm", *(table.COLUMNS[m] for m in metrics)))
    lines = []
    for arm in dict.fromkeys(row["arm"] for row in result["runs"]):
        cells = [table.cell(m, found[arm, m]) if (arm, m) in found else "none" for m in metrics]
        lines.append([arm, *cells])
    lines.append(["raw pixels, histogram", *(table.cell(m, [floors[m]]) for m in metrics)])
    body = "".join(f"<tr>{''.join(f'<td>{html.escape(word)}</td>' for word in line)}</tr>" for line in lines)
    note = "Mean ± deviation over seeds; accuracies and AUROC in per cent, on test images."
    return f'<div class="wide"><table><tr>{head}</tr>{body}</table></div><p class="caption">{note}</p>'


def _judged(result: dict) -> str:
    tuned = {base: table.settings(chosen) for base, chosen in result["tuned"].items()}
    told = "; ".join(f"{base}: {chosen or 'the config as it is'}" for base, chosen in tuned.items())
    tries, share = result["config"]["compare"]["trials"], result["config"]["compare"]["trial_share"]
    parts = [
        "A difference is taken seed by seed on the same test images. Its bounds are mean -/+ t(.95, S - 1) "
        "sqrt(var / S + v): var is the variance over the S seeds, v what the choice of test images adds (for a mean "
        "its variance over images, else a bootstrap). A claim is supported where the lower bound lies above minus the "
        "margin, not supported where the upper bound lies below it, else undecided.",
        f"A claim rests on a premise: {WHOLE} asks that the generative arm be more robust than the contrastive one, "
        "C1 that the contrastive arm be more discriminative; otherwise there is nothing to keep, and the verdict says "
        "so.",
        f"Before, each arm was tuned with {tries} tries of {share:.0%} of the steps, on validation images and a seed "
        "that is not judged: the pure arms over learning rate and weight decay, the hybrid, which takes these from the "
        f"generative arm, over the weight of its contrastive loss. Chosen: {told}."
        if tries > 1
        else "No arm was tuned: all have the learning rate and weights of the config.",
        "Other data, sizes or budgets may give other verdicts.",
    ]
    return "".join(f"<p>{html.escape(part)}</p>" for part in parts)
