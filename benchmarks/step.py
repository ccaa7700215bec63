"""Where a train step's time goes.

python -m benchmarks.step --config=configs/fashion_mnist.py [--config.section.field=value]

Each part is compiled and timed by itself, forward and backward, on arrays of the step's own shapes, then the
whole step and, of a hybrid, the steps of its two specialists at equal settings. `of peak` is achieved FLOP/s
(`models.flops`) over those of a 2048^3 float32 matrix product timed in the same rounds; all parts take turns, so
that a slow minute of the machine hits all of them.

`bound by` compares two shortest times: operations at that product's speed, and the bytes the compiled program reads
and writes (XLA's count, every operand of every fusion) at the speed of `x + 1` on 256 MiB in place. The longer one is
the bound, `of bound` the share of the measured time it explains; what is left is neither, but small products,
functions such as exp, new pages, and starting operations one by one.
"""

import dataclasses
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from benchmarks.command_line import CONFIG
from hybrid_jax import config as config_lib
from hybrid_jax import losses, optim, sharding, train_state, train_step
from hybrid_jax.models import attention, flops, hybrid, tokens
from hybrid_jax.utils import runtime

ROUNDS = flags.DEFINE_integer("rounds", 7, "Times each part is measured; the median is told.", lower_bound=1)
PEAK_SIDE = 2048
STREAM_FLOATS = 2**26
PEAK, STREAM, WHOLE_STEP = "matrix product", "x + 1", "whole step"
SPECIALISTS = {"generative step": "contrastive_weight", "contrastive step": "generative_weight"}


@dataclasses.dataclass(frozen=True)
class Part:
    """Something to time.

    Attributes:
      call: does it once.
      traffic: bytes that it reads and writes, by XLA's count.
    """

    call: Callable[[], object]
    traffic: float


def main(argv: list[str]) -> None:
    """Prints the table."""
    flags.FLAGS(argv)
    config = CONFIG.value
    config_lib.validate(config)
    runtime.reuse_memory()
    found = {PEAK: _matrix_product(), STREAM: _stream(), **parts(config), WHOLE_STEP: whole_step(config)}
    found |= {name: whole_step(specialist) for name, specialist in specialists(config).items()}
    seconds = measure({name: part.call for name, part in found.items()}, ROUNDS.value)
    print(f"jax {jax.__version__}, {jax.device_count()} x {jax.devices()[0].device_kind}")
    print(sizes_line(config))
    print(table(config, seconds, {name: part.traffic for name, part in found.items()}))
    if all(name in seconds for name in SPECIALISTS):
        ratio = seconds[WHOLE_STEP] / sum(seconds[name] for name in SPECIALISTS)
        print(f"hybrid step / (generative step + contrastive step): {ratio:.3f}")


def specialists(config) -> dict[str, object]:
    """Returns {name: the config with one loss only} of a hybrid; nothing of other configs."""
    if min(config.objective.generative_weight, config.objective.contrastive_weight) == 0:
        return {}
    found = {}
    for name, absent in SPECIALISTS.items():
        found[name] = config_lib.from_dict(config.to_dict())
        found[name].objective[absent] = 0.0
    return found


def sizes_line(config) -> str:
    """Returns the sizes that decide a step's cost, in one line."""
    m, t = config.model, config.train
    return (
        f"patch {m.patch_size}, width {m.width}, {m.encoder_layers}+{m.decoder_layers} layers, batch {t.batch_size}, "
        f"view_keep {config.augment.view_keep}, likelihood_fraction {t.likelihood_fraction}"
    )


def measure(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Returns {name: median seconds}; the calls take turns."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    for name in calls:
        jax.block_until_ready(calls[name]())
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            jax.block_until_ready(call())
            found[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in found.items()}


def table(config, seconds: dict[str, float], traffic: dict[str, float]) -> str:
    """Returns part, milliseconds, share of the step, GFLOP, GFLOP/s, share of the peak and the bound, as Markdown."""
    work = flops.train_step(config)
    work |= {WHOLE_STEP: flops.total(config), PEAK: 2.0 * PEAK_SIDE**3}
    work |= {name: flops.total(specialist) for name, specialist in specialists(config).items()}
    peak, stream = work[PEAK] / seconds[PEAK], traffic[STREAM] / seconds[STREAM]
    lines = [
        "| part | ms | of the step | GFLOP | GFLOP/s | of peak | GB | bound by | of bound |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, spent in seconds.items():
        share = "" if name in (PEAK, STREAM) else f"{spent / seconds[WHOLE_STEP]:.0%}"
        speed = ["", "", ""]
        if name in work:
            rate = work[name] / spent
            speed = [f"{work[name] / 1e9:.2f}", f"{rate / 1e9:.0f}", f"{rate / peak:.2f}"]
        bounds = {"operations": work.get(name, 0.0) / peak, "bytes": traffic[name] / stream}
        bound = max(bounds, key=lambda key: bounds[key])
        limit = [f"{traffic[name] / 1e9:.2f}", bound, f"{bounds[bound] / spent:.2f}"]
        lines.append(" | ".join(["| " + name, f"{spent * 1e3:.1f}", share, *speed, *limit]) + " |")
    return "\n".join(lines)


def _part(function, *arguments) -> Part:
    """Compiles a jitted function for the arguments it will be called with."""
    compiled = function.lower(*arguments).compile()
    return Part(lambda: compiled(*arguments), _traffic(compiled))


def _traffic(compiled) -> float:
    return float(compiled.cost_analysis()["bytes accessed"])


def _matrix_product() -> Part:
    x = jnp.ones((PEAK_SIDE, PEAK_SIDE), jnp.float32)
    return _part(jax.jit(jnp.matmul), x, x)


def _stream() -> Part:
    """In place, as new pages cost more than the bytes."""
    held = [jnp.ones(STREAM_FLOATS, jnp.float32)]
    compiled = jax.jit(lambda x: x + 1, donate_argnums=0).lower(held[0]).compile()

    def call():
        held[0] = compiled(held[0])
        return held[0]

    return Part(call, _traffic(compiled))


def _gradient(function: Callable, *arguments) -> Part:
    """Returns the compiled gradient of sum(function) by every argument."""
    return _part(jax.jit(jax.grad(lambda a: jnp.sum(function(*a).astype(jnp.float32)))), arguments)


def parts(config) -> dict[str, Part]:
    """Returns one step's worth of each part, forward and backward where it has gradients."""
    mesh = sharding.make_mesh(config)
    state = train_state.init_state(config, mesh, _palette(config))
    model = hybrid.build_model(config, attend=attention.choose(config.model.attention, mesh))
    params, palette = state.params, state.palette
    images = _images(config)
    batcher = jax.jit(lambda images, step: train_step.make_batch(config, model, _key(config, step), images, palette))
    batch = batcher(images, 0)
    found = {"augmentation, tokens": _part(batcher, images, 0)}
    if model.contrastive:
        found |= _contrastive_parts(config, model, params, batch, palette)
    if model.generative:
        found |= _generative_parts(config, model, params, batch.likelihood, palette)
    return found | {"optimizer": _optimizer(config, state)}


def _contrastive_parts(config, model, params, batch, palette) -> dict[str, Part]:
    used = {"encoder": params["encoder"], "projection": params["projection"]}
    embeddings = train_step.embed_views(model, params, batch, palette)
    objective = losses.CONTRASTIVE[config.objective.contrastive]
    return {
        "view_encoder": _gradient(lambda p: train_step.embed_views(model, p, batch, palette), used),
        "losses": _gradient(lambda z: objective(z[:, 0], z[:, 1], config.objective.temperature)[0], embeddings),
    }


def _generative_parts(config, model, params, likelihood, palette) -> dict[str, Part]:
    def encode(encoder):
        run = lambda module: module.encoder(likelihood, palette, True)
        return model.apply({"params": {"encoder": encoder}}, method=run)

    encoded, intermediates = jax.jit(encode)(params["encoder"])
    embedding = intermediates["embedding"]

    def decode(decoder, encoded, embedding):
        run = lambda module: module.decoder(encoded, embedding)[0]
        return model.apply({"params": {"decoder": decoder}}, method=run)

    states = jax.jit(decode)(params["decoder"], encoded, embedding)
    values = tokens.dequantise(likelihood, model.spec, palette)

    def head(head, states):
        run = lambda module: module.head(states, likelihood, values)
        return model.apply({"params": {"head": head}}, method=run)

    return {
        "likelihood_encoder": _gradient(lambda p: encode(p)[0], params["encoder"]),
        "decoder": _gradient(decode, params["decoder"], encoded, embedding),
        "pixel_head": _gradient(head, params["head"], states),
    }


def _optimizer(config, state) -> Part:
    optimizer = optim.make_optimizer(config)

    @jax.jit
    def update(gradients, opt_state, params, ema):
        updates, opt_state = optimizer.update(gradients, opt_state, params)
        params = jax.tree.map(jnp.add, params, updates)
        return opt_state, params, train_step.moving_average(config, ema, params, jnp.int32(0))

    return _part(update, state.params, state.opt_state, state.params, state.ema_params)


def whole_step(config) -> Part:
    """Returns the train step, whose state is kept from call to call."""
    mesh = sharding.make_mesh(config)
    images = _images(config)
    held = [train_state.init_state(config, mesh, _palette(config))]
    step: Any = train_step.make_train_step(config, mesh)
    compiled = step.lower(held[0], images).compile()

    def call():
        held[0], metrics = compiled(held[0], images)
        return held[0], metrics

    return Part(call, _traffic(compiled))


def _images(config) -> jax.Array:
    rng = np.random.default_rng(0)
    shape = (config.train.batch_size, *config.data.image_size, config.data.channels)
    return jnp.asarray(rng.integers(0, 256, shape, dtype=np.uint8))


def _palette(config):
    if config.model.token_kind != "palette":
        return None
    colours = np.random.default_rng(0).uniform(-1, 1, (config.model.palette_size, config.data.channels))
    return tokens.Palette.from_colours(colours)


def _key(config, step: int) -> jax.Array:
    return train_step.step_key(config.seed, step)


if __name__ == "__main__":
    main(sys.argv)
