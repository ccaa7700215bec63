"""What the tests of launch/ share: scripts, their dry runs, commands that stand in for others."""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
LAUNCH = ROOT / "launch"
SCRIPTS = sorted([*LAUNCH.glob("*.sh"), LAUNCH / "slurm.sbatch"])


def run(script, *words, path=None, **environment):
    """Runs a script of launch/ with these variables; `path` is searched first for commands."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ}
    if path is not None:
        kept["PATH"] = f"{path}:{kept['PATH']}"
    return subprocess.run(
        ["bash", str(LAUNCH / script), *words], cwd=ROOT, env=kept | environment, capture_output=True, text=True
    )


def tool(name):
    """Returns a linter's path, as the extra `test` installs it beside Python; skips the test where it is absent."""
    beside = pathlib.Path(sys.prefix) / "bin" / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        pytest.skip(f"needs {name}")
    return found


def stand_in(folder, name, text):
    """Writes a command of that name."""
    path = folder / name
    path.write_text(f"#!/usr/bin/env bash\n{text}\n")
    path.chmod(0o755)
    return path
