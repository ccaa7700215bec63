"""Kills real training processes again and again, and tells whether the run ends as one that was never interrupted."""

import dataclasses
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import numpy as np
import orbax.checkpoint as ocp

ROOT = pathlib.Path(__file__).parent.parent
TEMPORARY = ".orbax-checkpoint-tmp"


@dataclasses.dataclass
class Kill:
    """One kill: what it waited for, seconds since the process started, and what it met."""

    waited_for: str
    after: float
    in_a_save: bool
    newest: int


class Run:
    """One run of the real command on the digits: small images, real ones."""

    def __init__(self, workdir: pathlib.Path, *flags: str):
        self.workdir = workdir
        self.command = [
            sys.executable, "-m", "hybrid_jax.main", "--config=tests/tiny.py", f"--workdir={workdir}", *flags,
        ]  # fmt: skip

    def start(self) -> subprocess.Popen:
        """Starts the command, or continues it."""
        environment = os.environ | {"JAX_NUM_CPU_DEVICES": "1"}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen(self.command, cwd=ROOT, env=environment, **pipes)

    def finish(self) -> str:
        """Runs the command to its end and returns what it prints."""
        process = self.start()
        out, _ = process.communicate(timeout=1200)
        assert process.returncode == 0, out
        return out

    def entries(self) -> list[str]:
        """Names in the directory of checkpoints."""
        try:
            return os.listdir(self.workdir / "checkpoints")
        except FileNotFoundError:
            return []

    def steps(self) -> list[int]:
        return sorted(int(name) for name in self.entries() if name.isdigit())

    def unfinished(self) -> list[str]:
        return [name for name in self.entries() if TEMPORARY in name]

    def rows(self) -> list[dict]:
        """All lines of metrics.jsonl; each must be whole."""
        return [json.loads(line) for line in (self.workdir / "metrics.jsonl").read_text().splitlines()]

    def arrays(self, step: int) -> dict[str, np.ndarray]:
        """Every array of a checkpoint, read without any code of ours."""
        found = {}
        for part in sorted((self.workdir / "checkpoints" / str(step)).iterdir()):
            if (part / "_METADATA").exists():
                for i, leaf in enumerate(_leaves(ocp.StandardCheckpointHandler().restore(part))):
                    found[f"{part.name}/{i}"] = np.asarray(leaf)
        return found


def _leaves(tree):
    import jax

    return jax.tree.leaves(tree)


def kill_again_and_again(run: Run, kills: int, seed: int, most_saves: int) -> list[Kill]:
    """Starts the run and kills it, `kills` times; each with a checkpoint on disk and before the end.

    A kill waits for one of three, drawn: that one of a process's first saves has begun, or has ended, and then up to
    30 ms more; or for a time between the process's start and a little after its first save.

    Args:
      run: not started yet, and of more than `most_saves` + 1 saves for each kill.
      kills: how many.
      seed: of the random times.
      most_saves: the last of a process's saves that a kill waits for.
    """
    drawn, found = random.Random(seed), []
    to_first_save = float("inf")
    for number in range(kills):
        # The first checkpoint must come first.
        name = drawn.choice(["a save", "its end", "a time"]) if number else "a save"
        which, share, pause = drawn.randint(1, most_saves), drawn.uniform(0, 1.2), drawn.uniform(0, 0.03)
        process, started = run.start(), time.monotonic()
        begun: set[str] = set()
        old = set(run.unfinished())
        while process.poll() is None and len(begun) <= most_saves:
            # What the last kill left has gone before a save takes its name again.
            now = set(run.unfinished())
            old &= now
            begun |= now - old
            after = time.monotonic() - started
            if begun:
                to_first_save = min(to_first_save, after)
            if name != "a time" and len(begun) >= which and run.steps() and (name == "a save" or not now):
                time.sleep(pause)
                break
            if name == "a time" and after > share * to_first_save:
                break
            time.sleep(0.0005)
        os.kill(process.pid, signal.SIGKILL)
        out, _ = process.communicate()
        assert process.returncode == -signal.SIGKILL, f"ended before it was killed: {out}"
        left = bool(set(run.unfinished()) - old)
        found.append(Kill(name, time.monotonic() - started, left, run.steps()[-1]))
    return found


def assert_equal(killed: Run, whole: Run) -> None:
    """Asserts that two runs ended with the same arrays, bit for bit, and the same curves, and that nothing is left."""
    (step,) = {run.steps()[-1] for run in (killed, whole)}
    one, two = killed.arrays(step), whole.arrays(step)
    assert one.keys() == two.keys() and {name.split("/")[0] for name in one} >= {"params", "opt_state"}
    for name, array in one.items():
        assert array.dtype == two[name].dtype and array.tobytes() == two[name].tobytes(), name
    drop = lambda row: {k: v for k, v in row.items() if k != "images_per_second"}
    assert [drop(row) for row in killed.rows()] == [drop(row) for row in whole.rows()]
    assert killed.steps() == whole.steps() and not killed.unfinished()
    names = lambda run: {p.name for p in run.workdir.iterdir() if "tfevents" not in p.name}
    assert names(killed) == names(whole) == {"checkpoints", "config.json", "metrics.jsonl"}
