"""What a long run pays beside its steps: the loop, the saves, the start.

python -m benchmarks.loop --config=configs/quickstart.py

The loop of `train_and_evaluate` against the bare jitted step on one batch, in turns; how long a save of a state of 100
million parameters holds the steps up; the real command from its start to the end of its first step, with an empty
compilation cache and with a full one.
"""

import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import jax
import numpy as np
from absl import flags

from benchmarks.command_line import CONFIG
from hybrid_jax import config as config_lib
from hybrid_jax import metrics, sharding, train, train_state, train_step
from hybrid_jax.storage import checkpoint

_ROUNDS, _STEPS = 3, 100
_SAVE_EVERY = 500  # steps, of which a save may hold up 1 %


def main(argv: list[str]) -> None:
    """Prints the three findings."""
    flags.FLAGS(argv)
    config = CONFIG.value
    config_lib.validate(config)
    print(f"jax {jax.__version__}, {jax.device_count()} x {jax.devices()[0].device_kind}")
    with tempfile.TemporaryDirectory() as folder:
        place = pathlib.Path(folder)
        bare, loop = steps(config, place)
        print(f"bare step {bare * 1e3:.1f} ms, in the loop {loop * 1e3:.1f} ms: {loop / bare - 1:+.1%}")
        parameters, blocked, whole, step = saving(place / "save")
        print(
            f"a save of {parameters / 1e6:.0f} million parameters with their moments holds the steps up for "
            f"{blocked:.2f} s (on disk after {whole:.2f} s): {blocked / (_SAVE_EVERY * step):.3%} of {_SAVE_EVERY} "
            f"steps of {step:.2f} s"
        )
        cold, warm = start(place / "start")
        print(f"from the command to its first step {cold:.1f} s, again with its compiled programs {warm:.1f} s")


def steps(config, folder: pathlib.Path, rounds: int = _ROUNDS, count: int = _STEPS) -> tuple[float, float]:
    """Returns seconds of a step, bare and in the loop of `count` steps; medians of rounds that take turns."""
    config = config_lib.from_dict(config.to_dict())
    config.train.total_steps, config.log.every_steps, config.log.gradients = count, count // 4, False
    config.eval.every_steps, config.checkpoint.every_steps = -1, count
    bare, loop = [], []
    for i in range(rounds + 1):
        bare.append(_bare(config))
        train.train_and_evaluate(config, folder / str(i), lambda line: None)
        # The first interval holds compilation.
        speeds = [row["images_per_second"] for row in metrics.read(folder / str(i))[1:]]
        loop.append(config.train.batch_size / statistics.mean(speeds))
    return statistics.median(bare[1:]), statistics.median(loop[1:])


def _bare(config) -> float:
    mesh = sharding.make_mesh(config)
    state, step = train_state.init_state(config, mesh, None), train_step.make_train_step(config, mesh)
    batch = config.train.batch_size
    shape = (batch, *config.data.image_size, config.data.channels)
    images = sharding.global_batch(np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8), mesh, batch)
    state, _ = jax.block_until_ready(step(state, images))
    begin = time.perf_counter()
    for _ in range(config.train.total_steps):
        state, _ = step(state, images)
    jax.block_until_ready(state)
    return (time.perf_counter() - begin) / config.train.total_steps


def saving(folder: pathlib.Path) -> tuple[int, float, float, float]:
    """Returns parameters; seconds that a save blocks, and until it is on disk; seconds of a step of 8 images."""
    config = config_lib.default_config()
    config.model.width, config.model.num_heads = 768, 12
    config.model.encoder_layers, config.model.decoder_layers = 9, 4
    config.train.batch_size, config.augment.recipe = 8, "none"
    mesh = sharding.make_mesh(config)
    state, step = train_state.init_state(config, mesh, None), train_step.make_train_step(config, mesh)
    images = sharding.global_batch(np.zeros((8, *config.data.image_size, config.data.channels), np.uint8), mesh, 8)
    state, _ = jax.block_until_ready(step(state, images))
    begin = time.perf_counter()
    state, _ = jax.block_until_ready(step(state, images))
    step_seconds = time.perf_counter() - begin
    checkpoints, blocked, whole = checkpoint.Checkpoints(folder, config), [], []
    for i in range(4):
        begin = time.perf_counter()
        checkpoints.save(state.replace(step=state.step + i), config, "benchmark")
        blocked.append(time.perf_counter() - begin)
        checkpoints.wait()
        whole.append(time.perf_counter() - begin)
    checkpoints.close()
    count = sum(x.size for x in jax.tree.leaves(state.params))
    # The first compiles the checksums.
    return count, statistics.median(blocked[1:]), statistics.median(whole[1:]), step_seconds


def start(folder: pathlib.Path) -> tuple[float, float]:
    """Returns seconds from the command to its first step, with nothing compiled before, and again."""
    return _until_first_step(folder, "cold"), _until_first_step(folder, "warm")


def _until_first_step(folder: pathlib.Path, name: str) -> float:
    command = [sys.executable, "-m", "hybrid_jax.main", *sys.argv[1:], f"--workdir={folder / name}"]
    outer = {key: value for key, value in os.environ.items() if key != "JAX_COMPILATION_CACHE_DIR"}
    begin = time.perf_counter()
    with subprocess.Popen(
        command, env=outer | {"HYBRID_JAX_CACHE": str(folder / "cache")}, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("step"):
                spent = time.perf_counter() - begin
                process.kill()
                return spent
    raise RuntimeError(f"{' '.join(command)} ended before its first step")


if __name__ == "__main__":
    main(sys.argv)
