"""Shared fixtures: eight fake devices in the test process, and small configs."""

import contextlib
import importlib.util
import os
import pathlib
import resource
import subprocess
import sys

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Unoptimised code compiles twice as fast, and these tests compile more than they compute.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
# Tests of one model compile the same functions again and again, here and in the processes they start.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(pathlib.Path(__file__).parent.parent / ".cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
# Not the user's: here, so that each checkout starts from nothing.
os.environ.setdefault("HYBRID_JAX_CACHE", str(pathlib.Path(__file__).parent.parent / ".cache" / "images"))

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

import meshes
import tiny

# Folder: what its tests need of an extra (`[oracle]`, `[docs]`); without it the rest of the suite still runs.
_NEEDED = {"oracles": "torch", "notebooks": "nbclient"}
collect_ignore = [folder for folder, module in _NEEDED.items() if not importlib.util.find_spec(module)]


@pytest.fixture
def tiny_config():
    """Returns make(**overrides): a config that trains in seconds; `model__width=8` sets model.width."""

    def make(**overrides):
        config = tiny.get_config()
        config.update_from_flattened_dict({k.replace("__", "."): v for k, v in overrides.items()})
        return config

    return make


@pytest.fixture
def mesh_of():
    """Returns make(devices, fsdp=1): a (data, fsdp) mesh over the first fake devices."""
    return meshes.mesh_of


@pytest.fixture
def use_mesh():
    """Returns use(devices, fsdp=1): training in this process takes the first fake devices instead of all."""
    with contextlib.ExitStack() as stack:
        yield lambda devices, fsdp=1: stack.enter_context(meshes.on_devices(devices, fsdp))


@pytest.fixture
def one_device(use_mesh):
    """Training in this process takes one device: most tests need no more."""
    use_mesh(1)


@pytest.fixture
def command_line():
    """Returns run(*flags, **tiny): the real command in its own process, on the tiny digits config."""

    def run(*flags: str, config: str | None = "tests/tiny.py", environment=None, timeout=300):
        command = [
            sys.executable,
            "-m",
            "hybrid_jax.main",
            *([f"--config={config}"] if config else []),
            *flags,
        ]
        return subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=timeout,
            env=os.environ | {"JAX_NUM_CPU_DEVICES": "1"} | (environment or {}),
        )  # fmt: skip

    return run


@pytest.fixture(scope="module")
def tables_are_made_once():
    """Keeps the table of all pixels of a palette, which takes seconds and which every load makes."""
    from hybrid_jax.models import tokens

    make, known = tokens._nearest_colours, {}

    def kept(colours):
        key = colours.tobytes()
        if key not in known:
            known[key] = make(colours)
        return known[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokens, "_nearest_colours", kept)
        yield


@pytest.fixture
def little_memory():
    """Returns limit(mebibytes=2048): a context that fails where more address space is asked for on top of today's."""

    @contextlib.contextmanager
    def limit(mebibytes: int = 2048):
        before = resource.getrlimit(resource.RLIMIT_AS)
        used = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + mebibytes * 2**20, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_AS, before)

    return limit
