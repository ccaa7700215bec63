"""Checkpoints of unknown origin: hostile configs and sizes are refused in one line, and nothing is allocated."""

import contextlib
import json

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from hybrid_jax import config as config_lib
from hybrid_jax import train_state
from hybrid_jax.errors import UserError
from hybrid_jax.inference import load as loading
from hybrid_jax.storage import checkpoint, integrity
from hybrid_jax.storage.integrity import sealed


@pytest.fixture
def run(tiny_config, mesh_of, tmp_path):
    """A workdir with one checkpoint, and write(change): its meta after change(meta)."""
    config = tiny_config()
    state = train_state.init_state(config, mesh_of(1), None)
    with contextlib.closing(checkpoint.Checkpoints(tmp_path, config)) as checkpoints:
        checkpoints.save(state.replace(step=np.int32(5)), config, "data")
    where = tmp_path / "checkpoints/5/meta"

    def write(change):
        meta = ocp.JsonCheckpointHandler().restore(where)
        changed = change(meta)
        # Whoever writes a hostile file can compute its checksum too.
        meta.pop("checksum")
        meta = sealed(meta)
        [file] = [path for path in where.iterdir() if path.is_file() and path.suffix != ".txt"]
        file.write_text(json.dumps(meta if changed is None else changed))

    return tmp_path, write


def of_config(**values):
    return lambda meta: (
        [meta["config"][name.partition("__")[0]].update({name.partition("__")[2]: v}) for name, v in values.items()]
        and None
    )


HOSTILE_META = {
    "width": of_config(model__width=3 * 10**9, model__num_heads=3),
    "width beyond any machine": of_config(model__width=10**400),
    "depth": of_config(model__encoder_layers=10**9),
    "image": of_config(data__image_size=[10**18 + 1, 10**18 + 1]),
    "patches": of_config(data__image_size=[2**14, 2**14], model__patch_size=1, model__width=10**6),
    "heads": of_config(model__num_heads=0),
    "patch of nothing": of_config(model__patch_size=0),
    "projection": of_config(model__projection_dims=[2**31, 2**31]),
    "code": of_config(model__dtype="__import__('os').system('touch pwned')"),
    "type": of_config(model__width="96"),
    "not finite": of_config(objective__temperature=float("nan")),
    "unknown": of_config(model____class__="x"),
    "a list": lambda meta: meta.update(config=[1]),
    "a number": lambda meta: meta.update(config=5),
    "a section that is none": lambda meta: meta["config"].update(model="x"),
    "absent": lambda meta: meta.pop("config") and None,
    "no meta": lambda meta: [],
    "other step": lambda meta: meta.update(checksums="x"),
}


@pytest.mark.parametrize("name", HOSTILE_META)
def test_a_hostile_config_in_a_checkpoint_is_refused_in_one_line_and_allocates_nothing(
    run, name, monkeypatch, little_memory
):
    workdir, write = run
    monkeypatch.chdir(workdir)
    write(HOSTILE_META[name])
    lines = []
    with little_memory(), pytest.raises(UserError) as refused:
        loading.load(workdir, log=lines.append)
    told = [*lines, str(refused.value)]
    assert any("checkpoint 5" in line for line in told) and not any("\n" in line for line in told)
    assert not (workdir / "pwned").exists()


def test_arrays_that_the_files_cannot_hold_are_not_allocated(run, little_memory):
    workdir, _ = run
    with contextlib.closing(checkpoint.Checkpoints(workdir)) as checkpoints:
        targets = {"params": {"w": jax.ShapeDtypeStruct((2**20, 2**20), np.float32)}}
        with (
            little_memory(),
            pytest.raises(checkpoint.DamagedError, match=r"its arrays would take 4,194,304.0 MiB, its"),
        ):
            checkpoints.restore(5, targets)


@pytest.mark.parametrize("text", ["", "[", "{}", "5", '{"checkpoint": {"best_metric": "<script>"}}',
                                  '{"checkpoint": {"best_metric": ["knn_accuracy"]}}', "[" * 100_000])  # fmt: skip
def test_a_hostile_config_json_is_not_trusted(run, text):
    workdir, _ = run
    (workdir / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"this run has no checkpoint\.best_metric"):
        loading.load(workdir, "best")


def test_every_field_refuses_a_value_of_another_type():
    for name in config_lib.FIELDS:
        config = config_lib.default_config().to_dict()
        node = config
        *sections, leaf = name.split(".")
        for section in sections:
            node = node[section]
        node[leaf] = {"x": object}
        with pytest.raises(UserError, match=r"config\."):
            integrity.config_of(config, 10**9)
