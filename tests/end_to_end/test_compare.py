"""Mode `compare` on digits: runs in files, verdicts, resumption, refusals."""

import json
import pathlib
import shutil

import numpy as np
import pytest
import tiny
from meshes import on_devices

from hybrid_jax.comparison.run import compare
from hybrid_jax.errors import UserError

ARMS = "generative,contrastive,hybrid"


def small(**changed):
    config = tiny.get_config()
    config.compare.trials = 1
    config.eval.corruptions.num_images = config.eval.ood.num_images = 60
    config.eval.corruptions.severities = (1,)
    for name, value in changed.items():
        section, field = name.split("__")
        config[section][field] = value
    return config


def run(workdir: pathlib.Path, seeds: str = "0", **changed) -> tuple[dict, list[str]]:
    lines: list[str] = []
    with on_devices(1):
        return compare(small(**changed), workdir, seeds, ARMS, lines.append), lines


@pytest.fixture(scope="module")
def compared(tmp_path_factory) -> pathlib.Path:
    workdir = tmp_path_factory.mktemp("compare")
    run(workdir)
    return workdir


@pytest.fixture
def copied(compared: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    shutil.copytree(compared, tmp_path / "copy")
    return tmp_path / "copy"


def test_every_run_has_a_file_and_every_claim_a_verdict(compared):
    names = {f"{arm}-{seed}.json" for arm in ARMS.split(",") for seed in (0,)}
    assert {path.name for path in (compared / "runs").iterdir()} == names | {"floors.json"}
    result = json.loads((compared / "compare.json").read_text())
    for row in result["runs"]:
        assert {"arm", "seed", "metric", "value", "n", "protocol"} <= set(row)
    measured = {(row["arm"], row["metric"]) for row in result["runs"]}
    assert ("hybrid", "bits_per_dim") in measured and ("contrastive", "bits_per_dim") not in measured
    assert {"C1", "C2", "C3", "all"} <= {row["claim"] for row in result["claims"]}
    assert "Hybrid, generative and contrastive pre-training" in (compared / "report.html").read_text()


def test_the_same_command_again_trains_nothing_and_says_the_same(copied):
    before = (copied / "compare.json").read_bytes()
    shutil.rmtree(copied / "training")
    _, lines = run(copied)
    assert not [line for line in lines if line.startswith("run ")]
    assert (copied / "compare.json").read_bytes() == before


def test_a_lost_run_is_made_again_bit_by_bit(copied):
    path = copied / "runs" / "hybrid-0.json"
    before = json.loads(path.read_text())
    path.unlink()
    shutil.rmtree(copied / "training" / "hybrid-0")
    _, lines = run(copied)
    assert [line.split(",")[0] for line in lines if line.startswith("run ")] == ["run 3 of 3: hybrid-0"]
    after = json.loads(path.read_text())
    assert (after["metrics"], after["per_image"]) == (before["metrics"], before["per_image"])


@pytest.mark.parametrize("damage", ["another config", "cut short", "other data", "older protocol"])
def test_files_that_do_not_belong_are_refused(copied, damage):
    path = copied / "runs" / "generative-0.json"
    text, told, changed = path.read_text(), str(path), {}
    if damage == "another config":
        changed, told = {"model__width": 32}, "config.model.width=32"
    elif damage == "cut short":
        path.write_text(text[:1000])
    elif damage == "other data":
        path.write_text(text.replace('"fingerprint": "', '"fingerprint": "0'))
    else:
        path.write_text(text.replace("ood-v1", "ood-v0"))
    with pytest.raises(UserError) as caught:
        run(copied, **changed)
    assert told in str(caught.value) and "\n" not in str(caught.value)


def test_data_without_labels_cannot_be_compared(tmp_path):
    from PIL import Image

    (tmp_path / "images").mkdir()
    for i in range(40):
        Image.fromarray(np.full((8, 8), 6 * i, np.uint8)).save(tmp_path / "images" / f"{i}.png")
    config = small()
    config.data.name, config.data.path = "folder", str(tmp_path / "images")
    with pytest.raises(UserError, match="needs a labelled"):
        compare(config, tmp_path / "work", "0", ARMS)


@pytest.mark.slow
def test_tuning_chooses_by_validation_and_is_kept(tmp_path):
    result, lines = run(tmp_path, seeds="0", compare__trials=2)
    assert {path.name for path in (tmp_path / "tries").iterdir()} == {
        f"{arm}-{k}.json" for arm in ARMS.split(",") for k in (0, 1)
    }
    for arm, settings in result["tuned"].items():
        tries = [json.loads((tmp_path / "tries" / f"{arm}-{k}.json").read_text()) for k in (0, 1)]
        assert settings in [each["settings"] for each in tries]
        assert {row["split"] for each in tries for row in each["metrics"]} == {"validation"}
    before = (tmp_path / "compare.json").read_bytes()
    _, lines = run(tmp_path, seeds="0", compare__trials=2)
    assert not [line for line in lines if line.startswith(("run ", "try "))]
    assert (tmp_path / "compare.json").read_bytes() == before
