"""train_and_evaluate on real digits: resume, restore elsewhere, damage, loading."""

import dataclasses
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fakes import interrupt_after

import hybrid_jax
from hybrid_jax import evaluate, metrics, train
from hybrid_jax.data import sources
from hybrid_jax.errors import NonFiniteError, Preempted, UserError
from hybrid_jax.evaluate import evaluate_workdir
from hybrid_jax.inference import load as loading
from hybrid_jax.storage import checkpoint

pytestmark = pytest.mark.usefixtures("one_device")


def final_params(workdir):
    return jax.device_get(hybrid_jax.load(workdir).params)


def assert_equal_to_the_bit(one, two):
    jax.tree.map(np.testing.assert_array_equal, one, two)


@pytest.fixture
def quiet():
    """A log that keeps its lines."""
    lines = []
    return lines, lines.append


# `.ci/run` runs it with the optimisations that the suite leaves out.
@pytest.mark.slow
def test_ten_steps_are_five_a_restore_and_five_more(tiny_config, tmp_path, quiet):
    lines, log = quiet
    config = tiny_config(train__ema_decay=0.9, log__every_steps=1, log__gradients=True)
    last = train.train_and_evaluate(config, tmp_path / "whole", log)
    interrupt_after(config, tmp_path / "parts", 5)
    again = train.train_and_evaluate(config, tmp_path / "parts", log)
    assert "resuming from checkpoint 5" in lines
    assert_equal_to_the_bit(final_params(tmp_path / "whole"), final_params(tmp_path / "parts"))
    timing = "images_per_second"
    assert {k: v for k, v in last.items() if k != timing} == {k: v for k, v in again.items() if k != timing}
    rows = metrics.read(tmp_path / "parts")
    assert [row["step"] for row in rows] == list(range(1, 11))
    # A finished run is not run again, and says so.
    finished = train.train_and_evaluate(config, tmp_path / "parts", log)
    assert finished["loss"] == again["loss"]


def test_a_stop_request_saves_and_the_run_continues_bit_for_bit(tiny_config, tmp_path, quiet):
    config = tiny_config(checkpoint__every_steps=100, log__every_steps=2)
    interrupt_after(config, tmp_path / "stopped", 3)
    assert checkpoint.Checkpoints(tmp_path / "stopped").steps() == [3]
    train.train_and_evaluate(config, tmp_path / "stopped", quiet[1])
    train.train_and_evaluate(config, tmp_path / "whole", quiet[1])
    assert_equal_to_the_bit(final_params(tmp_path / "stopped"), final_params(tmp_path / "whole"))


@pytest.mark.slow
def test_another_number_of_devices_restores(tiny_config, tmp_path, quiet, use_mesh):
    lines, log = quiet
    config = tiny_config(log__every_steps=1)
    use_mesh(8, 4)
    interrupt_after(config, tmp_path, 5)
    use_mesh(2)
    last = train.train_and_evaluate(config, tmp_path, log)
    assert any(line.startswith("resuming from checkpoint") for line in lines)
    whole = train.train_and_evaluate(config, tmp_path / "whole", log)
    assert last["loss"] == pytest.approx(whole["loss"], rel=1e-5)


def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_is_used(tiny_config, tmp_path, quiet):
    lines, log = quiet
    config = tiny_config()
    train.train_and_evaluate(config, tmp_path, log)
    want = final_params(tmp_path)
    data = [p for p in (tmp_path / "checkpoints" / "10" / "params").rglob("d/*") if p.is_file()]
    largest = max(data, key=lambda p: p.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    assert loading.load(tmp_path, log=log).step == 5
    assert any("damaged" in line and "10" in line for line in lines)
    lines.clear()
    train.train_and_evaluate(config, tmp_path, log)
    assert any("damaged" in line and "10" in line for line in lines)
    assert "resuming from checkpoint 5" in lines
    assert_equal_to_the_bit(final_params(tmp_path), want)


def _poison(monkeypatch, at):
    """Makes the training images' embedding NaN in the steps `at`, through the parameters it is computed from."""
    make = train.train_step.make_train_step

    def poisoned(config, mesh):
        step = make(config, mesh)

        def run(state, images):
            if int(state.step) + 1 in at:
                kept = jax.tree.map(jnp.copy, state.params)
                with jax.transfer_guard("allow"):
                    bad = state.replace(params=jax.tree.map(lambda x: x * jnp.nan, state.params))
                state, metrics = step(bad, images)
                return state.replace(params=kept), metrics
            return step(state, images)

        return run

    monkeypatch.setattr(train.train_step, "make_train_step", poisoned)


def test_a_loss_that_is_not_finite_stops_names_its_step_and_keeps_the_checkpoint(
    tiny_config, tmp_path, quiet, monkeypatch
):
    _poison(monkeypatch, at={7})
    with pytest.raises(NonFiniteError, match=r"step 7: .*loss = nan"):
        train.train_and_evaluate(tiny_config(), tmp_path, quiet[1])
    assert checkpoint.Checkpoints(tmp_path).steps() == [5]
    assert np.isfinite(np.concatenate([x.ravel() for x in jax.tree.leaves(final_params(tmp_path))])).all()


@pytest.mark.slow
def test_skipped_updates_are_tolerated_up_to_their_number_in_a_row(tiny_config, tmp_path, quiet, monkeypatch):
    _poison(monkeypatch, at={6, 7})
    config = tiny_config(train__skip_nonfinite=2, log__every_steps=1)
    assert train.train_and_evaluate(config, tmp_path / "two", quiet[1])["skipped_updates"] == 2
    assert [row["skipped_updates"] for row in metrics.read(tmp_path / "two")] == [0] * 5 + [1] + [2] * 4
    with pytest.raises(NonFiniteError, match="step 7"):
        train.train_and_evaluate(tiny_config(train__skip_nonfinite=1), tmp_path / "one", quiet[1])


@pytest.mark.slow
def test_a_run_that_saved_nothing_may_be_corrected(tiny_config, tmp_path, quiet):
    settings = {"model__token_kind": "palette", "train__total_steps": 1}
    with pytest.raises(UserError, match="palette_size"):
        train.train_and_evaluate(tiny_config(model__palette_size=100, **settings), tmp_path, quiet[1])
    train.train_and_evaluate(tiny_config(model__palette_size=4, **settings), tmp_path, quiet[1])


def test_another_config_or_other_data_is_refused_and_sets_nothing_aside(tiny_config, tmp_path, quiet, monkeypatch):
    config = tiny_config(log__every_steps=1)
    interrupt_after(config, tmp_path, 3)
    (tmp_path / "config.json").unlink()
    with pytest.raises(UserError, match=r"model\.width=32"):
        train.train_and_evaluate(tiny_config(model__width=32), tmp_path, quiet[1])
    load = sources.load
    monkeypatch.setattr(sources, "load", lambda config: dataclasses.replace(load(config), fingerprint="other"))
    for again in (train.train_and_evaluate, lambda config, workdir, log: evaluate_workdir(workdir, None, None, log)):
        with pytest.raises(UserError, match="differ from those the workdir was trained on"):
            again(config, tmp_path, quiet[1])
    assert checkpoint.Checkpoints(tmp_path).steps() == [3]


def test_an_evaluation_that_a_stop_prevented_is_made_up_for(tiny_config, tmp_path, quiet):
    config = tiny_config(eval__every_steps=4, eval__evaluators=("likelihood",), log__every_steps=1)
    interrupt_after(config, tmp_path, 4)
    assert not (tmp_path / "eval" / "4.json").exists()
    result = train.train_and_evaluate(config, tmp_path, quiet[1])
    assert sorted(p.name for p in (tmp_path / "eval").iterdir()) == ["10.json", "4.json", "8.json"]
    assert result["bits_per_dim"] > 0


def test_an_evaluation_is_left_at_once_and_made_again(tiny_config, tmp_path, quiet):
    def stop(line):
        quiet[1](line)
        if line.startswith("evaluating"):
            signal.raise_signal(signal.SIGTERM)

    config = tiny_config(eval__every_steps=0, eval__evaluators=("likelihood",))
    with pytest.raises(Preempted, match=r"^stopped while step 10 was evaluated, which is saved; the same command"):
        train.train_and_evaluate(config, tmp_path, stop)
    assert quiet[0][-1].startswith("evaluating") and not list((tmp_path / "eval").glob("*"))
    with pytest.raises(Preempted, match=r"^stopped; the same command evaluates again$"):
        evaluate.evaluate_workdir(tmp_path, None, None, stop)
    assert train.train_and_evaluate(config, tmp_path, quiet[1])["bits_per_dim"] > 0
    assert (tmp_path / "eval" / "10.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("settings", [
    {"model__view_attention": "causal", "augment__view_keep": 1.0},
    {"model__dtype": "bfloat16", "model__scan_layers": True, "model__remat": True, "model__encoder_layers": 2},
])  # fmt: skip
def test_other_shapes_of_the_model_train_load_and_embed(tiny_config, tmp_path, use_mesh, quiet, settings):
    use_mesh(4, 2)
    last = train.train_and_evaluate(tiny_config(train__total_steps=2, **settings), tmp_path, quiet[1])
    assert np.isfinite(last["loss"])
    model = hybrid_jax.load(tmp_path)
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1)).astype(np.uint8)
    assert model.embed(images).shape == (3, 16) and np.isfinite(model.log_prob(images)).all()


def test_a_run_like_image_gpt_fits_its_palette_stores_it_and_is_read_with_it(tiny_config, tmp_path, use_mesh, quiet):
    # A look-up and a decoder, one token a patch.
    use_mesh(4, 2)
    config = tiny_config(
        model__token_kind="palette", model__palette_size=8, model__encoder_layers=0, model__patch_size=1,
        model__activation="quick_gelu", objective__contrastive_weight=0.0, train__total_steps=2,
    )  # fmt: skip
    assert np.isfinite(train.train_and_evaluate(config, tmp_path, quiet[1])["loss"])
    assert any(line.startswith("palette: 8 colours") for line in quiet[0])
    model = hybrid_jax.load(tmp_path)
    assert model.palette.colours.shape == (8, 1) and model.default_layer == "decoder/1"
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1)).astype(np.uint8)
    assert model.embed(images).shape == (3, 16) and np.isfinite(model.log_prob(images)).all()
    with pytest.raises(UserError, match="lossy"):
        model.bits_per_dim(images)
