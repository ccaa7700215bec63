"""Runs on a folder of real colour photographs: from memory, from disk, changed under a run.

One config serves all tests, so that what one has compiled the others find in the cache.
"""

import shutil

import jax
import numpy as np
import photographs
import pytest
from fakes import untrained

import hybrid_jax
from hybrid_jax import evaluators, train
from hybrid_jax.data import sources
from hybrid_jax.errors import UserError
from hybrid_jax.evaluate import evaluate_workdir


@pytest.fixture
def photo_config(tmp_path, tiny_config):
    """Returns make(**overrides): a config for tiles in tmp_path/photos."""
    fields = {
        "data__name": "folder", "data__path": str(tmp_path / "photos"), "data__cache": str(tmp_path / "cache"),
        "data__image_size": (16, 16), "data__channels": 3, "model__patch_size": 8, "augment__recipe": "crop_flip",
        "eval__every_steps": 0, "eval__evaluators": ("knn", "likelihood"), "eval__knn__k": 5,
    }  # fmt: skip
    return lambda **overrides: tiny_config(**fields | overrides)


@pytest.fixture
def photo_run(tmp_path, photo_config, one_device):
    """Returns run(name, **overrides): trains in tmp_path/name; returns metrics, log."""

    def run(name="run", **overrides):
        lines = []
        return train.train_and_evaluate(photo_config(**overrides), tmp_path / name, lines.append), lines

    return run


@pytest.mark.slow
def test_images_on_disk_give_the_same_run_as_in_memory_also_when_resumed(photo_run, tmp_path):
    photographs.write(tmp_path / "photos", 32, 48)
    memory, _ = photo_run("memory")
    disk, lines = photo_run("disk", data__memory_gib=0.0)
    assert any("train: 0.0 GiB, read from disk" in line for line in lines)
    assert disk["knn_accuracy"] == memory["knn_accuracy"] and disk["bits_per_dim"] == memory["bits_per_dim"]
    shutil.rmtree(tmp_path / "disk/checkpoints/10")
    _, lines = photo_run("disk", data__memory_gib=0.0)
    assert "resuming from checkpoint 5" in lines
    one, two = (jax.device_get(hybrid_jax.load(tmp_path / name).params) for name in ("memory", "disk"))
    jax.tree.map(np.testing.assert_array_equal, one, two)


@pytest.mark.slow
def test_a_folder_that_changed_is_refused_until_it_is_as_before(photo_run, tmp_path):
    photographs.write(tmp_path / "photos", 32, 48)
    photo_run()
    image = tmp_path / "photos/china/0000.png"
    before = image.read_bytes()
    photographs.Image.new("RGB", (32, 32)).save(image)
    for again in (photo_run, lambda: evaluate_workdir(tmp_path / "run", None, None)):
        with pytest.raises(UserError) as caught:
            again()
        assert str(caught.value) == (
            f"config.data.path='{tmp_path / 'photos'}': the images, labels or splits differ from those the workdir was "
            "trained on; restore them, or train in another --workdir"
        )
    image.write_bytes(before)
    (tmp_path / "photos").rename(tmp_path / "moved")
    _, lines = photo_run(data__path=str(tmp_path / "moved"))
    assert "resuming from checkpoint 10" in lines


@pytest.mark.slow
def test_damage_of_cached_images_is_told_and_the_last_checkpoint_kept(photo_run, tmp_path):
    photographs.write(tmp_path / "photos", 32, 48)
    photo_run(data__memory_gib=0.0)
    shutil.rmtree(tmp_path / "run/checkpoints/10")
    [store] = (tmp_path / "cache").iterdir()
    records = store / "images-00000.array_record"
    content = np.frombuffer(records.read_bytes(), np.uint8).copy()
    content[20_000:60_000] ^= 1
    records.write_bytes(content.tobytes())
    with pytest.raises(UserError, match=f"config.data.cache='{store}': is damaged"):
        photo_run(data__memory_gib=0.0)
    assert hybrid_jax.load(tmp_path / "run").step == 5
    shutil.rmtree(store)
    photo_run(data__memory_gib=0.0)
    assert hybrid_jax.load(tmp_path / "run").step == 10


def test_probes_learn_from_the_labelled_split(photo_config, tmp_path):
    photographs.write(tmp_path / "tiles", 32, 48)
    for name in ("china", "flower"):
        files = sorted((tmp_path / "tiles" / name).iterdir())
        for split, part in (("train", files[:40]), (f"labelled/{name}", files[40:70]), (f"test/{name}", files[70:90])):
            (tmp_path / "photos" / split).mkdir(parents=True, exist_ok=True)
            for file in part:
                file.rename(tmp_path / "photos" / split / f"{name}-{file.name}")
    config = photo_config(data__labelled_split="labelled", data__validation_split="20%", eval__evaluators=("knn",))
    data = sources.load(config)
    assert "labelled_validation split: seeded 20 % of labelled, 12 images" in data.notes
    test, validation = evaluators.evaluate(untrained(config), data.for_evaluation(1000).in_memory(), config)
    assert (test["n"], test["n_train"], validation["n"]) == (40, 48, 12) and test["value"] > 0.6
