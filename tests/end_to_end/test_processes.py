"""Several processes of one run, as the real command starts them: agreement, stop requests, processes that are gone."""

import contextlib
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
import tiny
from fakes import interrupt_after

import hybrid_jax
from hybrid_jax import metrics, train
from hybrid_jax.storage import checkpoint

ROOT = pathlib.Path(__file__).parent.parent.parent
GONE = 15  # seconds
# Processes other than the first compile anew each time: no augmentations, and one token a patch.
SMALL = {
    "augment.recipe": "none",
    "model.patch_size": 1,
    "model.levels": 16,
    "train.total_steps": 100_000,
    "log.every_steps": 1,
}
FEW = [f"--config.{name}={value}" for name, value in SMALL.items()]


class Run:
    """Processes of one run, started at once."""

    def __init__(self, workdir, count, devices, *flags, each=lambda i: []):
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        self.workdir, self.outputs = workdir, []
        self.processes = []
        for i in range(count):
            command = [
                sys.executable, "-m", "hybrid_jax.main", "--config=tests/tiny.py", f"--workdir={workdir}",
                f"--coordinator=127.0.0.1:{port}", f"--num_processes={count}", f"--process_id={i}", *flags, *each(i),
            ]  # fmt: skip
            environment = os.environ | {"JAX_NUM_CPU_DEVICES": str(devices)}
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
            self.processes.append(subprocess.Popen(command, cwd=ROOT, env=environment, **pipes))

    def until(self, reached):
        """Waits until a condition holds, while all run."""
        deadline = time.monotonic() + 200
        while not reached():
            ended = [p for p in self.processes if p.poll() is not None]
            assert not ended, ended[0].communicate()
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def ends(self, seconds=200):
        """Returns [(exit code, stdout, stderr)] of all, killed if they take longer."""
        deadline = time.monotonic() + seconds
        found = []
        for process in self.processes:
            try:
                out, err = process.communicate(timeout=max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                out, err = process.communicate()
                err += "\nhad to be killed"
            found.append((process.returncode, out, err))
        return found


@contextlib.contextmanager
def locally(workdir, log, *flags):
    """Starts two processes of two devices with launch/local.sh; yields it."""
    variables = {
        "CONFIG": "tests/tiny.py", "WORKDIR": str(workdir), "PROCESSES": "2", "PYTHON": sys.executable,
        "MAX_STUCK": "0", "JAX_NUM_CPU_DEVICES": "2", "JAX_PLATFORMS": "cpu",
    }  # fmt: skip
    with log.open("w") as file:
        command = ["launch/local.sh", *flags]
        script = subprocess.Popen(command, cwd=ROOT, env=os.environ | variables, stdout=file, stderr=file)
    try:
        yield script
    finally:
        script.terminate()
        script.wait()


def own_lines(text):
    # Processes write at once, so that a line of Gloo may be cut in two.
    of_gloo = lambda line: line.startswith("[Gloo]") or "peer ranks" in line
    return [line for line in text.splitlines() if line and not of_gloo(line)]


@pytest.fixture
def start():
    runs = []

    def start(*args, **kwargs):
        runs.append(Run(*args, **kwargs))
        return runs[-1]

    yield start
    for process in (p for run in runs for p in run.processes):
        process.kill()
        process.wait()


def params_of(workdir):
    return jax.tree.leaves(jax.device_get(hybrid_jax.load(workdir).params))


def assert_close(one, two):
    for a, b in zip(one, two, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_two_processes_train_as_one_stop_together_and_notice_a_death(start, use_mesh, tmp_path):
    workdir = tmp_path / "run"
    evaluate = ["--config.eval.every_steps=6", "--config.eval.evaluators=('knn',)"]
    run = start(workdir, 2, 2, *FEW, *evaluate, "--config.checkpoint.every_steps=100000")
    run.until((workdir / "eval" / "6.json").exists)
    os.kill(run.processes[1].pid, signal.SIGTERM)
    (first, out, err), (second, other_out, other_err) = run.ends()
    assert (first, second) == (75, 75), err + other_err
    (line,) = own_lines(err)
    assert "same command continues" in line
    # Only process 0 speaks.
    assert "step" in out and not own_lines(other_out) and not own_lines(other_err)
    stopped = int(re.search(r"stopped at step (\d+)", line)[1])
    assert checkpoint.Checkpoints(workdir).steps()[-1] == stopped
    rows = [json.loads(text) for text in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, stopped + 1))
    # Its parameters are those of one process with as many devices, which continues it too.
    config = tiny.get_config()
    config.update_from_flattened_dict(SMALL)
    use_mesh(4)
    interrupt_after(config, tmp_path / "one", stopped)
    assert_close(params_of(workdir), params_of(tmp_path / "one"))
    interrupt_after(config, workdir, stopped + 3)
    # And so do two processes that the script of launch/ starts; when one is killed, the other ends soon and says why.
    log = tmp_path / "log"
    with locally(workdir, log, *FEW) as script:
        deadline = time.monotonic() + 200
        while metrics.read(workdir)[-1]["step"] <= stopped + 4:
            assert script.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        os.kill(int(re.search(r"process 1 is pid (\d+)", log.read_text())[1]), signal.SIGKILL)
        assert script.wait(timeout=GONE) == 1
    told = log.read_text()
    assert "process 1 is gone: restart all processes with the same command" in told and "giving up" in told, told
    assert "Traceback" not in told


@pytest.mark.slow
@pytest.mark.parametrize("which, how", [(1, signal.SIGSTOP), (0, signal.SIGSTOP), (0, signal.SIGKILL)])
def test_a_process_that_hangs_ends_the_others(start, tmp_path, which, how):
    run = start(tmp_path, 2, 2, *FEW)
    run.until(lambda: len(metrics.read(tmp_path)) > 3)
    os.kill(run.processes[which].pid, how)
    code = run.processes[1 - which].wait(timeout=GONE)
    assert code not in (0, 75)
    os.kill(run.processes[which].pid, signal.SIGKILL)
    assert own_lines(run.ends()[1 - which][2])[-1].startswith(f"error: process {which} is gone")


@pytest.mark.slow
def test_four_processes_with_cut_parameters_and_damage_that_only_one_of_them_sees(
    start, tiny_config, use_mesh, tmp_path
):
    run = start(tmp_path / "four", 4, 1, "--config.mesh.fsdp=4")
    assert [code for code, _, _ in run.ends()] == [0] * 4
    use_mesh(4, 4)
    train.train_and_evaluate(tiny_config(), tmp_path / "one")
    assert_close(params_of(tmp_path / "four"), params_of(tmp_path / "one"))
    for file in (tmp_path / "four" / "checkpoints" / "10" / "opt_state" / "ocdbt.process_1" / "d").iterdir():
        file.write_bytes(file.read_bytes()[:50])
    run = start(tmp_path / "four", 4, 1, "--config.mesh.fsdp=4")
    ended = run.ends()
    assert [code for code, _, _ in ended] == [0] * 4
    out = ended[0][1]
    assert "checkpoint 10 is damaged" in out and "resuming from checkpoint 5" in out
    assert_close(params_of(tmp_path / "four"), params_of(tmp_path / "one"))


@pytest.mark.slow
def test_a_stop_request_while_one_evaluates_or_compiles_stops_both(start, tmp_path):
    flags = ["--config.eval.every_steps=0", "--config.eval.evaluators=('likelihood', 'knn')"]
    run = start(tmp_path, 2, 1, *flags)
    run.until((tmp_path / "checkpoints").exists)
    time.sleep(2)
    os.kill(run.processes[1].pid, signal.SIGTERM)
    ended = run.ends()
    assert [code for code, _, _ in ended] == [75, 75], ended
    assert "stopped at step" in ended[0][2]
    run = start(tmp_path, 2, 1, *flags)
    run.until((tmp_path / "eval").exists)
    os.kill(run.processes[1].pid, signal.SIGTERM)
    ended = run.ends()
    assert [code for code, _, _ in ended] == [75, 75], ended
    assert "stopped while step 10 was evaluated" in ended[0][2] and not list((tmp_path / "eval").iterdir())
    run = start(tmp_path, 2, 1, *flags)
    assert [code for code, _, _ in run.ends()] == [0, 0] and (tmp_path / "eval" / "10.json").exists()


@pytest.mark.slow
def test_another_config_in_one_process_ends_all_with_one_line(start, tmp_path):
    run = start(tmp_path, 2, 1, "--config.train.total_steps=1", each=lambda i: [f"--config.seed={i}"])
    (first, _, err), (second, _, other_err) = run.ends()
    assert (first, second, other_err) == (2, 2, "")
    assert err.startswith("error: process 1: has another config than process 0") and len(err.splitlines()) == 1
