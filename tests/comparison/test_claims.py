"""Verdicts on made-up runs whose truth is known."""

import numpy as np
import pytest

from hybrid_jax.comparison import claims, statistics
from hybrid_jax.comparison.measures import Measured

N, OUTLIERS = 1_500, 200


def run(accuracy: float, corrupted: float, shift: float, bits: float | None, seed: int = 0) -> Measured:
    """A run without noise: shares of images that are right, and scores whose outliers lie `shift` ranks higher."""
    hits = (np.arange(N) < round(accuracy * N)).astype(np.uint8)
    share = hits * np.float32(corrupted / accuracy)
    inliers = np.arange(OUTLIERS, dtype=np.uint32) * 2
    outliers = (inliers + 1 + round(shift * OUTLIERS)).astype(np.uint32)
    rows = [
        {"metric": "linear_probe_accuracy", "value": float(hits.mean())},
        {"metric": "corruption_accuracy", "value": float(share.mean())},
        {"metric": "corruption_share_retained", "value": float(share.mean() / hits.mean())},
        {"metric": "ood_auroc", "value": float(statistics.wins(inliers, outliers).mean())},
    ]
    per_image = {
        "linear_probe_accuracy": hits,
        "corruption_accuracy": share,
        "corruption_clean": hits,
        "ood/test images": inliers,
        "ood/shuffled": outliers,
    }
    if bits is not None:
        rows.append({"metric": "bits_per_dim", "value": bits})
        per_image["bits_per_dim"] = np.full(N, bits, np.float32)
    return Measured(rows, per_image)


GENERATIVE, CONTRASTIVE = (0.80, 0.72, 0.8, 3.0), (0.90, 0.66, 0.2, None)


def verdicts(hybrid, generative=GENERATIVE, contrastive=CONTRASTIVE, seeds: int = 3) -> dict[str, str]:
    arms = {"generative": generative, "contrastive": contrastive, "hybrid": hybrid}
    runs = {name: [run(*values) for _ in range(seeds)] for name, values in arms.items()}
    return {row["claim"]: row["verdict"] for row in claims.judge(runs, ["hybrid"])}


def test_a_hybrid_that_keeps_everything_is_supported():
    found = verdicts((0.90, 0.81, 0.8, 3.03))
    assert found["all"] == claims.HOLDS
    assert {v for name, v in found.items() if name != "all"} == {statistics.SUPPORTED}


@pytest.mark.parametrize(
    ("hybrid", "claim"),
    [
        ((0.85, 0.79, 0.8, 3.0), "C1"),
        ((0.90, 0.66, 0.8, 3.0), "C2 corrupted images"),
        ((0.90, 0.75, 0.8, 3.0), "C2 share retained"),
        ((0.90, 0.81, 0.5, 3.0), "C2 outliers"),
        ((0.90, 0.81, 0.8, 3.1), "C3"),
    ],
)
def test_one_loss_is_enough_to_contradict_the_whole(hybrid, claim):
    found = verdicts(hybrid)
    assert found[claim] == found["all"] == statistics.NOT_SUPPORTED
    assert found["C2"] == (statistics.NOT_SUPPORTED if claim.startswith("C2") else statistics.SUPPORTED)


def test_where_the_reference_has_no_lead_the_premise_is_missing():
    found = verdicts((0.90, 0.81, 0.8, 3.0), contrastive=(0.78, 0.66, 0.2, None))
    assert found["C1"] == found["all"] == statistics.NOT_REPRODUCED
    assert found["C2"] == statistics.SUPPORTED


def test_one_seed_is_undecided_or_without_premise():
    assert verdicts((0.90, 0.81, 0.8, 3.0), seeds=1)["C3"] == statistics.UNDECIDED


def test_what_holds_under_equal_steps_alone_is_said_to():
    arms = {"generative": GENERATIVE, "contrastive": CONTRASTIVE, "hybrid": (0.90, 0.81, 0.8, 3.0)}
    arms |= {"generative@flops": (0.80, 0.72, 0.8, 2.9), "contrastive@flops": CONTRASTIVE}
    rows = claims.judge({name: [run(*values)] * 3 for name, values in arms.items()}, ["hybrid"])
    noted = {row["claim"] for row in rows if row.get("note") == "under equal steps only"}
    assert noted == {"C3", "all"}
    assert {row["table"] for row in rows} == {claims.EQUAL_STEPS, claims.EQUAL_FLOPS}


def test_without_both_references_nothing_is_judged():
    assert claims.judge({"hybrid": [run(*GENERATIVE)], "generative": [run(*GENERATIVE)]}, ["hybrid"]) == []


def test_rows_have_the_keys_that_scripts_read():
    runs = {name: [run(0.9, 0.8, 0.5, 3.0)] * 2 for name in ("generative", "contrastive", "hybrid")}
    for row in claims.judge(runs, ["hybrid"]):
        assert {"claim", "estimate", "lower", "upper", "margin", "verdict", "premise"} <= set(row)
