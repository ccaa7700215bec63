"""Files of unknown origin: hostile names, configs, headers. Nothing is run or allocated for them; one line each."""

import ast
import contextlib
import json
import os
import pathlib
import resource
import zlib
from types import SimpleNamespace

import jax
import numpy as np
import orbax.checkpoint as ocp
import PIL.Image
import pytest

import hybrid_jax
from hybrid_jax import config as config_lib
from hybrid_jax import evaluate, train_state
from hybrid_jax.data import sources
from hybrid_jax.data.inputs import open_inputs
from hybrid_jax.errors import UserError
from hybrid_jax.inference import load as loading
from hybrid_jax.storage import checkpoint, integrity
from hybrid_jax.storage.integrity import sealed
from hybrid_jax.utils import cli
from hybrid_jax.utils.cli import printable

PACKAGE = pathlib.Path(hybrid_jax.__file__).parent
NAMES = (b"a\nb", b"\"quote' `touch pwned`", b"<script>alert(1)<script>", b"-rf", b"%2e%2e..\\up..",
         b"\xff\xfe not UTF-8", b"n" * 200, b"{0.__class__}%s%n", b"\x1b[31mred", "\u202etxt.exe".encode())  # fmt: skip


@contextlib.contextmanager
def little_memory(mebibytes=2048):
    """Fails where more address space than this is asked for on top of what is in use."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + mebibytes * 2**20, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


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
    model = SimpleNamespace(
        config=config, step=1, has_likelihood=False, has_contrastive=True, default_layer="encoder",
        features=lambda images: {"encoder": images.reshape(len(images), -1).astype(np.float32)},
        embed=lambda images: images.reshape(len(images), -1).astype(np.float32),
    )  # fmt: skip
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
def test_a_hostile_npy_header_is_refused_in_one_line_and_allocates_nothing(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.npy").write_bytes(header(HEADERS[name]) + bytes(64))
    with little_memory(), pytest.raises(UserError, match=r"cannot be read as an \.npy file") as refused:
        open_inputs(tmp_path / "x.npy")
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 1000
    assert not (tmp_path / "pwned").exists()


def test_a_png_that_claims_to_be_enormous_is_not_decoded(tmp_path):
    PIL.Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "x.png")
    content = bytearray((tmp_path / "x.png").read_bytes())
    content[16:24] = (2**30).to_bytes(4, "big") * 2
    content[29:33] = zlib.crc32(bytes(content[12:29])).to_bytes(4, "big")
    (tmp_path / "x.png").write_bytes(bytes(content))
    with little_memory(), pytest.raises(UserError, match=r"x.png: cannot be read as an image .*exceeds limit"):
        list(open_inputs(tmp_path / "x.png").chunks((8, 8), 1, 1, "stop"))


@pytest.fixture
def run(tiny_config, mesh_of, tmp_path):
    """A workdir with one checkpoint, and write(change): its meta after change(meta)."""
    config = tiny_config()
    state = train_state.init_state(config, mesh_of(1), None)
    with contextlib.closing(checkpoint.Checkpoints(tmp_path, config)) as checkpoints:
        checkpoints.save(state.replace(step=np.int32(5)), config, "data")
    where = tmp_path / "checkpoints/5/meta"

    def write(change):
        meta = ocp.JsonCheckpointHandler().restore(where)
        changed = change(meta)
        # Whoever writes a hostile file can compute its checksum too.
        meta.pop("checksum")
        meta = sealed(meta)
        [file] = [path for path in where.iterdir() if path.is_file() and path.suffix != ".txt"]
        file.write_text(json.dumps(meta if changed is None else changed))

    return tmp_path, write


def of_config(**values):
    return lambda meta: (
        [meta["config"][name.partition("__")[0]].update({name.partition("__")[2]: v}) for name, v in values.items()]
        and None
    )


HOSTILE_META = {
    "width": of_config(model__width=3 * 10**9, model__num_heads=3),
    "width beyond any machine": of_config(model__width=10**400),
    "depth": of_config(model__encoder_layers=10**9),
    "image": of_config(data__image_size=[10**18 + 1, 10**18 + 1]),
    "patches": of_config(data__image_size=[2**14, 2**14], model__patch_size=1, model__width=10**6),
    "heads": of_config(model__num_heads=0),
    "patch of nothing": of_config(model__patch_size=0),
    "projection": of_config(model__projection_dims=[2**31, 2**31]),
    "code": of_config(model__dtype="__import__('os').system('touch pwned')"),
    "type": of_config(model__width="96"),
    "not finite": of_config(objective__temperature=float("nan")),
    "unknown": of_config(model____class__="x"),
    "a list": lambda meta: meta.update(config=[1]),
    "a number": lambda meta: meta.update(config=5),
    "a section that is none": lambda meta: meta["config"].update(model="x"),
    "absent": lambda meta: meta.pop("config") and None,
    "no meta": lambda meta: [],
    "other step": lambda meta: meta.update(checksums="x"),
}


@pytest.mark.parametrize("name", HOSTILE_META)
def test_a_hostile_config_in_a_checkpoint_is_refused_in_one_line_and_allocates_nothing(run, name, monkeypatch):
    workdir, write = run
    monkeypatch.chdir(workdir)
    write(HOSTILE_META[name])
    lines = []
    with little_memory(), pytest.raises(UserError) as refused:
        loading.load(workdir, log=lines.append)
    told = [*lines, str(refused.value)]
    assert any("checkpoint 5" in line for line in told) and not any("\n" in line for line in told)
    assert not (workdir / "pwned").exists()


def test_arrays_that_the_files_cannot_hold_are_not_allocated(run):
    workdir, _ = run
    with contextlib.closing(checkpoint.Checkpoints(workdir)) as checkpoints:
        targets = {"params": {"w": jax.ShapeDtypeStruct((2**20, 2**20), np.float32)}}
        with (
            little_memory(),
            pytest.raises(checkpoint.DamagedError, match=r"its arrays would take 4,194,304.0 MiB, its"),
        ):
            checkpoints.restore(5, targets)


@pytest.mark.parametrize("text", ["", "[", "{}", "5", '{"checkpoint": {"best_metric": "<script>"}}',
                                  '{"checkpoint": {"best_metric": ["knn_accuracy"]}}', "[" * 100_000])  # fmt: skip
def test_a_hostile_config_json_is_not_trusted(run, text):
    workdir, _ = run
    (workdir / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"this run chose no checkpoint\.best_metric"):
        loading.load(workdir, "best")


def test_every_field_refuses_a_value_of_another_type():
    for name in config_lib.FIELDS:
        config = config_lib.default_config().to_dict()
        node = config
        *sections, leaf = name.split(".")
        for section in sections:
            node = node[section]
        node[leaf] = {"x": object}
        with pytest.raises(UserError, match=r"config\."):
            integrity.config_of(config, 10**9)
