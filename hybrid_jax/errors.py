"""What can go wrong and how it is told: mistakes, preemption, bad numbers, a failed compiler, memory."""

import contextlib
from collections.abc import Iterator


class UserError(ValueError):
    """A mistake the user can mend; its message is one line naming field, value and what is allowed.

    The command line prints it without a traceback and exits with code 2.
    """


def reject(field: str, value: object, allowed: str) -> UserError:
    """Returns the error for a config `field` whose `value` is not what is `allowed`."""
    return UserError(f"config.{field}={value!r}: {allowed}")


class Preempted(BaseException):
    """The run was asked to stop and lost nothing; the same command continues it. Exit code 75.

    No Exception, as KeyboardInterrupt is none: it may come anywhere, and what mends errors must let it through.
    """


class NonFiniteError(RuntimeError):
    """A loss that is not finite; the message names it and its step. Exit code 1."""


class StorageError(RuntimeError):
    """The workdir cannot be written any more, or another run has taken it; the message is one line. Exit code 1."""


class CompilerError(RuntimeError):
    """The compiler failed, which no setting is known to mend; the message is one line. Exit code 1."""


class IncompatibleError(RuntimeError):
    """An installed package lacks what is needed of it; the message is one line. Exit code 1."""


def explain(error: BaseException) -> tuple[str, int] | None:
    """Returns the line for the terminal and the exit code; None for what needs a traceback, a fault of ours."""
    if isinstance(error, Preempted):
        return str(error), 75
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", 1
    if isinstance(error, UserError | NonFiniteError | StorageError | CompilerError | IncompatibleError):
        return f"error: {error}", 2 if isinstance(error, UserError) else 1
    return None


@contextlib.contextmanager
def oom_advice(advice: str) -> Iterator[None]:
    """Turns a device's out-of-memory error into one UserError that says which settings help."""
    try:
        yield
    except Exception as error:
        if "RESOURCE_EXHAUSTED" not in str(error) and "Out of memory" not in str(error):
            raise
        raise UserError(f"out of memory: {advice}") from error
