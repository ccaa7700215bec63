"""Where a train step's time goes.

python -m benchmarks.step --config=configs/fashion_mnist.py [--config.section.field=value]

Each part is compiled and timed by itself, forward and backward, on arrays of the step's own shapes, then the
whole step. `of peak` is achieved FLOP/s (hybrid_jax/flops.py) over those of a 2048^3 float32 matrix product
timed in the same rounds; all parts take turns, so that a slow minute of the machine hits all of them.
"""

import statistics
import sys
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from benchmarks.command_line import CONFIG
from hybrid_jax import config as config_lib
from hybrid_jax import flops, losses, optim, sharding, train_state, train_step
from hybrid_jax.models import hybrid, tokens

ROUNDS = flags.DEFINE_integer("rounds", 7, "Times each part is measured; the median is told.", lower_bound=1)
PEAK_SIDE = 2048
WHOLE_STEP = "whole step"


def main(argv: list[str]) -> None:
    """Prints the table."""
    flags.FLAGS(argv)
    config = CONFIG.value
    config_lib.validate(config)
    calls = {"matrix product": _matrix_product(), **parts(config), WHOLE_STEP: whole_step(config)}
    seconds = measure(calls, ROUNDS.value)
    print(f"jax {jax.__version__}, {jax.device_count()} x {jax.devices()[0].device_kind}")
    print(sizes_line(config))
    print(table(config, seconds))


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


def table(config, seconds: dict[str, float]) -> str:
    """Returns part, milliseconds, share of the step, GFLOP, GFLOP/s and share of the peak, as Markdown."""
    work = flops.train_step(config)
    work |= {WHOLE_STEP: flops.total(config), "matrix product": 2.0 * PEAK_SIDE**3}
    peak = work["matrix product"] / seconds["matrix product"]
    lines = ["| part | ms | of the step | GFLOP | GFLOP/s | of peak |", "|---|---|---|---|---|---|"]
    seconds = seconds | {"all parts": sum(v for k, v in seconds.items() if k not in ("matrix product", WHOLE_STEP))}
    for name, spent in seconds.items():
        share = "" if name == "matrix product" else f"{spent / seconds[WHOLE_STEP]:.0%}"
        speed = ("", "", "")
        if name in work:
            rate = work[name] / spent
            speed = (f"{work[name] / 1e9:.2f}", f"{rate / 1e9:.0f}", f"{rate / peak:.2f}")
        lines.append(f"| {name} | {spent * 1e3:.1f} | {share} | " + " | ".join(speed) + " |")
    return "\n".join(lines)


def _matrix_product() -> Callable[[], object]:
    x = jnp.ones((PEAK_SIDE, PEAK_SIDE), jnp.float32)
    product = jax.jit(jnp.matmul)
    return lambda: product(x, x)


def _gradient(function: Callable, *arguments) -> Callable[[], object]:
    """Returns a call of the compiled gradient of sum(function) by every argument."""
    compiled = jax.jit(jax.grad(lambda a: jnp.sum(function(*a).astype(jnp.float32))))
    return lambda: compiled(arguments)


def parts(config) -> dict[str, Callable[[], object]]:
    """Returns {part: a call that does one step's worth of it}, forward and backward where it has gradients."""
    mesh = sharding.make_mesh(config)
    state = train_state.init_state(config, mesh, _palette(config))
    model, params, palette = hybrid.build_model(config), state.params, state.palette
    images = _images(config)
    batcher = jax.jit(lambda images, step: train_step.make_batch(config, model, _key(config, step), images, palette))
    batch = batcher(images, 0)
    found: dict[str, Callable[[], object]] = {"augmentation, tokens": lambda: batcher(images, 0)}
    if model.contrastive:
        found |= _contrastive_parts(config, model, params, batch, palette)
    if model.generative:
        found |= _generative_parts(config, model, params, batch.likelihood, palette)
    return found | {"optimizer": _optimizer(config, state)}


def _contrastive_parts(config, model, params, batch, palette) -> dict[str, Callable[[], object]]:
    used = {"encoder": params["encoder"], "projection": params["projection"]}
    embeddings = train_step.embed_views(model, params, batch.views, batch.keep, palette)
    objective = losses.CONTRASTIVE[config.objective.contrastive]
    return {
        "view_encoder": _gradient(lambda p: train_step.embed_views(model, p, batch.views, batch.keep, palette), used),
        "losses": _gradient(lambda z: objective(z[:, 0], z[:, 1], config.objective.temperature)[0], embeddings),
    }


def _generative_parts(config, model, params, likelihood, palette) -> dict[str, Callable[[], object]]:
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


def _optimizer(config, state) -> Callable[[], object]:
    optimizer = optim.make_optimizer(config)

    @jax.jit
    def update(gradients, opt_state, params, ema):
        updates, opt_state = optimizer.update(gradients, opt_state, params)
        params = jax.tree.map(jnp.add, params, updates)
        return opt_state, params, train_step.moving_average(config, ema, params, jnp.int32(0))

    return lambda: update(state.params, state.opt_state, state.params, state.ema_params)


def whole_step(config) -> Callable[[], object]:
    """Returns a call of the train step, its state kept from call to call."""
    mesh = sharding.make_mesh(config)
    step, images = train_step.make_train_step(config, mesh), _images(config)
    held = [train_state.init_state(config, mesh, _palette(config))]

    def call():
        held[0], metrics = step(held[0], images)
        return held[0], metrics

    return call


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
