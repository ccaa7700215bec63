"""One evaluation: every evaluator on one model, `eval/<step>.json`, `report.html`."""

import json
import os
import pathlib
from collections.abc import Callable

import jax
import numpy as np

from hybrid_jax import config as config_lib
from hybrid_jax import evaluators, inference, report
from hybrid_jax.data import augment, sources
from hybrid_jax.errors import UserError, explained_memory
from hybrid_jax.evaluators.features import FeatureStore


def evaluate_and_report(
    model, data, config, workdir: str | os.PathLike, log: Callable[[str], None]
) -> dict[str, float]:
    """Runs config.eval.evaluators and writes their results; returns headline values by metric name."""
    workdir = pathlib.Path(workdir)
    log(f"evaluating step {model.step} ...")
    (workdir / "eval").mkdir(exist_ok=True)
    features = FeatureStore(model, data)
    results = evaluators.evaluate(model, data, config, workdir, log, features)
    for row in results:
        log(summary_line(row))
    log(f"report: {report.write_report(workdir, model, data, results, sample_views(config, data), features)}")
    # Last, because this file says that the evaluation is complete.
    path = results_path(workdir, model.step)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    temporary.replace(path)
    return headline(results)


def results_path(workdir: str | os.PathLike, step: int) -> pathlib.Path:
    """Returns where the results of a step's evaluation are written once it is complete."""
    return pathlib.Path(workdir) / "eval" / f"{step}.json"


def headline(results: list[dict]) -> dict[str, float]:
    """Returns {metric: value of its first result}."""
    return {row["metric"]: row["value"] for row in reversed(results)}


def read_headline(workdir: str | os.PathLike, step: int) -> dict[str, float]:
    """Returns the headline values of a finished evaluation."""
    return headline(json.loads(results_path(workdir, step).read_text(encoding="utf-8")))


def evaluate_workdir(workdir: str | os.PathLike, step: str | None, eval_section, log: Callable[[str], None] = print):
    """What --mode=eval does: restores the model, loads its data, evaluates.

    Args:
      workdir: of a trained model.
      step: which checkpoint; None = the newest.
      eval_section: the `eval` section to use; None = the one it was trained with.
      log: takes progress lines.

    Returns:
      Headline values by metric name.
    """
    model = inference.load(workdir, step, log)
    config = model.config
    if eval_section is not None:
        with config.unlocked():
            config.eval = eval_section
        config_lib.validate(config)
    data = sources.load(config)
    if data.fingerprint != model.fingerprint:
        raise UserError(f"config.data.path={config.data.path!r}: not the data this checkpoint was trained on")
    evaluators.check(data, config)
    with explained_memory(f"lower config.eval.batch_size={config.eval.batch_size}"):
        return evaluate_and_report(model, data, config, workdir, log)


def summary_line(row: dict) -> str:
    """Returns one result as a line: metric, variant, value, floor."""
    floors = ", ".join(f"{name} {value:.4f}" for name, value in (row.get("floor") or {}).items())
    variant = f" ({row['variant']})" if row.get("variant") else ""
    return f"  {row['metric']}{variant} = {row['value']:.4f}" + (f"   floor: {floors}" if floors else "")


def sample_views(config, data, count: int = 8) -> np.ndarray | None:
    """Returns (count, 3, H, W, C) uint8: images and two augmented views of each; None without views."""
    if config.objective.contrastive_weight == 0:
        return None
    images = data.train.images[:count]
    recipe = augment.recipe_from_config(config.augment)
    keys = jax.random.split(jax.random.key(config.seed), 2)
    views = [np.asarray(augment.augment(key, images, recipe)).round().astype(np.uint8) for key in keys]
    return np.stack([images, *views], axis=1)
