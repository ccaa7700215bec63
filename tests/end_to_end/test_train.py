"""train_and_evaluate on real digits: resume, restore elsewhere, damage, loading."""

import json
import signal

import jax
import numpy as np
import pytest

import hybrid_jax
from hybrid_jax import checkpoint, inference, metrics, train
from hybrid_jax.errors import NonFiniteError, Preempted, UserError


def final_params(workdir):
    return jax.device_get(hybrid_jax.load(workdir).params)


def assert_equal_to_the_bit(one, two):
    jax.tree.map(np.testing.assert_array_equal, one, two)


@pytest.fixture
def quiet():
    """A log that keeps its lines."""
    lines = []
    return lines, lines.append


@pytest.fixture(autouse=True)
def one_device(monkeypatch, mesh_of):
    """Most of these tests need no more than one of the eight fake devices."""
    monkeypatch.setattr(train.sharding, "make_mesh", lambda config: mesh_of(1))


def test_ten_steps_are_five_a_restore_and_five_more(tiny_config, tmp_path, quiet):
    lines, log = quiet
    config = tiny_config(train__ema_decay=0.9, log__every_steps=1, log__gradients=True)
    last = train.train_and_evaluate(config, tmp_path / "whole", log)
    _interrupt_after(config, tmp_path / "parts", 5)
    again = train.train_and_evaluate(config, tmp_path / "parts", log)
    assert "resuming from checkpoint 5" in lines
    assert_equal_to_the_bit(final_params(tmp_path / "whole"), final_params(tmp_path / "parts"))
    timing = "images_per_second"
    assert {k: v for k, v in last.items() if k != timing} == {k: v for k, v in again.items() if k != timing}
    rows = metrics.read(tmp_path / "parts")
    assert [row["step"] for row in rows] == list(range(1, 11))
    # A finished run is not run again, and says so.
    assert train.train_and_evaluate(config, tmp_path / "parts", log) == {}


def _interrupt_after(config, workdir, steps):
    """Trains for `steps` of the config's 10 steps, as a run that is asked to stop during the last of them."""

    def stop(line):
        if line.startswith(f"step {steps - 1:>2}/"):
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(Preempted, match=r"same command continues"):
        train.train_and_evaluate(config, workdir, stop)


def test_a_stop_request_saves_and_the_run_continues_bit_for_bit(tiny_config, tmp_path, quiet):
    config = tiny_config(checkpoint__every_steps=100, log__every_steps=2)
    _interrupt_after(config, tmp_path / "stopped", 3)
    assert checkpoint.Checkpoints(tmp_path / "stopped").steps() == [3]
    train.train_and_evaluate(config, tmp_path / "stopped", quiet[1])
    train.train_and_evaluate(config, tmp_path / "whole", quiet[1])
    assert_equal_to_the_bit(final_params(tmp_path / "stopped"), final_params(tmp_path / "whole"))


def test_another_number_of_devices_restores(tiny_config, mesh_of, tmp_path, quiet, monkeypatch):
    lines, log = quiet
    config = tiny_config(log__every_steps=1)
    monkeypatch.setattr(train.sharding, "make_mesh", lambda config: mesh_of(8, 4))
    _interrupt_after(config, tmp_path, 5)
    monkeypatch.setattr(train.sharding, "make_mesh", lambda config: mesh_of(2))
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
    assert inference.load(tmp_path, log=log).step == 5
    assert any("damaged" in line and "10" in line for line in lines)
    lines.clear()
    train.train_and_evaluate(config, tmp_path, log)
    assert any("damaged" in line and "10" in line for line in lines)
    assert "resuming from checkpoint 5" in lines
    assert_equal_to_the_bit(final_params(tmp_path), want)


def test_an_empty_newest_checkpoint_is_damage_and_all_damaged_is_refused(tiny_config, tmp_path, quiet):
    lines, log = quiet
    config = tiny_config()
    train.train_and_evaluate(config, tmp_path, log)
    for step in ("5", "10"):
        for file in (tmp_path / "checkpoints" / step).rglob("*"):
            if file.is_file():
                file.unlink()
    with pytest.raises(UserError, match="damaged"):
        train.train_and_evaluate(config, tmp_path, log)
    assert sum("damaged" in line for line in lines) == 2


def test_a_loss_that_is_not_finite_stops_names_its_step_and_keeps_the_checkpoint(tiny_config, tmp_path, quiet):
    config = tiny_config(
        optimizer__learning_rate=1e38,
        optimizer__clip_norm=0.0,
        optimizer__warmup_steps=0,
        train__total_steps=40,
    )
    with pytest.raises(NonFiniteError, match=r"step \d+: .*loss = (nan|inf)"):
        train.train_and_evaluate(config, tmp_path, quiet[1])
    kept = checkpoint.Checkpoints(tmp_path)
    for step in kept.steps():
        assert np.isfinite(np.concatenate([x.ravel() for x in jax.tree.leaves(final_params(tmp_path))])).all(), step


def test_load_needs_only_the_workdir_and_gives_every_answer(tiny_config, tmp_path, quiet):
    config = tiny_config(train__ema_decay=0.5, eval__evaluators=("knn", "likelihood"), eval__every_steps=0)
    result = train.train_and_evaluate(config, tmp_path, quiet[1])
    model = hybrid_jax.load(tmp_path)
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 1)).astype(np.uint8)
    assert model.embed(images).shape == (5, 16) and model.embed(images).dtype == np.float32
    for layer in model.layers:
        np.testing.assert_allclose(model.embed(images, layer), model.features(images)[layer], rtol=1e-5, atol=1e-6)
    log_prob = model.token_log_prob(images)
    assert log_prob.shape == (5, 16, 4)
    np.testing.assert_allclose(model.log_prob(images), log_prob.sum((1, 2)), rtol=1e-6)
    np.testing.assert_allclose(model.bits_per_dim(images), -log_prob.sum((1, 2)) / (64 * np.log(2)), rtol=1e-6)
    assert hybrid_jax.load(tmp_path, step=5).step == 5
    with pytest.raises(UserError, match="must be latest or one of 5, 10"):
        hybrid_jax.load(tmp_path, step=7)
    with pytest.raises(UserError, match="encoder/1"):
        model.embed(images, "nothing")
    with pytest.raises(UserError, match="uint8"):
        model.embed(images.astype(np.float32))
    assert set(result) >= {"loss", "knn_accuracy", "bits_per_dim"}
    written = json.loads((tmp_path / "eval" / "10.json").read_text())
    assert {row["metric"] for row in written} == {"knn_accuracy", "bits_per_dim"}
    assert "<html" in (tmp_path / "report.html").read_text()


def test_a_contrastive_checkpoint_has_no_likelihood_and_says_so(tiny_config, tmp_path, quiet):
    config = tiny_config(objective__generative_weight=0.0, train__total_steps=1)
    train.train_and_evaluate(config, tmp_path, quiet[1])
    images = np.zeros((1, 8, 8, 1), np.uint8)
    model = hybrid_jax.load(tmp_path)
    assert model.embed(images).shape == (1, 16)
    with pytest.raises(UserError, match="no likelihood"):
        model.log_prob(images)
    rows = metrics.read(tmp_path)
    assert rows[0]["generative_loss"] is None and rows[0]["contrastive_loss"] > 0


def test_a_palette_run_stores_its_palette(tiny_config, tmp_path, quiet):
    config = tiny_config(model__token_kind="palette", model__palette_size=8, train__total_steps=2)
    train.train_and_evaluate(config, tmp_path, quiet[1])
    model = hybrid_jax.load(tmp_path)
    assert model.palette.shape == (8, 1)
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 1)).astype(np.uint8)
    assert np.isfinite(model.log_prob(images)).all()
    with pytest.raises(UserError, match="lossy"):
        model.bits_per_dim(images)
