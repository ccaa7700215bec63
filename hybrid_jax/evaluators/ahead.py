"""The largest programs of an evaluation, compiled in threads while the evaluation goes on.

An accelerator's compiler takes up to a minute for one of them, on one core or few. A call that comes before its program
is ready waits for it; nothing is compiled twice. On the host's own cores nothing is gained, and nothing is done.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

from hybrid_jax import distributed
from hybrid_jax.evaluators import accelerator, logistic_device
from hybrid_jax.evaluators.features import FeatureStore
from hybrid_jax.evaluators.linear_probe import LAYER_CHOICE_IMAGES, last_four

THREADS = 8

# Programs of the model that an evaluator calls, by the names that `inference.Model.compilation` knows.
_ASKED = {
    "linear_probe": ("features",),
    "few_label": ("features",),
    "knn": ("features",),
    "likelihood": ("token_log_prob",),
    "sample_quality": ("samples",),
    "calibration": ("features",),
    "corruptions": ("features", "embed"),
    "adversarial": ("features", "embed"),
    "ood": ("measures", "embed"),
}
_PROBES = {"linear_probe", "calibration", "corruptions", "adversarial"}


@contextlib.contextmanager
def compiling(features: FeatureStore, config) -> Iterator[None]:
    """Compiles what `config.eval` will need while what is inside goes on.

    Not in a run of several processes: their compilers wait for one another, in one order.
    """
    if not accelerator.present() or distributed.several():
        yield
        return
    pool = ThreadPoolExecutor(THREADS)
    try:
        for task in tasks(features, config):
            pool.submit(task)
        yield
    finally:
        pool.shutdown(cancel_futures=True)


def tasks(features: FeatureStore, config) -> list[Callable[[], object]]:
    """Returns what compiles each program, those that are needed first before others."""
    evaluators, model = set(config.eval.evaluators), features.model
    names = dict.fromkeys(["measures"] * (config.eval.anomaly.num_images > 0) + ["features"])
    names |= dict.fromkeys(name for key in _ASKED if key in evaluators for name in _ASKED[key])
    if not model.has_likelihood:
        names = {name: None for name in names if name not in ("token_log_prob", "samples")}
    found = [model.compilation(name, features.normed) for name in names]
    labels = features.data.train.labels
    if _PROBES & evaluators and labels is not None:
        found += [functools.partial(logistic_device.compiled, *shape) for shape in _fits(features, len(set(labels)))]
    return found


def _fits(features: FeatureStore, num_classes: int) -> list[tuple[int, int, int]]:
    """(n, D, K) of the linear probe's fits: the layers' choice, the default layer, the last four, raw pixels."""
    model, (n, height, width, channels) = features.model, features.data.train.images.shape
    wide = max(1, len(last_four(model.layers))) * model.config.model.width
    few = (min(n, LAYER_CHOICE_IMAGES), model.config.model.width, num_classes)
    shapes = [few, (n, few[1], num_classes), (n, wide, num_classes), (n, height * width * channels, num_classes)]
    return list({logistic_device.filled_shape(*shape): shape for shape in shapes}.values())
