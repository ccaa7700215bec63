"""Downloads of tfds with short timeouts, clean-up after failure, and a lock between processes."""

import contextlib
import fcntl
import os
import pathlib
import shutil
import socket
import urllib.error
import uuid
from collections.abc import Callable, Iterable, Iterator
from typing import IO, Any

import requests
from tensorflow_datasets.core.download import downloader, util

ERRORS = (requests.RequestException, urllib.error.URLError, util.DownloadError, TimeoutError)
_PATIENCE = (10, 60)  # seconds: to connect, between two packets


@contextlib.contextmanager
def alone(root: pathlib.Path, name: str, say: Callable[[str], None]) -> Iterator[None]:
    """Holds a lock, so that one process at a time prepares set `name` under `root`.

    Does nothing on file systems without locks.

    Raises:
      OSError: `root` is not writable.
    """
    missing = [folder for folder in (root, *root.parents) if not folder.exists()]
    root.mkdir(parents=True, exist_ok=True)
    path = root / f".{name}.lock"
    try:
        with _locked(path, say):
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
    finally:
        _remove(missing)


@contextlib.contextmanager
def _locked(path: pathlib.Path, say: Callable[[str], None]) -> Iterator[None]:
    file = path.open("a")
    while not _lock(file, path, say):
        file.close()
        file = path.open("a")
    with file:
        yield


def _lock(file: IO, path: pathlib.Path, say: Callable[[str], None]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        say("waiting for another process that prepares this data set")
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError:
        return True  # the file system has no locks
    # The previous holder removes the file; a lock on a removed file is void.
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def watched(root: pathlib.Path, name: str) -> Iterator[tuple[dict[str, pathlib.Path], pathlib.Path]]:
    """Sets short timeouts for downloads of set `name`, and removes temporary files at the end.

    Completely downloaded archives stay in `root/downloads`.

    Yields:
      {URL: folder of its download} of started downloads, and a folder for extracted archives.
    """
    asked: dict[str, pathlib.Path] = {}
    send, download = requests.adapters.HTTPAdapter.send, downloader._Downloader.download

    def impatient_send(self, request, *args, **options):
        options["timeout"] = options.get("timeout") or _PATIENCE
        return send(self, request, *args, **options)

    def noted_download(self, url, destination_path, *args, **options):
        asked[url] = pathlib.Path(destination_path)
        return download(self, url, destination_path, *args, **options)

    before = _traces(root, name)
    # Not the shared folder of tfds: without locks, one process would remove files that another reads.
    extracted = root / "downloads" / f"extracted_{name}_{uuid.uuid4().hex}"
    with contextlib.ExitStack() as stack:
        stack.enter_context(_replaced(requests.adapters.HTTPAdapter, "send", impatient_send))
        stack.enter_context(_replaced(downloader._Downloader, "download", noted_download))
        stack.enter_context(_replaced(downloader, "MAX_RETRIES", 0))
        stack.callback(socket.setdefaulttimeout, socket.getdefaulttimeout())
        socket.setdefaulttimeout(_PATIENCE[1])  # for FTP downloads of tfds
        try:
            yield asked, extracted
        finally:
            for folder in (extracted, *asked.values()):
                shutil.rmtree(folder, ignore_errors=True)
            _remove(_traces(root, name) - before)


@contextlib.contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def _traces(root: pathlib.Path, name: str) -> set[pathlib.Path]:
    """Returns the folders of a set and, unless it is prepared, the file that names its default config."""
    downloads, set_folder = root / "downloads", root / name
    found = {downloads, *downloads.glob(f"{name}/**/"), *root.glob(f"{name}/**/")}
    if not any(set_folder.glob("**/features.json")):
        found.add(set_folder / ".config/metadata.json")
    return {path for path in found if path.exists()}


def _remove(paths: Iterable[pathlib.Path]) -> None:
    """Removes files, then empty folders."""
    for path in sorted(paths, key=lambda path: len(path.parts), reverse=True):
        with contextlib.suppress(OSError):
            path.rmdir() if path.is_dir() else path.unlink()
