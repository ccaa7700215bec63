"""Executes the notebooks of the documentation; `python tests/notebooks/execute.py` does so in place, at full size."""

import base64
import io
import os
import pathlib
import sys

import nbclient
import nbformat
from PIL import Image

ROOT = pathlib.Path(__file__).parents[2]
FOLDER = ROOT / "docs" / "notebooks"
NOTEBOOKS = ("train_and_look", "search_a_folder", "samples_and_outliers")
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
_COLOURS = 96


def path_of(name: str) -> pathlib.Path:
    """Returns where a notebook lies."""
    return FOLDER / f"{name}.ipynb"


def execute(name: str, cwd: pathlib.Path, **environment: str) -> nbformat.NotebookNode:
    """Runs all cells in a fresh kernel and returns the notebook with its outputs; the file stays as it is.

    Args:
      name: of the notebook.
      cwd: where the notebook's relative paths begin.
      environment: variables that the kernel gets beside those of this process.

    Raises:
      CellExecutionError: a cell failed.
    """
    notebook = nbformat.read(path_of(name), as_version=4)
    client = nbclient.NotebookClient(
        notebook, timeout=1800, kernel_name="python3", coalesce_streams=True, resources={"metadata": {"path": str(cwd)}}
    )
    python_path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    client.execute(env=os.environ | {"PYTHONPATH": python_path} | environment)
    return notebook


def tidy(notebook: nbformat.NotebookNode) -> None:
    """Removes times, versions and the home folder, which differ between machines, and makes figures smaller."""
    notebook.metadata = nbformat.from_dict(METADATA)
    for cell in notebook.cells:
        cell.metadata = nbformat.from_dict({})
        for output in cell.get("outputs", ()):
            if output.output_type == "stream":
                output.text = output.text.replace(str(pathlib.Path.home()), "~")
            if "image/png" in output.get("data", {}):
                output.data["image/png"] = _with_few_colours(output.data["image/png"])


def _with_few_colours(png: str) -> str:
    """Base64 of a PNG -> base64 of the same picture with a palette, a third of the size."""
    buffer = io.BytesIO()
    picture = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    picture.quantize(_COLOURS, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


def _main() -> None:
    for name in sys.argv[1:] or NOTEBOOKS:
        path = path_of(name)
        # Where a plug-in for TPUs is installed, it would print its search for one.
        notebook = execute(name, FOLDER, JAX_PLATFORMS="cpu")
        tidy(notebook)
        nbformat.write(notebook, path)
        print(f"{path.relative_to(ROOT)}: {path.stat().st_size / 1000:.0f} kB", flush=True)


if __name__ == "__main__":
    _main()
