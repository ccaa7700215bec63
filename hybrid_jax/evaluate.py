"""Evaluation: runs the evaluators on a model, writes `eval/<step>.json` and `report.html`."""

import json
import os
import pathlib
from collections.abc import Callable

from hybrid_jax import config as config_lib
from hybrid_jax import evaluators, sharding
from hybrid_jax.data import sources
from hybrid_jax.errors import UserError, oom_advice
from hybrid_jax.evaluators import ahead
from hybrid_jax.evaluators.features import FeatureStore
from hybrid_jax.inference import load as loading
from hybrid_jax.metrics import headline, results_path
from hybrid_jax.multihost import coordination, preemption
from hybrid_jax.report import run_report
from hybrid_jax.report import samples as report_samples
from hybrid_jax.report.views import sample_views
from hybrid_jax.storage.files import still_writable, writable, write_whole

_MOST_FLOORS = 4


def evaluate_and_report(
    model,
    data,
    config,
    workdir: str | os.PathLike,
    log: Callable[[str], None],
    raise_if_preempted: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """Runs config.eval.evaluators and writes their results; returns headline values by metric name.

    With several processes all run every evaluator, since each must make the same calls; only the first writes.
    `raise_if_preempted` is called regularly and may raise Preempted.
    """
    workdir = pathlib.Path(workdir)
    log(f"evaluating step {model.step} ...")
    data = data.for_evaluation(config.eval.max_images).in_memory()
    for note in data.notes:
        log(f"  {note}")
    (workdir / "eval").mkdir(exist_ok=True)
    features = FeatureStore(model, data, config.eval.linear_probe.normed, workdir)
    with ahead.compiling(features, config, log, report_samples.compilations(features, config)) as later:
        views = later(lambda: sample_views(config, data))
        results = evaluators.evaluate(model, data, config, workdir, log, features, raise_if_preempted)
        raise_if_preempted()
        for row in results:
            if not row.get("detail"):
                log(summary_line(row))
        log(f"report: {run_report.write_report(workdir, model, data, results, views(), features)}")
    # Last, because this file marks the evaluation as complete.
    write_whole(results_path(workdir, model.step), json.dumps(results, indent=2) + "\n")
    return headline(results)


def evaluate_workdir(workdir: str | os.PathLike, step: str | None, eval_section, log: Callable[[str], None] = print):
    """Restores a model, loads its data and evaluates (`--mode=eval`).

    Args:
      workdir: folder of a trained model.
      step: step of the checkpoint, `latest` or `best`; None = the newest.
      eval_section: the `eval` section to use; None = that of the trained config.
      log: function that prints a line.

    Returns:
      Headline values by metric name.
    """
    log = coordination.only_first(log)
    # Fail before hours of work rather than after.
    with coordination.raise_on_all_processes(UserError), writable(workdir):
        pass
    mesh = sharding.all_devices() if coordination.several() else None
    with (
        preemption.StopRequests(mesh) as stops,
        stops.preemptible("stopped; the same command evaluates again") as raise_if_preempted,
    ):
        return _evaluate_workdir(workdir, step, eval_section, log, mesh, raise_if_preempted)


def _evaluate_workdir(workdir, step, eval_section, log, mesh, raise_if_preempted) -> dict[str, float]:
    model = loading.load(workdir, step, log, mesh)
    config = model.config
    if eval_section is not None:
        with config.unlocked():
            config.eval = eval_section
        config_lib.validate(config)
    with coordination.raise_on_all_processes(UserError), coordination.first_goes_first():
        data = sources.load(config)
    data.check(model.fingerprint, config.data.path)
    with coordination.raise_on_all_processes(UserError), coordination.first_goes_first():
        evaluators.check(data.for_evaluation(config.eval.max_images), config)
    advice = f"lower config.eval.batch_size={config.eval.batch_size}"
    with oom_advice(advice), still_writable(workdir):
        return evaluate_and_report(model, data, config, workdir, log, raise_if_preempted)


def summary_line(row: dict) -> str:
    """Returns one result as a line: metric, variant, split if it is validation, value, floors."""
    found = sorted((row.get("floor") or {}).items(), key=lambda item: -item[1])
    # Only OOD results have so many floors; show the highest.
    shown = found[:1] if len(found) > _MOST_FLOORS else (row.get("floor") or {}).items()
    floors = ", ".join(f"{name} {value:.4f}" for name, value in shown)
    validation = "validation" if row.get("split") == "validation" else ""
    told = ", ".join(filter(None, [row.get("variant"), validation]))
    variant = f" ({told})" if told else ""
    return f"  {row['metric']}{variant} = {row['value']:.4f}" + (f"   floor: {floors}" if floors else "")
