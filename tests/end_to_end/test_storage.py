"""A workdir that cannot be written, or not any more: one line each, and an intact last checkpoint."""

import os
import pathlib
import shutil
import subprocess
import sys
import time

import pytest

import hybrid_jax
from hybrid_jax import train
from hybrid_jax.errors import StorageError, UserError
from hybrid_jax.evaluate import evaluate_workdir
from hybrid_jax.storage.checkpoint import Checkpoints

ROOT = pathlib.Path(__file__).parent.parent.parent
MIB = 2**20


pytestmark = pytest.mark.usefixtures("one_device")


@pytest.fixture
def disk(tmp_path):
    """A file system of its own, of 4 MiB."""
    path = tmp_path / "disk"
    path.mkdir()
    try:
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", path], capture_output=True)
    except FileNotFoundError:
        pytest.skip("no mount")
    if mounted.returncode:
        pytest.skip("mounting is not permitted here")
    yield path
    subprocess.run(["umount", path], check=True)


def train_with(config, workdir, at, happens):
    """Trains; when step `at` is logged and all saves before it are on disk, something happens."""
    lines: list[str] = []

    def log(line):
        lines.append(line)
        if line.startswith(f"step {at:>2}/"):
            until_saved(workdir, at - 1)
            happens()

    train.train_and_evaluate(config, workdir, log)
    return lines


def until_saved(workdir, step):
    deadline = time.monotonic() + 60
    while not (workdir / "checkpoints" / str(step)).exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def fill(disk):
    with (disk / "filler").open("wb", buffering=0) as file:
        for size in (MIB, 4096, 1):
            try:
                while True:
                    file.write(b"x" * size)
            except OSError:
                continue


def continues(config, workdir, step):
    lines: list[str] = []
    assert train.train_and_evaluate(config, workdir, lines.append)["loss"] > 0
    assert f"resuming from checkpoint {step}" in lines and not any("damaged" in line for line in lines)


@pytest.fixture
def config(tiny_config):
    return tiny_config(log__every_steps=1, checkpoint__every_steps=2)


def test_a_full_disk_stops_the_run_and_once_there_is_room_it_continues(config, disk):
    with pytest.raises(StorageError, match=r"No space left on device") as error:
        train_with(config, disk / "run", 5, lambda: fill(disk))
    assert "\n" not in str(error.value) and "kept" in str(error.value)
    assert hybrid_jax.load(disk / "run").step == 4
    with pytest.raises(UserError, match="No space left on device"):
        train.train_and_evaluate(config, disk / "run", lambda line: None)
    (disk / "filler").unlink()
    continues(config, disk / "run", 4)
    assert not list((disk / "run" / "checkpoints").glob("*tmp*"))


def test_a_read_only_workdir_is_refused_in_training_and_evaluation(config, disk):
    train.train_and_evaluate(config, disk / "run", lambda line: None)
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    for attempt in (
        lambda: train.train_and_evaluate(config, disk / "run", lambda line: None),
        lambda: train.train_and_evaluate(config, disk / "new", lambda line: None),
        lambda: evaluate_workdir(disk / "run", None, None, lambda line: None),
    ):
        with pytest.raises(UserError, match=r"--workdir=.*: cannot be written"):
            attempt()
    assert hybrid_jax.load(disk / "run").step == 10


def test_checkpoints_that_vanish_during_a_run_end_it_with_its_state_saved(config, tmp_path):
    with pytest.raises(StorageError, match=r"was removed during the run; step 6 is saved there"):
        train_with(config, tmp_path, 5, lambda: (tmp_path / "checkpoints").rename(tmp_path / "elsewhere"))
    assert Checkpoints(tmp_path).steps() == [6]
    continues(config, tmp_path, 6)


def test_metrics_that_vanish_during_a_run_end_it(config, tmp_path):
    with pytest.raises(StorageError, match=r"metrics.jsonl was removed"):
        train_with(config, tmp_path, 5, (tmp_path / "metrics.jsonl").unlink)
    continues(config, tmp_path, 4)


def test_a_run_whose_checkpoints_are_gone_does_not_start_afresh_in_silence(config, tmp_path):
    train.train_and_evaluate(config, tmp_path, lambda line: None)
    shutil.rmtree(tmp_path / "checkpoints")
    lines: list[str] = []
    train.train_and_evaluate(config, tmp_path, lines.append)
    assert "no checkpoint, although metrics.jsonl reaches step 10: starting again from step 0" in lines


def test_a_second_run_in_the_workdir_is_refused_and_the_first_goes_on(config, tmp_path):
    def second():
        with pytest.raises(UserError, match=rf"process {os.getpid()} on host .* trains here"):
            train.train_and_evaluate(config, tmp_path, lambda line: None)

    train_with(config, tmp_path, 5, second)
    assert hybrid_jax.load(tmp_path).step == 10
    assert not (tmp_path / "train.lock").exists()


@pytest.mark.slow
@pytest.mark.parametrize("what, code, words", [
    ("full", 1, ["No space left on device", "kept"]),
    ("removed", 1, ["checkpoints"]),
    ("second", 2, ["trains here", "remove", "train.lock"]),
    ("read-only", 2, ["cannot be written"]),
])  # fmt: skip
def test_the_command_says_so_in_one_line(disk, what, code, words):
    workdir = disk / "run"
    command = [sys.executable, "-m", "hybrid_jax.main", "--config=tests/tiny.py", f"--workdir={workdir}",
               "--config.train.total_steps=100000", "--config.log.every_steps=100"]  # fmt: skip
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "1"}
    start = lambda: subprocess.Popen(command, cwd=ROOT, env=environment, **pipes)
    process = first = start()
    until_saved(workdir, 10)
    if what == "full":
        fill(disk)
    elif what == "removed":
        (workdir / "checkpoints").rename(disk / "elsewhere")
    elif what == "second":
        process = start()
    else:
        first.kill()
        first.wait()
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        process = start()
    _, errors = process.communicate(timeout=120)
    first.kill()
    first.wait()
    assert process.returncode == code, errors
    assert len(errors.splitlines()) == 1, errors
    line = errors.strip()
    assert line.startswith("error: ") and all(word in line for word in words)
