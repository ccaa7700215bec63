"""What is kept between runs outside of their workdirs: decoded images, compiled programs."""

import hashlib
import os
import pathlib
import platform


def cache_folder(path: str = "") -> pathlib.Path:
    """Returns the folder of all that is kept.

    That is `path`; where it is empty $HYBRID_JAX_CACHE, else hybrid_jax in the user's cache folder.
    """
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "hybrid_jax"
    return pathlib.Path(path or os.environ.get("HYBRID_JAX_CACHE") or cache).expanduser()


def keep_compiled_programs() -> None:
    """Lets JAX find what an earlier process compiled; call it before JAX is imported.

    On a GPU what autotuning found is kept too. $JAX_COMPILATION_CACHE_DIR is respected (empty = nothing is kept), and
    so is a folder that cannot be written.
    """
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    folder = cache_folder() / "compiled" / processor()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return
    if os.access(folder, os.W_OK):
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)
        # JAX leaves out what took less than a second; of an evaluation's programs that is half.
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")


def processor() -> str:
    """Programs for CPUs hold instructions of the kind they were compiled on; homes are shared by several kinds."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = [platform.processor()]
    kind = sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))})
    return f"{platform.machine()}-{hashlib.blake2b(repr(kind).encode(), digest_size=4).hexdigest()}"
