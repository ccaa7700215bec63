"""How the train step's time and memory grow, beside what the mathematics requires.

python -m benchmarks.growth [--quick] [--output=runs/growth] [--plot_only]

Along each axis (batch, image, patches, width, depth, fake devices, NT-Xent's batch) a few sizes are measured, each in a
process of its own, in two passes over all, so that a slow minute of the machine does not bend one curve. Exponents are
slopes of logarithms by least squares; beside them stand those of the operations and bytes that the mathematics needs at
the same sizes (benchmarks/growth/points.py). Then peak memory of the quickstart, shortened, and of mode `embed`.
`growth.json` in the output keeps every finished measurement: what is there is not measured again. Fake devices share
this machine's cores: they show what cutting the batch costs, and no speed-up.
"""

import hashlib
import itertools
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
from typing import Any

import numpy as np
from absl import flags

from benchmarks.common import MIB, ROOT
from benchmarks.growth import fit
from benchmarks.growth.points import AXES, BASE
from hybrid_jax.errors import UserError
from hybrid_jax.storage.files import write_whole
from hybrid_jax.utils import cli

QUICK = flags.DEFINE_bool("quick", False, "Two sizes along each axis, one pass, and no whole runs.")
OUTPUT = flags.DEFINE_string("output", "runs/growth", "Folder of growth.json and growth.png.")
PLOT_ONLY = flags.DEFINE_bool("plot_only", False, "Measure nothing: table and plot of what growth.json holds.")
PASSES, RUN_STEPS, EMBEDDED = 2, 60, 10_000


def main() -> None:
    """Measures what is missing, prints the tables, draws the plot."""
    output = pathlib.Path(OUTPUT.value)
    kept = output / "growth.json"
    try:
        output.mkdir(parents=True, exist_ok=True)
        results = json.loads(kept.read_text()) if kept.exists() else {"measured": {}, "runs": {}}
    except (OSError, ValueError) as error:
        raise UserError(f"--output={output}: growth.json cannot be kept or read there ({error})") from error
    if PLOT_ONLY.value and not results["measured"]:
        raise UserError(f"--output={output}: holds no growth.json with measurements; run without --plot_only")
    if not PLOT_ONLY.value:
        measure(results, kept)
    print(f"{os.cpu_count()} cores; base: " + ", ".join(f"{k.split('.')[1]} {v}" for k, v in BASE.items()))
    print(fit.exponents(results["measured"]))
    print("\n" + fit.compilation(results["measured"]))
    for name, size in results["runs"].items():
        print(f"\npeak RSS, {name}: {size / MIB:,.0f} MiB")
    fit.draw(results["measured"], output / "growth.png")


def measure(results: dict[str, Any], kept: pathlib.Path) -> None:
    """Adds what `results` lack, and writes them after each measurement."""
    write = lambda: write_whole(kept, json.dumps(results, indent=1) + "\n")
    cache = kept.absolute().parent / "compiled"
    chosen = {name: axis.quick if QUICK.value else axis.sizes for name, axis in AXES.items()}
    # Neighbours in time are of different axes.
    planned = [(n, sizes[turn]) for turn in range(4) for n, sizes in chosen.items() if turn < len(sizes)]
    for number, (name, size) in itertools.product(range(1 if QUICK.value else PASSES), planned):
        task = AXES[name].task(size)
        passes = results["measured"].setdefault(task, [])
        if len(passes) == number:
            passes.append(measured(task, number, cache))
            told = f"{passes[-1]['seconds'] * 1e3:,.1f} ms"
            print(f"pass {number + 1}, {name} {size}: {told}", file=sys.stderr, flush=True)
            write()
    shutil.rmtree(cache, ignore_errors=True)
    if not QUICK.value and not results["runs"]:
        results["runs"] = whole_runs()
        write()


def measured(task: str, number: int, cache: pathlib.Path) -> fit.Row:
    """Returns what a process of its own measured; the first pass compiles, later ones find the program."""
    own = cache / hashlib.blake2b(task.encode(), digest_size=8).hexdigest()
    if number == 0:
        shutil.rmtree(own, ignore_errors=True)
    devices = f"--xla_force_host_platform_device_count={json.loads(task)['devices']}"
    outer = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": devices, "JAX_COMPILATION_CACHE_DIR": str(own)}
    command = [sys.executable, "-m", "benchmarks.growth.points", task]
    done = subprocess.run(command, cwd=ROOT, env=outer, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{task} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def whole_runs() -> dict[str, int]:
    """Returns {run: peak bytes} of the shortened quickstart and of embedding with its checkpoint."""
    with tempfile.TemporaryDirectory() as folder:
        images, workdir = f"{folder}/images.npy", f"--workdir={folder}/quickstart"
        np.save(images, np.random.default_rng(0).integers(0, 256, (EMBEDDED, 28, 28, 1), dtype=np.uint8))
        train = ["--config=configs/quickstart.py", f"--config.train.total_steps={RUN_STEPS}"]
        steps, found = f"configs/quickstart.py with {RUN_STEPS} steps", {}
        for name, words in {
            f"{steps}, not evaluated": [*train, "--config.eval.every_steps=-1", f"{workdir}-bare"],
            f"{steps}, evaluated": [*train, workdir],
            f"--mode=embed, {EMBEDDED:,} images of 28x28": ["--mode=embed", f"--input={images}", workdir],
        }.items():
            command = [sys.executable, "-m", "hybrid_jax.main", *words]
            print(" ".join(command[1:]), file=sys.stderr, flush=True)
            # Everything is compiled there.
            outer = os.environ | {"JAX_COMPILATION_CACHE_DIR": ""}
            process = subprocess.Popen(command, cwd=ROOT, env=outer, stdout=subprocess.DEVNULL)
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            if process.returncode:
                raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}")
            found[name] = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return found


if __name__ == "__main__":
    cli.run_cli(main, __doc__)
