"""Command-line utilities: flag parsing, printable text, one-line errors with exit codes."""

import argparse
import os
import re
import sys
from collections.abc import Callable
from typing import NoReturn

from absl import flags, logging

from hybrid_jax import config as config_lib
from hybrid_jax.errors import UserError, explain
from hybrid_jax.utils.runtime import keep_compiled_programs

# Control characters, line separators, marks of text direction, and surrogates (from names that are not UTF-8, which
# cannot be printed).
_UNFIT = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str, keep: str = "") -> str:
    """Returns the text with unprintable characters, except those in `keep`, escaped (a newline as \\n)."""
    return _UNFIT.sub(lambda found: found[0] if found[0] in keep else ascii(found[0])[1:-1], text)


class Parser(argparse.ArgumentParser):
    """Argument parser that raises UserError, for commands other than the main one."""

    def error(self, message: str) -> NoReturn:
        """Raises UserError."""
        raise UserError(f"{message}; see --help")


def run_cli(task: Callable[[], None], about: str) -> None:
    """Parses the flags and runs a task; known errors end with their one-line message and exit code."""

    def read_and_do() -> None:
        parse(sys.argv, about)
        keep_compiled_programs()
        # Silences log lines and tracebacks of Orbax and tfds; the modes report what a user needs.
        logging.set_verbosity(logging.FATAL)
        task()

    code = exit_code(read_and_do)
    if code:
        sys.exit(code)


def exit_code(task: Callable[[], None]) -> int:
    """Runs a task; returns 0, or prints a known error's message and returns its exit code."""
    try:
        task()
    except BaseException as error:
        told = explain(error)
        if told is None:
            raise
        print(printable(told[0]), file=sys.stderr)
        return told[1]
    return 0


def say(line: str) -> None:
    """Prints text that may have several lines and contain names with arbitrary characters."""
    print(printable(line, keep="\n"), flush=True)


def parse(argv: list[str], about: str) -> None:
    """Parses the flags; errors of absl and ml_collections become one line.

    Args:
      argv: command line of the process.
      about: text that --help prints above the flags.

    Raises:
      UserError: a flag or config field is unknown, a value has the wrong type, or the config file is missing.
    """
    for path in (word.removeprefix("--config=") for word in argv if word.startswith("--config=")):
        if not os.path.isfile(path):
            raise UserError(f"--config={path}: no such file; configs are in configs/")
    if {"--help", "-h", "-help", "--helpfull", "-?"} & set(argv):
        print(f"{about}\n{flags.FLAGS.main_module_help()}")
        sys.exit(0)
    try:
        rest = flags.FLAGS(argv)
    except Exception as error:  # both raise many types
        raise UserError(_explain(error, argv)) from error
    if rest[1:]:
        raise UserError(f"{rest[1]}: not a flag; flags start with --")


def _explain(error: Exception, argv: list[str]) -> str:
    for name in (word.split("=")[0].removeprefix("--config.") for word in argv if word.startswith("--config.")):
        if name not in config_lib.FIELDS:
            return f"--config.{name}: no such field{config_lib.nearest(name, config_lib.FIELDS)}"
    return str(error).strip().split("\n")[0]
