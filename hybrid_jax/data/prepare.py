"""Prepares an image data set of TensorFlow Datasets (tfds), to be read without TensorFlow.

python -m hybrid_jax.data.prepare NAME [--data_dir=DIR] [--manual_dir=DIR] [--file_format=array_record|tfrecord]
"""

import argparse
import contextlib
import importlib.util
import io
import os
import pathlib
import re
import shlex
import signal
import sys
from collections.abc import Callable, Iterable, Iterator

import tensorflow_datasets as tfds
from absl import logging
from tensorflow_datasets.core.download import download_manager, resource
from tensorflow_datasets.core.utils import lazy_imports_utils

from hybrid_jax.config import nearest
from hybrid_jax.data.tfds import downloads, reader
from hybrid_jax.errors import UserError
from hybrid_jax.utils.cli import Parser

FORMATS = ("array_record", "tfrecord")
_NOT_PREPARED = ("embedded", "digits", "folder")
_FEW = 20  # configs to list in one line

Say = Callable[[str], None]
PIP = "pip install 'tensorflow-cpu>=2.20'"


def prepare(name: str, data_dir: str, manual_dir: str, file_format: str, say: Say) -> reader.Prepared:
    """Prepares a data set unless it is already; safe to call from several processes at once.

    Args:
      name: `set`, `set/config` or `set:version`.
      data_dir: folder of prepared sets; empty = the default of tfds, which honours TFDS_DATA_DIR.
      manual_dir: folder of manually downloaded archives; empty = download them.
      file_format: one of FORMATS; empty = the existing format, or array_record.
      say: function that prints a line.

    Raises:
      UserError: the set cannot be prepared; the message is one line with the reason.
    """
    root = pathlib.Path(reader.data_root(data_dir))
    if manual_dir and not os.path.isdir(os.path.expanduser(manual_dir)):
        raise UserError(f"--manual_dir={manual_dir}: no such folder")
    if prepared := _find(name, root, file_format):
        say(f"{prepared.name} is already prepared as {_summary(prepared, data_dir)}")
        return prepared
    builder = _builder(name, root, file_format or FORMATS[0])
    manual = pathlib.Path(manual_dir or root / "downloads/manual").expanduser()
    _check_manual_files(builder, name, manual)
    try:
        with downloads.alone(root, reader.base_name(name), say):
            # In this order, since without file locks another process may finish in between.
            exists = builder.data_path.exists()
            if not (prepared := _find(name, root, file_format)):
                if exists:
                    raise UserError(f"{builder.data_path} is damaged (no features.json); delete it and run again")
                say(f"preparing {name} in {root}")
                _run(builder, name, root, manual)
                prepared = _find(name, root, "")
    except OSError as error:
        why = reason(error)
        raise UserError(f"{root} cannot be written ({why}); choose another --data_dir") from error
    if not prepared:
        raise UserError(f"{name} cannot be prepared: tfds wrote nothing to {builder.data_path}")
    say(f"{prepared.name} is prepared as {_summary(prepared, data_dir)}")
    return prepared


def _find(name: str, root: pathlib.Path, file_format: str) -> reader.Prepared | None:
    """Returns the set if it is prepared with all its files."""
    if not reader.is_name(name):
        return None
    prepared = reader.find(name, str(root))
    if prepared is None:
        return None
    for split in prepared.splits:
        prepared.files(split)
    if file_format and prepared.file_format != file_format:
        there = f"is already prepared as {prepared.file_format} in {prepared.data_path}"
        raise UserError(f"--file_format={file_format}: {name} {there}; formats do not mix in one --data_dir")
    return prepared


def _summary(prepared: reader.Prepared, data_dir: str) -> str:
    sizes = ", ".join(f"{split} {count:,}" for split, count in prepared.splits.items())
    path = f" --config.data.path={shlex.quote(data_dir)}" if data_dir else ""
    use = f"use it with --config.data.name={prepared.name}{path}"
    return f"{prepared.file_format} in {prepared.data_path} ({sizes}); {use}"


def _builder(name: str, root: pathlib.Path, file_format: str) -> tfds.core.DatasetBuilder:
    """Returns the builder of a set after all checks that are possible before its download."""
    base, known = reader.base_name(name), tfds.list_builders(with_community_datasets=False)
    if base not in known or not reader.is_name(name):
        raise UserError(f"{name}: no such data set{nearest(base, known)}; must be SET or SET/CONFIG of tfds")
    try:
        _check_config(name, list(tfds.builder_cls(base).builder_configs))
        builder = tfds.builder(name, data_dir=str(root), file_format=file_format)
        reader.check_features(name, builder.info.features)
    except UserError:
        raise
    except Exception as error:  # raised by the set's code
        raise UserError(explain(error, name)) from error
    if _needs_tensorflow(builder, file_format) and importlib.util.find_spec("tensorflow") is None:
        raise UserError(tensorflow_is_missing(name))
    return builder


def _check_config(name: str, configs: list[str]) -> None:
    base, _, config = name.partition(":")[0].partition("/")
    if not config or config in configs:
        return
    if not configs:
        raise UserError(f"{name}: {base} has no configs; the name is {base}")
    if len(configs) > _FEW:
        raise UserError(f"{name}: no such config{nearest(config, configs)}; {base} has {len(configs)}")
    raise UserError(f"{name}: no such config; must be one of: {', '.join(f'{base}/{known}' for known in configs)}")


def _needs_tensorflow(builder: tfds.core.DatasetBuilder, file_format: str) -> bool:
    """Returns whether preparation is known to need TensorFlow; other uses only show during preparation."""
    code = vars(sys.modules[type(builder).__module__]).values()
    archives = [resource.guess_extract_method(info.filename or url) for url, info in (builder.url_infos or {}).items()]
    return (
        file_format == "tfrecord"
        or any(value is lazy_imports_utils.tensorflow for value in code)
        or any(method != resource.ExtractMethod.NO_EXTRACT for method in archives)
    )


def _check_manual_files(builder: tfds.core.DatasetBuilder, name: str, manual: pathlib.Path) -> None:
    if builder.MANUAL_DOWNLOAD_INSTRUCTIONS and not (manual.is_dir() and any(manual.iterdir())):
        raise UserError(manual_files(builder, name, manual, "the folder is empty or missing"))


def _run(builder: tfds.core.DatasetBuilder, name: str, root: pathlib.Path, manual: pathlib.Path) -> None:
    for url, info in (builder.url_infos or {}).items():
        # tfds looks in the manual folder only for recorded file names, which some sets lack.
        info.filename = info.filename or url.partition("?")[0].rpartition("/")[2]
    with downloads.watched(root, builder.name) as (asked, extracted):
        options = tfds.download.DownloadConfig(extracted, manual, try_download_gcs=False)
        try:
            # The progress bars of tfds go to stderr; its other output is not needed.
            with contextlib.redirect_stdout(io.StringIO()):
                builder.download_and_prepare(download_config=options)
        except Exception as error:  # raised by tfds, the set's code or its imports
            # Without file locks, the first process succeeds and the others fail in many ways.
            if not builder.data_path.exists():
                raise UserError(explain(error, name, builder, manual, asked)) from error


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = Parser("python -m hybrid_jax.data.prepare", description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("name", metavar="NAME", help="a tfds data set, such as cifar10 or downsampled_imagenet/32x32")
    parser.add_argument(
        "--data_dir", default="", help="folder of prepared sets (default: TFDS_DATA_DIR, else that of tfds)"
    )
    parser.add_argument(
        "--manual_dir", default="", help="folder of manually downloaded archives, to prepare without network"
    )
    parser.add_argument("--file_format", default="", choices=FORMATS, help="default: array_record")
    return parser.parse_args(argv)


def main(argv: list[str]) -> int:
    """Entry point of `python -m hybrid_jax.data.prepare`; returns the exit code, 2 for a user error."""
    # Silences TensorFlow's start-up messages.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    logging.set_verbosity(logging.WARNING)
    # Removes partially written files.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        flags = _parse(argv)
        if flags.name in _NOT_PREPARED:
            _say(f"{flags.name} needs no preparation")
        else:
            prepare(flags.name, flags.data_dir, flags.manual_dir, flags.file_format, _say)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 1
    except SystemExit as event:
        return int(event.code or 0)
    return 0


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    exit_code = main(sys.argv[1:])
    sys.stderr.flush()
    # Does not wait for tfds threads that are still downloading.
    os._exit(exit_code)


def tensorflow_is_missing(name: str) -> str:
    """Returns the message for a set that needs TensorFlow, which is not installed."""
    return f"{name} needs TensorFlow for preparation (not for reading): {PIP}"


def manual_files(builder: tfds.core.DatasetBuilder, name: str, manual: pathlib.Path, reason: str) -> str:
    """Returns the message for a set whose files must be downloaded manually to `manual`."""
    wanted = " ".join(builder.MANUAL_DOWNLOAD_INSTRUCTIONS.split())[:400]
    return f"{name} must be downloaded manually to --manual_dir={manual} ({reason}); instructions of tfds: {wanted}"


def explain(
    error: Exception,
    name: str,
    builder: tfds.core.DatasetBuilder | None = None,
    manual: pathlib.Path = pathlib.Path(),
    asked: Iterable[str] = (),
) -> str:
    """Returns a one-line message, with a remedy, for an error of tfds or of a set's code.

    Args:
      error: the exception.
      name: name of the set.
      builder: its builder, if it could be created.
      manual: folder of manually downloaded files.
      asked: URLs of started downloads.
    """
    if builder is not None and isinstance(error, downloads.ERRORS):
        return _by_hand(error, name, builder, asked)
    causes = list(_chain(error))
    # The innermost, since tfds re-raises errors without the module's name.
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
    return f"{failed}; download manually {', '.join(known)}, and add --manual_dir=FOLDER with these files"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def reason(error: BaseException) -> str:
    """Returns the message of an error as one line of at most 200 characters."""
    text = getattr(error, "strerror", None) or str(error)
    # tfds prepends its arguments to errors of a set's constructor.
    text = re.sub(r"^Failed to construct dataset .*?}\": ", "", " ".join(str(text).split()))
    return text[:200] or type(error).__name__


def _wrong_checksum(text: str) -> str:
    found = re.search(r"Artifact (\S+), downloaded to (.+), has wrong checksum", text)
    if not found:
        return " ".join(text.split())
    return f"{found[2]} is damaged or is not {found[1]} (its checksum differs); delete it and download it again"
