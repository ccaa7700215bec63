"""What a long run pays beside its steps: the loop, the saves, the start.

python -m benchmarks.loop --config=configs/quickstart.py

The loop of `train_and_evaluate` against the bare jitted step on one batch, in turns; how long a save of a state of 100
million parameters holds the steps up; the real command from its start to the end of its first step, with an empty
compilation cache and with a full one.
"""

import pathlib
import statistics
import sys
import tempfile
import time

import jax

from benchmarks import common, step
from benchmarks.config_flag import given_config
from hybrid_jax import config as config_lib
from hybrid_jax import metrics, train
from hybrid_jax.storage import checkpoint
from hybrid_jax.utils import cli

_ROUNDS, _STEPS = 3, 100
_SAVE_EVERY = 500  # steps, of which a save may hold up 1 %


def main() -> None:
    """Prints the three findings."""
    config = given_config()
    print(common.device_line())
    with tempfile.TemporaryDirectory() as folder:
        place = pathlib.Path(folder)
        bare, loop = steps(config, place)
        print(f"bare step {bare * 1e3:.1f} ms, in the loop {loop * 1e3:.1f} ms: {loop / bare - 1:+.1%}")
        parameters, blocked, whole, one = saving(place / "save")
        print(
            f"a save of {parameters / 1e6:.0f} million parameters with their moments holds the steps up for "
            f"{blocked:.2f} s (on disk after {whole:.2f} s): {blocked / (_SAVE_EVERY * one):.3%} of {_SAVE_EVERY} "
            f"steps of {one:.2f} s"
        )
        cold, warm = starts(sys.argv[1:], place / "start", place / "cache")
        print(f"from the command to its first step {cold:.1f} s, again with its compiled programs {warm:.1f} s")


def steps(config, folder: pathlib.Path, rounds: int = _ROUNDS, count: int = _STEPS) -> tuple[float, float]:
    """Returns seconds of a step, bare and in the loop of `count` steps; medians of rounds that take turns."""
    config = config_lib.from_dict(config.to_dict())
    config.train.total_steps, config.log.every_steps, config.log.gradients = count, count // 4, False
    config.eval.every_steps, config.checkpoint.every_steps = -1, count
    bare, loop = [], []
    for i in range(rounds + 1):
        call = step.whole_step(config).call
        jax.block_until_ready(call())
        begin = time.perf_counter()
        for _ in range(count):
            last = call()
        jax.block_until_ready(last)
        bare.append((time.perf_counter() - begin) / count)
        del call, last  # a state that the loop's process does not hold
        train.train_and_evaluate(config, folder / str(i), lambda line: None)
        # The first interval holds compilation.
        speeds = [row["images_per_second"] for row in metrics.read(folder / str(i))[1:]]
        loop.append(config.train.batch_size / statistics.mean(speeds))
    return statistics.median(bare[1:]), statistics.median(loop[1:])


def saving(folder: pathlib.Path) -> tuple[int, float, float, float]:
    """Returns parameters; seconds that a save blocks, and until it is on disk; seconds of a step of 8 images."""
    config = config_lib.default_config()
    config.model.width, config.model.num_heads = 768, 12
    config.model.encoder_layers, config.model.decoder_layers = 9, 4
    config.train.batch_size, config.augment.recipe = 8, "none"
    call = step.whole_step(config).call
    (one,) = common.in_turns({"step": call}, 1)["step"]
    state, _ = call()
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
    return count, statistics.median(blocked[1:]), statistics.median(whole[1:]), one


def starts(flags: list[str], folder: pathlib.Path, cache: pathlib.Path) -> tuple[float, float]:
    """Returns seconds from the command to its first step, with nothing compiled before, and again."""
    kept = {"JAX_COMPILATION_CACHE_DIR": None, "HYBRID_JAX_CACHE": str(cache)}
    cold, warm = (
        common.run(*flags, f"--workdir={folder}-{name}", environment=kept, until="step") for name in ("cold", "warm")
    )
    return cold.seconds, warm.seconds


if __name__ == "__main__":
    cli.run_cli(main, __doc__)
