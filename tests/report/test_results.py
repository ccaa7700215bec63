"""Results in words: verdicts, the row of each subject, what was not measured."""

import pytest

from hybrid_jax.report import results, verdicts
from tests.report.fakes import HOSTILE, make_data, make_model, make_outliers, make_results, row, samples_row


def page_of(rows, data=None, **model):
    [(_, body)] = results.sections(make_model(**model), data or make_data(), rows)
    return body


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (row("knn_accuracy", 0.81), "within two standard errors of the floor (1.0 points better)"),
        (row("knn_accuracy", 0.70), "worse than the floor by 10.0 points"),
        (row("knn_accuracy", 0.95, {"a": 0.9, "b": 0.1}), "better than the floor by 5.0 points"),
        (row("knn_accuracy", 0.95, None), "no floor applies"),
        (row("bits_per_dim", 0.9), "worse than the floor by 0.100 bits/dim"),
        (row("bits_per_dim", 0.7), "better than the floor by 0.100 bits/dim"),
        (row("bits_per_dim", 0.7, {"a": 0.9, "b": 0.6}), "worse than the floor by 0.100 bits/dim"),
        (row("some_new_score", 1.0), "better than the floor by 0.200"),
        (row("knn_accuracy", 0.8, standard_error=None), "within two standard errors of the floor (0.0 points worse)"),
        (samples_row("precision", 0.6, 0.8, 0.0), "75% of the way from histogram samples to real images"),
        (samples_row("density", 1.3, 1.1, 0.0), "100% of the way from histogram samples to real images"),
        (samples_row("coverage", 0.0, 0.9, 0.0), "no better than histogram samples"),
        (samples_row("recall", 0.8, 0.8, 0.9), "not informative: histogram samples do as well as real images"),
        (samples_row(), "1.8 times that of real images (histogram samples: 20 times)"),
        (samples_row(value=11.0), "no better than histogram samples"),
        (samples_row("near_copy_share", 0.0, 0.01, 0.0, exact_copies=0, variant="in pixels"),
         "no more than among real images (no exact copy)"),
        (samples_row("near_copy_share", 0.3, 0.01, 0.0, exact_copies=7, standard_error=0.01),
         "more than among real images: check for copies (exact copies: 7)"),
    ],
)  # fmt: skip
def test_verdicts(found, expected):
    assert verdicts.verdict(found) == expected
    tones = {"worse": "bad", "no better": "bad", "more": "bad", "better": "good"}
    tone = next((tone for start, tone in tones.items() if expected.startswith(start)), "")
    text = page_of([found])
    assert expected in text and (f'class="{tone}"' in text or not tone) and "<e>" not in text
    assert ('class="bad"' in text, 'class="good"' in text) == (tone == "bad", tone == "good")


def test_a_lossy_model_has_a_column_for_what_its_tokens_can_show():
    found = samples_row()
    found["floor"]["test images in the model's tokens"] = 0.7123
    text = page_of([found, samples_row("precision", 0.6, 0.8, 0.0)]).split("<details>")[1]
    assert "0.712" in text and text.count("<th>") == 6 and "&lt;e&gt;" in text


def test_the_first_sentence_groups_the_subjects_by_verdict():
    rows = make_results()
    rows[2]["value"] = 0.81
    assert results.lead(make_model(), make_data(), [*rows, samples_row()]).endswith(
        "better than the floor in linear classification and likelihood; within two standard errors of the floor in "
        "retrieval (k-NN)."
    )


def test_each_subject_has_one_row_chosen_by_validation_accuracy_among_equal_settings():
    first, last_four, knn, likelihood = make_results()
    found = results.summary([row("new_accuracy", 1.0), likelihood, first, last_four, knn])
    assert list(found) == ["Linear classification", "Retrieval (k-NN)", "Likelihood", "new accuracy"]
    assert found["Linear classification"] is first
    chosen = last_four | {"validation_accuracy": 0.8}
    assert results.summary([first, chosen, knn | {"validation_accuracy": 0.9}])["Linear classification"] == chosen
    assert results.summary([first, chosen | {"setting": "10 %"}])["Linear classification"] == first


def test_subjects_that_were_not_measured_come_with_the_reason():
    text = page_of(make_results()[3:], make_data(labels=False))
    assert "Not measured: linear classification, few labels, retrieval (k-NN)" in text and "(no labels)" in text
    assert "sample quality and out-of-distribution detection (skipped, see the log)" in text
    assert "transfer (eval.transfer.name is empty); fine-tuning (not in eval.evaluators)." in text
    assert "(no test split)" in page_of([], make_data(test=False))
    assert "likelihood and sample quality (no generative branch)" in page_of([], generative=False)


def test_details_warn_of_an_edge_and_of_an_unfinished_fit():
    text = page_of([{**make_results()[1], "converged": False, "note": HOSTILE}])
    assert "the largest C of the grid" in text and "iteration limit" in text and HOSTILE not in text


def test_the_joint_score_of_older_runs_goes_by_its_present_name():
    assert (
        verdicts.title(make_outliers("joint score J1")[0]) == "Outlier detection (AUROC), joint score, mean over pairs"
    )
