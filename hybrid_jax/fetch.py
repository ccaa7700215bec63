"""Brings a folder of a bucket to this machine: `python -m hybrid_jax.fetch gs://BUCKET/PATH FOLDER` (extra `gcp`).

Data for the hosts of a pod, or a finished run for a laptop. What is here already, with the same size, is left.
"""

import logging
import os
import pathlib
import sys
from concurrent.futures import ThreadPoolExecutor

from hybrid_jax.errors import UserError
from hybrid_jax.storage.files import replacing
from hybrid_jax.utils import cli

_AT_ONCE = 16


def fetch(address: str, folder: str | os.PathLike) -> tuple[int, int]:
    """Copies every file below an address into a folder.

    Args:
      address: `gs://BUCKET/PATH`, or any other address of a folder that fsspec knows.
      folder: is made where it is missing; files in it that the address does not have stay.

    Returns:
      (files copied, files that were here already).

    Raises:
      UserError: no such address, no way to it, or a folder that cannot be written.
    """
    if "://" not in address:
        raise UserError(f"ADDRESS={address}: must be an address such as gs://BUCKET/PATH")
    folder = pathlib.Path(folder)
    try:
        import fsspec  # an extra

        system, root = fsspec.core.url_to_fs(address)
        root = root.rstrip("/")
        sizes = {path: about["size"] for path, about in system.find(root, detail=True).items()}
        targets = {path: folder / _inside(os.path.relpath(path, root)) for path in sizes if not path.endswith("/")}
        missing = {path: to for path, to in targets.items() if not _is_here(to, sizes[path])}
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            # The list raises what a thread raised.
            list(pool.map(lambda pair: _copy(system, *pair), missing.items()))
    except ImportError as error:
        raise UserError(f"ADDRESS={address}: needs the extra gcp: pip install 'hybrid_jax[gcp]'") from error
    except Exception as error:  # of many types, from credentials to the network
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise UserError(f"ADDRESS={address}: cannot be copied to {folder} ({reason})") from error
    if not targets:
        raise UserError(f"ADDRESS={address}: holds no files")
    return len(missing), len(targets) - len(missing)


def _inside(name: str) -> str:
    """Returns a file's name; a bucket's may lead out of the folder."""
    if ".." in pathlib.PurePath(name).parts:
        raise ValueError(f"{name!r} leads out of it")
    return name


def _is_here(path: pathlib.Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def _copy(system, path: str, to: pathlib.Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    with replacing(to) as part:
        system.get_file(path, str(part))


def main() -> None:
    """Entry point of `python -m hybrid_jax.fetch ADDRESS FOLDER`."""

    def task() -> None:
        # It logs every try that fails with a traceback; what came of it is said below.
        logging.getLogger("gcsfs").setLevel(logging.CRITICAL)
        if len(sys.argv) != 3:
            raise UserError("usage: python -m hybrid_jax.fetch ADDRESS FOLDER")
        copied, here = fetch(*sys.argv[1:])
        print(f"{copied} files copied to {sys.argv[2]}, {here} were there already")

    sys.exit(cli.exit_code(task))


if __name__ == "__main__":
    main()
