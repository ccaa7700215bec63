"""The command line: flags, printable text, and one line with an exit code for each mistake."""

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

# Control characters (a terminal obeys them), halves of characters (from names that are not UTF-8, which cannot be
# written), line separators, and marks that turn the direction of what follows.
_UNFIT = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str, keep: str = "") -> str:
    """Returns the text with every unfit character, but those of `keep`, as its escape, a newline as \\n."""
    return _UNFIT.sub(lambda found: found[0] if found[0] in keep else ascii(found[0])[1:-1], text)


class Parser(argparse.ArgumentParser):
    """For commands beside the main one: what is wrong with their flags is a UserError too."""

    def error(self, message: str) -> NoReturn:
        """Raises it."""
        raise UserError(f"{message}; see --help")


def run_cli(task: Callable[[], None], about: str) -> None:
    """Reads the process's flags and does its task; what has a line of its own ends with it and its exit code."""

    def read_and_do() -> None:
        parse(sys.argv, about)
        keep_compiled_programs()
        # Orbax and tfds log their own steps and their errors' tracebacks; what a user needs to know, the modes say.
        logging.set_verbosity(logging.FATAL)
        task()

    code = exit_code(read_and_do)
    if code:
        sys.exit(code)


def exit_code(task: Callable[[], None]) -> int:
    """Does a task; returns 0, or prints the line of what went wrong and returns its exit code."""
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
    """Prints what may have several lines and hold names of unknown origin."""
    print(printable(line, keep="\n"), flush=True)


def parse(argv: list[str], about: str) -> None:
    """Reads the flags; absl's and ml_collections' own errors become one line.

    Args:
      argv: of the process.
      about: what --help prints above the flags.

    Raises:
      UserError: an unknown flag or config key, a value of the wrong type, a missing config file.
    """
    for path in (word.removeprefix("--config=") for word in argv if word.startswith("--config=")):
        if not os.path.isfile(path):
            raise UserError(f"--config={path}: no such file; the experiments are in configs/")
    if {"--help", "-h", "-help", "--helpfull", "-?"} & set(argv):
        print(f"{about}\n{flags.FLAGS.main_module_help()}")
        sys.exit(0)
    try:
        rest = flags.FLAGS(argv)
    except Exception as error:  # both raise many types while they parse
        raise UserError(_explain(error, argv)) from error
    if rest[1:]:
        raise UserError(f"{rest[1]}: not a flag; flags start with --")


def _explain(error: Exception, argv: list[str]) -> str:
    for name in (word.split("=")[0].removeprefix("--config.") for word in argv if word.startswith("--config.")):
        if name not in config_lib.FIELDS:
            return f"--config.{name}: no such field{config_lib.nearest(name, config_lib.FIELDS)}"
    return str(error).strip().split("\n")[0]
