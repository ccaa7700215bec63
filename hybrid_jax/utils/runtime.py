"""Runtime environment: cache folders, the compilation cache, CPU cores and memory, platform detection."""

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
    """Returns the cache folder: `path`, or if empty $HYBRID_JAX_CACHE, or hybrid_jax in the user's cache folder."""
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "hybrid_jax"
    return pathlib.Path(path or os.environ.get("HYBRID_JAX_CACHE") or cache).expanduser()


def keep_compiled_programs() -> None:
    """Enables JAX's persistent compilation cache; call it before JAX is imported.

    On GPUs it includes autotuning results. Does nothing if $JAX_COMPILATION_CACHE_DIR is set (empty = no cache) or the
    folder is not writable.
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
        # By default JAX skips programs that compile in less than a second, half of those of an evaluation.
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")


def processor() -> str:
    """Returns an identifier of the CPU type: compiled programs are specific to it, and machines may share a home."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = [platform.processor()]
    kind = sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))})
    return f"{platform.machine()}-{hashlib.blake2b(repr(kind).encode(), digest_size=4).hexdigest()}"


def cpu_only() -> bool:
    """Returns whether JAX will use only this host's CPU, without initialising devices."""
    if chosen := os.environ.get("JAX_PLATFORMS"):
        return chosen == "cpu"
    devices = ("/dev/nvidia[0-9]*", "/dev/accel[0-9]*", "/dev/vfio/[0-9]*")
    plugins = (importlib.util.find_spec(name) for name in ("libtpu", "jax_plugins"))
    return not (any(plugins) and any(glob.glob(pattern) for pattern in devices))


def _cut_into_devices() -> bool:
    return "JAX_NUM_CPU_DEVICES" in os.environ or "xla_force_host_platform" in os.environ.get("XLA_FLAGS", "")


def reuse_memory() -> None:
    """Keeps memory between calls of a CPU program; call it before JAX initialises devices.

    XLA allocates all temporaries of a call at once, and glibc maps such large blocks anew each time: a train step with
    150 MB faults 37,000 new pages, over a quarter of its time (docs/performance.md). The malloc settings keep memory
    freed by the main thread, and synchronous dispatch makes the main thread run programs. Does nothing with several
    CPU devices (other threads run programs), without glibc, or with an accelerator.
    """
    if _cut_into_devices() or not cpu_only() or sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt and mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, _MOST):
        import jax

        jax.config.update("jax_cpu_enable_async_dispatch", False)


def use_all_cores() -> None:
    """Makes each CPU core a device, on hosts without accelerators and unless a number of devices is set.

    Call it before JAX initialises devices. Steps of sampling are too small to split over cores, so images are
    distributed instead. At most 8 devices, since each holds a copy of the parameters.
    """
    if _cut_into_devices() or not cpu_only():
        return
    import jax

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    jax.config.update("jax_num_cpu_devices", min(cores, 8))
    # Devices run in parallel only with asynchronous dispatch.
    jax.config.update("jax_cpu_enable_async_dispatch", True)


def on_accelerator() -> bool:
    """Returns whether JAX's default device is not a CPU."""
    import jax

    return jax.default_backend() != "cpu"
