"""What the benchmarks share: settings as text, calls timed in turns, commands that are waited for, tables.

Nothing but Python's own modules is imported here: PyTorch's side of a benchmark must not load JAX.
"""

import importlib.metadata
import json
import os
import pathlib
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

ROOT = pathlib.Path(__file__).parent.parent
MIB, GIB = 2**20, 2**30
CHARACTERS = 160  # that are kept of a line


def apply(config, overrides: Iterable[str]) -> None:
    """Sets `section.field=value`, the value in JSON or as bare text."""
    for override in overrides:
        path, text = override.split("=", 1)
        try:
            value = json.loads(text)
        except json.JSONDecodeError:
            value = text
        config.update_from_flattened_dict({path: tuple(value) if isinstance(value, list) else value})


def in_turns(calls: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Returns {name: seconds of each round}; the calls take turns, so that a slow minute hits all of them."""
    import jax

    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        jax.block_until_ready(call())
    for _ in range(rounds):
        for name, call in calls.items():
            begin = time.perf_counter()
            jax.block_until_ready(call())
            seconds[name].append(time.perf_counter() - begin)
    return seconds


def parser(about: str | None):
    """Returns a parser of flags whose mistakes are `UserError`s; `about` is what --help prints."""
    import argparse

    from hybrid_jax.utils.cli import Parser

    return Parser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)


def device_line() -> str:
    """Returns the version of JAX and its devices."""
    import jax

    return f"jax {jax.__version__}, {jax.device_count()} x {jax.devices()[0].device_kind}"


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Returns {package: version} of those that are installed."""
    found = {}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def table(columns: str, rows: Iterable[Iterable[object]]) -> str:
    """Returns a Markdown table; `columns` are names with | between them."""
    lines = [f"| {' | '.join(map(str, row))} |" for row in (columns.split("|"), *rows)]
    return "\n".join([lines[0], "|---" * (columns.count("|") + 1) + "|", *lines[1:]])


def peak_rss() -> float:
    """Returns the most bytes that this process held, or any process that it started and waited for."""
    unit = 1 if sys.platform == "darwin" else 1024
    return float(unit * max(resource.getrusage(w).ru_maxrss for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)))


class Said(NamedTuple):
    """What a command did: exit code, seconds, and (seconds since its start, line) of its output."""

    code: int
    seconds: float
    lines: list[tuple[float, str]]

    def checked(self) -> "Said":
        """Raises RuntimeError where the command failed."""
        if self.code:
            raise RuntimeError(f"exit code {self.code}: {self.lines[-1][1] if self.lines else 'said nothing'}")
        return self


def run(
    *words: str,
    program: tuple[str, ...] = ("-m", "hybrid_jax.main"),
    environment: Mapping[str, str | None] | None = None,
    until: str = "",
) -> Said:
    """Runs a command of this checkout to its end; what it says goes to stderr.

    Args:
      words: its flags.
      program: what Python runs: a module, or a file.
      environment: changes of it; None takes a variable out.
      until: what a line begins with, after which the process is killed; empty = none.

    Raises:
      RuntimeError: it ended before that line.
    """
    outer = {name: value for name, value in (os.environ | (environment or {})).items() if value is not None}
    begin, lines, command = time.perf_counter(), [], [sys.executable, "-u", *program, *words]
    with subprocess.Popen(
        command, cwd=ROOT, env=outer, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            sys.stderr.write(line)
            lines.append((round(time.perf_counter() - begin, 2), line.rstrip()[:CHARACTERS]))
            if until and line.startswith(until):
                process.kill()
                return Said(0, lines[-1][0], lines)
    said = Said(process.returncode, time.perf_counter() - begin, lines)
    if until:
        raise RuntimeError(f"{' '.join(command)} ended before it said {until!r}, exit code {said.code}")
    return said
