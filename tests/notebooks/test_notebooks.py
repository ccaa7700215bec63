"""The notebooks of the documentation: all cells run at small size, and what is committed can be published."""

import base64
import io
import json
import re

import nbformat
import pytest
from notebooks import execute
from PIL import Image

MOST_BYTES = 400_000  # of a committed notebook
FIGURES = {"train_and_look": 4, "search_a_folder": 2, "samples_and_outliers": 7}
IMAGES = 200
SMALL = {
    "HYBRID_JAX_NOTEBOOK_STEPS": "2",
    "HYBRID_JAX_NOTEBOOK_IMAGES": str(IMAGES),
    # Beside other tests on few cores, threads of BLAS wait for each other.
    "OMP_NUM_THREADS": "1",
    "JAX_NUM_CPU_DEVICES": "1",
}


def printed(notebook) -> str:
    """All that the cells printed."""
    return "".join(o.text for cell in notebook.cells for o in cell.get("outputs", ()) if o.output_type == "stream")


def numbers(notebook, label: str) -> list[float]:
    """The numbers in all printed lines that begin with `label`."""
    lines = re.findall(rf"^{re.escape(label)}(.*)$", printed(notebook), flags=re.M)
    return [float(number) for line in lines for number in re.findall(r"\d+\.\d+", line)]


def figures(notebook) -> list[Image.Image]:
    """All pictures among the outputs."""
    outputs = [o for cell in notebook.cells for o in cell.get("outputs", ())]
    pngs = [o.data["image/png"] for o in outputs if "image/png" in o.get("data", {})]
    return [Image.open(io.BytesIO(base64.b64decode(png))).convert("L") for png in pngs]


def check_figures(name: str, notebook) -> None:
    pictures = figures(notebook)
    assert len(pictures) == FIGURES[name]
    for picture in pictures:
        darkest, brightest = picture.getextrema()
        assert picture.width > 300 and darkest < 50 and brightest == 255


def test_train_and_look_then_samples_and_outliers(tmp_path):
    look = execute.execute("train_and_look", tmp_path, **SMALL)
    check_figures("train_and_look", look)
    [bits] = numbers(look, "bits/dim of the test images:")
    # Untrained, all 256 values are equally likely: 8 bits. Two steps make it better, never by much.
    assert 7 < bits < 8
    results = json.loads((tmp_path / "runs/notebook/eval/2.json").read_text())
    [likelihood] = [r for r in results if r["metric"] == "bits_per_dim" and r["split"] == "test"]
    assert likelihood["n"] == IMAGES
    assert numbers(look, "bits_per_dim ") == [round(v, 3) for v in (bits, *likelihood["floor"].values())]
    [by_pixels] = numbers(look, "neighbours of the same class, raw pixels:")
    [by_features] = numbers(look, "neighbours of the same class, features:")
    assert 0.4 < by_pixels < 0.9 and 0.15 < by_features < 0.9  # a tenth would be chance
    assert (tmp_path / "runs/notebook/report.html").stat().st_size > 100_000

    samples = execute.execute("samples_and_outliers", tmp_path, **SMALL)
    check_figures("samples_and_outliers", samples)
    assert "already trained and evaluated" in printed(samples)
    # What the notebook computes from the Python API is what the evaluator wrote.
    assert numbers(samples, "model:") == pytest.approx([bits], abs=1.1e-3)
    assert numbers(samples, "histogram per position:") == pytest.approx([*likelihood["floor"].values()], abs=1.1e-3)
    rows = {kind: numbers(samples, f"{kind} ") for kind in ("rotated", "digits", "photographs")}
    for score, code_length, mean, zeros in rows.values():
        assert min(score, code_length) >= 0 and max(score, code_length) <= 1
        assert min(mean, zeros) >= 0.5 and max(mean, zeros) <= 1
    assert rows["rotated"][2:] == [0.5, 0.5]  # a turned image has the same pixels
    assert rows["photographs"][3] > 0.9  # photographs have no black ground


def test_search_a_folder(tmp_path):
    notebook = execute.execute("search_a_folder", tmp_path, **SMALL)
    check_figures("search_a_folder", notebook)
    assert len(list((tmp_path / "runs/photos").glob("*.png"))) == IMAGES
    assert (tmp_path / "runs/search/checkpoints/2").is_dir()
    assert f"{IMAGES} files, 96 features each" in printed(notebook)
    # Of each change two lines: the search by features and by raw pixels, then the classifiers with their deviations.
    rows = {c: numbers(notebook, f"{c} ") for c in ("as they are", "mirrored", "half as bright", "moved by 2 pixels")}
    for by_features, by_pixels, accuracy, deviation, pixel_accuracy, pixel_deviation in rows.values():
        assert all(0.1 < value < 0.9 for value in (by_features, by_pixels, accuracy, pixel_accuracy))
        assert 0 < deviation < 0.1 and 0 < pixel_deviation < 0.1
    # Raw pixels need no training: they find the most where nothing was changed.
    assert rows["as they are"][1] == max(row[1] for row in rows.values()) > 0.5
    assert rows["as they are"][4] == max(row[4] for row in rows.values()) > 0.6


@pytest.mark.parametrize("name", execute.NOTEBOOKS)
def test_the_committed_notebook_can_be_published(name):
    path = execute.path_of(name)
    assert path.stat().st_size < MOST_BYTES
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert notebook.metadata == execute.METADATA
    assert notebook.cells[0].source.startswith("# ")
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert not any(cell.metadata for cell in notebook.cells)
    outputs = [o for cell in code for o in cell.outputs]
    assert {o.output_type for o in outputs} <= {"stream", "display_data"}
    assert {o.name for o in outputs if o.output_type == "stream"} == {"stdout"}
    assert not re.search(r"(^|[\s'\"(=])/\w", printed(notebook)), "a path of the machine"
    check_figures(name, notebook)


def test_every_notebook_is_run_here():
    assert {path.stem for path in execute.FOLDER.glob("*.ipynb")} == set(execute.NOTEBOOKS) == set(FIGURES)
