"""The loop: its schedule, what it says at the start, its profile, and that nothing crosses to a device unawares."""

import jax
import numpy as np
import pytest

from hybrid_jax import train, train_state
from hybrid_jax.errors import UserError
from hybrid_jax.train_state import cached_by_config

pytestmark = pytest.mark.usefixtures("one_device")


def test_the_schedule_says_what_is_due(tiny_config):
    settings = {"train__total_steps": 12, "log__every_steps": 5, "checkpoint__every_steps": 4, "eval__every_steps": 6}
    schedule = train.Schedule.from_config(tiny_config(**settings))
    due = lambda what: [done for done in range(13) if what(done)]
    assert due(schedule.logs)[-4:] == [1, 5, 10, 12]
    # The evaluation after the last step is not on the schedule; what is evaluated is saved first.
    assert due(schedule.evaluates) == [6]
    assert due(schedule.saves)[-4:] == [4, 6, 8, 12]


@pytest.mark.parametrize("every", [0, -1])
def test_without_an_interval_nothing_is_evaluated_on_the_way(tiny_config, every):
    schedule = train.Schedule.from_config(tiny_config(eval__every_steps=every, train__total_steps=10))
    assert not any(schedule.evaluates(done) for done in range(11)) and schedule.saves(10)


def test_the_overview_counts_every_parameter_once(tiny_config):
    params = train_state.abstract_state(tiny_config()).params
    lines = train.parameter_overview(params)
    assert lines[0].split()[0] == "decoder/norm" and any(line.startswith("projection/layer_1 ") for line in lines)
    counted = sum(int(line.split()[1].replace(",", "")) for line in lines)
    assert counted == sum(x.size for x in jax.tree.leaves(params))


def test_the_profile_of_chosen_steps_is_written(tiny_config, tmp_path):
    lines = []
    config = tiny_config(log__profile_steps=(2, 3))
    train.train_and_evaluate(config, tmp_path, lines.append)
    assert f"profile of steps 2 to 3: {tmp_path / 'profile'}" in lines
    (trace,) = (tmp_path / "profile").rglob("*.xplane.pb")
    assert trace.stat().st_size > 0


@pytest.mark.parametrize("steps", [(3,), (0, 2), (4, 2), (1, 2, 3)])
def test_a_span_that_is_none_is_refused(tiny_config, tmp_path, steps):
    with pytest.raises(UserError, match=r"config\.log\.profile_steps=.*two steps"):
        train.train_and_evaluate(tiny_config(log__profile_steps=steps), tmp_path)


def test_a_batch_that_is_not_on_the_devices_fails(tiny_config, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "_batches", lambda run, start: iter([np.zeros((16, 8, 8, 1), np.uint8)]))
    with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
        train.train_and_evaluate(tiny_config(), tmp_path, lambda line: None)


def test_a_cached_function_sees_no_section_that_the_cache_does_not_tell_apart(tiny_config):
    @cached_by_config
    def depth(config, mesh):
        return config.model.encoder_layers

    @cached_by_config
    def interval(config, mesh):
        return config.log.every_steps

    assert [depth(tiny_config(model__encoder_layers=n)) for n in (1, 2)] == [1, 2]
    with pytest.raises(AttributeError):
        interval(tiny_config())
