"""Short runs of a config with overrides, at equal computation, judged on the validation split.

python -m benchmarks.screen --config=configs/fashion_mnist.py --tries=tries.txt --workdir=runs/screen

Each line of the file is a name and its overrides: `width128 model.width=128 model.num_heads=4`. Every try gets as many
steps as `--teraflop` (`models.flops`) pays for, so that the machine's other work does not decide. Results go to
`results.jsonl` in the workdir; tries that are there already are not run again. The test split is never read.
"""

import dataclasses
import json
import pathlib
import statistics
import time
from typing import Any

from absl import flags

from benchmarks import common
from benchmarks.config_flag import given_config
from hybrid_jax import evaluators, metrics, train
from hybrid_jax.data import sources
from hybrid_jax.errors import UserError
from hybrid_jax.inference.load import load
from hybrid_jax.models import flops
from hybrid_jax.utils import cli

TRIES = flags.DEFINE_string("tries", None, "File of tries, one a line.", required=True)
WORKDIR = flags.DEFINE_string("workdir", None, "Where runs and results are kept.", required=True)
TERAFLOP = flags.DEFINE_float("teraflop", 16.0, "Computation of each try, 10^12 operations.", lower_bound=1e-6)
EVALUATORS = flags.DEFINE_list("evaluators", ["linear_probe", "few_label", "knn", "likelihood"], "What judges a try.")
PROBE_IMAGES = flags.DEFINE_integer("probe_images", 20_000, "Labelled training images of the probes.", lower_bound=10)
NORMS = ("encoder_gradient_norm_contrastive", "encoder_gradient_norm_generative")


def main() -> None:
    """Runs the tries that have no result yet."""
    config, results = given_config(), pathlib.Path(WORKDIR.value) / "results.jsonl"
    results.parent.mkdir(parents=True, exist_ok=True)
    known = {json.loads(line)["name"] for line in results.read_text().splitlines()} if results.exists() else set()
    if not pathlib.Path(TRIES.value).is_file():
        raise UserError(f"--tries={TRIES.value}: no such file")
    for line in pathlib.Path(TRIES.value).read_text().splitlines():
        name, *overrides = line.split() or [""]
        if name and not name.startswith("#") and name not in known:
            row = {"name": name, "overrides": overrides}
            row |= tried(config.copy_and_resolve_references(), results.parent / name, overrides)
            with results.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(json.dumps(row), flush=True)


def tried(config, workdir: pathlib.Path, overrides: list[str]) -> dict[str, Any]:
    """Trains one try and returns its measurements."""
    common.apply(config, overrides)
    with config.unlocked():
        config.train.total_steps = max(1, round(TERAFLOP.value * 1e12 / flops.total(config)))
        config.optimizer.warmup_steps = max(1, config.train.total_steps // 20)
        config.eval.every_steps = -1
    common.apply(config, overrides)
    start = time.perf_counter()
    train.train_and_evaluate(config, workdir, lambda text: print(f"{workdir.name}: {text}", flush=True))
    row = {"steps": config.train.total_steps, "minutes": round((time.perf_counter() - start) / 60, 2)}
    return row | gradients(workdir) | judged(workdir)


def gradients(workdir: pathlib.Path) -> dict[str, float]:
    """Returns the median ratio (contrastive over generative) and cosine of the encoder's gradients, second half."""
    rows = [row for row in metrics.read(workdir) if "encoder_gradient_cosine" in row]
    rows = rows[len(rows) // 2 :]
    if not rows:
        return {}
    ratio = statistics.median(row[NORMS[0]] / row[NORMS[1]] for row in rows)
    cosine = statistics.median(row["encoder_gradient_cosine"] for row in rows)
    return {"gradient_ratio": round(ratio, 3), "gradient_cosine": round(cosine, 3)}


def judged(workdir: pathlib.Path) -> dict[str, float]:
    """Returns what the evaluators say of the validation split; probes learn from the first labelled images."""
    model, count = load(workdir, None), PROBE_IMAGES.value
    model.config.eval.evaluators = tuple(EVALUATORS.value)
    data = sources.load(model.config)
    train_part = dataclasses.replace(data.train, images=data.train.images[:count], labels=data.train.labels[:count])
    fingerprint = f"{data.fingerprint}, first {count} train, validation as test"
    data = dataclasses.replace(data, train=train_part, test=data.validation, validation=None, fingerprint=fingerprint)
    found = {}
    for row in evaluators.evaluate(model, data, model.config, workdir.parent):
        if not row.get("detail"):
            label = " ".join(filter(None, (row["metric"], row.get("variant"))))
            found[label] = round(row["value"], 4)
            found |= {f"{label} of {floor}": round(value, 4) for floor, value in row.get("floor", {}).items()}
    return found


if __name__ == "__main__":
    cli.run_cli(main, __doc__)
