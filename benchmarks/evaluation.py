"""What an evaluation costs, part by part: seconds, compiled programs and the seconds of their compilation.

python -m benchmarks.evaluation --workdir=runs/quickstart

Evaluates a workdir's newest checkpoint as --mode=eval does, in a copy where no earlier evaluation kept anything. A
program counts also where a cache of compiled ones holds it, which spares seconds of compilation only.
"""

import argparse
import contextlib
import dataclasses
import pathlib
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import jax

from hybrid_jax import evaluate, evaluators
from hybrid_jax.report import run_report
from hybrid_jax.storage import checkpoint

_COMPILED = "/jax/core/compile/backend_compile_duration"
_HEADS = ("part", "wall s", "processor s", "programs", "compilation s")


@dataclasses.dataclass
class Cost:
    """What a part took.

    Attributes:
      wall, processor: seconds, the latter of all threads.
      programs: the compiled ones, by their functions' names.
      compilation: seconds, within `wall`.
    """

    wall: float = 0.0
    processor: float = 0.0
    programs: Counter[str] = dataclasses.field(default_factory=Counter)
    compilation: float = 0.0


@contextlib.contextmanager
def measured(cost: Cost) -> Iterator[Cost]:
    """Adds to `cost` what happens inside."""

    def listen(event: str, duration: float, **told: Any) -> None:
        if event == _COMPILED:
            cost.programs[str(told.get("fun_name"))] += 1
            cost.compilation += duration

    wall, processor = time.perf_counter(), time.process_time()
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield cost
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
        cost.wall += time.perf_counter() - wall
        cost.processor += time.process_time() - processor


def costs(workdir: pathlib.Path, log: Callable[[str], None] = print) -> dict[str, Cost]:
    """Evaluates a copy of a workdir.

    Args:
      workdir: of a trained model.
      log: takes progress lines.

    Returns:
      {part: cost}: every evaluator, then what comes before and after them, last the whole.
    """
    found = {name: Cost() for name in (*evaluators.EVALUATORS, "anomaly score", "report", "whole")}

    def watched(name: str, function: Callable) -> Callable:
        def call(*args, **kwargs):
            with measured(found[name]):
                return function(*args, **kwargs)

        return call

    functions = {name: watched(name, function) for name, function in evaluators.EVALUATORS.items()}
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.dict(evaluators.EVALUATORS, functions),
        mock.patch.object(evaluate, "write_anomaly", watched("anomaly score", evaluate.write_anomaly)),
        mock.patch.object(run_report, "write_report", watched("report", run_report.write_report)),
    ):
        copy = pathlib.Path(folder)
        shutil.copytree(checkpoint.directory(workdir), checkpoint.directory(copy))
        watched("whole", evaluate.evaluate_workdir)(copy, None, None, log)
    return {name: cost for name, cost in found.items() if cost.wall}


def table(found: dict[str, Cost], names: bool = False) -> str:
    """Returns the costs as a Markdown table, with `names` each part's programs below it."""
    lines = [f"| {' | '.join(_HEADS)} |", "|---" * len(_HEADS) + "|"]
    for part, cost in found.items():
        figures = f"{cost.wall:.1f} | {cost.processor:.1f} | {cost.programs.total()} | {cost.compilation:.1f}"
        lines.append(f"| {part} | {figures} |")
    if names:
        lines += [
            f"{part}: {', '.join(f'{n} x {k}' for k, n in c.programs.most_common())}" for part, c in found.items()
        ]
    return "\n".join(lines)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=pathlib.Path, required=True, help="of a trained model")
    parser.add_argument("--names", action="store_true", help="tell which programs each part compiles")
    given = parser.parse_args()
    print(f"jax {jax.__version__}, {jax.device_count()} x {jax.devices()[0].device_kind}")
    print(table(costs(given.workdir), given.names))


if __name__ == "__main__":
    main()
