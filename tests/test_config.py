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


def test_every_field_is_documented_and_its_default_is_allowed():
    config = config_lib.default_config()
    config_lib.validate(config)
    assert config.is_locked
    assert set(config_lib.flatten(config)) == set(config_lib.FIELDS)
    for name, field in config_lib.FIELDS.items():
        assert field.meaning, name


def test_the_readme_lists_every_field_as_it_is():
    readme = (CONFIGS[0].parent.parent / "README.md").read_text()
    assert config_lib.describe() in readme


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


def test_contradictions_name_what_may_not_change():
    old, new = config_lib.default_config(), config_lib.default_config()
    new.train.total_steps, new.log.every_steps, new.mesh.fsdp, new.data.path = 7, 1, 2, "/elsewhere"
    assert config_lib.contradictions(old, new) == []
    new.model.width = 48
    assert config_lib.contradictions(old, new) == ["config.model.width=48: the workdir was trained with 96"]


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
    assert tuple(evaluators.EVALUATORS) == config_lib.EVALUATORS


def _another_value(field):
    """Some other value of the field's type; contradictions do not ask whether it is allowed."""
    default = field.default
    if default is None:
        return 0.5
    if isinstance(default, bool):
        return not default
    return default + "x" if isinstance(default, str) else (*default, 1) if isinstance(default, tuple) else default + 1


@pytest.mark.parametrize("name", config_lib.FIELDS)
def test_each_field_of_a_started_run_may_change_or_not_as_documented(name):
    old, new = config_lib.default_config(), config_lib.default_config()
    value = _another_value(config_lib.FIELDS[name])
    new.update_from_flattened_dict({name: value})
    sections = ("mesh", "log", "eval", "checkpoint", "compare")
    fields = ("train.total_steps", "model.attention", "data.path", "data.cache", "data.memory_gib", "data.device_gib")
    may = name.partition(".")[0] in sections or name in fields
    refused = (
        [] if may else [f"config.{name}={value!r}: the workdir was trained with {config_lib.FIELDS[name].default!r}"]
    )
    assert config_lib.contradictions(old, new) == refused


def test_the_readme_names_what_of_a_started_run_may_change():
    readme = (CONFIGS[0].parent.parent / "README.md").read_text()
    allowed = readme[readme.index("### What may change") : readme.index("### Which checkpoints are kept")]
    for name in config_lib.MAY_CHANGE:
        assert f"`{name.removesuffix('.')}`" in allowed, name
    for section in ("seed", "model", "objective", "augment", "optimizer"):
        assert f"`{section}`" in allowed
