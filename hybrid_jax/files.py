"""Files that are whole or absent."""

import os
import pathlib

from hybrid_jax.distributed import is_first


def write_whole(path: pathlib.Path, text: str) -> None:
    """Writes a text beside its place and renames it; of several processes only the first does."""
    if not is_first():
        return
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
