"""Every config loads, locks, validates and traces; the schema's own rules."""

import importlib.util
import json
import pathlib

import jax
import jax.numpy as jnp
import ml_collections
import pytest

from hybrid_jax import config as config_lib
from hybrid_jax import train_state, train_step
from hybrid_jax.errors import UserError

CONFIGS = sorted((pathlib.Path(__file__).parent.parent / "configs").glob("*.py"))


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_every_config_traces_init_and_step(path, mesh_of):
    module = load(path)
    assert f"--config=configs/{path.name}" in module.__doc__
    assert "Result" in module.__doc__
    config = module.get_config().lock()
    with pytest.raises((AttributeError, KeyError)):
        config.model.no_such_field = 1
    config_lib.validate(config)
    mesh = mesh_of(8, min(8, config.mesh.fsdp))
    state = train_state.abstract_state(config, mesh)
    images = jax.ShapeDtypeStruct((config.train.batch_size, *config.data.image_size, config.data.channels), jnp.uint8)
    new_state, metrics = jax.eval_shape(train_step.make_train_step(config, mesh), state, images)
    shapes = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
    assert shapes(new_state) == shapes(state)
    assert metrics["loss"].shape == () and metrics["loss"].dtype == jnp.float32


def test_defaults_are_allowed():
    config = config_lib.default_config()
    config_lib.validate(config)
    assert config.is_locked


def test_a_config_survives_json():
    config = config_lib.default_config()
    config.augment.blur = 0.25
    again = config_lib.from_dict(json.loads(config_lib.to_json(config)))
    assert config_lib.flatten(again) == config_lib.flatten(config)


@pytest.mark.parametrize(
    ("nested", "words"),
    [({"model": {"widht": 3}}, "config.model.widht: no such field, did you mean model.width"),
     ({"model": {"width": "wide"}}, "config.model.width='wide': must be of type int")],
)  # fmt: skip
def test_a_hostile_or_mistyped_config_json_is_refused(nested, words):
    with pytest.raises(UserError, match=words):
        config_lib.from_dict(nested)


# What decides where a run goes; a resumed one would silently become another.
FIXED = {
    "seed": 1, "data.validation_split": "20%", "data.exclude_classes": (3,), "model.width": 48,
    "model.dtype": "bfloat16", "objective.temperature": 0.1, "augment.flip": 0.1, "train.batch_size": 8,
    "train.ema_decay": 0.9, "optimizer.learning_rate": 0.1,
}  # fmt: skip
FREE = {
    "train.total_steps": 7, "model.attention": "plain", "data.path": "/elsewhere", "data.memory_gib": 0.0,
    "mesh.fsdp": 2, "log.every_steps": 1, "eval.knn.k": 3, "checkpoint.keep_every": 5, "compare.trials": 1,
}  # fmt: skip


def test_a_started_run_may_change_how_it_is_run_but_not_what_it_computes():
    old, new = config_lib.default_config(), config_lib.default_config()
    new.update_from_flattened_dict(FREE)
    assert config_lib.contradictions(old, new) == []
    for name, value in FIXED.items():
        new = config_lib.default_config()
        new.update_from_flattened_dict({name: value})
        was = config_lib.FIELDS[name].default
        assert config_lib.contradictions(old, new) == [f"config.{name}={value!r}: the workdir was trained with {was!r}"]


# {fields: words of the line}: the field, its value, what is allowed.
REFUSED = {
    ("data.image_size", (8, 8, 8)): ["data.image_size", "(8, 8, 8)", "2 whole numbers"],
    ("model.patch_size", 3): ["model.patch_size=3", "1, 2, 4, 8"],
    ("model.num_heads", 3): ["model.num_heads=3", "model.width=16"],
    ("model.token_kind", "colour"): ["model.token_kind='colour'", "intensity, palette"],
    ("model.view_attention", "causal"): ["augment.view_keep=0.5", "must be 1"],
    ("model.encoder_layers", 0): ["model.encoder_layers=0", "at least 1"],
    ("train.batch_size", 0): ["train.batch_size=0", "at least 1"],
    ("train.microbatches", 3): ["train.microbatches=3", "train.batch_size=16"],
    ("optimizer.learning_rate", -1.0): ["learning_rate=-1", "at least 0"],
    ("objective.temperature", float("nan")): ["objective.temperature=nan", "above 0"],
}


@pytest.mark.parametrize(("field", "words"), REFUSED.items(), ids=lambda x: x[0])
def test_a_value_that_cannot_be_is_refused_in_one_line(tiny_config, field, words):
    config = tiny_config()
    config.update_from_flattened_dict(dict([field]))
    with pytest.raises(UserError) as refused:
        config_lib.validate(config)
    assert "\n" not in str(refused.value) and all(word in str(refused.value) for word in words)


def test_one_of_the_two_losses_must_weigh_something(tiny_config):
    config = tiny_config(objective__generative_weight=0.0, objective__contrastive_weight=0.0)
    with pytest.raises(UserError, match=r"generative_weight=0: .* above 0"):
        config_lib.validate(config)


def test_validate_wants_every_field():
    with pytest.raises(UserError, match="missing"):
        config_lib.validate(ml_collections.ConfigDict({"seed": 0}))


def test_the_names_a_field_allows_are_those_that_exist():
    from hybrid_jax import evaluators, losses, optim
    from hybrid_jax.data import augment
    from hybrid_jax.models import transformer

    for name, known in {
        "augment.recipe": augment.RECIPES,
        "objective.contrastive": losses.CONTRASTIVE,
        "optimizer.name": optim.OPTIMIZERS,
        "model.activation": transformer.ACTIVATIONS,
    }.items():
        assert config_lib.FIELDS[name].allowed == f"must be one of {', '.join(known)}"
    # The anomaly score has a switch of its own, `eval.anomaly.num_images`.
    assert tuple(evaluators.EVALUATORS) == ("anomaly", *config_lib.EVALUATORS)
