"""A contest: the same work done by several contenders, each in a process of its own, taking turns.

A process of its own keeps thread pools, allocators and compiled programs apart; one that waits is blocked in a read.
The processes speak lines over stdin and stdout: a worker says `ready` and what it knows of its work as JSON, each `run`
is answered with `seconds` of one call, `end` with `rss`, the most memory it held; `missing` names a module that is not
installed, `refused` says how much memory it would need, `failed` why there is no answer.
"""

import dataclasses
import importlib.metadata
import json
import math
import os
import queue
import resource
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import IO

OURS = "hybrid_jax"
# Threads of OpenMP spin a moment after their work; nobody is timed meanwhile.
_SETTLE_SECONDS = 0.3
_READY_SECONDS, _RUN_SECONDS = 400.0, 120.0

Call = Callable[[], object]
Factory = Callable[[bool], Call]


@dataclasses.dataclass(frozen=True)
class Contest:
    """The same work, several ways.

    Attributes:
      letter: what `--only` picks it by; several contests may share one.
      what: the work and its sizes, in a few words.
      unit: what one call does, such as `step of 128 images`.
      goal: how many times as long a peer shall take, at least.
      contenders: {label: factory}. factory(quick) builds all that is needed, and imports it; the call it returns
        does one unit of work and returns when that is done. The first label that starts with `hybrid_jax` is
        what others are compared with.
      same_parameters: whether all contenders that tell their parameter counts must agree within a few per cent.
      rounds: times each contender is measured, in full and with `--quick`, unless `--rounds` says otherwise.
      only_full: whether `--quick` leaves it out.
    """

    letter: str
    what: str
    unit: str
    goal: float
    contenders: dict[str, Factory]
    same_parameters: bool = True
    rounds: tuple[int, int] = (9, 3)
    only_full: bool = False

    def ours(self) -> str:
        """Returns the label that others are compared with."""
        return next(label for label in self.contenders if label.startswith(OURS))


@dataclasses.dataclass(frozen=True)
class Described:
    """A call with what is known of its work, all optional.

    Attributes:
      call: does one unit of work.
      facts: `parameters` (a count), `gflop` (10^9 operations a call), `threads`.
      warm_up: whether each round begins with a call that does not count.
    """

    call: Call
    facts: dict[str, float]
    warm_up: bool = True

    def __call__(self) -> object:
        """Does one unit of work."""
        return self.call()


@dataclasses.dataclass
class Result:
    """What became of one contender.

    Attributes:
      seconds: of one call, round by round; empty where it could not run.
      facts: as of `Described`.
      rss: bytes, the most memory that its process held.
      trouble: why there are no figures, in one line.
    """

    seconds: list[float] = dataclasses.field(default_factory=list)
    facts: dict[str, float] = dataclasses.field(default_factory=dict)
    rss: float = math.nan
    trouble: str = ""

    def median(self) -> float:
        """Returns the median of `seconds`; not a number where there are none."""
        return statistics.median(self.seconds) if self.seconds else math.nan


def cores() -> int:
    """Returns the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def hold(contest: Contest, command: Callable[[str], list[str]], rounds: int, least: float) -> dict[str, Result]:
    """Lets the contenders take turns.

    Args:
      contest: whose contenders these are.
      command: of the worker of a label.
      rounds: times each is measured.
      least: seconds that a round of one contender lasts at least; it repeats short calls.

    Returns:
      {label: result}.
    """
    results, workers = {label: Result() for label in contest.contenders}, {}
    try:
        for label, result in results.items():
            # One at a time: what they prepare must not slow the others' preparation down to their time limit.
            workers[label] = _Worker(command(label))
            _told(result, workers[label], "ready", None, _READY_SECONDS)
        for _ in range(rounds):
            for label, result in results.items():
                if not result.trouble:
                    time.sleep(_SETTLE_SECONDS)
                    _told(result, workers[label], "seconds", f"run {least}", _RUN_SECONDS)
        for label, result in results.items():
            if not result.trouble:
                _told(result, workers[label], "rss", "end", _RUN_SECONDS)
    finally:
        for worker in workers.values():
            worker.close()
    return results


def _told(result: Result, worker: "_Worker", word: str, question: str | None, limit: float) -> None:
    """Asks a worker and notes its answer."""
    found, value = worker.ask(question, limit)
    if found != word:
        result.trouble, result.seconds = f"{found}: {value}", []
    elif word == "ready":
        result.facts = json.loads(value)
    elif word == "seconds":
        result.seconds.append(float(value))
    else:
        result.rss = float(value)


class _Worker:
    """The parent's end of a worker's process."""

    def __init__(self, command: list[str]):
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._lines: queue.Queue[str] = queue.Queue()
        # A read has no time limit of its own.
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line.rstrip("\n"))
        self._lines.put(f"failed its process ended with code {self._process.wait()}")

    def ask(self, question: str | None, limit: float) -> tuple[str, str]:
        """Returns the answer's first word and the rest of its line."""
        try:
            if question is not None:
                assert self._process.stdin is not None
                print(question, file=self._process.stdin, flush=True)
            word, _, rest = self._lines.get(timeout=limit).partition(" ")
        except queue.Empty:
            return "failed", f"no answer within {limit:.0f} s"
        except BrokenPipeError:
            return "failed", "its process ended"
        return word, rest

    def close(self) -> None:
        """Ends the process if it has not ended."""
        self._process.kill()
        self._process.wait()


def work(factory: Factory, quick: bool) -> None:
    """Is the worker: builds its call and answers what it is asked until its input ends."""
    answers = _answers()
    try:
        call = factory(quick)
        if _warms_up(call):
            call()
        _say(answers, "ready", json.dumps(getattr(call, "facts", {})))
        for line in sys.stdin:
            if line.strip() == "end":
                break
            _say(answers, "seconds", repr(_seconds(call, float(line.split()[1]))))
        _say(answers, "rss", str(peak_rss()))
    except ModuleNotFoundError as error:
        _say(answers, "missing", str(error.name))
    except MemoryError as error:
        _say(answers, "refused", str(error))
    except Exception as error:  # a contender that fails must not end the contest
        _say(answers, "failed", f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}")


def _seconds(call: Call, least: float) -> float:
    """Returns the mean seconds of as many calls as take `least` seconds, after one that does not count.

    That one finds memory and caches as others left them, which a training's steps or a stream of batches do not.
    """
    if _warms_up(call):
        call()
    times: list[float] = []
    while not times or sum(times) < least:
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return statistics.fmean(times)


def _warms_up(call: Call) -> bool:
    return getattr(call, "warm_up", True)


def _answers() -> IO[str]:
    """Returns where answers go; what libraries print to stdout goes to stderr from now on."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return answers


def _say(answers: IO[str], word: str, rest: str) -> None:
    print(word, rest, file=answers, flush=True)


def peak_rss() -> float:
    """Returns the most bytes that this process held, or any process that it started and waited for."""
    unit = 1 if sys.platform == "darwin" else 1024
    return float(unit * max(resource.getrusage(who).ru_maxrss for who in _WHOM))


_WHOM = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)


def versions(packages: tuple[str, ...]) -> str:
    """Returns the packages with their versions, in one line."""
    return ", ".join(f"{package} {_version(package)}" for package in packages)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
