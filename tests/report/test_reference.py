"""Reference curves: what is recorded, which curves may be compared, and with what."""

import importlib.resources
import itertools
import json
import subprocess
import sys

import pytest
from tiny import get_config

from hybrid_jax import config as config_lib
from hybrid_jax.errors import UserError
from hybrid_jax.report import reference

BOTH = (*reference.GENERATIVE, *reference.CONTRASTIVE)
RESULTS = [
    {"metric": "knn_accuracy", "value": 0.5},
    {"metric": "bits_per_dim", "value": 3.5166768611565113},
    {"metric": "knn_accuracy", "value": 0.1},
]


def tiny(**changes):
    """The tiny config with fields changed; `__` for the dot."""
    config = get_config()
    for name, value in changes.items():
        section, leaf = name.split("__")
        config[section][leaf] = value
    return config


def write_run(workdir, config, steps=None, results=RESULTS):
    """Writes what a finished run leaves behind."""
    (workdir / "eval").mkdir(parents=True)
    (workdir / "config.json").write_text(config_lib.to_json(config))
    total = config.train.total_steps
    with open(workdir / "metrics.jsonl", "w") as file:
        for step in range(1, (total if steps is None else steps) + 1):
            row = {"step": step, "generative_loss": 5 - 4 * step / total, "contrastive_loss": None, "grad_norm": 1.0}
            file.write(json.dumps({**row, "contrastive_accuracy": 1 / 3}) + "\n")
    if results is not None:
        (workdir / "eval" / f"{total}.json").write_text(json.dumps(results))
    return workdir


def recorded(name, **changes):
    return reference.Reference(name, tiny(**changes), {"knn_accuracy": 0.5}, [dict.fromkeys(("step", *BOTH), 1)])


def test_a_run_is_recorded_thinned_and_without_its_path(tmp_path):
    config = tiny(train__total_steps=1000, data__path="/where/one/machine/keeps/it")
    directory = tmp_path / "made" / "references"
    path = reference.record(write_run(tmp_path / "run", config), "tiny", directory)
    assert path == directory / "tiny.json" and "/where" not in path.read_text()
    (found,) = reference.load(directory)
    assert found.name == "tiny" and found.result == {"bits_per_dim": 3.5167, "knn_accuracy": 0.5}
    config.data.path = ""
    assert config_lib.flatten(found.config) == config_lib.flatten(config)
    steps = [row["step"] for row in found.curve]
    assert len(steps) == 60 and steps[0] == 1 and steps[-1] == 1000 and steps == sorted(set(steps))
    assert max(b - a for a, b in itertools.pairwise(steps)) < 20
    keys = {"step", "generative_loss", "contrastive_loss", "contrastive_accuracy"}
    assert all(set(row) == keys and row["contrastive_loss"] is None for row in found.curve)
    assert found.curve[-1]["generative_loss"] == 1 and found.curve[0]["contrastive_accuracy"] == 0.33333


def test_a_short_run_keeps_every_row(tmp_path):
    reference.record(write_run(tmp_path / "run", tiny()), "tiny", tmp_path)
    assert [row["step"] for row in reference.load(tmp_path)[0].curve] == list(range(1, 11))


@pytest.mark.parametrize(
    ("prepare", "name", "says"),
    [
        (lambda w: None, "x", "must be the folder of a run"),
        (lambda w: write_run(w, tiny(), steps=7), "x", "its log ends at step 7 of 10"),
        (lambda w: write_run(w, tiny(), steps=0), "x", "its log ends at step 0 of 10"),
        (lambda w: write_run(w, tiny(), results=None), "x", "step 10 was not evaluated"),
        (lambda w: write_run(w, tiny(data__name="folder")), "x", "trained on a folder"),
        (lambda w: write_run(w, tiny()), "../x", "must be made of a-z"),
    ],
)
def test_what_cannot_be_recorded_is_said(tmp_path, prepare, name, says):
    prepare(tmp_path / "run")
    with pytest.raises(UserError, match=says):
        reference.record(tmp_path / "run", name, tmp_path / "references")
    assert not (tmp_path / "references").exists()


def test_the_command_answers_mistakes_in_one_line(tmp_path):
    command = [sys.executable, "-m", "hybrid_jax.report.reference"]
    for words, says in (([], "usage: "), ([str(tmp_path), "x"], f"WORKDIR={tmp_path}")):
        done = subprocess.run(command + words, capture_output=True, text=True)
        assert done.returncode == 2 and done.stdout == ""
        assert done.stderr.startswith(f"error: {says}") and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("changes", "curves"),
    [
        ({}, BOTH),
        ({"model__width": 32, "optimizer__learning_rate": 1.0, "data__path": "/mine"}, BOTH),
        # The recipe's own value, written out, is the same recipe; so is a palette's size without a palette.
        ({"augment__flip": 0.5, "model__palette_size": 16}, BOTH),
        ({"train__batch_size": 32}, reference.GENERATIVE),
        ({"objective__temperature": 0.5}, reference.GENERATIVE),
        ({"augment__blur": 1.0}, reference.GENERATIVE),
        ({"augment__view_keep": 1.0}, reference.GENERATIVE),
        ({"objective__contrastive_weight": 0.0}, reference.GENERATIVE),
        ({"objective__generative_weight": 0.0}, reference.CONTRASTIVE),
        ({"objective__generative_weight": 0.0, "train__batch_size": 32}, None),
        ({"model__levels": 16}, None),
        ({"model__token_kind": "palette"}, None),
        ({"data__name": "embedded"}, None),
        ({"data__image_size": (16, 16)}, None),
        ({"data__channels": 3}, None),
        ({"data__train_split": "extra"}, None),
    ],
)
def test_which_curves_may_be_compared(changes, curves):
    found = reference.comparable(tiny(**changes), [recorded("tiny")])
    assert (found and found.curves) == curves


def test_folders_are_never_the_same_data():
    assert reference.comparable(tiny(data__name="folder"), [recorded("mine", data__name="folder")]) is None


def test_most_curves_then_most_equal_fields_win():
    near, far = recorded("near", model__width=32), recorded("far", model__width=32, model__encoder_layers=3)
    other_views = recorded("other_views", augment__blur=1.0)
    found = reference.comparable(tiny(), [far, other_views, near])
    assert found.reference is near and found.differences == (("model.width", 16, 32),)
    assert reference.comparable(tiny(), []) is None


def test_fields_without_effect_on_the_loss_are_no_difference():
    changes = {"train__ema_decay": 0.5, "model__remat": True, "log__every_steps": 1, "model__palette_size": 9}
    assert reference.comparable(tiny(**changes), [recorded("tiny")]).differences == ()


def test_points_end_with_the_run_and_stop_at_what_may_not_be_compared():
    curve = [{"step": step, **dict.fromkeys(BOTH, step / 10)} for step in (1, 5, 9)]
    curve.insert(1, {"step": 3, **dict.fromkeys(BOTH)})
    of_generative = reference.Comparison(reference.Reference("r", tiny(), {}, curve), reference.GENERATIVE, ())
    assert of_generative.points("generative_loss", 6) == [(1, 0.1), (5, 0.5)]
    assert of_generative.points("contrastive_loss", 6) == []


def test_what_is_shipped_can_be_read_and_lies_in_the_package(tmp_path):
    assert reference.load(tmp_path / "missing") == []
    for found in reference.load():
        assert importlib.resources.files("hybrid_jax.report").joinpath(f"reference_curves/{found.name}.json").is_file()
        config_lib.validate(found.config)
        assert found.config.data.path == "" and found.result
        assert found.curve[0]["step"] == 1 and found.curve[-1]["step"] == found.config.train.total_steps
        assert set(reference.comparable(found.config, [found]).curves) <= set(BOTH)


def test_no_model_is_imported():
    code = "import sys, hybrid_jax.report.reference; assert not [m for m in sys.modules if '_jax.models' in m]"
    subprocess.run([sys.executable, "-c", code], check=True)
