"""Features of a user's own files: mode `embed`, its mistakes, and the recipes of the documentation as printed."""

import contextlib
import io
import pathlib

import numpy as np
import PIL.Image
import printed
import pytest
import tiny
from meshes import on_devices
from sklearn.datasets import load_sample_images

import hybrid_jax
from hybrid_jax import train
from hybrid_jax.data import sources
from hybrid_jax.data.inputs import open_inputs
from hybrid_jax.errors import UserError
from hybrid_jax.inference import embed
from hybrid_jax.inference import load as loading
from hybrid_jax.inference import model as model_lib

SIDE = 16


def tiles_of(photograph):
    """Returns the photograph cut into (n, SIDE, SIDE, 3)."""
    rows, columns = photograph.shape[0] // SIDE, photograph.shape[1] // SIDE
    cut = photograph[: rows * SIDE, : columns * SIDE].reshape(rows, SIDE, columns, SIDE, 3)
    return cut.swapaxes(1, 2).reshape(-1, SIDE, SIDE, 3)


@pytest.fixture(scope="module")
def tiles():
    """Tiles of a photograph of a Chinese temple and of one of a flower, each in a fixed random order."""
    shuffle = np.random.default_rng(0).permutation
    return [shuffle(tiles_of(photograph)) for photograph in load_sample_images().images]


@pytest.fixture(scope="module")
def home(tiles, tmp_path_factory):
    """A folder that holds `photos/`, 240 tiles under names that tell nothing, and `runs/mine`, trained on them."""
    root = tmp_path_factory.mktemp("home")
    for i in range(240):
        file = root / "photos" / str(i % 3) / f"{i:03}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(tiles[i % 2][i // 2]).save(file)
    config = tiny.get_config()
    config.update_from_flattened_dict({
        "data.name": "folder", "data.path": str(root / "photos"), "data.image_size": (SIDE, SIDE), "data.channels": 3,
        "model.patch_size": 4, "model.levels": 16, "model.width": 32,
        "augment.recipe": "crop_flip",
        "train.batch_size": 32, "train.total_steps": 40, "train.likelihood_fraction": 0.25,
        "optimizer.learning_rate": 0.006, "log.every_steps": 40, "checkpoint.every_steps": 40, "eval.batch_size": 128,
    })  # fmt: skip
    with on_devices(1):
        train.train_and_evaluate(config, root / "runs" / "mine", lambda line: None)
    return root


@pytest.fixture(scope="module")
def model(home):
    return hybrid_jax.load(home / "runs" / "mine")


@pytest.fixture
def in_home(home, model, monkeypatch):
    """Runs in the folder; the model there is loaded once."""
    monkeypatch.chdir(home)
    monkeypatch.setattr(hybrid_jax, "load", lambda path: model if path == "runs/mine" else pytest.fail(path))


def recipe(word):
    """Runs the printed block of Python in which a word occurs; returns what it prints in columns."""
    with contextlib.redirect_stdout(io.StringIO()) as told:
        exec(printed.python_block(word), {})
    return [line.split() for line in told.getvalue().splitlines()]


def photograph_of(name):
    return int(pathlib.Path(name).stem) % 2


def test_the_search_recipe_finds_tiles_of_the_same_photograph(in_home, tiles):
    same = []
    for label in (0, 1):
        for tile in tiles[label][-2:]:  # not among the 240
            PIL.Image.fromarray(tile).save("query.jpg", quality=95)
            same += [photograph_of(name) == label for _, name in recipe("query.jpg")]
    # By chance 10 of 20; 16 or more has p = 0.006.
    assert len(same) == 20 and sum(same) >= 16


def test_the_classifier_recipe_beats_chance_with_20_labels(in_home):
    words = ("temple", "flower")
    names = [f"{i % 3}/{i:03}.png" for i in range(20)]
    pathlib.Path("labels.csv").write_text("".join(f"{name},{words[photograph_of(name)]}\n" for name in names))
    found = recipe("labels.csv")
    assert len(found) == 220 and not {name for _, name in found} & set(names)
    # Chance is 0.5 with a standard error of 0.034.
    assert np.mean([label == words[photograph_of(name)] for label, name in found]) > 0.7


def test_the_odd_image_recipe_puts_planted_images_on_top(in_home, home):
    rng = np.random.default_rng(0)
    planted = {
        "noise0.png": rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8),
        "noise1.png": rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8),
        "magenta.png": np.full((SIDE, SIDE, 3), (255, 0, 255), np.uint8),
        "green.png": np.full((SIDE, SIDE, 3), (0, 255, 0), np.uint8),
    }
    try:
        for name, image in planted.items():
            PIL.Image.fromarray(image).save(home / "photos" / name)
        found = recipe("LedoitWolf")
    finally:
        for name in planted:
            (home / "photos" / name).unlink()
    # Each finds its own: plain colours are probable, however strange.
    far, improbable = ([name for what, _, name in found if what == kind][:4] for kind in ("far", "improbable"))
    assert {"magenta.png", "green.png"} <= set(far) and {"noise0.png", "noise1.png"} <= set(improbable)


@pytest.fixture
def mixed(tmp_path):
    """A folder of 20 photographs of many sizes, modes and formats, and their names."""
    photograph = PIL.Image.fromarray(load_sample_images().images[0])
    kinds = [("RGB", "png"), ("L", "png"), ("RGB", "jpg"), ("L", "jpg"), ("RGBA", "webp")]
    for i in range(20):
        mode, suffix = kinds[i % len(kinds)]
        file = tmp_path / "mixed" / ("b" if i % 2 else "a") / f"{i:02}.{suffix}"
        file.parent.mkdir(parents=True, exist_ok=True)
        photograph.crop((10 * i, 5 * i, 40 + 25 * i, 90 + 10 * i)).convert(mode).save(file)
    return tmp_path / "mixed"


def test_a_folder_gives_bit_for_bit_the_features_of_what_training_saw(model, mixed):
    config = model.config.copy_and_resolve_references()
    config.data.path = str(mixed)
    data = sources.load(config)
    splits = [split.in_memory() for split in (data.train, data.validation, data.test)]
    seen = {name: image for split in splits for name, image in zip(split.names, split.images, strict=True)}
    found = model.embed_files(mixed)
    assert found["names"].tolist() == sorted(seen) == sorted(found["names"])
    images = np.stack([seen[name] for name in sorted(seen)])
    np.testing.assert_array_equal(found["features"], model.embed(images))
    np.testing.assert_array_equal(found["log_prob"], model.log_prob(images))
    np.testing.assert_array_equal(model.embed(str(mixed)), found["features"])
    # A single file, from a folder or by itself.
    one = model.embed_files(mixed / "a" / "00.png")
    assert one["names"].tolist() == ["00.png"] and one["features"].dtype == np.float32
    np.testing.assert_allclose(one["features"], found["features"][:1], rtol=1e-5, atol=1e-6)


def test_the_batch_size_does_not_matter_and_bounds_what_is_in_memory(model, home):
    whole = model.embed_files(home / "photos")
    other = loading.load(home / "runs" / "mine")
    other.config.eval.batch_size = 50
    parts = list(other.embed_batches(open_inputs(home / "photos")))
    assert [len(part["names"]) for part in parts] == [50, 50, 50, 50, 40]
    for key in ("features", "log_prob"):
        np.testing.assert_allclose(np.concatenate([p[key] for p in parts]), whole[key], rtol=1e-5, atol=1e-5)


def test_unreadable_files_stop_or_are_skipped_and_counted(home, mixed, tmp_path):
    (mixed / "a" / "cut.jpg").write_bytes((mixed / "a" / "02.jpg").read_bytes()[:300])
    lines = []
    run = lambda on_error: embed.embed_workdir(
        home / "runs" / "mine", mixed, tmp_path / "out.npz", on_error=on_error, log=lines.append
    )
    with pytest.raises(UserError, match=r"a/cut\.jpg: cannot be read as an image \(.+\); .*on_error=skip"):
        run("stop")
    assert [p.name for p in tmp_path.iterdir()] == ["mixed"]
    run("skip")
    assert lines[0].startswith(f"skipped 1 unreadable images, the first: {mixed}/a/cut.jpg: ")
    with np.load(tmp_path / "out.npz", allow_pickle=False) as found:
        assert found["features"].shape == (20, 32) and found["log_prob"].shape == (20,)
        assert "a/cut.jpg" not in found["names"]
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "x.png").write_bytes(b"no image")
    with pytest.raises(UserError, match="no image can be read"):
        loading.load(home / "runs" / "mine").embed_files(tmp_path / "none", on_error="skip")


def npy_mistakes(folder):
    """Writes .npy files that cannot be embedded; returns {path: words of the error}."""
    folder.mkdir()
    np.save(folder / "float.npy", np.zeros((2, 8, 8), np.float32))
    np.save(folder / "flat.npy", np.zeros((2, 8), np.uint8))
    np.save(folder / "empty.npy", np.zeros((0, 8, 8), np.uint8))
    np.save(folder / "pickled.npy", np.array([{}, {}]), allow_pickle=True)
    np.save(folder / "cut.npy", np.zeros((90, 8, 8), np.uint8))
    (folder / "cut.npy").write_bytes((folder / "cut.npy").read_bytes()[:1000])
    (folder / "text.npy").write_text("no array")
    words = {
        "float": "must be uint8", "flat": "(n, h, w)", "empty": "", "pickled": "Python objects",
        "cut": "cannot be read", "text": "cannot be read",
    }  # fmt: skip
    return {folder / f"{name}.npy": text for name, text in words.items()}


def test_every_mistake_gets_one_line_and_leaves_nothing(home, tmp_path, capsys):
    workdir, out = home / "runs" / "mine", tmp_path / "out"
    for folder in ("out", "nothing", "workdir"):
        (tmp_path / folder).mkdir()
    (out / "folder.npz").mkdir()
    (tmp_path / "text.txt").write_text("no image")
    good, target = home / "photos", out / "x.npz"
    mistakes = {
        (workdir, tmp_path / "missing", target): ("--input=", "missing: does not exist"),
        (workdir, tmp_path / "nothing", target): ("--input=", "PNG, JPEG"),
        (workdir, tmp_path / "text.txt", target): ("text.txt: cannot be read as an image",),
        (workdir, good, out / "x.npy"): ("--output=", "must be a file that ends in .npz"),
        (workdir, good, out / "folder.npz"): ("--output=", "must be a file"),
        (workdir, good, out / "none" / "x.npz"): ("--output=", "cannot be written", "No such file"),
        (tmp_path / "workdir", good, target): ("--workdir=", "no checkpoint"),
    } | {(workdir, p, target): ("--input=", p.name, text) for p, text in npy_mistakes(tmp_path / "npy").items()}
    for call, words in mistakes.items():
        with pytest.raises(UserError) as caught:
            embed.embed_workdir(*call, log=print)
        line = str(caught.value)
        assert "\n" not in line and all(word in line for word in words), line
    with pytest.raises(UserError, match="layer 'encodr': must be one of embedding, encoder/1"):
        embed.embed_workdir(workdir, good, target, layer="encodr", log=print)
    assert [p.name for p in out.iterdir()] == ["folder.npz"] and not capsys.readouterr().err


@pytest.mark.parametrize("moment", ["while embedding", "while packing"])
def test_an_interrupted_run_leaves_the_old_file_and_no_other(home, tmp_path, monkeypatch, moment):
    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    target = tmp_path / "out.npz"
    target.write_bytes(b"old")
    if moment == "while packing":
        monkeypatch.setattr(embed.np, "savez", stop)
    else:
        monkeypatch.setattr(model_lib.Model, "_padded", stop)
    with pytest.raises(KeyboardInterrupt):
        embed.embed_workdir(home / "runs" / "mine", home / "photos" / "0" / "000.png", target, log=print)
    assert [p.name for p in tmp_path.iterdir()] == ["out.npz"] and target.read_bytes() == b"old"


def test_the_command_writes_the_npz_and_a_missing_input_gets_one_line(command_line, home, model):
    flags = ["--mode=embed", f"--workdir={home / 'runs' / 'mine'}"]
    result = command_line(*flags, config=None)
    assert result.returncode == 2 and result.stderr.startswith("error: --input is missing")
    assert len(result.stderr.splitlines()) == 1
    flags += [f"--input={home / 'photos' / '0'}", "--layer=decoder", "--step=40"]
    result = command_line(*flags, config=None)
    assert result.returncode == 0, result.stderr
    assert "names (80,), features (80, 32), log_prob (80,)" in result.stdout
    with np.load(home / "runs" / "mine" / "embed.npz", allow_pickle=False) as found:
        assert list(found) == ["names", "features", "log_prob"]
        assert found["features"].dtype == found["log_prob"].dtype == np.float32
        assert found["names"].tolist() == [f"{i:03}.png" for i in range(0, 240, 3)]
        np.testing.assert_allclose(found["features"], model.embed(home / "photos" / "0", "decoder"), rtol=1e-4)
        np.testing.assert_allclose(found["log_prob"], model.log_prob(str(home / "photos" / "0")), rtol=1e-5)
