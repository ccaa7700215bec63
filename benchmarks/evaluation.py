"""What an evaluation costs, part by part: seconds, compiled programs and the seconds of their compilation.

python -m benchmarks.evaluation --workdir=runs/quickstart [--names]

Evaluates a workdir's newest checkpoint as --mode=eval does, in a copy where no earlier evaluation kept anything. A
program counts also where a cache of compiled ones holds it, which spares seconds of compilation only. `--names` tells
which programs each part compiles.
"""

import contextlib
import dataclasses
import pathlib
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any
from unittest import mock

import jax

from benchmarks import common
from hybrid_jax import evaluate, evaluators
from hybrid_jax.report import run_report
from hybrid_jax.storage import checkpoint
from hybrid_jax.utils.cli import exit_code

_COMPILED = "/jax/core/compile/backend_compile_duration"


@dataclasses.dataclass
class Cost:
    """Of a part: seconds, those of all threads, compiled programs by their functions' names, seconds of compilation."""

    wall: float = 0.0
    processor: float = 0.0
    programs: Counter[str] = dataclasses.field(default_factory=Counter)
    compilation: float = 0.0


@contextlib.contextmanager
def measured(cost: Cost) -> Iterator[None]:
    """Adds to `cost` what happens inside, or in the calls of a function that it decorates."""

    def listen(event: str, duration: float, **told: Any) -> None:
        if event == _COMPILED:
            cost.programs[str(told.get("fun_name"))] += 1
            cost.compilation += duration

    wall, processor = time.perf_counter(), time.process_time()
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
        cost.wall += time.perf_counter() - wall
        cost.processor += time.process_time() - processor


def costs(workdir: pathlib.Path) -> dict[str, Cost]:
    """Evaluates a copy of a workdir; returns {part: cost}, every evaluator, what comes before and after, the whole."""
    found = {name: Cost() for name in (*evaluators.EVALUATORS, "anomaly score", "report", "whole")}
    functions = {name: measured(found[name])(function) for name, function in evaluators.EVALUATORS.items()}
    anomaly = measured(found["anomaly score"])(evaluate.write_anomaly)
    report = measured(found["report"])(run_report.write_report)
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.dict(evaluators.EVALUATORS, functions),
        mock.patch.object(evaluate, "write_anomaly", anomaly),
        mock.patch.object(run_report, "write_report", report),
    ):
        copy = pathlib.Path(folder)
        shutil.copytree(checkpoint.directory(workdir), checkpoint.directory(copy))
        measured(found["whole"])(evaluate.evaluate_workdir)(copy, None, None, print)
    return {name: cost for name, cost in found.items() if cost.wall}


def main() -> None:
    """Prints the table."""
    parser = common.parser(__doc__)
    parser.add_argument("--workdir", type=pathlib.Path, required=True, help="of a trained model")
    parser.add_argument("--names", action="store_true", help="tell which programs each part compiles")
    given = parser.parse_args()
    print(common.device_line())
    found = costs(given.workdir)
    rows = [
        (part, f"{c.wall:.1f}", f"{c.processor:.1f}", c.programs.total(), f"{c.compilation:.1f}")
        for part, c in found.items()
    ]
    print(common.table("part|wall s|processor s|programs|compilation s", rows))
    for part, cost in found.items() if given.names else ():
        print(f"{part}: {', '.join(f'{n} x {name}' for name, n in cost.programs.most_common())}")


if __name__ == "__main__":
    sys.exit(exit_code(main))
