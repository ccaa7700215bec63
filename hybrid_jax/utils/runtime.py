"""The process around a run: caches between runs, this host's cores and memory, whether an accelerator is there."""

import ctypes
import glob
import hashlib
import importlib.util
import os
import pathlib
import platform
import sys

# glibc's malloc.h
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_MOST = 2**31 - 1


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


def cpu_only() -> bool:
    """Returns whether JAX will run on this host's CPU alone; does not let it look for devices."""
    if chosen := os.environ.get("JAX_PLATFORMS"):
        return chosen == "cpu"
    devices = ("/dev/nvidia[0-9]*", "/dev/accel[0-9]*", "/dev/vfio/[0-9]*")
    plugins = (importlib.util.find_spec(name) for name in ("libtpu", "jax_plugins"))
    return not (any(plugins) and any(glob.glob(pattern) for pattern in devices))


def _cut_into_devices() -> bool:
    return "JAX_NUM_CPU_DEVICES" in os.environ or "xla_force_host_platform" in os.environ.get("XLA_FLAGS", "")


def reuse_memory() -> None:
    """Lets a CPU program find the memory that its last call freed; call it before JAX looks for its devices.

    XLA asks malloc for all temporaries of a call at once, and glibc maps what is that large anew each time: a train
    step of 150 MB takes 37,000 new pages, over a quarter of its time (docs/performance.md). Both settings are needed:
    what the main thread frees stays in the process, and the main thread is the one that runs programs. Where a host is
    cut into several devices other threads run them; there, without glibc, and with an accelerator nothing is changed.
    """
    if _cut_into_devices() or not cpu_only() or sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt and mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, _MOST):
        import jax

        jax.config.update("jax_cpu_enable_async_dispatch", False)


def use_all_cores() -> None:
    """Makes each core of a host without accelerators a device, where nobody chose another number.

    Call it before JAX looks for its devices. The steps of sampling are too small to be cut over cores one by one;
    images are not. Not beyond 8 devices, as each has the parameters to itself.
    """
    if _cut_into_devices() or not cpu_only():
        return
    import jax

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    jax.config.update("jax_num_cpu_devices", min(cores, 8))
    # Several devices run at once only if none of them is run by the calling thread.
    jax.config.update("jax_cpu_enable_async_dispatch", True)


def on_accelerator() -> bool:
    """Returns whether JAX's default device is none of the host's own cores."""
    import jax

    return jax.default_backend() != "cpu"
