"""Compiles the larger programs of an evaluation in threads while it runs.

An accelerator's compiler takes up to a minute per program, mostly on one core. A call made before its program is ready
waits for it; nothing is compiled twice. On CPUs it would gain nothing and is off.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from hybrid_jax.evaluators import adversarial, few_label, logistic_device
from hybrid_jax.evaluators.features import FeatureStore
from hybrid_jax.evaluators.linear_probe import LAYER_CHOICE_IMAGES, last_four
from hybrid_jax.multihost import coordination
from hybrid_jax.utils import runtime

THREADS = 8

Task = Callable[[], Any]
Compilation = Callable[[], object]
# The model's programs that each evaluator calls, by the names of `Model.compilation`.
_ASKED = {
    "linear_probe": ("features",),
    "few_label": ("features",),
    "knn": ("features",),
    "likelihood": ("token_log_prob",),
    "calibration": ("features",),
    "corruptions": ("features", "embed"),
    "adversarial": ("features", "embed"),
    "ood": ("measures", "embed"),
}
_WITH_PROBES = {"linear_probe", "few_label", "calibration", "corruptions", "adversarial"}


@contextlib.contextmanager
def compiling(
    features: FeatureStore, config, log: Callable[[str], None], more: Sequence[Compilation] = ()
) -> Iterator[Callable[[Task], Task]]:
    """Compiles the programs that `config.eval` needs, and `more`, while the body of the `with` statement runs.

    Off with several processes, whose compilers wait for one another in one order. `log` takes a line for each program
    that could not be compiled.

    Yields:
      A function that takes a task and returns a callable for its result: the task is started in a thread, or runs when
      that callable is called if compilation is off.
    """
    if not runtime.on_accelerator() or coordination.several():
        yield lambda task: task
        return
    pool = ThreadPoolExecutor(THREADS)
    begun: list[Future] = []
    try:
        begun += [pool.submit(task) for task in [*compilations(features, config), *more]]
        yield lambda task: pool.submit(task).result
    finally:
        pool.shutdown(cancel_futures=True)
    for error in (future.exception() for future in begun if not future.cancelled()):
        if error is not None:
            log(f"  not compiled ahead: {type(error).__name__}: {error}")


def compilations(features: FeatureStore, config) -> list[Compilation]:
    """Returns one function per program that compiles it, in the order in which the programs are needed."""
    asked, model, labels = set(config.eval.evaluators), features.model, features.data.train.labels
    names = dict.fromkeys(["features"] + ["measures"] * (config.eval.anomaly.num_images > 0))
    names |= dict.fromkeys(name for evaluator in _ASKED if evaluator in asked for name in _ASKED[evaluator])
    if not model.has_likelihood:
        names.pop("token_log_prob", None)
    found = [model.compilation(name, features.normed) for name in names]
    if labels is not None and asked & _WITH_PROBES:
        found += _of_probes(features, config, len(np.unique(labels)))
    if model.has_likelihood:
        found += _of_samples(features, config)
    return found


def _of_samples(features: FeatureStore, config) -> list[Compilation]:
    data, found = features.data, []
    if "sample_quality" in config.eval.evaluators and data.test is not None:
        most = min(len(data.test.images), len(data.train.images) // 2)
        found.append(features.model.drawing(min(config.eval.sample_quality.num_images, most), 0))
    return found


def _of_probes(features: FeatureStore, config, num_classes: int) -> list[Compilation]:
    """The fits of the evaluators `linear_probe` and `few_label`, and the attack on the linear probe."""
    (n, height, width, channels), model = features.data.train.images.shape, features.model
    one, pixels = model.config.model.width, height * width * channels
    four = max(1, len(last_four(model.layers))) * one
    fits = [(min(n, LAYER_CHOICE_IMAGES), one)] + [(n, d) for d in (one, four, pixels)]
    settings = config.eval.few_label
    if "few_label" in config.eval.evaluators:
        counts = few_label.class_counts(features.data.train.labels, settings.shares, settings.per_class).values()
        # With fewer images than features, the fit is solved in the span of the images.
        fits += [(count, min(count, d)) for count in (int(each.sum()) for each in counts) for d in (one, four, pixels)]
    shapes = {logistic_device.filled_shape(*fit, num_classes): fit for fit in fits}
    found: list[Compilation] = [
        functools.partial(logistic_device.compiled, *fit, num_classes) for fit in shapes.values()
    ]
    attacked, spec = config.eval.adversarial, model.spec
    if "adversarial" in config.eval.evaluators and not features.normed and spec.kind != "palette":
        count = len(features.data.test.images[: attacked.num_images or None]) if features.data.test is not None else 0
        found += [adversarial.compilation(features, count, num_classes, attacked.steps)] * (count > 0)
    return found
