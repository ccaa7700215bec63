"""Times whole train steps at the sizes of configs/, cut to one card.

python -m benchmarks.gpu.steps [--tiny] [--cases=cifar10/hybrid,fashion_mnist/hybrid] [--stage=NAME] [--prefix=TEXT]

Batches lie on the device, and go round; saves, logs and the input pipeline are the stage `loop`'s. `--stage` and
`--prefix` say where the entries go, so that `xla_flags` can tell its own apart.
"""

import functools
import time

import jax

from benchmarks.gpu import cases
from benchmarks.gpu.common import Compiled, Stepper, compile_step, compiled, timed
from benchmarks.gpu.record import Entry, Record, stage_flags
from hybrid_jax.models import flops

_WARM_UP, _ALONE = 5, 7  # steps


def main() -> None:
    """Compiles the cases of a wave together, then times one after another."""
    given = stage_flags(__doc__ or "", "cases", "stage", "prefix")
    record = Record(given.stage or "steps", given.tiny)
    for wave in cases.chosen(given.cases, cases.TINY_WAVES if given.tiny else cases.WAVES):
        names = {given.prefix + case: case for case in wave}
        make = lambda name, names=names: compile_step(cases.config_of(names[name], given.tiny))
        for name, made in compiled(names, make, record, given.tiny):
            record.add(name, functools.partial(measure, made, 0.3 if given.tiny else 1.5))


def measure(made: Compiled, seconds: float) -> Entry:
    """Returns the entry of one case.

    Returns:
      `ms` and `range_ms` of steps in a row, `waited_ms` of one that is waited for, `batch`, `images_per_s`, `gflop`
      that the result needs (hybrid_jax/models/flops.py), `dtype` of its products, `loss`, and `Compiled.facts`.
    """
    step = Stepper(made)
    for _ in range(_WARM_UP):
        step()
    spent = timed(step, seconds)
    alone = []
    for _ in range(_ALONE):
        begin = time.perf_counter()
        metrics = jax.block_until_ready(step())
        alone.append(time.perf_counter() - begin)
    batch = made.config.train.batch_size
    return {
        **spent.milliseconds(),
        "waited_ms": 1e3 * sorted(alone)[_ALONE // 2],
        "batch": batch,
        "images_per_s": batch / spent.median,
        "gflop": flops.total(made.config) / 1e9,
        "dtype": made.config.model.dtype,
        "loss": float(metrics["loss"]),
        **made.facts,
    }


if __name__ == "__main__":
    main()
