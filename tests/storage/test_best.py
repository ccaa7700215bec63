"""Which checkpoints stay, which one is the best, and what --step means."""

import contextlib
import functools
import json
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from hybrid_jax.errors import UserError
from hybrid_jax.metrics import results_path
from hybrid_jax.storage import best as best_checkpoint
from hybrid_jax.storage import checkpoint


def evaluated(workdir, step, value, metric="knn_accuracy", test=0.0):
    rows = [{"metric": metric, "split": split, "value": v} for split, v in (("test", test), ("validation", value))]
    path = results_path(workdir, step)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows))


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


def test_last_n_every_mth_and_the_best_are_kept_and_a_resumed_run_keeps_them_too(tiny_config, tmp_path):
    config = tiny_config(checkpoint__keep_every=5, checkpoint__best_metric="knn_accuracy")
    scores = {2: 0.1, 3: 0.9, 6: 0.9, 8: 0.2, 9: 0.95}
    kept = {}
    for first in (1, 5, 8):
        chosen = functools.partial(best_checkpoint.best_step, tmp_path, "knn_accuracy")
        opened = checkpoint.Checkpoints(tmp_path, config, best_step=chosen)
        with contextlib.closing(opened) as checkpoints:
            for step in range(first, {1: 5, 5: 8, 8: 12}[first]):
                state = SimpleNamespace(step=np.int32(step), saved=lambda: {"params": {"w": jnp.zeros(3)}})
                checkpoints.save(state, config, "data")
                checkpoints.wait()
                kept[step] = checkpoints.steps()
                # As in training: what was saved is evaluated afterwards.
                if step in scores:
                    evaluated(tmp_path, step, scores[step], test=1 - step)
    assert kept[4] == [3, 4] and kept[7] == [3, 5, 6, 7], "3 is the best, 6 no better"
    assert kept[9] == [3, 5, 8, 9] and kept[11] == [5, 9, 10, 11]
    checkpoints = checkpoint.Checkpoints(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"checkpoint": {"best_metric": "knn_accuracy"}}))
    for asked, meant in {"best": [9], "latest": [11, 10, 9, 5], None: [11, 10, 9, 5], "5": [5], 10: [10]}.items():
        assert best_checkpoint.choose_steps(tmp_path, asked, checkpoints) == meant
    # Where the config is lost, the newest checkpoint knows.
    (tmp_path / "config.json").unlink()
    assert best_checkpoint.choose_steps(tmp_path, "best", checkpoints) == [9]


def test_a_step_that_is_not_there_gets_a_line_that_says_what_to_do(tmp_path):
    for asked, metric, words in (
        ("best", "", r"--step=best: .*train with --config.checkpoint.best_metric.*or take one of 5, 10"),
        ("best", "knn_accuracy", r"--step=best: no checkpoint has a validation knn_accuracy yet; .*5, 10"),
        ("7", "", r"--step=7: must be latest, best or one of 5, 10"),
        ("9" * 5000, "", "must be latest, best or one of"),
        ("../5", "", "must be latest, best or one of"),
    ):
        with pytest.raises(UserError, match=words):
            best_checkpoint.choose(tmp_path, asked, [5, 10], metric, f"--step={asked}")


@pytest.mark.parametrize(("settings", "words"), [
    ({"eval__every_steps": 0}, r"best_metric='knn_accuracy': .*eval.every_steps \(now 0\) above 0"),
    ({"eval__evaluators": ("likelihood",)}, "needs 'knn' among eval.evaluators"),
    ({"checkpoint__best_metric": "nats_per_token"}, "must be bits_per_dim where model.token_kind='intensity'"),
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
    split = SimpleNamespace(images=np.zeros((2, 8, 8, 1)), labels=np.zeros(2))
    bare = SimpleNamespace(images=split.images, labels=None)
    best_checkpoint.check_data(config, SimpleNamespace(train=split, validation=split, test=split))
    with pytest.raises(UserError, match="best_metric='knn_accuracy': needs a validation split"):
        best_checkpoint.check_data(config, SimpleNamespace(train=split, validation=None, test=split))
    with pytest.raises(UserError, match="needs labels"):
        best_checkpoint.check_data(config, SimpleNamespace(train=split, validation=bare, test=split))
