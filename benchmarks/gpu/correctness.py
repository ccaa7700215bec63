"""The first steps of small runs against the same steps on a CPU: losses, gradient norms, the first gradient.

python -m benchmarks.gpu.correctness [--tiny]        (compares; `--tiny` fewer steps)
python -m benchmarks.gpu.correctness --record=yes    (on a CPU, after a change of the model: writes the reference)

The reference, `cpu_reference.json`, has one curve for each float32 config below. On the GPU the same config runs at the
highest precision, at the default one (TF32) and in bfloat16, all against the same curve.
"""

import concurrent.futures
import functools
import json
import math
import pathlib
import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.gpu.common import Compiled, compile_step, compiled, precision, real_images
from benchmarks.gpu.record import Entry, Record, stage_flags, versions
from hybrid_jax import train_step
from hybrid_jax.config import default_config
from hybrid_jax.data import pipeline
from hybrid_jax.models import attention, hybrid

REFERENCE = pathlib.Path(__file__).parent / "cpu_reference.json"
_STEPS, _TINY_STEPS, _IMAGES = 8, 2, 512
# A leaf's gradient is compared with its own norm, or with this share of the whole gradient's where that is more.
_SMALL_LEAF = 1e-2


class Limits(NamedTuple):
    """Most of the relative differences that are passed.

    Attributes:
      first_loss: of the first step.
      losses: of any step.
      gradient: of the first gradient, the worst leaf: its norm, and its product with a fixed direction.
    """

    first_loss: float
    losses: float
    gradient: float


# float32 differs by the order of sums only, which training magnifies from step to step. TF32 rounds to 11 bits,
# bfloat16 to 8: 2^-12 and 2^-9 of every number, through some ten layers and back.
_EXACT, _TF32, _BF16 = Limits(1e-5, 1e-3, 1e-3), Limits(2e-3, 1e-2, 3e-2), Limits(5e-3, 1e-2, 5e-2)
# Views become whole levels again: where the jitter's last bit decides, a few of them differ by one level of 256.
_JITTERED = Limits(1e-4, 1e-3, 1e-2)


class Curve(NamedTuple):
    """A run: which config, what is changed in it, how float32 products are computed, and what is passed."""

    config: str
    changes: dict[str, Any]
    precision: str | None
    limits: Limits


_HALF: dict[str, Any] = {"model.dtype": "bfloat16"}
_PLAIN = _HALF | {"model.attention": "plain"}
CURVES = {
    "grey": Curve("grey", {}, "highest", _EXACT),
    "colour": Curve("colour", {}, "highest", _JITTERED),
    "palette": Curve("palette", {}, "highest", _EXACT),
    "muon": Curve("muon", {}, "highest", _EXACT),
    "grey, default precision": Curve("grey", {}, None, _TF32),
    "colour, bfloat16": Curve("colour", _HALF, None, _BF16),
    "palette, bfloat16": Curve("palette", _HALF, None, _BF16),
    "colour, bfloat16, plain": Curve("colour", _PLAIN, None, _BF16),
    "palette, bfloat16, plain": Curve("palette", _PLAIN, None, _BF16),
}
_COMMON = {
    "model.width": 64, "model.num_heads": 2, "model.encoder_layers": 2, "model.decoder_layers": 1,
    "model.projection_dims": (64, 32), "model.patch_size": 7, "train.batch_size": 64, "train.total_steps": 100,
    "train.likelihood_fraction": 0.5, "train.ema_decay": 0.9, "optimizer.warmup_steps": 4,
}  # fmt: skip
_CONFIGS: dict[str, dict[str, Any]] = {
    "grey": {},
    "muon": {"optimizer.name": "muon", "optimizer.learning_rate": 8e-3},
    # Long enough that a GPU takes cuDNN, with the loop, the recomputation and the conditionals of the large configs.
    "colour": {
        "model.patch_size": 4, "data.image_size": (24, 24), "data.channels": 3, "augment.recipe": "simclr_cifar",
        "model.scan_layers": True, "model.remat": True, "train.likelihood_fraction": 1.0,
    },
    "palette": {
        "model.patch_size": 1, "data.image_size": (12, 12), "data.channels": 3, "model.token_kind": "palette",
        "model.palette_size": 64, "augment.recipe": "crop_flip", "train.batch_size": 32,
    },
}  # fmt: skip


def main() -> None:
    """Records, or compares."""
    given = stage_flags(__doc__ or "", "record")
    if given.record:
        record_reference()
        return
    record = Record("correctness", given.tiny)
    reference = json.loads(REFERENCE.read_text(encoding="utf-8"))
    record.put("reference", reference["versions"])
    steps = _TINY_STEPS if given.tiny else _STEPS
    curves = {"grey": CURVES["grey"], "colour, bfloat16": CURVES["colour, bfloat16"]} if given.tiny else CURVES
    for name, run in compiled(curves, lambda name: Run(curves[name]), record, given.tiny, alone=False):
        theirs = reference["curves"][curves[name].config]
        record.add(name, functools.partial(judged, run, theirs, curves[name].limits, steps))


def small_config(name: str, changes: dict[str, Any] | None = None):
    """Returns one of the small configs, with changes."""
    config = default_config()
    config.update_from_flattened_dict(_COMMON | _CONFIGS[name] | (changes or {}))
    return config


class Run:
    """A small run whose programs are compiled; `__call__` takes its steps."""

    def __init__(self, curve: Curve):
        """Compiles the step and the first gradient."""
        self._precision = curve.precision
        with precision(curve.precision):
            self.made: Compiled = compile_step(small_config(curve.config, curve.changes))
            self._images = _batches(self.made.config)
            state = jax.eval_shape(self.made.fresh_state)
            self._probe = _first_gradient(self.made).lower(state, self._images[0]).compile()

    def __call__(self, steps: int) -> Entry:
        """Returns `loss` and `grad_norm` of each step, and `gradient`: two numbers of each leaf, see `_two_numbers`."""
        with precision(self._precision):
            state = self.made.fresh_state()
            gradient = jax.device_get(self._probe(state, self._images[0]))
            rows = []
            for images in self._images[:steps]:
                state, metrics = self.made.step(state, images)
                rows.append(jax.device_get(metrics))
        leaves = jax.tree_util.tree_leaves_with_path(gradient)
        return {
            "loss": [float(row["loss"]) for row in rows],
            "grad_norm": [float(row["grad_norm"]) for row in rows],
            "gradient": {jax.tree_util.keystr(path): [float(x) for x in leaf] for path, leaf in leaves},
        }


def _batches(config) -> list[np.ndarray]:
    images, size = real_images((*config.data.image_size, config.data.channels), _IMAGES), config.train.batch_size
    return [images[pipeline.batch_indices(0, step, len(images), size)] for step in range(_STEPS)]


def _first_gradient(made: Compiled):
    """Returns a jitted (state, images) -> two numbers of each leaf of the first step's gradient."""
    config = made.config
    model = hybrid.build_model(config, attend=attention.choose(config.model.attention, made.mesh))
    objective = train_step.Objective.from_config(config, model)

    @jax.jit
    def run(state, images: jax.Array):
        key = train_step.step_key(state.seed, state.step)
        batch = train_step.make_batch(objective, key, images, state.palette)
        loss = lambda params: train_step.loss_fn(params, objective, batch, state.palette)[0]
        return jax.tree.map(_two_numbers, jax.grad(loss)(state.params))

    return run


def _two_numbers(x: jax.Array) -> jax.Array:
    """Returns the norm of an array and its product with a fixed direction of no meaning, which is about as large."""
    direction = jnp.cos(1.7 * jnp.arange(x.size, dtype=jnp.float32) + 0.3)
    return jnp.stack([jnp.linalg.norm(x.ravel()), jnp.sum(x.ravel() * direction)])


def judged(run: Run, theirs: Entry, limits: Limits, steps: int) -> Entry:
    """Returns the differences from the reference, whether they are `ok`, and which attention the program has."""
    found = compared(run(steps), theirs)
    passed = all(found[name] <= limit for name, limit in limits._asdict().items())
    facts = {name: run.made.facts[name] for name in ("attention", "conditionals")}
    return found | {"ok": passed, "limits": limits._asdict(), **facts}


def compared(ours: Entry, theirs: Entry) -> Entry:
    """Compares two runs.

    Args:
      ours: of `Run`; it may have fewer steps.
      theirs: the same config's, whose gradient the differences are relative to.

    Returns:
      `first_loss`, `losses`, `grad_norms`, `gradient` (relative, the worst), `worst_leaf`.
    """
    loss, norm = (_relative(ours[name], theirs[name]) for name in ("loss", "grad_norm"))
    a, b = ours["gradient"], theirs["gradient"]
    if a.keys() != b.keys():
        raise ValueError("the reference has other parameters: record it again")
    least = _SMALL_LEAF * math.sqrt(math.fsum(value[0] ** 2 for value in b.values()))
    off = {leaf: max(abs(x - y) for x, y in zip(a[leaf], b[leaf], strict=True)) / max(b[leaf][0], least) for leaf in b}
    worst = max(off, key=lambda leaf: off[leaf])
    return {
        "first_loss": loss[0],
        "losses": max(loss),
        "grad_norms": max(norm),
        "gradient": off[worst],
        "worst_leaf": worst,
    }


def _relative(ours: list[float], theirs: list[float]) -> list[float]:
    return [abs(x - y) / abs(y) for x, y in zip(ours, theirs, strict=False)]


def record_reference() -> None:
    """Writes the reference, on a CPU."""
    if jax.default_backend() != "cpu":
        sys.exit("error: the reference is of a CPU: JAX_PLATFORMS=cpu")
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        found = dict(zip(_CONFIGS, pool.map(lambda name: Run(CURVES[name])(_STEPS), _CONFIGS), strict=True))
    for name, curve in found.items():
        print(name, [round(loss, 6) for loss in curve["loss"]])
    told = versions(("jax", "jaxlib", "flax", "optax", "numpy")) | {"python": sys.version.split()[0]}
    REFERENCE.write_text(json.dumps({"versions": told, "curves": found}, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {REFERENCE}")


if __name__ == "__main__":
    main()
