"""The folder of what is kept between runs, compiled programs, and the memory of a program on one CPU device."""

import os
import pathlib
import subprocess
import sys

import pytest

from hybrid_jax.utils import runtime


def test_the_folder_is_the_given_one_the_variables_or_the_users(monkeypatch, tmp_path):
    monkeypatch.setenv("HYBRID_JAX_CACHE", str(tmp_path))
    assert runtime.cache_folder("~/here") == pathlib.Path.home() / "here" and runtime.cache_folder() == tmp_path
    monkeypatch.delenv("HYBRID_JAX_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    assert runtime.cache_folder() == tmp_path / "user" / "hybrid_jax"


def test_compiled_programs_are_kept_unless_the_user_says_otherwise(monkeypatch, tmp_path):
    name = "JAX_COMPILATION_CACHE_DIR"
    monkeypatch.setenv("HYBRID_JAX_CACHE", str(tmp_path))
    monkeypatch.setenv(name, "")
    runtime.keep_compiled_programs()
    assert os.environ[name] == "" and not list(tmp_path.iterdir())
    monkeypatch.delenv(name)
    runtime.keep_compiled_programs()
    assert pathlib.Path(os.environ[name]).is_relative_to(tmp_path / "compiled")
    # A home that cannot be written is no reason to stop.
    monkeypatch.delenv(name)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HYBRID_JAX_CACHE", str(tmp_path / "file"))
    runtime.keep_compiled_programs()
    assert name not in os.environ


@pytest.mark.skipif(sys.platform != "linux" or "glibc" not in os.confstr("CS_GNU_LIBC_VERSION"), reason="needs glibc")
@pytest.mark.parametrize(("devices", "asynchronous"), [(None, "False"), ("2", "True")])
def test_memory_is_reused_on_one_device_and_several_stay_as_jax_has_them(devices, asynchronous):
    environment = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES")}
    environment |= {"JAX_NUM_CPU_DEVICES": devices} if devices else {}
    code = "from hybrid_jax.utils import runtime; runtime.reuse_memory(); import jax; "
    code += "print(jax.config.values['jax_cpu_enable_async_dispatch'])"
    told = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert told.stdout.strip() == asynchronous
