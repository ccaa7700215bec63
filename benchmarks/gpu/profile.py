"""Where a step's time on the GPU goes: by part of the model, by kind of kernel, and how long it has nothing to do.

python -m benchmarks.gpu.profile [--tiny] [--cases=cifar10/hybrid,...]

Each case's compiled program is kept too, as text, in $WORK/programs.
"""

import functools
import gzip
import pathlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import jax

from benchmarks.gpu import cases
from benchmarks.gpu.common import Compiled, Stepper, compile_step, compiled
from benchmarks.gpu.record import Entry, Record, stage_flags, work_folder

_CASES = (("cifar10/hybrid", "fashion_mnist/hybrid", "imagenet32_igpt_s/hybrid"),)
_WARM_UP, _STEPS, _TOP = 3, 4, 25

# What an operation's path in the program holds, by part; the first that fits.
_PARTS = tuple((part, re.compile(rf"\b{part}[./]")) for part in ("encoder", "decoder", "head", "projection"))
_VIEWS = re.compile(
    r"threefry|_uniform|_bernoulli|_shuffle|/cond|clamp|byh,|bxw,|sort|take_along_axis|_make_view|augment"
)
_KINDS = tuple(
    (kind, re.compile(sign))
    for kind, sign in (
        ("cuDNN attention", r"fmha|flash|cudnn"),
        ("matrix product", r"gemm|cutlass|cublas|nvjet|xmma"),
        ("copy", r"[Mm]emcpy|[Mm]emset|copy"),
        ("sort", r"sort"),
        ("scatter", r"scatter"),
        ("reduce", r"reduce"),
        ("transpose", r"transpose"),
    )
)


class Kernel(NamedTuple):
    """A piece of work on the device: when, in nanoseconds, its name, and of which instruction of the program it is."""

    start: float
    duration: float
    name: str
    instruction: str


def main() -> None:
    """Traces a few steps of each case."""
    given = stage_flags(__doc__ or "", "cases")
    record = Record("profile", given.tiny)
    for wave in cases.chosen(given.cases, (_CASES[0][1:2],) if given.tiny else _CASES):
        make = lambda case: compile_step(cases.config_of(case, given.tiny))
        for case, made in compiled(wave, make, record, given.tiny):
            record.add(case, functools.partial(measure, made, case.replace("/", "_")))


def measure(made: Compiled, name: str) -> Entry:
    """Traces steps of one case and reads the trace."""
    step = Stepper(made)
    for _ in range(_WARM_UP):
        metrics = step()
    jax.block_until_ready(metrics)
    folder, programs = work_folder() / f"trace_{name}", work_folder() / "programs"
    with jax.profiler.trace(str(folder)):
        for _ in range(_STEPS):
            metrics = step()
        jax.block_until_ready(metrics)
    text = made.step.as_text()
    programs.mkdir(exist_ok=True)
    (programs / f"{name}.hlo.gz").write_bytes(gzip.compress(text.encode()))
    newest = max(folder.rglob("*.xplane.pb"), key=lambda path: path.stat().st_mtime)
    return summary(list(kernels(newest)), paths_of(text), _STEPS)


def kernels(trace: pathlib.Path) -> Iterator[Kernel]:
    """Yields the kernels of a trace; without a GPU, the operations of the CPU."""
    planes = list(jax.profiler.ProfileData.from_file(str(trace)).planes)
    gpus = [plane for plane in planes if plane.name.startswith("/device:GPU")]
    for plane in gpus or planes:
        for line in plane.lines:
            # A GPU's other lines tell the same time again, by step or by module.
            if gpus and not line.name.startswith("Stream"):
                continue
            for event in line.events:
                stats = dict(event.stats)
                instruction = str(stats.get("hlo_op", ""))
                if event.duration_ns > 0 and (gpus or instruction):
                    yield Kernel(event.start_ns, event.duration_ns, event.name, instruction)


def paths_of(text: str) -> dict[str, str]:
    """Returns {instruction: its path in the model} of a compiled program's text."""
    paths = {}
    for line in text.splitlines():
        if at := re.match(r"\s*(?:ROOT )?%?([\w.\-]+) = ", line):
            path = re.search(r'op_name="([^"]*)"', line)
            paths[at[1]] = path[1] if path else ""
    # Inside of a CUDA graph a kernel may come without its instruction; XLA names its own kernels after them.
    return paths | {re.sub(r"[.\-]", "_", name): path for name, path in paths.items()}


def part_of(path: str) -> str:
    """Returns to which part of the step an operation belongs, by its path."""
    for part, sign in _PARTS:
        if sign.search(path):
            return part + (" backward" if "transpose(" in path else " forward")
    if "jvp(" in path:
        return "losses"
    return "views" if _VIEWS.search(path) else "optimizer, average, norms, rest"


def kind_of(kernel: Kernel) -> str:
    """Returns what kind of kernel it is, by its name."""
    name = f"{kernel.name} {kernel.instruction}"
    return next((kind for kind, sign in _KINDS if sign.search(name)), "other fusion")


def summary(found: list[Kernel], paths: dict[str, str], steps: int) -> Entry:
    """Adds up kernels.

    Args:
      found: of the traced steps.
      paths: of `paths_of`.
      steps: how many were traced.

    Returns:
      `kernels_a_step`; `busy_ms` and `wall_ms` of a step, `idle_share` of the wall time; milliseconds of a step
      `by_part`, `by_kind`, and of the longest kernels, `top`.
    """
    if not found:
        raise ValueError("the trace has no kernels")
    by_part, by_kind, top = Counter(), Counter(), Counter()
    for kernel in found:
        path = paths.get(kernel.instruction) or paths.get(kernel.name, "")
        by_part[part_of(path) if path else "not known"] += kernel.duration
        by_kind[kind_of(kernel)] += kernel.duration
        top[f"{kernel.name[:60]} | {kernel.instruction[:40]} | {path[-60:]}"] += kernel.duration
    busy = _union((kernel.start, kernel.start + kernel.duration) for kernel in found)
    wall = max(k.start + k.duration for k in found) - min(k.start for k in found)
    a_step = lambda counts: {name: round(ns / 1e6 / steps, 4) for name, ns in counts}
    return {
        "kernels_a_step": len(found) / steps,
        "busy_ms": busy / 1e6 / steps,
        "wall_ms": wall / 1e6 / steps,
        "idle_share": 1 - busy / wall,
        "by_part": a_step(by_part.most_common()),
        "by_kind": a_step(by_kind.most_common()),
        "top": a_step(top.most_common(_TOP)),
    }


def _union(spans: Iterable[tuple[float, float]]) -> float:
    """Returns the length that spans cover together."""
    covered = end = 0.0
    for start, stop in sorted(spans):
        covered += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return covered


if __name__ == "__main__":
    main()
