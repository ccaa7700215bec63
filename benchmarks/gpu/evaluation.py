"""`--mode=eval` of a trained run: seconds in all and by evaluator, the default suite.

python -m benchmarks.gpu.evaluation [--tiny] [--data=FOLDER]

Twice: the run of configs/quickstart.py, and a small model on images of CIFAR-10's shape, those of `--data` (an image
folder with `train/` and `test/`), else clothes in three colours.
"""

import json
import pathlib
import re
import shutil

import numpy as np
from PIL import Image

from benchmarks.gpu import commands
from benchmarks.gpu.record import ROOT, Entry, Record, stage_flags, work_folder

_KEPT_LINES = 80
_SECONDS = re.compile(r"(\w+) (\d+)(?:,|$)")
_COLOUR_MODEL = (
    "model.width=256", "model.num_heads=4", "model.encoder_layers=6", "model.decoder_layers=3", "train.total_steps=200",
    "optimizer.warmup_steps=20",
)  # fmt: skip
_TINY_COLOURS = (*commands.TINY_MODEL, "train.total_steps=2")
_TINY_SUITE = ('eval.evaluators=("linear_probe","knn")', "eval.report_samples=0", "eval.max_images=200")


def main() -> None:
    """Trains what is not trained yet, and evaluates it."""
    given = stage_flags(__doc__ or "", "data")
    record = Record("evaluation", given.tiny)
    record.add("quickstart", lambda: evaluated(commands.trained(given.tiny), given.tiny, "configs/quickstart.py"))
    record.add("32x32x3", lambda: colours(given.data, given.tiny))


def evaluated(workdir: pathlib.Path, tiny: bool, config: str, *changes: str) -> Entry:
    """Returns seconds of the evaluation, `by_evaluator`, the headline values, and the lines with their times."""
    suite = [f"--config={config}", *commands.settings(*changes, *_TINY_SUITE)] if tiny else []
    said = commands.run("--mode=eval", f"--workdir={workdir}", *suite).checked()
    told = next((line for _, line in said.lines if line.strip().startswith("seconds:")), "")
    newest = max((workdir / "eval").glob("*.json"), key=lambda path: path.stat().st_mtime)
    rows = json.loads(newest.read_text(encoding="utf-8"))
    headline = {row["metric"]: row["value"] for row in reversed(rows) if row.get("split") != "validation"}
    by_evaluator = {name: int(seconds) for name, seconds in _SECONDS.findall(told)}
    lines = said.lines[-_KEPT_LINES:]
    return {"seconds": said.seconds, "by_evaluator": by_evaluator, "headline": headline, "lines": lines}


def colours(data: str, tiny: bool) -> Entry:
    """Trains the small model on images of CIFAR-10's shape and evaluates it."""
    folder, workdir = data or str(colour_folder(tiny)), work_folder() / ("colours_tiny" if tiny else "colours")
    changes = ["data.name=folder", f"data.path={folder}", "eval.every_steps=-1", "log.gradients=False"]
    changes += _TINY_COLOURS if tiny else _COLOUR_MODEL
    words = ["--config=configs/cifar10.py", f"--workdir={workdir}", *commands.settings(*changes)]
    trained = commands.run(*words).checked()
    return evaluated(workdir, tiny, "configs/cifar10.py", *changes) | {"training_seconds": trained.seconds}


def colour_folder(tiny: bool) -> pathlib.Path:
    """Returns a folder of PNG files of 32x32 pixels: clothes, of which three of a class make the colours."""
    folder = work_folder() / ("colour_images_tiny" if tiny else "colour_images")
    if (folder / "whole").exists():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    with np.load(ROOT / "hybrid_jax/data/embedded/fashion_mnist_12k.npz", allow_pickle=False) as arrays:
        for split, count in (("train", 20 if tiny else 1000), ("test", 10 if tiny else 200)):
            images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
            for label in range(10):
                _write_class(images[labels == label], folder / split / str(label), count)
    (folder / "whole").touch()
    return folder


def _write_class(grey: np.ndarray, folder: pathlib.Path, count: int) -> None:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(count):
        pixels = np.pad(grey[rng.integers(len(grey), size=3)], ((0, 0), (2, 2), (2, 2)))
        Image.fromarray(np.moveaxis(pixels, 0, -1)).save(folder / f"{number}.png", compress_level=1)


if __name__ == "__main__":
    main()
