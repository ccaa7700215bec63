"""Files of unknown origin: hostile names and headers. Nothing is run or allocated for them; one line each."""

import ast
import os
import pathlib
import zlib

import numpy as np
import PIL.Image
import pytest
from fakes import FeatureModel

import hybrid_jax
from hybrid_jax import evaluate
from hybrid_jax.data import sources
from hybrid_jax.data.inputs import open_inputs
from hybrid_jax.errors import UserError
from hybrid_jax.utils import cli
from hybrid_jax.utils.cli import printable

PACKAGE = pathlib.Path(hybrid_jax.__file__).parent
NAMES = (b"a\nb", b"\"quote' `touch pwned`", b"<script>alert(1)<script>", b"-rf", b"%2e%2e..\\up..",
         b"\xff\xfe not UTF-8", b"n" * 200, b"{0.__class__}%s%n", b"\x1b[31mred", "\u202etxt.exe".encode())  # fmt: skip


def test_the_package_neither_unpickles_nor_evaluates():
    forbidden = {"pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "torch"}
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = {alias.name for alias in node.names} | {getattr(node, "module", None) or ""}
                assert not {name.partition(".")[0] for name in names} & forbidden, file
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in ("eval", "exec", "compile", "__import__"), file
                if called in ("np.load", "numpy.load"):
                    assert "allow_pickle=False" in ast.unparse(node), file


@pytest.fixture(scope="module")
def hostile_folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for name in NAMES:
        folder = os.path.join(os.fsencode(root), name)
        os.mkdir(folder)
        for i in range(12):
            with open(os.path.join(folder, name[:40] + b"%d.png" % i), "wb") as file:
                PIL.Image.fromarray(rng.integers(0, 256, (8, 8), np.uint8)).save(file, "png")
    return root


def test_hostile_names_of_files_and_classes_are_escaped_wherever_they_are_told(
    tiny_config, hostile_folder, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("HYBRID_JAX_CACHE", str(tmp_path / "cache"))
    config = tiny_config(data__name="folder", data__path=str(hostile_folder), eval__evaluators=())
    data = sources.load(config)
    assert data.class_names == tuple(printable(os.fsdecode(name)) for name in sorted(NAMES, key=os.fsdecode))
    model = FeatureModel(config=config)
    monkeypatch.setattr(evaluate, "sample_views", lambda config, data: None)
    evaluate.evaluate_and_report(model, data, config, tmp_path, cli.say)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "&lt;script&gt;alert" in page and "<script" not in page and "\x1b" not in page and "\u202e" not in page
    # In a row of bytes: also a terminal that accepts nothing but ASCII can be written to.
    cli.say("\n".join(["two lines", os.fsdecode(NAMES[5]), os.fsdecode(NAMES[8])]))
    assert capsys.readouterr().out.endswith("two lines\n\\udcff\\udcfe not UTF-8\n\\x1b[31mred\n")
    inputs = open_inputs(hostile_folder)
    [chunk] = inputs.chunks((8, 8), 1, 1000, "stop")
    assert len(chunk.names) == 120 and all((hostile_folder / name).is_file() for name in chunk.names)
    assert not (hostile_folder / "pwned").exists() and not pathlib.Path("pwned").exists()


def test_an_unreadable_file_with_a_hostile_name_is_one_line(tmp_path, monkeypatch, capsys):
    path = os.path.join(os.fsencode(tmp_path), b"a\nerror: \x1b[2J\xff.png")
    with open(path, "wb") as file:
        file.write(b"no image")
    monkeypatch.setattr(cli, "parse", lambda *args: None)
    with pytest.raises(SystemExit) as ended:
        cli.run_cli(lambda: next(open_inputs(tmp_path).chunks((8, 8), 1, 10, "stop")), "")
    told = capsys.readouterr().err
    assert ended.value.code == 2 and told.count("\n") == 1 and "\\x1b" in told and "\x1b" not in told


def header(text):
    text = text.encode() + b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


HEADERS = {
    "10^15 bytes": "{'descr': '|u1', 'fortran_order': False, 'shape': (10000000000, 100, 1000)}",
    "product overflows": "{'descr': '|u1', 'fortran_order': False, 'shape': (4611686018427387904, 8, 8)}",
    "negative": "{'descr': '|u1', 'fortran_order': False, 'shape': (-1, 8, 8)}",
    "objects": "{'descr': '|O', 'fortran_order': False, 'shape': (1, 8, 8)}",
    "code": "__import__('os').system('touch pwned')",
    "nested": "(" * 5000,
    "long": "{'descr': '|u1', 'fortran_order': False, 'shape': (" + "1," * 20000 + ")}",
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_hostile_npy_header_is_refused_in_one_line_and_allocates_nothing(tmp_path, monkeypatch, little_memory, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.npy").write_bytes(header(HEADERS[name]) + bytes(64))
    with little_memory(), pytest.raises(UserError, match=r"cannot be read as an \.npy file") as refused:
        open_inputs(tmp_path / "x.npy")
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 1000
    assert not (tmp_path / "pwned").exists()


def test_a_png_that_claims_to_be_enormous_is_not_decoded(tmp_path, little_memory):
    PIL.Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "x.png")
    content = bytearray((tmp_path / "x.png").read_bytes())
    content[16:24] = (2**30).to_bytes(4, "big") * 2
    content[29:33] = zlib.crc32(bytes(content[12:29])).to_bytes(4, "big")
    (tmp_path / "x.png").write_bytes(bytes(content))
    with little_memory(), pytest.raises(UserError, match=r"x.png: cannot be read as an image .*exceeds limit"):
        list(open_inputs(tmp_path / "x.png").chunks((8, 8), 1, 1, "stop"))
