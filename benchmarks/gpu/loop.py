"""What a run pays beside its steps: from the command to the first step, and the loop over the bare step.

python -m benchmarks.gpu.loop [--tiny]

configs/quickstart.py with AdamW; the same measures as `benchmarks.loop` takes on CPUs, with as many steps as a GPU does
in a moment.
"""

import pathlib
import shutil
import tempfile

import jax

from benchmarks import loop as cpu_loop
from benchmarks.common import apply
from benchmarks.gpu import commands
from benchmarks.gpu.record import Entry, Record, stage_flags, work_folder
from configs import quickstart


def main() -> None:
    """Times starts first: a process that has the GPU's memory leaves none to another."""
    tiny = stage_flags(__doc__ or "").tiny
    record = Record("loop", tiny)
    changes = ["optimizer.name=adamw", "eval.anomaly.num_images=0", "eval.every_steps=-1"]
    changes += ["train.total_steps=12", *commands.TINY_MODEL] if tiny else ["train.total_steps=1000"]
    cache = work_folder() / "start_cache"
    record.add("from the command to its first step", lambda: starts(changes, cache))
    # The same program, which need not be compiled again.
    jax.config.update("jax_compilation_cache_dir", str(cache))
    record.add("quickstart", lambda: over_bare_step(changes, 1 if tiny else 3))


def starts(changes: list[str], cache: pathlib.Path) -> Entry:
    """Returns seconds from the command to its first step, with nothing compiled before (`cold_s`), and again."""
    workdir = work_folder() / "start"
    found = {}
    shutil.rmtree(cache, ignore_errors=True)
    for name in ("cold_s", "warm_s"):
        shutil.rmtree(workdir, ignore_errors=True)
        words = ["--config=configs/quickstart.py", f"--workdir={workdir}", *commands.settings(*changes)]
        said = commands.run(*words, environment={"JAX_COMPILATION_CACHE_DIR": str(cache)}, until="step")
        found[name] = said.seconds
    return found


def over_bare_step(changes: list[str], rounds: int) -> Entry:
    """Returns milliseconds of a step, bare and in the loop, and their ratio."""
    config = quickstart.get_config()
    apply(config, changes)
    with tempfile.TemporaryDirectory(dir=work_folder()) as folder:
        bare, loop = cpu_loop.steps(config, pathlib.Path(folder), rounds, config.train.total_steps)
    per_second = config.train.batch_size / loop
    return {"bare_ms": 1e3 * bare, "loop_ms": 1e3 * loop, "loop_over_bare": loop / bare, "images_per_s": per_second}


if __name__ == "__main__":
    main()
