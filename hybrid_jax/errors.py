"""Exceptions, with their exit codes and messages."""

import contextlib
from collections.abc import Iterator


class UserError(ValueError):
    """An error that the user can fix; its message is one line naming field, value and what is allowed.

    The command line prints it without a traceback and exits with code 2.
    """


def reject(field: str, value: object, allowed: str) -> UserError:
    """Returns the error for a config `field` whose `value` is not what is `allowed`."""
    return UserError(f"config.{field}={value!r}: {allowed}")


class Preempted(BaseException):
    """The run was asked to stop and saved its state; the same command continues it. Exit code 75.

    Not an `Exception`, like KeyboardInterrupt, so that error handlers do not catch it.
    """


class NonFiniteError(RuntimeError):
    """A loss is not finite; the message names it and its step. Exit code 1."""


class StorageError(RuntimeError):
    """The workdir is no longer writable, or another run holds its lock; the message is one line. Exit code 1."""


class CompilerError(RuntimeError):
    """The compiler failed and no setting is known to help; the message is one line. Exit code 1."""


class IncompatibleError(RuntimeError):
    """An installed package lacks a required function; the message is one line. Exit code 1."""


def explain(error: BaseException) -> tuple[str, int] | None:
    """Returns the message and the exit code; None for an unexpected error, which needs a traceback."""
    if isinstance(error, Preempted):
        return str(error), 75
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", 1
    if isinstance(error, UserError | NonFiniteError | StorageError | CompilerError | IncompatibleError):
        return f"error: {error}", 2 if isinstance(error, UserError) else 1
    return None


@contextlib.contextmanager
def oom_advice(advice: str) -> Iterator[None]:
    """Turns an out-of-memory error of a device into a UserError that names the settings to change."""
    try:
        yield
    except Exception as error:
        if "RESOURCE_EXHAUSTED" not in str(error) and "Out of memory" not in str(error):
            raise
        raise UserError(f"out of memory: {advice}") from error
