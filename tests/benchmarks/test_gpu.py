"""The stages for one GPU, as far as a CPU can tell: what they refuse, keep, read and print."""

import json
import os
import pathlib
import re
import subprocess
import sys

import jax
import pytest

from benchmarks.gpu import cases, correctness, evaluation, pack, profile, recipe, record, table, versions
from benchmarks.gpu import ceilings as ceilings_stage
from hybrid_jax import config as config_lib
from hybrid_jax import train_state
from hybrid_jax.errors import UserError

ROOT = pathlib.Path(__file__).parent.parent.parent
RUN = ROOT / "benchmarks/gpu/run.sh"


@pytest.fixture(autouse=True)
def folders(tmp_path, monkeypatch):
    """Gives each test its own $OUT and $WORK."""
    monkeypatch.setenv("OUT", str(tmp_path / "out"))
    monkeypatch.setenv("WORK", str(tmp_path / "work"))
    return tmp_path


def run(*words, **environment):
    changed = os.environ | {"PYTHON": sys.executable, "EARLIER": "/nowhere", **environment}
    return subprocess.run([RUN, *words], env=changed, capture_output=True, text=True, timeout=3000)


@pytest.mark.parametrize(
    ("words", "environment", "told"),
    [
        (["stepz"], {}, "error: stepz: no such stage; there are ceilings "),
        (["--big"], {}, "error: --big: no such stage"),
        (["recipe"], {}, "error: --data=: the stage recipe needs a folder of images"),
        (["recipe", "--data=/nowhere"], {}, "error: --data=/nowhere: the stage recipe needs"),
        (["steps"], {"WHEELS": "/nowhere"}, "error: WHEELS=/nowhere: no such folder"),
        (["steps"], {"PYTHON": "/nowhere/python"}, "error: PYTHON=/nowhere/python: no such program"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(words, environment, told):
    done = run(*words, **environment)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith(told) and done.stderr.count("\n") == 1


def test_without_a_gpu_nothing_is_timed():
    done = run("steps", JAX_PLATFORMS="cpu", WHEELS="", CAP_versions="300")
    assert done.returncode == 2 and "== steps" not in done.stdout
    assert done.stderr.startswith("error: JAX sees no GPU, its backend is cpu") and done.stderr.count("\n") == 1


def wheel(site: pathlib.Path, name: str, source: str) -> None:
    """Writes what pip leaves of a wheel with one module."""
    folder = site / f"{name}-1.5.dist-info"
    folder.mkdir(parents=True)
    (site / f"{name}.py").write_text(source)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.5\n")
    (folder / "RECORD").write_text(f"{name}.py,,\n{name}-1.5.dist-info/METADATA,,\n")


def test_a_wheel_that_does_not_import_is_named(folders, monkeypatch):
    wheel(folders / "site", "sound_wheel", "")
    monkeypatch.syspath_prepend(folders / "site")
    versions.check_imports(["ceilings"], str(folders / "site"))
    wheel(folders / "site", "broken_wheel", "raise ImportError('libfoo.so is missing')")
    with pytest.raises(UserError, match=r"broken_wheel 1\.5: its module broken_wheel .*: ImportError: libfoo"):
        versions.check_imports(["ceilings"], str(folders / "site"))


def test_only_chosen_stages_need_their_packages(monkeypatch):
    monkeypatch.setitem(versions._STAGES, "codec", ("a_module_of_nobody",))
    versions.check_imports(["steps"], "")
    with pytest.raises(UserError, match=r"a_module_of_nobody cannot be imported \(stages: steps, codec\)"):
        versions.check_imports(["steps", "codec"], "")


def test_a_card_without_cudnn_or_memory_is_refused(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(versions, "device", lambda: {"kind": "Card", "limit_gib": 22.0})
    monkeypatch.setattr(versions, "_cudnn_takes", lambda shape: False)
    with pytest.raises(UserError, match="Card: JAX cannot use cuDNN"):
        versions.check_device(tiny=False)
    monkeypatch.setattr(versions, "_cudnn_takes", lambda shape: True)
    with pytest.raises(UserError, match=r"Card: 22.0 GiB, the sizes here need 48"):
        versions.check_device(tiny=False)


def test_what_is_there_is_not_measured_again_but_errors_and_other_cards_are():
    def fail():
        raise RuntimeError("two\nlines")

    first = record.Record("steps", tiny=True)
    first.add("a", lambda: {"ms": 1.0})
    first.add("b", fail)
    assert record.read()["steps"]["entries"] == {"a": {"ms": 1.0}, "b": {"failed": "RuntimeError: two lines"}}
    again = record.Record("steps", tiny=True)
    again.add("a", fail)
    again.add("b", lambda: {"ms": 2.0})
    assert record.good(record.read(), "steps") == {"a": {"ms": 1.0}, "b": {"ms": 2.0}}
    record.Record("versions", tiny=True).put("device", {"kind": "another card"})
    assert not record.Record("steps", tiny=True).has("a") and not record.Record("steps", tiny=False).has("a")


def test_a_damaged_file_of_results_is_none(folders):
    (folders / "out").mkdir()
    (folders / "out" / "results.json").write_text('{"steps": {"entr')
    assert record.read() == {}


@pytest.mark.parametrize("tiny", [False, True])
def test_every_case_is_a_valid_config_for_one_device(tiny):
    for case in cases.every_case():
        config = cases.config_of(case, tiny)
        config_lib.validate(config)
        assert config.mesh.fsdp == 1
    named = {case for wave in (*cases.WAVES, *cases.TINY_WAVES) for case in wave}
    assert named <= set(cases.every_case())
    assert cases.config_of("cifar10/generative").objective.contrastive_weight == 0
    assert cases.chosen("a,b", cases.WAVES) == (("a", "b"),)


def test_the_reference_is_of_this_model():
    curves = json.loads(correctness.REFERENCE.read_text())["curves"]
    assert set(curves) == {curve.config for curve in correctness.CURVES.values()}
    for name, curve in curves.items():
        params = train_state.abstract_state(correctness.small_config(name)).params
        leaves = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
        assert leaves == list(curve["gradient"]), "record it again: see benchmarks/gpu/correctness.py"


def test_curves_differ_by_their_worst_step_and_leaf():
    theirs = {"loss": [2.0, 1.0], "grad_norm": [1.0, 1.0], "gradient": {"large": [1.0, 0.5], "small": [1e-6, 0.0]}}
    ours = {"loss": [2.0, 1.1], "grad_norm": [1.0, 0.9], "gradient": {"large": [1.0, 0.7], "small": [5e-6, 0.0]}}
    found = correctness.compared(ours, theirs)
    assert found["first_loss"] == 0 and found["losses"] == pytest.approx(0.1)
    # A leaf of next to nothing is measured by the whole gradient.
    assert found["worst_leaf"] == "large" and found["gradient"] == pytest.approx(0.2)
    with pytest.raises(ValueError, match="record it again"):
        correctness.compared(ours | {"gradient": {}}, theirs)


PROGRAM = """
  %fusion.1 = f32[8]{0} fusion(%p), metadata={op_name="jit(step)/jvp(HybridModel)/encoder/block_1/dot"}
  ROOT %loop-add.2 = f32[8]{0} add(%a, %b), metadata={op_name="jit(step)/transpose(jvp(HybridModel))/head/mul"}
  %copy.3 = f32[8]{0} copy(%a)
"""


def test_kernels_are_added_up_by_part_and_kind():
    found = [
        profile.Kernel(0.0, 2e6, "ampere_gemm_bf16", "fusion.1"),
        profile.Kernel(1e6, 2e6, "loop_add_2", ""),
        profile.Kernel(5e6, 1e6, "Memcpy", "copy.3"),
    ]
    summary = profile.summary(found, profile.paths_of(PROGRAM), steps=2)
    assert summary["by_part"] == {"encoder forward": 1.0, "head backward": 1.0, "not known": 0.5}
    assert summary["by_kind"] == {"matrix product": 1.0, "other fusion": 1.0, "copy": 0.5}
    assert summary["kernels_a_step"] == 1.5 and summary["busy_ms"] == 2.0 and summary["wall_ms"] == 3.0
    assert summary["idle_share"] == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("path", "part"),
    [
        ("jit(s)/jvp(HybridModel.log_prob)/decoder/transformer/dot_general", "decoder forward"),
        ("jit(s)/transpose(jvp(HybridModel))/encoder/transformer/mul", "encoder backward"),
        ("jit(s)/jvp()/reduce_sum", "losses"),
        ("jit(s)/_uniform/threefry2x32", "views"),
        ("jit(s)/mul", "optimizer, average, norms, rest"),
    ],
)
def test_an_operation_belongs_to_a_part_by_its_path(path, part):
    assert profile.part_of(path) == part


def test_a_trace_is_read(folders):
    double = jax.jit(lambda x: x @ x)
    x = jax.numpy.ones((64, 64))
    double(x).block_until_ready()
    with jax.profiler.trace(str(folders)):
        double(x).block_until_ready()
    kernels = list(profile.kernels(next(folders.rglob("*.xplane.pb"))))
    assert kernels and all(kernel.duration > 0 and kernel.instruction for kernel in kernels)


def step_entry(milliseconds: float, **others):
    return {
        "ms": milliseconds, "range_ms": [milliseconds] * 2, "batch": 512, "images_per_s": 512e3 / milliseconds,
        "gflop": 13000.0, "dtype": "bfloat16", "attention": "cudnn", "peak_gib": 2.5, "compile_s": 50.0,
        "parameters": 100,
    } | others  # fmt: skip


def form_entry(milliseconds: float, **others):
    return {"ms": milliseconds, "error": 3e-3, "same_bits_twice": True, "ok": True} | others


def found(entries, seconds=1.0):
    return {"of": {}, "seconds": seconds, "entries": entries}


def test_the_table_tells_shares_ratios_and_failures():
    results = {
        "versions": found({"device": {"kind": "NVIDIA H100 80GB HBM3"}, "packages": {"jax": "0.11.2"}}),
        "ceilings": found({ceilings_stage.BF16: {"tflops": 650.0}}),
        "steps": found({"cifar10/hybrid": step_entry(40.0), "igpt/hybrid": {"failed": "OutOfMemory: too large"}}),
        "torch_peer": found({
            "cifar10/hybrid@eager": {"ms": 80.0, "images_per_s": 6400.0, "parameters": 101, "first_call_s": 3.0},
            "alone/hybrid": {"ms": 80.0, "images_per_s": 6400.0, "parameters": 101, "first_call_s": 3.0},
        }),
        "correctness": found({"grey": {"losses": 0.5, "ok": False, "limits": {}}}),
    }  # fmt: skip
    text = "\n".join(table.table(results))
    assert "## NVIDIA H100 80GB HBM3, jax 0.11.2" in text
    assert "| cifar10/hybrid | 40.00 | 40.00 to 40.00 | 12,800 | 325.0 | 50.0% | 32.8% | cudnn | 2.5 | 50 |" in text
    assert "- FAILED igpt/hybrid: OutOfMemory: too large" in text
    assert "| cifar10/hybrid@eager | 80.00 | 6,400 | 2.00 | 1.010 | 3 |" in text and "ours is missing" in text
    assert "- NOT OK grey: losses 0.5" in text
    assert list(table.table({})) == ["## no device, "]


def test_cudnn_pays_from_the_length_after_which_it_always_does():
    entries = {}
    for length, cudnn in ((32, 0.9), (64, 1.1), (128, 0.9), (256, 0.5)):
        shape = f"{65536 // length}x{length}x8x64 causal"
        entries |= {f"{shape}, plain": form_entry(1.0), f"{shape}, cudnn": form_entry(cudnn, same_bits_twice=False)}
    assert table.pays_from(entries, causal=True) == "from 128 positions on"
    assert table.pays_from(entries, causal=False) == "not measured"
    assert "bits vary" in "\n".join(table._attention({}, entries))


def test_gradients_of_look_ups_agree():
    for name, gradient in ceilings_stage.look_up_gradients(table=16).items():
        measure = ceilings_stage.look_up(gradient, rows=1000, table=16, features=3, alike=0.5)
        assert measure()["error"] < (0.1 if "bfloat16" in name else 1e-5), name


def test_what_was_compiled_and_found_is_there_again(folders):
    cache = folders / "work" / pack.CACHE
    (cache / "autotune").mkdir(parents=True)
    (cache / "program").write_bytes(os.urandom(1000))
    (cache / "autotune" / "choice").write_text("tile 128")
    record.Record("steps", tiny=True).put("a", {"ms": 1.0})
    subprocess.run([sys.executable, "-m", "benchmarks.gpu.pack"], cwd=ROOT, check=True)
    earlier = folders / "earlier"
    (folders / "out").rename(earlier)
    assert sorted(path.name for path in earlier.iterdir()) == ["compiled.tar.0", "results.json"]
    kept = (cache / "program").read_bytes()
    (cache / "program").unlink()
    pack.unpack(earlier)
    assert (cache / "program").read_bytes() == kept and record.Record("steps", tiny=True).has("a")


def test_the_default_stages_fit_their_budget():
    text = RUN.read_text()
    caps = {name: int(cap) for name, cap in re.findall(r"\[(\w+)\]=(\d+)", text)}
    default = re.search(r"^default=\((.*)\)$", text, re.MULTILINE)[1].split()
    budget = int(re.search(r"BUDGET:-(\d+)", text)[1])
    # The check before them takes a few seconds of its minute.
    assert sum(caps[name] for name in default) <= budget - 30
    assert all((RUN.parent / f"{name}.py").exists() for name in caps)
    assert set(caps) == set(table._SECTIONS)


def test_the_recipe_takes_a_folder_or_a_prepared_set(folders):
    assert "--config.data.name=folder" in recipe.words(str(folders), "", tiny=False)
    (folders / "cifar10").mkdir()
    words = recipe.words(str(folders), "seed=1", tiny=False)
    assert "--config.data.name=cifar10" in words and words[-1] == "--config.seed=1"
    assert recipe.progress(folders) == {"step": 0}


@pytest.mark.slow
def test_all_stages_run_on_a_cpu_and_again_from_what_they_left(folders):
    pytest.importorskip("torch")
    folder = evaluation.colour_folder(tiny=True)
    caps = {f"CAP_{name}": "900" for name in table._SECTIONS}
    words = ("--tiny", f"--data={folder}", "all")
    done = run(*words, BUDGET="5000", WHEELS="", **caps)
    assert done.returncode == 0, done.stderr
    results = record.read()
    assert set(results) == set(table._SECTIONS)
    for stage, kept in results.items():
        for name, entry in kept["entries"].items():
            assert "failed" not in entry, (stage, name, entry)
            assert entry.get("ok", True), (stage, name, entry)
    assert len(list((folders / "out").iterdir())) <= 8
    again = run(*words, BUDGET="5000", WHEELS="", **caps)
    assert again.stdout.count("kept from an earlier call") > 20
