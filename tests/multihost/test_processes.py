"""Flags that start several processes, and what one process does with the tools of many."""

import jax
import pytest

from hybrid_jax.errors import UserError
from hybrid_jax.multihost import coordination, processes

NOT_A_CLUSTER = {"coordinator": None, "num_processes": None, "process_id": None}


@pytest.fixture
def initialised(monkeypatch):
    """Records what would be initialised, outside of any cluster."""
    calls = []
    for name in ("SLURM_JOB_ID", "OMPI_MCA_orte_hnp_uri", "OMPI_COMM_WORLD_SIZE", "KUBERNETES_SERVICE_HOST"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(jax.config, "update", lambda *_: None)
    monkeypatch.setattr(jax.distributed, "initialize", lambda *args, **_: calls.append(args))
    return calls


def join(mode="auto", **given):
    processes._join(mode, NOT_A_CLUSTER | given)


@pytest.mark.parametrize("flags, words", [
    ({"mode": "off", "process_id": 1}, ["--process_id=1", "--distributed=off"]),
    ({"mode": "on"}, ["--coordinator, --num_processes, --process_id"]),
    ({"num_processes": 2}, ["--coordinator, --process_id"]),
    ({"coordinator": "here", "num_processes": 2, "process_id": 0}, ["--coordinator=here", "HOST:PORT"]),
    ({"coordinator": "h:1", "num_processes": 0, "process_id": 0}, ["--num_processes=0", "at least 1"]),
    ({"coordinator": "h:1", "num_processes": 2, "process_id": 2}, ["--process_id=2", "from 0 to 1"]),
    ({"process_id": -1}, ["--process_id=-1", "from 0"]),
])  # fmt: skip
def test_flags_that_do_not_fit_together_get_one_line(initialised, flags, words):
    with pytest.raises(UserError) as caught:
        join(**flags)
    assert "\n" not in str(caught.value) and not initialised
    for word in words:
        assert word in str(caught.value)


def test_what_is_found_and_what_is_given(initialised, monkeypatch):
    join()
    join("off")
    assert not initialised
    join(coordinator="h:1", num_processes=2, process_id=0)
    assert initialised.pop() == ("h:1", 2, 0)
    for name, value in {
        "JOB_ID": "7", "STEP_NODELIST": "node[1-2]", "NTASKS": "1", "PROCID": "0", "LOCALID": "0",
    }.items():  # fmt: skip
        monkeypatch.setenv(f"SLURM_{name}", value)
    # A cluster's job of one process runs alone, unless it must not.
    join()
    assert not initialised
    join("on")
    assert initialised.pop() == (None, None, None)
    monkeypatch.setenv("SLURM_NTASKS", "2")
    join()
    join(coordinator="h:1")
    assert initialised == [(None, None, None), ("h:1", None, None)]


def test_an_open_mpi_that_does_not_say_where_process_0_is(initialised, monkeypatch):
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "4")
    with pytest.raises(UserError, match="--coordinator"):
        join()


def test_processes_that_do_not_find_each_other_get_one_line(initialised, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("DEADLINE_EXCEEDED: no answer\nmore")

    monkeypatch.setattr(jax.distributed, "initialize", fail)
    with pytest.raises(UserError, match=r"cannot connect \(DEADLINE_EXCEEDED: no answer\)$"):
        join(coordinator="h:1", num_processes=2, process_id=0)


def test_one_process_waits_for_nobody():
    coordination.barrier()
    coordination.check_same(config="any")
    assert (
        coordination.broadcast_from_process_zero([1.5]) == [1.5]
        and coordination.is_first()
        and not coordination.several()
    )
    with (
        pytest.raises(UserError, match=r"^own$"),
        coordination.raise_on_all_processes(UserError),
        coordination.first_goes_first(),
    ):
        raise UserError("own")
