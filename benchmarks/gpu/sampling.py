"""Tokens drawn a second by the exact sampler, of models of two configs' sizes with random parameters.

python -m benchmarks.gpu.sampling [--tiny]
"""

from collections.abc import Callable

from benchmarks.gpu.cases import config_of
from benchmarks.gpu.common import compiled, timed
from benchmarks.gpu.record import Entry, Record, stage_flags
from benchmarks.step import palette_of
from hybrid_jax import sharding, train_state
from hybrid_jax.inference.model import Model

_SIZES = {"cifar10/hybrid": (256, 64), "fashion_mnist/hybrid": (256,)}
_TINY = {"fashion_mnist/hybrid": (2,)}


def main() -> None:
    """Times each model at each number of images at a time."""
    tiny = stage_flags(__doc__ or "").tiny
    record, named = Record("sampling", tiny), {}
    for case, batches in (_TINY if tiny else _SIZES).items():
        for images in batches:
            named[f"{case}, {images} at a time"] = case, images
    for name, measure in compiled(named, lambda name: prepare(*named[name], tiny), record, tiny):
        record.add(name, measure)


def prepare(case: str, images: int, tiny: bool) -> Callable[[], Entry]:
    """Compiles a sampler; returns what measures the time of a batch, `tokens_per_s` and `images_per_s`."""
    config = config_of(case, tiny)
    config.eval.batch_size = images
    state = train_state.init_state(config, sharding.make_mesh(config), palette_of(config))
    model = Model(config, state.params, state.palette, 0)
    model.sample(0, images)
    tokens = images * model.spec.num_patches * model.spec.tokens_per_patch

    def measure() -> Entry:
        spent = timed(lambda: model.sample(0, images), 1.0)
        rates = {"tokens_per_s": tokens / spent.median, "images_per_s": images / spent.median}
        return {**spent.milliseconds(), **rates, "tokens_an_image": tokens // images}

    return measure


if __name__ == "__main__":
    main()
