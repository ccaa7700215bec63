"""The folder of what is kept between runs."""

import os
import pathlib

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
