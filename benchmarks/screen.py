"""Short runs of a config with overrides, at equal computation, judged on the validation split.

python -m benchmarks.screen --config=configs/fashion_mnist.py --tries=tries.txt --workdir=runs/screen

Each line of the file is a name and its overrides: `width128 model.width=128 model.num_heads=4`. Every try
gets as many steps as `--teraflop` (`models.flops`) pays for, so that the machine's other work does not
decide. Results go to `results.jsonl` in the workdir; tries that are there already are not run again.
The test split is never read.
"""

import dataclasses
import json
import pathlib
import statistics
import sys
import time

from absl import flags, logging

from benchmarks.command_line import CONFIG
from benchmarks.overrides import apply

TRIES = flags.DEFINE_string("tries", None, "File of tries, one a line.", required=True)
WORKDIR = flags.DEFINE_string("workdir", None, "Where runs and results are kept.", required=True)
TERAFLOP = flags.DEFINE_float("teraflop", 16.0, "Computation of each try, 10^12 operations.", lower_bound=1e-6)
EVALUATORS = flags.DEFINE_list("evaluators", ["linear_probe", "few_label", "knn", "likelihood"], "What judges a try.")
PROBE_IMAGES = flags.DEFINE_integer("probe_images", 20_000, "Labelled training images of the probes.", lower_bound=10)


def main(argv: list[str]) -> None:
    """Runs the tries that have no result yet."""
    flags.FLAGS(argv)
    logging.set_verbosity(logging.ERROR)
    workdir = pathlib.Path(WORKDIR.value)
    workdir.mkdir(parents=True, exist_ok=True)
    results = workdir / "results.jsonl"
    known = {json.loads(line)["name"] for line in results.read_text().splitlines()} if results.exists() else set()
    for line in pathlib.Path(TRIES.value).read_text().splitlines():
        name, *overrides = line.split() or [""]
        if not name or name.startswith("#") or name in known:
            continue
        row = {"name": name, "overrides": overrides, **run(CONFIG.value.copy_and_resolve_references(), name, overrides)}
        with results.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)


def run(config, name: str, overrides: list[str]) -> dict:
    """Trains one try and returns its measurements."""
    from hybrid_jax import train_and_evaluate
    from hybrid_jax.models import flops

    apply(config, overrides)
    with config.unlocked():
        config.train.total_steps = max(1, round(TERAFLOP.value * 1e12 / flops.total(config)))
        config.optimizer.warmup_steps = max(1, config.train.total_steps // 20)
        config.eval.every_steps = -1
    apply(config, overrides)
    workdir = pathlib.Path(WORKDIR.value) / name
    start = time.perf_counter()
    train_and_evaluate(config, workdir, lambda text: print(f"{name}: {text}", flush=True))
    row = {"steps": config.train.total_steps, "minutes": round((time.perf_counter() - start) / 60, 2)}
    return row | gradients(workdir) | judge(workdir)


def gradients(workdir: pathlib.Path) -> dict:
    """Returns the median ratio (contrastive over generative) and cosine of the encoder's gradients, second half."""
    from hybrid_jax import metrics

    rows = [row for row in metrics.read(workdir) if "encoder_gradient_cosine" in row]
    rows = rows[len(rows) // 2 :]
    if not rows:
        return {}
    names = ("encoder_gradient_norm_contrastive", "encoder_gradient_norm_generative")
    ratio = statistics.median(row[names[0]] / row[names[1]] for row in rows)
    cosine = statistics.median(row["encoder_gradient_cosine"] for row in rows)
    return {"gradient_ratio": round(ratio, 3), "gradient_cosine": round(cosine, 3)}


def judge(workdir: pathlib.Path) -> dict:
    """Returns what the evaluators say of the validation split; probes learn from the first labelled images."""
    from hybrid_jax import evaluators
    from hybrid_jax.data import sources
    from hybrid_jax.inference import load as loading

    model = loading.load(workdir, None)
    model.config.eval.evaluators = tuple(EVALUATORS.value)
    data = sources.load(model.config)
    train = dataclasses.replace(
        data.train, images=data.train.images[: PROBE_IMAGES.value], labels=data.train.labels[: PROBE_IMAGES.value]
    )
    fingerprint = f"{data.fingerprint}, first {PROBE_IMAGES.value} train, validation as test"
    data = dataclasses.replace(data, train=train, test=data.validation, validation=None, fingerprint=fingerprint)
    found = {}
    for row in evaluators.evaluate(model, data, model.config, pathlib.Path(WORKDIR.value)):
        if row.get("detail"):
            continue
        label = " ".join(filter(None, (row["metric"], row.get("variant"))))
        found[label] = round(row["value"], 4)
        found |= {f"{label} of {floor}": round(value, 4) for floor, value in row.get("floor", {}).items()}
    return found


if __name__ == "__main__":
    main(sys.argv)
