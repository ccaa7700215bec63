"""Memory of programs that run on this host's CPU: kept from call to call instead of asked for anew."""

import ctypes
import os
import sys

# glibc's malloc.h
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_MOST = 2**31 - 1


def reuse() -> None:
    """Lets a CPU program find the memory that its last call freed; call it before JAX looks for its devices.

    XLA asks malloc for all temporaries of a call at once, and glibc maps what is that large anew each time: a train
    step of 150 MB takes 37,000 new pages, over a quarter of its time (benchmarks/README.md). Both settings are needed:
    what the main thread frees stays in the process, and the main thread is the one that runs programs. Where a host is
    cut into several devices other threads run them; there, and without glibc, nothing is changed.
    """
    if "JAX_NUM_CPU_DEVICES" in os.environ or "xla_force_host_platform" in os.environ.get("XLA_FLAGS", ""):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt and mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, _MOST):
        import jax

        jax.config.update("jax_cpu_enable_async_dispatch", False)
