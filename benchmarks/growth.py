"""How the train step's time and memory grow, beside what the mathematics requires.

python -m benchmarks.growth [--quick] [--output=runs/growth] [--plot_only]

Along each axis (batch, image, patches, width, depth, fake devices, NT-Xent's batch) a few sizes are measured, each in a
process of its own, in two passes over all, so that a slow minute of the machine does not bend one curve.
Exponents are slopes of logarithms by least squares; beside them stand those of the operations and bytes that the
mathematics needs at the same sizes (benchmarks/growth_counts.py). Then peak memory of the quickstart, shortened, and of
mode `embed`. `growth.json` in the output keeps every finished measurement: what is there is not measured again.
Fake devices share this machine's cores: they show what cutting the batch costs, and no speed-up.
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np
from absl import flags

from benchmarks import growth_fit, growth_plot
from benchmarks.growth_points import AXES, BASE, Axis
from hybrid_jax.errors import UserError
from hybrid_jax.storage.files import write_whole
from hybrid_jax.utils import cli

QUICK = flags.DEFINE_bool("quick", False, "Two sizes along each axis, one pass, and no whole runs.")
OUTPUT = flags.DEFINE_string("output", "runs/growth", "Folder of growth.json and growth.png.")
PLOT_ONLY = flags.DEFINE_bool("plot_only", False, "Measure nothing: table and plot of what growth.json holds.")
PASSES = 2
RUN_STEPS = 60
EMBEDDED = 10_000
ROOT = pathlib.Path(__file__).parent.parent
MIB = 2**20

Row = dict[str, Any]


def main() -> None:
    """Measures what is missing, prints the tables, draws the plot."""
    output = pathlib.Path(OUTPUT.value)
    results = _read(output / "growth.json")
    if PLOT_ONLY.value and not results["points"]:
        raise UserError(f"--output={output}: holds no growth.json with measurements; run without --plot_only")
    if not PLOT_ONLY.value:
        try:
            output.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--output={output}: cannot be made ({error.strerror})") from error
        measure(results, output)
    print(f"{os.cpu_count()} cores; base: " + ", ".join(f"{k.split('.')[1]} {v}" for k, v in BASE.items()))
    print(growth_fit.table(results["points"]))
    print("\n" + growth_fit.compile_table(results["points"]))
    for name, size in results["runs"].items():
        print(f"\npeak RSS, {name}: {size / MIB:,.0f} MiB")
    growth_plot.draw(results["points"], output / "growth.png")


def measure(results: dict[str, Any], output: pathlib.Path) -> None:
    """Adds what `results` lack, and writes them after each measurement."""
    known = {(row["pass"], row["axis"], row["size"]): row for row in results["points"]}
    cache = output.absolute() / "compiled"
    alike = {(number, task(axis, size)): known.get((number, axis.name, size)) for number, axis, size in planned()}
    for number, axis, size in planned():
        if (number, axis.name, size) in known:
            continue
        found = alike[number, task(axis, size)]
        if found is None:
            found = measured(task(axis, size), number, cache / f"{axis.name}-{size}")
            alike[number, task(axis, size)] = found
            told = f"pass {number + 1}, {axis.name} {size}: {found['seconds'] * 1e3:,.1f} ms"
            print(told, file=sys.stderr, flush=True)
        results["points"].append(found | {"axis": axis.name, "size": size, "pass": number})
        write_whole(output / "growth.json", json.dumps(results, indent=1) + "\n")
    shutil.rmtree(cache, ignore_errors=True)
    if not QUICK.value and not results["runs"]:
        results["runs"] = whole_runs()
        write_whole(output / "growth.json", json.dumps(results, indent=1) + "\n")


def task(axis: Axis, size: int) -> str:
    """Returns what a worker is told: equal for the base's own size, which several axes share."""
    told = {"kind": axis.kind, "settings": axis.settings(size), "devices": axis.devices(size)}
    return json.dumps(told, sort_keys=True)


def planned() -> Iterator[tuple[int, Axis, int]]:
    """Yields pass, axis and size; neighbours in time are of different axes."""
    for number in range(1 if QUICK.value else PASSES):
        chosen = {axis: axis.quick if QUICK.value else axis.sizes for axis in AXES}
        for turn in range(max(map(len, chosen.values()))):
            for axis, sizes in chosen.items():
                if turn < len(sizes):
                    yield number, axis, sizes[turn]


def measured(told: str, number: int, cache: pathlib.Path) -> Row:
    """Returns what a process of its own measured; the first pass compiles, later ones find the program."""
    finds = number > 0 and cache.exists()
    if not finds:
        shutil.rmtree(cache, ignore_errors=True)
    outer = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={json.loads(told)['devices']}",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
    }
    command = [sys.executable, "-m", "benchmarks.growth_worker", told]
    done = subprocess.run(command, cwd=ROOT, env=outer, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{told} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1]) | {"cached": finds}


def whole_runs() -> dict[str, int]:
    """Returns {run: peak bytes} of the shortened quickstart and of embedding with its checkpoint."""
    with tempfile.TemporaryDirectory() as folder:
        place = pathlib.Path(folder)
        images = np.random.default_rng(0).integers(0, 256, (EMBEDDED, 28, 28, 1), dtype=np.uint8)
        np.save(place / "images.npy", images)
        workdir = f"--workdir={place / 'quickstart'}"
        train = ["--config=configs/quickstart.py", f"--config.train.total_steps={RUN_STEPS}", workdir]
        steps = f"configs/quickstart.py with {RUN_STEPS} steps"
        return {
            f"{steps}, not evaluated": _peak_rss([*train[:2], "--config.eval.every_steps=-1", f"{workdir}-bare"]),
            f"{steps}, evaluated": _peak_rss(train),
            f"--mode=embed, {EMBEDDED:,} images of 28x28": _peak_rss(
                ["--mode=embed", f"--input={place / 'images.npy'}", workdir]
            ),
        }


def _peak_rss(arguments: list[str]) -> int:
    """Returns the most bytes that the command held, compiling everything itself."""
    command = [sys.executable, "-m", "hybrid_jax.main", *arguments]
    print(" ".join(command[1:]), file=sys.stderr, flush=True)
    outer = os.environ | {"JAX_COMPILATION_CACHE_DIR": ""}
    with subprocess.Popen(command, cwd=ROOT, env=outer, stdout=subprocess.DEVNULL) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}")
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _read(path: pathlib.Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {"points": [], "runs": {}}
    except (OSError, ValueError) as error:
        raise UserError(f"--output={path.parent}: growth.json cannot be read ({error}); remove it") from error


if __name__ == "__main__":
    cli.answer(main, __doc__)
