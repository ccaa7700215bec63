"""What a user runs first on images of their own: its numbers, its warnings, its sheet."""

import copy
import json

import numpy as np
import pytest
from PIL import Image

from hybrid_jax.config import default_config
from hybrid_jax.errors import UserError
from hybrid_jax.report import dataset, dataset_stats
from hybrid_jax.report.dataset import find_warnings


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(dataset, "_SPEED_SECONDS", 0.01)


@pytest.fixture
def folder(tmp_path):
    """Returns write(name, pixels): a PNG below the folder of images, which it returns without a name."""

    def write(name=None, pixels=None):
        path = tmp_path / "images" / (name or "")
        if name:
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.asarray(pixels, np.uint8)).save(path)
        return path

    return write


def config_of(path, **overrides):
    config = default_config()
    fields = {
        "data.name": "folder", "data.path": str(path), "data.image_size": (8, 8), "data.channels": 3,
        "data.validation_split": "", "data.test_split": "", "model.patch_size": 4, "train.batch_size": 4,
        "train.total_steps": 20, "objective.contrastive_weight": 0.0, "eval.knn.k": 1,
    }  # fmt: skip
    config.update_from_flattened_dict(fields | {k.replace("__", "."): v for k, v in overrides.items()})
    return config


def noise(seed, shape=(8, 8, 3)):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def summarise(config, tmp_path):
    lines = []
    summary = dataset.summarise(config, tmp_path / "run", lines.append)
    return summary, lines


def kinds(summary):
    return [warning["kind"] for warning in summary["warnings"]]


def healthy(folder, count=24, first=0):
    for i in range(count):
        folder(f"{'ab'[i % 2]}/{first + i:03}.png", noise(first + i))
    return folder()


def test_a_messy_folder_is_told_in_numbers(folder, tmp_path):
    for i in range(21):
        folder(f"train/a/{i:02}.png", noise(i))
    folder("train/a/copy.png", noise(3))
    folder("train/b/grey.png", np.repeat(noise(50, (8, 8, 1)), 3, axis=2))
    folder("test/a/leak.png", noise(5))
    folder("test/b/large.png", np.full((20, 60, 3), 7))
    folder("test/c/small.png", noise(51, (4, 8, 3)))
    config = config_of(folder(), data__test_split="test")
    summary, lines = summarise(config, tmp_path)
    train, test = summary["splits"]["train"], summary["splits"]["test"]
    assert (train["images"], train["shape"], train["where"], train["bytes"]) == (23, [8, 8, 3], "memory", 23 * 192)
    assert (train["grey"], train["constant"], train["copies"]) == (1, 0, 1)
    assert sorted(train["first_copy"]) == ["train/a/03.png", "train/a/copy.png"]
    assert (test["images"], test["grey"], test["constant"], test["first_constant"]) == (3, 1, 1, "test/b/large.png")
    (leak,) = summary["shared_images"]
    assert leak == {"from": "train", "to": "test", "images": 1, "first": ["train/a/05.png", "test/a/leak.png"]}
    assert summary["classes"]["names"] == ["a", "b"]
    assert summary["classes"]["counts"]["train"] == [22, 1]
    sizes = summary["original_sizes"]
    assert (sizes["min"], sizes["median"], sizes["max"]) == ([4, 8], [8, 8], [20, 60])
    assert (sizes["images"], sizes["enlarged"], sizes["cropped"]) == (26, 1, 2)
    pixels = [np.asarray(Image.open(path)) for path in sorted((folder() / "train").rglob("*.png"))]
    np.testing.assert_allclose(summary["pixels"]["mean"], np.mean(pixels, axis=(0, 1, 2)))
    np.testing.assert_allclose(summary["pixels"]["std"], np.std(pixels, axis=(0, 1, 2)))
    batches = summary["batches"]
    assert (batches["steps_per_epoch"], batches["left_out_per_epoch"], batches["epochs"]) == (5, 3, 4)
    assert summary["tokens"] == {
        "kind": "intensity", "patches": 4, "patch_size": 4, "tokens_per_patch": 48, "vocabulary": 256,
    }  # fmt: skip
    assert summary["images_per_second"] > 0
    assert kinds(summary) == ["leak", "single_image", "imbalance"]
    assert json.loads((tmp_path / "run" / "data.json").read_text()) == summary
    assert any("train/a/05.png = test/a/leak.png" in line for line in lines if line.startswith("warning: "))
    assert all("\n" not in line for line in lines)


def test_a_healthy_folder_has_no_warnings_and_an_aligned_table(folder, tmp_path):
    summary, lines = summarise(config_of(healthy(folder), data__validation_split="25%"), tmp_path)
    assert kinds(summary) == [] and "warnings: none" in lines
    at = next(i for i, line in enumerate(lines) if line.startswith("classes"))
    table = lines[at : at + 3]
    assert [line.split() for line in table] == [
        ["classes", "train", "validation"],
        *([name, *(str(summary["classes"]["counts"][s][i]) for s in ("train", "validation"))]
          for i, name in enumerate("ab")),
    ]  # fmt: skip
    assert len({len(line) for line in table}) == 1


def test_more_classes_than_fit_a_table_are_summed_up(folder, tmp_path):
    for i in range(30):
        for j in range(2 + (i == 7)):
            folder(f"class{i:02}/{j}.png", noise(i * 10 + j))
    _, lines = summarise(config_of(folder()), tmp_path)
    assert "classes: 30" in lines
    assert "  train: from 2 images (class00) to 3 (class07)" in lines


WARNED = {
    "enlarged": {"data__image_size": (16, 16)},
    "few_steps": {"train__batch_size": 16},
    "short_run": {"train__total_steps": 5},
    # The recipe is one that is quick to compile.
    "colour_steps": {
        "data__channels": 1,
        "objective__contrastive_weight": 0.1,
        "augment__recipe": "crop_flip",
        "augment__hue": 0.1,
    },
}


@pytest.mark.parametrize("kind", WARNED)
def test_settings_that_do_not_fit_the_data_are_warned_of(folder, tmp_path, kind):
    summary, _ = summarise(config_of(healthy(folder), **WARNED[kind]), tmp_path)
    assert kinds(summary) == [kind]


def test_warnings_begin_where_they_are_said_to(folder, tmp_path):
    config = config_of(healthy(folder))
    summary, _ = summarise(config, tmp_path)

    def warned(section, **values):
        found = copy.deepcopy(summary)
        node = found
        for key in section.split("."):
            node = node[key]
        node.update(values)
        return [warning["kind"] for warning in find_warnings(config, found)]

    assert warned("classes.counts", train=[2, 40]) == [] and warned("classes.counts", train=[2, 41]) == ["imbalance"]
    assert warned("original_sizes", enlarged=6) == [] and warned("original_sizes", enlarged=7) == ["enlarged"]
    assert warned("splits.train", grey=21) == [] and warned("splits.train", grey=22) == ["grey"]
    assert warned("pixels", std=[1, 1, 8.0]) == [] and warned("pixels", std=[1, 1, 7.9]) == ["flat"]
    assert warned("batches", total_steps=6) == [] and warned("batches", total_steps=5) == ["short_run"]


def test_missing_classes_grey_and_flat_images_are_warned_of(folder, tmp_path):
    for i in range(20):
        folder(f"train/{'ab'[i % 2]}/{i}.png", np.repeat(noise(i, (8, 8, 1)) // 16, 3, axis=2))
    folder("labelled/c/0.png", noise(90))
    folder("labelled/d/0.png", noise(91))
    folder("labelled/d/1.png", noise(92))
    summary, _ = summarise(config_of(folder(), data__labelled_split="labelled", eval__evaluators=()), tmp_path)
    assert kinds(summary) == ["single_image", "grey", "flat"]
    assert "class c in the labelled split" in summary["warnings"][0]["line"]


def test_a_class_that_only_the_test_split_has_is_warned_of(folder, tmp_path):
    for name in "abc":
        folder(f"{name}/0.png", noise(ord(name)))
    for i in range(12):
        folder(f"{'ab'[i % 2]}/{i + 1}.png", noise(i))
    for seed in range(40):  # a share is drawn with a fixed seed, so one of these numbers of images leaves class c out
        summary, _ = summarise(config_of(folder(), data__test_split="test"), tmp_path)
        if summary["classes"]["counts"]["train"][2] == 0:
            break
        folder(f"a/more{seed:02}.png", noise(1000 + seed))
    assert "missing_class" in kinds(summary) and "single_image" not in kinds(summary)


def test_a_split_on_disk_gives_the_same_numbers(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(dataset_stats, "_READ_AT_ONCE", 5 * 192)
    healthy(folder)
    folder("a/copy.png", noise(6))
    config = config_of(folder(), data__validation_split="10%")
    in_memory, _ = summarise(config, tmp_path)
    config.data.memory_gib = 0.0
    on_disk, _ = summarise(config, tmp_path)
    assert [s["where"] for s in on_disk["splits"].values()] == ["disk", "disk"]
    for row in (*in_memory["splits"].values(), *on_disk["splits"].values()):
        row.pop("where")
    for name in ("splits", "pixels", "shared_images", "classes", "original_sizes"):
        assert on_disk[name] == in_memory[name], name


def test_a_split_too_large_to_read_is_judged_by_its_first_images(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(dataset_stats, "_SCANNED_BYTES", 10 * 192)
    summary, lines = summarise(config_of(healthy(folder)), tmp_path)
    assert (summary["splits"]["train"]["images"], summary["splits"]["train"]["scanned"]) == (24, 10)
    assert summary["pixels"]["images"] == 10
    assert any("of the first 10 training images" in line for line in lines)


def test_skipped_files_are_counted(folder, tmp_path):
    healthy(folder)
    (folder() / "a" / "broken.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"broken\.png"):
        summarise(config_of(folder()), tmp_path)
    summary, lines = summarise(config_of(folder(), data__on_error="skip"), tmp_path)
    assert summary["skipped_files"] == 1 and any("broken.png" in line for line in lines)


def test_palette_tokens_come_with_the_quality_of_their_palette(folder, tmp_path):
    for i in range(12):
        folder(f"{i}.png", noise(i, (8, 8, 1))[..., 0] // 64 * 80)
    palette = {"model__token_kind": "palette", "data__channels": 1}
    summary, lines = summarise(config_of(folder(), model__palette_size=2, **palette), tmp_path)
    assert 10 < summary["palette_psnr"] < 40 and any("PSNR" in line for line in lines)
    assert summary["tokens"]["vocabulary"] == 2
    with pytest.raises(UserError, match=r"model\.palette_size=200"):
        summarise(config_of(folder(), model__palette_size=200, **palette), tmp_path)


def test_what_training_would_refuse_is_refused(folder, tmp_path):
    healthy(folder)
    with pytest.raises(UserError, match=r"train\.batch_size=64"):
        summarise(config_of(folder(), train__batch_size=64), tmp_path)
    with pytest.raises(UserError, match=r"model\.patch_size=3"):
        summarise(config_of(folder(), model__patch_size=3), tmp_path)
    assert not (tmp_path / "run").exists()
    (tmp_path / "run").write_text("a file")
    with pytest.raises(UserError, match="--workdir"):
        summarise(config_of(folder()), tmp_path)


@pytest.mark.parametrize(("channels", "weight"), ((1, 0.0), (3, 0.1)))
def test_the_sheet_of_unlabelled_images_that_are_not_square(folder, tmp_path, channels, weight):
    for i in range(20):
        folder(f"{i}.png", noise(i, (8, 24, 3)))
    overrides = {"data__image_size": (8, 24), "data__channels": channels, "objective__contrastive_weight": weight}
    summary, lines = summarise(config_of(folder(), augment__recipe="crop_flip", **overrides), tmp_path)
    assert summary["classes"] is None and any(line.startswith("no labels") for line in lines)
    path = tmp_path / "run" / "data.png"
    with Image.open(path) as image:
        assert 600 < image.width < 2500 and 100 < image.height < 2500
        pixels = np.asarray(image.convert("RGB"))
    # The margins are free, so nothing was cut.
    assert (pixels[:8] == 255).all() and (pixels[-8:] == 255).all() and (pixels[:, -20:] == 255).all()
    blue = (pixels == (198, 212, 230)).all(axis=-1).any()
    assert blue == (weight > 0)
    assert path.stat().st_size < 3e6


def test_the_command_prints_it_and_trains_nothing(command_line, tmp_path):
    result = command_line("--mode=data", f"--workdir={tmp_path}", "--config.augment.recipe=none")
    assert result.returncode == 0, result.stderr
    assert "digits" in result.stdout and "images/s" in result.stdout and "data.png" in result.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.json", "data.png"]
