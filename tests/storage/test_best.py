"""Which checkpoint is the best: by what, and where that can be known."""

from types import SimpleNamespace

import numpy as np
import pytest
from fakes import evaluated, split

from hybrid_jax.errors import UserError
from hybrid_jax.metrics import results_path
from hybrid_jax.storage import best as best_checkpoint


def test_the_best_is_by_validation_in_the_metrics_direction_and_of_equals_the_earlier(tmp_path):
    for step, value in ((5, 0.5), (10, 0.7), (15, 0.7), (20, 0.6)):
        evaluated(tmp_path, step, value, test=step)
    assert best_checkpoint.best_step(tmp_path, "knn_accuracy", [20, 15, 10, 5]) == 10
    assert best_checkpoint.best_step(tmp_path, "knn_accuracy", [20, 5, 25]) == 20
    assert best_checkpoint.best_step(tmp_path, "linear_probe_accuracy", [5, 10]) is None
    for step, value in ((5, 3.5), (10, 3.25), (15, 3.25)):
        evaluated(tmp_path, step, value, "bits_per_dim", test=-step)
    assert best_checkpoint.best_step(tmp_path, "bits_per_dim", [5, 10, 15]) == 10


@pytest.mark.parametrize("text", ["", "[", "{}", "[3]", "null", '[{"metric": "knn_accuracy", "split": "validation"}]',
                                  '[{"metric": "knn_accuracy", "split": "validation", "value": NaN}]',
                                  '[{"metric": "knn_accuracy", "split": "validation", "value": "x"}]'])  # fmt: skip
def test_results_that_cannot_be_read_choose_nothing(tmp_path, text):
    evaluated(tmp_path, 1, 0.5)
    results_path(tmp_path, 2).write_text(text)
    assert best_checkpoint.best_step(tmp_path, "knn_accuracy", [1, 2]) == 1


@pytest.mark.parametrize(("settings", "words"), [
    ({"eval__every_steps": 0}, r"best_metric='knn_accuracy': .*eval.every_steps \(now 0\) above 0"),
    ({"eval__evaluators": ("likelihood",)}, "needs 'knn' among eval.evaluators"),
    ({"checkpoint__best_metric": "nats_per_token"}, "must be bits_per_dim if model.token_kind='intensity'"),
    ({"checkpoint__best_metric": "bits_per_dim", "objective__generative_weight": 0.0}, "needs objective.generative"),
    ({"checkpoint__best_metric": "few_label_accuracy", "eval__few_label__shares": (),
      "eval__few_label__per_class": ()}, "needs eval.few_label.shares or"),
])  # fmt: skip
def test_a_metric_that_this_run_cannot_have_is_refused(tiny_config, settings, words):
    config = tiny_config(**({"checkpoint__best_metric": "knn_accuracy", "eval__every_steps": 5} | settings))
    with pytest.raises(UserError, match=words):
        best_checkpoint.check(config)


def test_a_metric_that_these_data_cannot_give_is_refused(tiny_config):
    config = tiny_config(checkpoint__best_metric="knn_accuracy", eval__every_steps=5)
    best_checkpoint.check(config)
    whole, bare = split(np.zeros((2, 8, 8, 1)), np.zeros(2)), split(np.zeros((2, 8, 8, 1)))
    best_checkpoint.check_data(config, SimpleNamespace(train=whole, validation=whole, test=whole))
    with pytest.raises(UserError, match="best_metric='knn_accuracy': needs a validation split"):
        best_checkpoint.check_data(config, SimpleNamespace(train=whole, validation=None, test=whole))
    with pytest.raises(UserError, match="needs labels"):
        best_checkpoint.check_data(config, SimpleNamespace(train=whole, validation=bare, test=whole))
