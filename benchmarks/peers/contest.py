"""A contest: the same work done by several contenders, each in a process of its own, taking turns.

A process of its own keeps thread pools, allocators and compiled programs apart; one that waits is blocked in a read.
"""

import contextlib
import dataclasses
import math
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from benchmarks.common import peak_rss

OURS = "hybrid_jax"
# Threads of OpenMP spin a moment after their work; nobody is timed meanwhile.
_SETTLE_SECONDS, _READY_SECONDS, _RUN_SECONDS = 0.3, 400.0, 120.0


class Work(NamedTuple):
    """What a contender does."""

    call: Callable[[], object]  # does one unit of work and returns when that is done
    facts: dict[str, float] | None = None  # `parameters` (a count), `gflop` (10^9 operations a call)
    warm_up: bool = True  # each round begins with a call that does not count


class Contest(NamedTuple):
    """The same work, several ways.

    A contender's factory(quick) builds and imports all that is needed. It goes to another process, so that it is a
    function of a module, or `functools.partial` of one.
    """

    letter: str  # what `--only` picks it by; several contests may share one
    what: str  # the work and its sizes, in a few words
    unit: str  # what one call does, such as `step of 128 images`
    goal: float  # how many times as long a peer shall take, at least
    contenders: Mapping[str, Callable[[bool], Work]]  # {label: factory}, ours first
    same_parameters: bool = True  # all contenders that tell their parameter counts must agree within a few per cent
    rounds: tuple[int, int] = (9, 3)  # in full and with `--quick`, unless `--rounds` says otherwise
    only_full: bool = False  # `--quick` leaves it out


@dataclasses.dataclass
class Result:
    """What became of one contender."""

    seconds: list[float] = dataclasses.field(default_factory=list)  # of one call, round by round
    facts: dict[str, float] = dataclasses.field(default_factory=dict)  # as of `Work`
    rss: float = math.nan  # bytes, the most memory that its process held
    trouble: str = ""  # why there are no figures, in one line

    def median(self) -> float:
        """Returns the median of `seconds`; not a number where there are none."""
        return statistics.median(self.seconds) if self.seconds and not self.trouble else math.nan


def hold(contest: Contest, quick: bool, rounds: int, least: float) -> dict[str, Result]:
    """Lets the contenders take turns; a round lasts at least `least` seconds, as it repeats short calls."""
    results, spawn = {label: Result() for label in contest.contenders}, multiprocessing.get_context("spawn")
    with contextlib.ExitStack() as stack:
        pools = {label: stack.enter_context(spawn.Pool(1)) for label in results}

        def ask(label: str, limit: float, function: Callable, *args: Any) -> Any:
            """Returns the answer; None where there is trouble, which is noted."""
            result, value = results[label], None
            if not result.trouble:
                try:
                    value, result.trouble = pools[label].apply_async(_guarded, (function, *args)).get(limit)
                except multiprocessing.TimeoutError:
                    result.trouble = f"no answer in {limit:.0f} s"
            return value

        for label, factory in contest.contenders.items():
            # One at a time: what they prepare must not slow the others' preparation down to their time limit.
            results[label].facts = ask(label, _READY_SECONDS, _prepare, factory, quick) or {}
        for label in [*results] * rounds:
            time.sleep(_SETTLE_SECONDS)
            if (spent := ask(label, _RUN_SECONDS, _round, least)) is not None:
                results[label].seconds.append(spent)
        for label, result in results.items():
            result.rss = ask(label, _RUN_SECONDS, peak_rss) or math.nan
    return results


# Below: in the contender's own process, which has one work.
_work = Work(lambda: None)


def _guarded(function: Callable, *args: Any) -> tuple[Any, str]:
    """Returns the result, or why there is none: a contender that fails must not end the contest."""
    try:
        return function(*args), ""
    except ModuleNotFoundError as error:
        return None, f"not installed: pip install {str(error.name).partition('.')[0].replace('_', '-')}"
    except MemoryError as error:
        return None, str(error)
    except Exception as error:
        return None, f"failed: {type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


def _prepare(factory: Callable[[bool], Work], quick: bool) -> dict[str, float] | None:
    global _work
    # What libraries print goes to stderr: stdout is the table's.
    os.dup2(2, 1)
    _work = factory(quick)
    if _work.warm_up:
        _work.call()
    return _work.facts


def _round(least: float) -> float:
    """Returns the mean seconds of as many calls as take `least` seconds, after one that does not count.

    That one finds memory and caches as others left them, which a training's steps or a stream of batches do not.
    """
    if _work.warm_up:
        _work.call()
    times: list[float] = []
    while not times or sum(times) < least:
        begin = time.perf_counter()
        _work.call()
        times.append(time.perf_counter() - begin)
    return statistics.fmean(times)
