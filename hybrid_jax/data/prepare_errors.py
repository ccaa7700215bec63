"""What can go wrong while a set is prepared, each in one line that says what to do."""

import pathlib
import re
from collections.abc import Iterable, Iterator

import tensorflow_datasets as tfds
from tensorflow_datasets.core.download import download_manager

from hybrid_jax.data import downloads

PIP = "pip install 'tensorflow-cpu>=2.20'"


def tensorflow_is_missing(name: str) -> str:
    """Returns the line for a set that only TensorFlow can prepare, where there is none."""
    return f"{name} needs TensorFlow to be prepared (not to be read): {PIP}"


def manual_files(builder: tfds.core.DatasetBuilder, name: str, manual: pathlib.Path, reason: str) -> str:
    """Returns the line for a set whose files must be fetched by hand, but cannot be used as they are in `manual`."""
    wanted = " ".join(builder.MANUAL_DOWNLOAD_INSTRUCTIONS.split())[:400]
    return f"{name} must be fetched by hand into --manual_dir={manual} ({reason}); tfds says: {wanted}"


def explain(
    error: Exception,
    name: str,
    builder: tfds.core.DatasetBuilder | None = None,
    manual: pathlib.Path = pathlib.Path(),
    asked: Iterable[str] = (),
) -> str:
    """Returns one line that says what to do about an error of tfds or of a set's code.

    Args:
      error: what was raised.
      name: the set.
      builder: its builder, once there is one.
      manual: the folder in which tfds looked for files fetched by hand.
      asked: the addresses that it began to download.
    """
    if builder is not None and isinstance(error, downloads.ERRORS):
        return _by_hand(error, name, builder, asked)
    causes = list(_chain(error))
    # The innermost: tfds makes a new error, without the module's name, of those around it.
    missing = [cause.name or "" for cause in causes if isinstance(cause, ImportError)][-1:]
    if missing:
        module = missing[0].partition(".")[0]
        return (
            tensorflow_is_missing(name) if module == "tensorflow" else f"{name} needs the module {module}: install it"
        )
    for cause in causes:
        if isinstance(cause, download_manager.NonMatchingChecksumError):
            return _wrong_checksum(str(cause))
    if isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
        return f"{name} cannot be prepared ({reason(error)}); choose another --data_dir, or make room"
    if builder is not None and builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
        return manual_files(builder, name, manual, reason(error))
    return f"{name} cannot be prepared ({type(error).__name__}: {reason(error)})"


def _by_hand(error: Exception, name: str, builder: tfds.core.DatasetBuilder, asked: Iterable[str]) -> str:
    *_, root_cause = _chain(error)
    infos = builder.url_infos or {}
    known = [f"{url} as {infos[url].filename}" for url in asked if url in infos]
    failed = f"{name} cannot be downloaded ({reason(root_cause)})"
    if not known:
        return f"{failed}: {', '.join(asked)}"
    return f"{failed}; fetch by hand {', '.join(known)}, and add --manual_dir=FOLDER that holds what you fetched"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def reason(error: BaseException) -> str:
    """Returns the message of an error in one line of at most 200 characters."""
    text = getattr(error, "strerror", None) or str(error)
    # tfds puts its arguments before the errors of a set's constructor.
    text = re.sub(r"^Failed to construct dataset .*?}\": ", "", " ".join(str(text).split()))
    return text[:200] or type(error).__name__


def _wrong_checksum(text: str) -> str:
    found = re.search(r"Artifact (\S+), downloaded to (.+), has wrong checksum", text)
    if not found:
        return " ".join(text.split())
    return f"{found[2]} is damaged or another file than {found[1]} (its checksum differs); delete it and fetch it again"
