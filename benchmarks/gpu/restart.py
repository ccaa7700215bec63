"""A run that is saved and killed, and taken up again by another process: is it the same run, to the bit?

python -m benchmarks.gpu.restart [--tiny]

The first process does six steps twice, then three, saves and is killed. The second restores, does the other three; a
third restores on the CPU, which computes the checksums anew. Where sums on a GPU have no fixed order, two equal runs
differ already: what is promised is that the restored state has the saved bits.
"""

import functools
import hashlib
import sys
import time

import jax
import numpy as np

from benchmarks.gpu import commands
from benchmarks.gpu.common import Compiled, compile_step
from benchmarks.gpu.correctness import small_config
from benchmarks.gpu.record import Entry, Record, stage_flags, work_folder
from hybrid_jax import sharding, train_state
from hybrid_jax.storage import checkpoint

_SAVED_AT, _STEPS = 3, 6
_CHANGES = {"colour": {"model.dtype": "bfloat16"}, "grey": {}}
_SAID = "digest "


def main() -> None:
    """Compares, or with `--part` is one of the three processes."""
    given = stage_flags(__doc__ or "", "part", "config", "folder")
    if given.part:
        _PARTS[given.part](given.config, given.folder)
        return
    record = Record("restart", given.tiny)
    for name in ("grey",) if given.tiny else _CHANGES:
        record.add(name, functools.partial(killed_and_restored, name))


def killed_and_restored(name: str) -> Entry:
    """Runs the three processes; returns what was equal, and the seconds of a save and of a restore."""
    folder = work_folder() / f"restart_{name}_{time.time_ns()}"
    folder.mkdir()
    words = ["--config", name, "--folder", str(folder)]
    found = _told("--part=first", *words, until="saved") | _told("--part=second", *words)
    found |= _told("--part=elsewhere", *words, environment={"JAX_PLATFORMS": "cpu"})
    restored = found["restored"] == found["at the save"] == found["restored on a CPU"]
    return {
        "restored_equals_saved": restored,
        "resumed_equals_uninterrupted": found["resumed"] == found["uninterrupted"],
        "repeated_equals_first": found["repeated"] == found["uninterrupted"],
        "save_s": float(found["save seconds"]),
        "restore_s": float(found["restore seconds"]),
        "ok": restored,
    }


def _told(*words: str, until: str = "", environment: dict[str, str] | None = None) -> dict[str, str]:
    said = commands.run(
        *words, program=("-m", "benchmarks.gpu.restart"), until=until, environment=environment
    ).checked()
    pairs = [line.removeprefix(_SAID).split(": ") for _, line in said.lines if line.startswith(_SAID)]
    return dict(pairs)


def _tell(what: str, value: object) -> None:
    print(f"{_SAID}{what}: {value}", flush=True)


def _digest(state: train_state.TrainState) -> str:
    """Returns a digest of every bit that a checkpoint holds."""
    digest = hashlib.blake2b(digest_size=16)
    for path, leaf in jax.tree_util.tree_leaves_with_path(jax.device_get(state.saved())):
        digest.update(jax.tree_util.keystr(path).encode() + np.asarray(leaf).tobytes())
    return digest.hexdigest()


def _steps(made: Compiled, state: train_state.TrainState, first: int, last: int) -> train_state.TrainState:
    batches = made.batches(_STEPS)
    for step in range(first, last):
        state, _ = made.step(state, batches[step])
    return jax.block_until_ready(state)


def _first(name: str, folder: str) -> None:
    made = compile_step(_config(name))
    _tell("uninterrupted", _digest(_steps(made, made.fresh_state(), 0, _STEPS)))
    _tell("repeated", _digest(_steps(made, made.fresh_state(), 0, _STEPS)))
    state = _steps(made, made.fresh_state(), 0, _SAVED_AT)
    _tell("at the save", _digest(state))
    begin = time.perf_counter()
    keeper = checkpoint.Checkpoints(folder, made.config)
    keeper.save(state, made.config, "restart")
    keeper.wait()
    _tell("save seconds", time.perf_counter() - begin)
    print("saved", flush=True)
    # Killed here.
    time.sleep(60)
    sys.exit("nobody killed this process")


def _second(name: str, folder: str) -> None:
    made = compile_step(_config(name))
    begin = time.perf_counter()
    state = _restored(folder, made.config, made.mesh)
    _tell("restore seconds", time.perf_counter() - begin)
    _tell("restored", _digest(state))
    _tell("resumed", _digest(_steps(made, state, _SAVED_AT, _STEPS)))


def _elsewhere(name: str, folder: str) -> None:
    config = _config(name)
    _tell("restored on a CPU", _digest(_restored(folder, config, sharding.make_mesh(config))))


def _config(name: str):
    return small_config(name, _CHANGES[name])


def _restored(folder: str, config, mesh) -> train_state.TrainState:
    keeper = checkpoint.Checkpoints(folder, config)
    state, _ = keeper.restore_latest(train_state.abstract_state(config, mesh), lambda meta: None)
    keeper.close()
    return state


_PARTS = {"first": _first, "second": _second, "elsewhere": _elsewhere}


if __name__ == "__main__":
    main()
