"""Fixtures of prepared sets, and of the command that prepares them."""

import os
import pathlib
import shutil
import signal
import subprocess
import sys

import pytest
import tensorflow_datasets as tfds
import tiles

from hybrid_jax.data import prepare

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="session")
def roots(tmp_path_factory):
    """Format -> a directory that holds the set `tiles`; the tfrecord one was written by TensorFlow."""
    written = tmp_path_factory.mktemp("tiles")
    tiles.prepare(written, "array_record")
    return {"array_record": written, "tfrecord": pathlib.Path(__file__).parent / "tfrecord_set"}


@pytest.fixture(params=["tfrecord", "array_record"])
def kind(request):
    return request.param


@pytest.fixture
def copy(roots, kind, tmp_path):
    """A copy that may be damaged: the folder of the set."""
    shutil.copytree(roots[kind] / "tiles", tmp_path / "tiles")
    return tmp_path / "tiles/1.0.0"


class Run:
    """Runs the command in this process."""

    def __init__(self, root, capsys):
        self.root, self.capsys = root, capsys

    def __call__(self, *words):
        before = signal.getsignal(signal.SIGTERM)
        try:
            code = prepare.main([*words, f"--data_dir={self.root}"])
        finally:
            signal.signal(signal.SIGTERM, before)
        self.out = self.capsys.readouterr()
        return code, self.out.out.splitlines()

    def error(self, *words):
        code, _ = self(*words)
        assert code == 2
        assert "Traceback" not in self.out.err
        line = self.out.err.splitlines()[-1]
        assert line.startswith("error: ")
        return line.removeprefix("error: ")

    def files(self):
        return sorted(path.relative_to(self.root).as_posix() for path in self.root.rglob("*"))


@pytest.fixture
def run(tmp_path, capsys):
    tfds.disable_progress_bar()
    return Run(tmp_path / "sets", capsys)


@pytest.fixture
def start():
    """Returns start(count, code, *flags): the command in so many processes, which run `code` before."""

    def processes(count, code, *words):
        code = f"import sys\n{code}\nfrom hybrid_jax.data import prepare\nsys.exit(prepare.main(sys.argv[1:]))"
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "tests")))}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return [subprocess.Popen([sys.executable, "-c", code, *words], env=environment, **pipes) for _ in range(count)]

    return processes
