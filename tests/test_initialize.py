"""--fork_from: a new run from the parameters of another."""

import contextlib
import json
import shutil
import signal

import jax
import numpy as np
import pytest

import hybrid_jax
from hybrid_jax import initialize, sharding, train, train_state
from hybrid_jax.errors import Preempted, UserError
from hybrid_jax.models import tokens
from hybrid_jax.storage import checkpoint


def saved(workdir, config, mesh, palette=None, steps=(3,)):
    """A run's checkpoints without the training: other parameters in every step, their average twice as large."""
    with contextlib.closing(checkpoint.Checkpoints(workdir, config)) as checkpoints:
        for step in steps:
            state = train_state.init_state(config, mesh, palette)
            state = state.replace(
                step=sharding.place(np.int32(step), state.step.sharding),
                params=jax.tree.map(lambda x, n=step: x + n, state.params),
                ema_params=state.ema_params and jax.tree.map(lambda x, n=step: 2 * (x + n), state.params),
            )
            checkpoints.save(state, config, "data")
    return state


def by_path(tree):
    return {n: np.asarray(x) for n, x in initialize._by_path(tree).items()}


def forked(config, workdir, source, mesh, palette=lambda: None):
    """The state that a new run begins with, and what was said; `palette` stands for the fit to the run's data."""
    lines, spec = [], tokens.TokenSpec.from_config(config)
    workdir.mkdir(exist_ok=True)
    run = initialize.Run(config, workdir, mesh, spec, None, None, None, str(source), lines.append)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(initialize, "_fit_palette", lambda run: palette())
        return initialize.forked_state(run)[0], lines


def test_what_agrees_is_taken_from_the_average_and_the_rest_is_as_in_a_run_of_its_own(
    tiny_config, mesh_of, tmp_path, monkeypatch
):
    monkeypatch.setattr(sharding, "MIN_SHARDED_SIZE", 1)
    # No other test has this seed: what is cached for a config depends on the size above.
    source = saved(tmp_path / "old", tiny_config(seed=606, train__ema_decay=0.5), mesh_of(2))
    config = tiny_config(seed=607, objective__generative_weight=0.0, model__projection_dims=(16, 4))
    config.train.ema_decay = 0.9
    mesh = mesh_of(8, 4)
    state, [line] = forked(config, tmp_path / "new", tmp_path / "old", mesh)
    own, old = by_path(train_state.init_state(config, mesh, None).params), by_path(source.ema_params)
    new = {"projection/layer_2/kernel", "projection/layer_2/bias"}
    for name, x in by_path(state.params).items():
        np.testing.assert_array_equal(x, own[name] if name in new else old[name], name)
    jax.tree.map(np.testing.assert_array_equal, state.params, state.ema_params)
    assert int(state.step) == 0 and not any(np.asarray(x).any() for x in jax.tree.leaves(state.opt_state))
    placed = jax.tree.map(lambda x, s: x.sharding.is_equivalent_to(s, x.ndim), state,
                          train_state.state_sharding(config, mesh))  # fmt: skip
    assert all(jax.tree.leaves(placed))
    assert any(not x.is_fully_replicated for x in jax.tree.leaves(state.params))
    assert line == (
        f"fork of {tmp_path / 'old'} at step 3 (moving average): took encoder (10 arrays, 3,456 parameters), "
        "projection (2 arrays, 272 parameters); new: projection (2 arrays, 68 parameters); unused there: decoder "
        "(10 arrays, 3,648 parameters), head (9 arrays, 5,952 parameters), projection (2 arrays, 136 parameters)"
    )
    about = json.loads(initialize.origin_path(tmp_path / "new").read_text())
    assert (about["step"], about["from"], set(about["new"])) == (3, "ema_params", new)


def test_a_palette_is_taken_where_its_size_agrees_and_else_fitted(tiny_config, mesh_of, tmp_path):
    colours = lambda n: tokens.Palette.from_colours(np.linspace(-1, 1, n, dtype=np.float32)[:, None] ** 3)
    config = tiny_config(model__token_kind="palette", model__palette_size=8)
    source = by_path(saved(tmp_path / "old", config, mesh_of(1), colours(8)).params)
    state, lines = forked(config, tmp_path / "new", tmp_path / "old", mesh_of(1), lambda: pytest.fail("fitted"))
    np.testing.assert_array_equal(state.palette.colours, colours(8).colours)
    assert "palette: 8 colours, from the forked run" in lines
    assert "new: nothing" in lines[-1]
    # Another vocabulary: what its numbers mean is learnt anew, even where shapes agree.
    config.model.palette_size = 9
    state, lines = forked(config, tmp_path / "nine", tmp_path / "old", mesh_of(1), lambda: colours(9))
    assert state.palette.colours.shape == (9, 1) and any(line.startswith("palette: newly fitted") for line in lines)
    about = json.loads(initialize.origin_path(tmp_path / "nine").read_text())
    assert all(name.startswith("head/") for name in about["new"]) and "encoder/positions" in about["taken"]
    np.testing.assert_array_equal(by_path(state.params)["encoder/positions"], source["encoder/positions"])


def test_another_image_size_or_depth_takes_the_rest(tiny_config, mesh_of, tmp_path):
    saved(tmp_path / "old", tiny_config(), mesh_of(1))
    config = tiny_config(data__image_size=(6, 6), model__encoder_layers=2)
    forked(config, tmp_path / "new", tmp_path / "old", mesh_of(1))
    new = json.loads(initialize.origin_path(tmp_path / "new").read_text())["new"]
    assert {name for name in new if "block_2" not in name} == {"encoder/positions", "decoder/positions"}
    assert sum("encoder/transformer/block_2" in name for name in new) == 6


def test_the_step_is_the_newest_undamaged_the_best_or_the_one_that_was_asked_for(tiny_config, mesh_of, tmp_path):
    old, mesh = tmp_path / "o@ld@", mesh_of(1)
    saved(old, tiny_config(), mesh, steps=(3, 5))
    assert initialize.split(f"{old}@best") == (str(old), "best") and initialize.split(str(old)) == (str(old), "latest")
    state, _ = forked(tiny_config(), tmp_path / "three", f"{old}@3", mesh)
    assert by_path(state.params)["encoder/norm/scale"][0] == 4
    state, lines = forked(tiny_config(), tmp_path / "new", old, mesh)
    assert by_path(state.params)["encoder/norm/scale"][0] == 6
    # Until it has saved something, a run begins where it began before, though the other has gone on.
    saved(old, tiny_config(), mesh, steps=(8,))
    state, lines = forked(tiny_config(), tmp_path / "new", old, mesh)
    assert "at step 5 " in lines[-1]
    shutil.rmtree(old / "checkpoints/8/params")
    _, lines = forked(tiny_config(), tmp_path / "fresh", old, mesh)
    assert "checkpoint 8 is damaged" in lines[0] and "at step 5 " in lines[1]
    (tmp_path / "other").mkdir()
    for asked, words in {
        tmp_path / "none": "none holds no checkpoint; must be the workdir of a run",
        tmp_path / "other": "other holds no checkpoint; must be the workdir of a run",
        f"{old}@4": "@4: must be latest, best or one of 5, 8",
        f"{old}@best": "has no checkpoint.best_metric",
        f"{old}@8": "all matching checkpoints are damaged",
    }.items():
        with pytest.raises(UserError, match=f"--fork_from=.*{words}"):
            forked(tiny_config(), tmp_path / "bad", asked, mesh)
    nothing = tiny_config(model__width=24, model__projection_dims=(7,), model__patch_size=1)
    with pytest.raises(UserError, match="has no parameter in common"):
        forked(nothing, tmp_path / "bad", f"{old}@5", mesh)


@pytest.mark.slow
def test_a_forked_run_that_was_stopped_goes_on_with_the_same_command_bit_for_bit(
    tiny_config, mesh_of, tmp_path, monkeypatch
):
    monkeypatch.setattr("hybrid_jax.sharding.make_mesh", lambda config: mesh_of(1))
    saved(tmp_path / "old", tiny_config(), mesh_of(1))
    lines, config = [], tiny_config(log__every_steps=1)
    run = lambda name, log=lines.append, fork_from=str(tmp_path / "old"): train.train_and_evaluate(
        config, tmp_path / name, log, fork_from=fork_from
    )

    def stop(line):
        if line.startswith("step  4/"):
            signal.raise_signal(signal.SIGTERM)

    run("whole")
    with pytest.raises(Preempted):
        run("parts", stop)
    lines.clear()
    run("parts")
    told = f"--fork_from={tmp_path / 'old'}: ignored, this run already has a checkpoint (forked from"
    assert any(line.startswith(told) for line in lines) and "resuming from checkpoint 5" in lines
    one, two = (jax.device_get(hybrid_jax.load(tmp_path / name).params) for name in ("whole", "parts"))
    jax.tree.map(np.testing.assert_array_equal, one, two)
    # A run that saved nothing may still begin otherwise, and says so.
    shutil.rmtree(tmp_path / "parts/checkpoints")
    lines.clear()
    config.train.total_steps = 1
    run("parts", fork_from=None)
    assert any("starting from fresh parameters, not as a fork of" in line for line in lines)
    assert not initialize.origin_path(tmp_path / "parts").exists()
