"""The same work here and in what a user would pick instead: one table.

python -m benchmarks.peers [--quick] [--only=a,b,...] [--rounds=N]

Every contender runs in a process of its own (benchmarks/contest.py) with all cores and float32; the contenders of a
contest take turns. `peer / ours` is the peer's median time over that of the contest's first line. Peers come with the
extras `[oracle]` and `[peers]`; one that is missing has a line that says how to install it.
"""

import argparse
import datetime
import importlib.util
import math
import pathlib
import platform
import sys

from benchmarks import contest as contest_lib
from benchmarks import peer_steps
from benchmarks.contest import Contest, Result
from hybrid_jax.errors import UserError
from hybrid_jax.utils.cli import Parser, exit_code

PACKAGES = ("jax", "jaxlib", "flax", "optax", "torch", "transformers", "pytorch-metric-learning", "kornia")
# By the name of its module, where that differs from the package's.
_INSTALLED_AS = {"pytorch_metric_learning": "pytorch-metric-learning"}
_COLUMNS = ("contest", "contender", "median", "range", "peer / ours", "goal", "peak memory")
# Parameter counts of one contest may differ by biases, which ours has not.
_SAME = 0.03


def contests() -> list[Contest]:
    """Returns all contests, by letter."""
    found = peer_steps.contests()
    if importlib.util.find_spec("benchmarks.peer_parts"):
        from benchmarks import peer_parts

        found += peer_parts.contests()
    return sorted(found, key=lambda contest: contest.letter)


def main() -> None:
    """Prints the table, contest by contest."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds, and without the slowest contests")
    parser.add_argument("--only", default="", help="letters of the contests to hold, such as a,c")
    parser.add_argument("--rounds", type=int, help="times each contender is measured")
    parser.add_argument("--worker", default="", help="used by the command itself: be this contender")
    flags = parser.parse_args()
    if flags.worker:
        number, _, label = flags.worker.partition(" ")
        contest_lib.work(contests()[int(number)].contenders[label], flags.quick)
        return
    if flags.rounds is not None and flags.rounds < 1:
        raise UserError(f"--rounds={flags.rounds}: must be at least 1")
    chosen = choose(contests(), flags.only, flags.quick)
    print("\n".join(head()), flush=True)
    for number, contest in chosen:
        rounds, least = flags.rounds or contest.rounds[flags.quick], 0.2 if flags.quick else 0.5
        results = contest_lib.hold(contest, lambda label, n=number: _command(n, label, flags.quick), rounds, least)
        print("\n".join(rows(contest, results)), flush=True)


def choose(every: list[Contest], only: str, quick: bool) -> list[tuple[int, Contest]]:
    """Returns the contests that the flags ask for, each with its place in the list of all.

    Raises:
      UserError: a letter that no contest has.
    """
    letters = sorted({contest.letter for contest in every})
    asked = {letter for letter in only.split(",") if letter} or set(letters)
    if asked - set(letters):
        raise UserError(f"--only={only}: must be letters of {', '.join(letters)}, with commas between")
    return [(i, c) for i, c in enumerate(every) if c.letter in asked and not (quick and c.only_full)]


def _command(number: int, label: str, quick: bool) -> list[str]:
    return [sys.executable, "-m", "benchmarks.peers", f"--worker={number} {label}", *(["--quick"] if quick else [])]


def head() -> list[str]:
    """Returns the lines above the rows: date, machine, versions, and the names of the columns."""
    day, cores = datetime.date.today().isoformat(), contest_lib.cores()
    return [
        f"{day}; {cores} cores, {processor()}; {cores} threads for each contender, float32  ",
        contest_lib.versions(PACKAGES),
        "",
        f"| {' | '.join(_COLUMNS)} |",
        "|" + "---|" * len(_COLUMNS),
    ]


def processor() -> str:
    """Returns the processor's name."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def rows(contest: Contest, results: dict[str, Result]) -> list[str]:
    """Returns the contest's rows of the table.

    Raises:
      RuntimeError: contenders whose parameter counts differ by more than a few per cent do not do the same work.
    """
    ours = results[contest.ours()]
    lines = []
    for label, result in results.items():
        first = f"({contest.letter}) {contest.what}, {len(ours.seconds)} rounds" if not lines else ""
        lines.append(
            f"| {first} | {label}{_facts(contest, result, ours)} | {' | '.join(_cells(contest, label, result, ours))} |"
        )
    return lines


def _cells(contest: Contest, label: str, result: Result, ours: Result) -> list[str]:
    if result.trouble:
        return [_trouble(result.trouble), "", "", "", ""]
    same = result is ours
    ratio = "1" if same else f"{result.median() / ours.median():.2f}"
    return [
        f"{duration(result.median())} a {contest.unit}" if same else duration(result.median()),
        f"{duration(min(result.seconds))} to {duration(max(result.seconds))}",
        "" if math.isnan(ours.median()) else ratio,
        "" if label.startswith(contest_lib.OURS) else f"{contest.goal:g}",
        f"{result.rss / 2**20:,.0f} MiB",
    ]


def _trouble(trouble: str) -> str:
    word, _, rest = trouble.partition(": ")
    if word != "missing":
        return rest if word == "refused" else trouble
    module = rest.partition(".")[0]
    return f"not installed: pip install {_INSTALLED_AS.get(module, module)}"


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
