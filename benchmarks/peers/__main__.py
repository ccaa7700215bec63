"""The same work here and in what a user would pick instead: one table.

python -m benchmarks.peers [--quick] [--only=a,b,...] [--rounds=N]

Every contender runs in a process of its own (benchmarks/peers/contest.py) with all cores and float32; the contenders of
a contest take turns. `peer / ours` is the peer's median time over that of the contest's first line. Peers come with the
extras `[oracle]` and `[peers]`; one that is missing has a line that says how to install it.
"""

import datetime
import math
import os
import pathlib
import platform
import sys

from benchmarks import common
from benchmarks.peers import contest as contest_lib
from benchmarks.peers.contest import Contest, Result
from benchmarks.peers.contests import contests
from hybrid_jax.errors import UserError
from hybrid_jax.utils.cli import exit_code

PACKAGES = ("jax", "jaxlib", "flax", "optax", "torch", "transformers", "pytorch-metric-learning", "kornia")
COLUMNS = "contest|contender|median|range|peer / ours|goal|peak memory"
# Parameter counts of one contest may differ by biases, which ours has not.
_SAME = 0.03


def main() -> None:
    """Prints the table, contest by contest."""
    parser = common.parser(__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds, and without the slowest contests")
    parser.add_argument("--only", default="", help="letters of the contests to hold, such as a,c")
    parser.add_argument("--rounds", type=int, help="times each contender is measured")
    flags = parser.parse_args()
    if flags.rounds is not None and flags.rounds < 1:
        raise UserError(f"--rounds={flags.rounds}: must be at least 1")
    chosen, cores = choose(contests(), flags.only, flags.quick), len(os.sched_getaffinity(0))
    told = common.versions(PACKAGES)
    print(f"{datetime.date.today()}; {cores} cores, {processor()}; {cores} threads for each contender, float32  ")
    print(", ".join(f"{package} {told.get(package, 'not installed')}" for package in PACKAGES) + "\n")
    print(common.table(COLUMNS, []), flush=True)
    for contest in chosen:
        rounds, least = flags.rounds or contest.rounds[flags.quick], 0.2 if flags.quick else 0.5
        print("\n".join(rows(contest, contest_lib.hold(contest, flags.quick, rounds, least))), flush=True)


def choose(every: list[Contest], only: str, quick: bool) -> list[Contest]:
    """Returns the contests that the flags ask for; raises UserError for a letter that no contest has."""
    letters = sorted({contest.letter for contest in every})
    asked = {letter for letter in only.split(",") if letter} or set(letters)
    if asked - set(letters):
        raise UserError(f"--only={only}: must be letters of {', '.join(letters)}, with commas between")
    return [contest for contest in every if contest.letter in asked and not (quick and contest.only_full)]


def processor() -> str:
    """Returns the processor's name."""
    about = pathlib.Path("/proc/cpuinfo")
    lines = about.read_text().splitlines() if about.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def rows(contest: Contest, results: dict[str, Result]) -> list[str]:
    """Returns the contest's rows of the table.

    Raises:
      RuntimeError: contenders whose parameter counts differ by more than a few per cent do not do the same work.
    """
    ours, lines = next(iter(results.values())), []
    for label, result in results.items():
        first = f"({contest.letter}) {contest.what}, {len(ours.seconds)} rounds" if result is ours else ""
        cells = [first, label + _facts(contest, result, ours), *_figures(contest, label, result, ours)]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _figures(contest: Contest, label: str, result: Result, ours: Result) -> list[str]:
    if result.trouble:
        return [result.trouble, "", "", "", ""]
    ratio = result.median() / ours.median()
    return [
        duration(result.median()) + (f" a {contest.unit}" if result is ours else ""),
        f"{duration(min(result.seconds))} to {duration(max(result.seconds))}",
        "1" if result is ours else "" if math.isnan(ratio) else f"{ratio:.2f}",
        "" if label.startswith(contest_lib.OURS) else f"{contest.goal:g}",
        f"{result.rss / common.MIB:,.0f} MiB",
    ]


def _facts(contest: Contest, result: Result, ours: Result) -> str:
    """Returns the parameter and operation counts in brackets, and checks that both do the same work."""
    told = []
    if "parameters" in result.facts:
        count, reference = result.facts["parameters"], ours.facts.get("parameters", math.nan)
        off = count / reference - 1
        if contest.same_parameters and abs(off) > _SAME:
            raise RuntimeError(f"({contest.letter}) {contest.what}: {count:,} and {reference:,} parameters")
        told.append(f"{count:,.0f} parameters" + (f", {off:+.1%}" if result is not ours and off == off else ""))
    if "gflop" in result.facts:
        told.append(f"{result.facts['gflop']:.1f} GFLOP")
    return f" ({'; '.join(told)})" if told else ""


def duration(seconds: float) -> str:
    """Returns seconds in a unit that suits them."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}" if seconds < 100 * size else f"{seconds / size:.0f} {unit}"
    return f"{seconds * 1e6:.3g} µs"


if __name__ == "__main__":
    sys.exit(exit_code(main))
