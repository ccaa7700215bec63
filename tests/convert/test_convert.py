"""Weights in and out: what is read, what is refused in one line, what others can do with what is written."""

import contextlib
import json
import os
import pickle
import re
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import printed
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import load_file, save_file

import hybrid_jax
from hybrid_jax import config as config_lib
from hybrid_jax import initialize, train, train_state
from hybrid_jax.convert import __main__ as convert_cli
from hybrid_jax.convert import image_gpt
from hybrid_jax.errors import UserError
from hybrid_jax.evaluate import evaluate_workdir
from hybrid_jax.models import hybrid, tokens
from hybrid_jax.storage import checkpoint

COLOURS, SIDE, WIDTH, DEPTH = 8, 4, 8, 2
CONFIG = {"model_type": "imagegpt", "vocab_size": COLOURS + 1, "n_positions": SIDE**2, "n_embd": WIDTH}
CONFIG |= {"n_layer": DEPTH, "n_head": 2, "n_inner": None, "layer_norm_epsilon": 1e-05}


def weights():
    """Theirs by name, random, with the masks that old files hold."""
    rng, d = np.random.default_rng(0), WIDTH
    shapes = {"transformer.wte": (COLOURS + 1, d), "transformer.wpe": (SIDE**2, d), "transformer.ln_f": (d,)}
    shapes["lm_head"] = (COLOURS, d)
    found = {}
    for i in range(DEPTH):
        h = f"transformer.h.{i}."
        shapes |= {f"{h}ln_1": (d,), f"{h}ln_2": (d,), f"{h}attn.c_attn": (d, 3 * d), f"{h}attn.c_proj": (d, d)}
        shapes |= {f"{h}mlp.c_fc": (d, 4 * d), f"{h}mlp.c_proj": (4 * d, d)}
        found |= {f"{h}attn.bias": np.ones((1, 1, 16, 16), bool), f"{h}attn.masked_bias": np.float32([-1e4])}
        found |= {f"{h}{n}.bias": np.zeros(shapes[h + n][1], np.float32) for n in ("attn.c_attn", "mlp.c_proj")}
    return found | {f"{name}.weight": rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def write(folder, tensors=None, drop=(), **config):
    folder.mkdir()
    save_file({n: x for n, x in (weights() | (tensors or {})).items() if n not in drop}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIG | config))
    colours = np.random.default_rng(0).uniform(-1, 1, (COLOURS, 3)).astype(np.float32)
    (folder / "preprocessor_config.json").write_text(json.dumps({"clusters": colours.tolist(), "size": 4}))
    return folder


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, tables_are_made_once):
    """Converted by the command, to be evaluated on the digits."""
    root = tmp_path_factory.mktemp("convert")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(convert_cli.signal, "signal", lambda *_: None)
        flags = [str(write(root / "theirs")), f"--workdir={root / 'workdir'}", "--data_name=digits"]
        assert convert_cli.main(["from_image_gpt", *flags]) == 0
    return root / "workdir"


@pytest.fixture(scope="module")
def model(workdir):
    return hybrid_jax.load(workdir)


@pytest.fixture(autouse=True)
def signals_stay(monkeypatch):
    monkeypatch.setattr(convert_cli.signal, "signal", lambda *_: None)


@pytest.fixture
def trained(tiny_config, tmp_path):
    """A run's workdir without the training: a hybrid of grey digits, its moving average another than the parameters."""
    config, workdir = tiny_config(train__ema_decay=0.5), tmp_path / "run"
    params = hybrid.init_params(hybrid.build_model(config), jax.random.key(0), None)
    average = jax.tree.map(lambda x: 2 * x + 0.1, params)
    with contextlib.closing(checkpoint.Checkpoints(workdir, config)) as checkpoints:
        checkpoints.save(train_state.TrainState(jnp.int32(3), params, average, None, None), config, "data")
    return workdir


def test_a_converted_workdir_is_evaluated_also_by_image_gpts_own_probes(workdir, model):
    assert model.step == 0 and model.fingerprint is None and model.default_layer == "decoder/1"
    images = np.random.default_rng(0).integers(0, 256, (3, SIDE, SIDE, 3), dtype=np.uint8)
    assert model.token_log_prob(images).shape == (3, 16, 1) and model.embed(images).shape == (3, WIDTH)
    assert model.sample(0, 3).shape == (3, SIDE, SIDE, 3)
    settings, lines = model.config.copy_and_resolve_references().eval, []
    settings.update({"evaluators": ("linear_probe", "likelihood"), "max_images": 200, "batch_size": 200})
    settings.linear_probe.update({"normed": True, "c_values": (0.1,)})
    evaluate_workdir(workdir, None, settings, lines.append)
    rows = json.loads((workdir / "eval/0.json").read_text())
    by_variant = {row.get("variant"): row for row in rows if row["split"] == "test"}
    normed = [f"decoder/{i}:normed" for i in range(DEPTH + 1)]
    assert by_variant["default"]["layers"] == ["decoder/1:normed"]
    assert list(by_variant["best_layer"]["layer_validation_accuracy"]) == normed
    assert by_variant["last_four"]["layers"] == normed[1:]
    assert "nats_per_token" in {row["metric"] for row in rows}


def test_a_converted_workdir_is_forked_but_not_resumed(workdir, model, mesh_of, tmp_path, one_device, monkeypatch):
    config = config_lib.from_dict(json.loads((workdir / "config.json").read_text()))
    lines, spec = [], tokens.TokenSpec.from_config(config)
    run = initialize.Run(config, tmp_path, mesh_of(1), spec, None, None, None, str(workdir), lines.append)
    monkeypatch.setattr(initialize, "_fit_palette", lambda run: pytest.fail("fitted"))
    state, _ = initialize.forked_state(run)
    jax.tree.map(np.testing.assert_array_equal, state.params, model.params)
    np.testing.assert_array_equal(state.palette.nearest, model.palette.nearest)
    assert lines[-1].endswith("new: nothing")
    with pytest.raises(UserError, match=f"without an optimizer; start another run with --fork_from={workdir}"):
        train.train_and_evaluate(config, workdir, lines.append)
    with pytest.raises(UserError, match=f"--workdir={workdir}: already has checkpoints"):
        hybrid_jax.convert.from_image_gpt(workdir.parent / "theirs", workdir)


def test_parts_half_precision_and_a_palette_of_its_own_are_read(tmp_path):
    folder = write(tmp_path / "theirs")
    _, whole, _ = image_gpt.read_folder(folder)
    tensors = weights()
    rounded = {"transformer.ln_f.weight": np.float16, "lm_head.weight": ml_dtypes.bfloat16}
    tensors |= {name: tensors[name].astype(kind) for name, kind in rounded.items()}
    names = sorted(tensors)
    (folder / "model.safetensors").unlink()
    parts = {"a.safetensors": names[:7], "b.safetensors": names[7:]}
    for file, held in parts.items():
        save_file({name: tensors[name] for name in held}, folder / file)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {name: file for file, held in parts.items() for name in held}}))
    colours = np.linspace(-1, 1, COLOURS * 3).reshape(COLOURS, 3)
    np.save(tmp_path / "colours.npy", colours)
    fields, params, found = image_gpt.read_folder(folder, tmp_path / "colours.npy")
    np.testing.assert_array_equal(found, colours.astype(np.float32))
    assert fields["data.image_size"] == (4, 4) and fields["eval.batch_size"] == 500
    for name, array in whole.items():
        kind = {"head/logits/kernel": ml_dtypes.bfloat16, "decoder/norm/scale": np.float16}.get(name, np.float32)
        np.testing.assert_array_equal(params[name], array.astype(kind).astype(np.float32), name)
    index.write_text(json.dumps({"weight_map": {"lm_head.weight": "../a.safetensors"}}))
    with pytest.raises(UserError, match="weight_map must name files of this folder"):
        image_gpt.read_folder(folder)


BIAS = "transformer.h.1.attn.c_attn.bias"
REFUSED = {
    "n_inner=16; must be null or 4 * n_embd = 32": {"n_inner": 16},
    "activation_function='gelu'; must be 'quick_gelu'": {"activation_function": "gelu"},
    "layer_norm_epsilon=1e-06; must be 1e-05": {"layer_norm_epsilon": 1e-6},
    "scale_attn_weights=False; must be True": {"scale_attn_weights": False},
    "scale_attn_by_inverse_layer_idx=True; must be False": {"scale_attn_by_inverse_layer_idx": True},
    "tie_word_embeddings=True; must be False": {"tie_word_embeddings": True},
    "model_type='gpt2'; must be 'imagegpt'": {"model_type": "gpt2"},
    "n_positions=15; must be a square": {"n_positions": 15},
    "n_head='2'; must be a whole number above 0": {"n_head": "2"},
    "lacks transformer.h.2.ln_1.weight, transformer.h.2.ln_2.weight, ": {"n_layer": 10**9},
    "palette must be 99 colours (vocab_size - 1) of 3 numbers in [-1, 1]": {"vocab_size": 100},
    "has transformer.wpe.weight (16, 8) instead of (25, 8)": {"n_positions": 25},
    f"{BIAS} has values up to 0.25; must be all zero, since our blocks have no biases": {
        "tensors": {BIAS: np.eye(1, 3 * WIDTH, dtype=np.float32)[0] / 4}
    },
    "lacks lm_head.weight; must match": {"drop": ["lm_head.weight"]},
    "has unknown score.weight; must match": {"tensors": {"score.weight": np.zeros((3, 8), np.float32)}},
    "transformer.wpe.weight is of type I64; must be one of F32": {
        "tensors": {"transformer.wpe.weight": np.zeros((SIDE**2, WIDTH), np.int64)}
    },
}


@pytest.mark.parametrize("words", REFUSED)
def test_a_model_that_is_none_of_ours_is_refused_in_one_line(tmp_path, words):
    with pytest.raises(UserError, match=re.escape(words)) as caught:
        image_gpt.read_folder(write(tmp_path / "theirs", **REFUSED[words]))
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


class Harmful:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was loaded",))


def test_pickles_and_damaged_files_are_refused_unread(tmp_path, capsys):
    folder = write(tmp_path / "theirs")

    def told(*flags):
        assert convert_cli.main(["from_image_gpt", str(folder), f"--workdir={tmp_path / 'out'}", *flags]) == 2
        line = capsys.readouterr().err
        assert line.startswith("error: ") and line.count("\n") == 1 and not (tmp_path / "out").exists()
        return line

    np.save(tmp_path / "colours.npy", np.array([Harmful()] * COLOURS), allow_pickle=True)
    assert "must be an .npy file of numbers, not pickled" in told(f"--palette={tmp_path / 'colours.npy'}")
    np.save(tmp_path / "colours.npy", np.full((COLOURS, 3), 255.0))
    assert "8 colours (vocab_size - 1) of 3 numbers in [-1, 1]" in told(f"--palette={tmp_path / 'colours.npy'}")
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:-100])
    assert "model.safetensors is damaged" in told()
    (folder / "model.safetensors").unlink()
    assert f"{folder}: has no model.safetensors" in told()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Harmful()))
    assert "pytorch_model.bin is a pickle, which could run any code and is never read" in told()
    (folder / "preprocessor_config.json").unlink()
    assert "has no clusters (the colours of the palette); give them with --palette=FILE.npy" in told()
    (folder / "config.json").write_text("[")
    assert "config.json: is not JSON" in told()
    shutil.rmtree(folder)
    assert "theirs: no such folder" in told()
    assert "unrecognized arguments: --what; see --help" in told("--what")


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("model.encoder_layers", 1, "must be 0"),
        ("model.token_kind", "intensity", "must be 'palette'"),
        ("model.patch_size", 2, "must be 1"),
        ("model.activation", "gelu", "must be 'quick_gelu'"),
        ("data.channels", 1, "must be 3"),
        ("data.image_size", (4, 6), "must be a square"),
    ],
)
def test_what_image_gpt_cannot_be_names_the_field(model, field, value, allowed):
    config = model.config.copy_and_resolve_references()
    image_gpt.check_is_image_gpt(config)
    config.update_from_flattened_dict({field: value})
    with pytest.raises(UserError, match=re.escape(f"config.{field}={value!r}: {allowed} for Image GPT")):
        image_gpt.check_is_image_gpt(config)


def test_the_printed_lines_read_every_parameter_bit_for_bit(trained, workdir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = printed.python_block("safe_open")
    for source in (trained, workdir):
        assert convert_cli.main(["to_safetensors", f"--workdir={source}", "--output=weights.safetensors"]) == 0
        found = {}
        exec(code, found)
        model = hybrid_jax.load(source)
        want = {name: np.asarray(x) for name, x in flatten_dict(model.params, sep="/").items()}
        if model.palette is not None:
            np.testing.assert_array_equal(found["params"].pop("palette"), model.palette.colours)
        assert found["params"].keys() == want.keys()
        jax.tree.map(np.testing.assert_array_equal, found["params"], want)
        assert config_lib.from_dict(found["config"]) == model.config
    assert load_file("weights.safetensors")["decoder/start"].dtype == np.float32
    (tmp_path / "other").touch()
    assert (tmp_path / "weights.safetensors").stat().st_mode == (tmp_path / "other").stat().st_mode


RUN_ALONE = """
import sys
for name in ("hybrid_jax", "flax", "orbax", "safetensors"):
    sys.modules[name] = None
import numpy as np
from jax import export
images = np.load("images.npy")
for name in sys.argv[1:]:
    exported = export.deserialize(bytearray(open(name, "rb").read()))
    assert exported.platforms == ("cpu", "tpu", "cuda") and str(exported.in_avals[0].shape) == "(b, 8, 8, 1)"
    np.savez(name, few=exported.call(images[:2]), all=exported.call(images))
"""


def test_the_encoder_runs_where_there_is_only_jax(trained, tmp_path):
    layers = {"default": None, "first": "encoder/0:normed"}
    for name, layer in layers.items():
        flags = [f"--layer={layer}"] if layer else []
        assert convert_cli.main(["to_stablehlo", f"--workdir={trained}", f"--output={tmp_path / name}", *flags]) == 0
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 1), dtype=np.uint8)
    np.save(tmp_path / "images.npy", images)
    command = [sys.executable, "-c", RUN_ALONE, *layers]
    done = subprocess.run(command, cwd=tmp_path, env=os.environ, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    model = hybrid_jax.load(trained)
    for name, layer in layers.items():
        want, found = model.embed(images, layer), np.load(tmp_path / f"{name}.npz")
        np.testing.assert_allclose(found["all"], want, atol=1e-5, rtol=1e-5)
        np.testing.assert_allclose(found["few"], want[:2], atol=1e-5, rtol=1e-5)
    # What a layer does not need is not inside: of the block the first norm's scale is.
    block = sum(x.nbytes for x in jax.tree.leaves(model.params["encoder"]["transformer"]["block_1"])) - 64
    assert (tmp_path / "default").stat().st_size - (tmp_path / "first").stat().st_size > block


def test_where_nothing_can_be_written_is_said_before_the_work(workdir, tmp_path, capsys):
    for command, output, words in [
        ("to_safetensors", tmp_path / "weights.bin", "must be a file name that ends in .safetensors"),
        ("to_stablehlo", tmp_path, "must be a file in an existing folder"),
        ("to_safetensors", tmp_path / "none/w.safetensors", "must be a file in an existing folder"),
        ("to_image_gpt", workdir, "must be a new or an empty folder"),
    ]:
        assert convert_cli.main([command, f"--workdir={workdir}", f"--output={output}"]) == 2
        assert f"error: --output={output}: {words}" in capsys.readouterr().err


def test_weights_above_what_an_artifact_holds_are_refused(trained, tmp_path, monkeypatch, capsys):
    from hybrid_jax.convert import export

    monkeypatch.setattr(export, "LARGEST_ARTIFACT", 1000)
    assert convert_cli.main(["to_stablehlo", f"--workdir={trained}", f"--output={tmp_path / 'x'}"]) == 2
    assert "use to_safetensors" in capsys.readouterr().err and not (tmp_path / "x").exists()
