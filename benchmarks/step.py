"""Where a train step's time goes.

python -m benchmarks.step --config=configs/fashion_mnist.py [--config.section.field=value]

Each part is compiled and timed by itself, forward and backward, on arrays of the step's own shapes, then the whole step
and, of a hybrid, the steps of its two specialists at equal settings. `of peak` is achieved FLOP/s (`models.flops`) over
those of a 2048^3 float32 matrix product timed in the same rounds; all parts take turns.

`bound by` compares two shortest times: operations at that product's speed, and the bytes the compiled program reads and
writes (XLA's count, every operand of every fusion) at the speed of `x + 1` on 256 MiB in place. The longer one is the
bound, `of bound` the share of the measured time it explains; the rest is small products, functions such as exp, new
pages, and starting operations one by one.
"""

import functools
import statistics
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from benchmarks import common
from benchmarks.config_flag import given_config
from hybrid_jax import config as config_lib
from hybrid_jax import optim, sharding, train_state, train_step
from hybrid_jax.models import attention, flops, hybrid, tokens
from hybrid_jax.models.transformer import Stream
from hybrid_jax.utils import cli, runtime

ROUNDS = flags.DEFINE_integer("rounds", 7, "Times each part is measured; the median is told.", lower_bound=1)
PEAK_SIDE, STREAM_FLOATS = 2048, 2**26
PEAK, STREAM, WHOLE_STEP = "matrix product", "x + 1", "whole step"
SPECIALISTS = {"generative step": "contrastive_weight", "contrastive step": "generative_weight"}


class Part(NamedTuple):
    """Something to time: a call that does it once, and the bytes that it reads and writes, by XLA's count."""

    call: Callable[[], Any]
    traffic: float


def main() -> None:
    """Prints the table."""
    config = given_config()
    runtime.reuse_memory()
    square = jnp.ones((PEAK_SIDE, PEAK_SIDE), jnp.float32)
    # In place, as new pages cost more than the bytes.
    stream = jax.jit(lambda x: (x + 1, 0), donate_argnums=0)
    found = {PEAK: _part(jnp.matmul, square, square), STREAM: _with_state(stream, jnp.ones(STREAM_FLOATS, jnp.float32))}
    found |= parts(config) | {WHOLE_STEP: whole_step(config)}
    found |= {name: whole_step(specialist) for name, specialist in specialists(config).items()}
    seconds = medians({name: part.call for name, part in found.items()}, ROUNDS.value)
    m, t = config.model, config.train
    print(common.device_line())
    print(
        f"patch {m.patch_size}, width {m.width}, {m.encoder_layers}+{m.decoder_layers} layers, batch {t.batch_size}, "
        f"view_keep {config.augment.view_keep}, likelihood_fraction {t.likelihood_fraction}"
    )
    print(table(config, seconds, {name: part.traffic for name, part in found.items()}))
    if all(name in seconds for name in SPECIALISTS):
        ratio = seconds[WHOLE_STEP] / sum(seconds[name] for name in SPECIALISTS)
        print(f"hybrid step / (generative step + contrastive step): {ratio:.3f}")


def medians(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Returns {name: median seconds}; the calls take turns."""
    return {name: statistics.median(spent) for name, spent in common.in_turns(calls, rounds).items()}


def specialists(config) -> dict[str, Any]:
    """Returns {name: the config with one loss only} of a hybrid; nothing of other configs."""
    if min(config.objective.generative_weight, config.objective.contrastive_weight) == 0:
        return {}
    found = {name: config_lib.from_dict(config.to_dict()) for name in SPECIALISTS}
    for name, absent in SPECIALISTS.items():
        found[name].objective[absent] = 0.0
    return found


def table(config, seconds: dict[str, float], traffic: dict[str, float]) -> str:
    """Returns part, milliseconds, share of the step, GFLOP, GFLOP/s, share of the peak and the bound, as Markdown."""
    work = flops.train_step(config) | {WHOLE_STEP: flops.total(config), PEAK: 2.0 * PEAK_SIDE**3}
    work |= {name: flops.total(specialist) for name, specialist in specialists(config).items()}
    peak, stream, rows = work[PEAK] / seconds[PEAK], traffic[STREAM] / seconds[STREAM], []
    for name, spent in seconds.items():
        share = "" if name in (PEAK, STREAM) else f"{spent / seconds[WHOLE_STEP]:.0%}"
        rate = work.get(name, 0.0) / spent
        speed = [f"{work[name] / 1e9:.2f}", f"{rate / 1e9:.0f}", f"{rate / peak:.2f}"] if name in work else [""] * 3
        least, bound = max((work.get(name, 0.0) / peak, "operations"), (traffic[name] / stream, "bytes"))
        limit = [f"{traffic[name] / 1e9:.2f}", bound, f"{least / spent:.2f}"]
        rows.append([name, f"{spent * 1e3:.1f}", share, *speed, *limit])
    return common.table("part|ms|of the step|GFLOP|GFLOP/s|of peak|GB|bound by|of bound", rows)


def _part(function: Callable, *arguments) -> Part:
    """Compiles a function for the arguments it is called with."""
    compiled = jax.jit(function).lower(*arguments).compile()
    return Part(lambda: compiled(*arguments), compiled.cost_analysis()["bytes accessed"])


def _gradient(function: Callable, *arguments) -> Part:
    """Compiles the gradient of sum(function) by every argument."""
    return _part(jax.grad(lambda a: jnp.sum(function(*a).astype(jnp.float32))), arguments)


def _with_state(function: Any, state: Any, *arguments) -> Part:
    """Compiles (state, ...) -> (state, result), whose state is kept from call to call."""
    compiled, held = function.lower(state, *arguments).compile(), [state]

    def call():
        held[0], result = compiled(held[0], *arguments)
        return held[0], result

    return Part(call, compiled.cost_analysis()["bytes accessed"])


def whole_step(config) -> Part:
    """Returns the train step; a call returns the state and the metrics."""
    mesh = sharding.make_mesh(config)
    state = train_state.init_state(config, mesh, palette_of(config))
    return _with_state(train_step.make_train_step(config, mesh), state, images_of(config, mesh))


def parts(config) -> dict[str, Part]:
    """Returns one step's worth of each part, forward and backward where it has gradients."""
    mesh = sharding.make_mesh(config)
    state = train_state.init_state(config, mesh, palette_of(config))
    model = hybrid.build_model(config, attend=attention.choose(config.model.attention, mesh))
    objective = train_step.Objective.from_config(config, model, mesh.size)
    params, palette, images = state.params, state.palette, images_of(config, mesh)
    key = lambda step: train_step.step_key(config.seed, step)
    batcher = jax.jit(lambda images, step: train_step.make_batch(objective, key(step), images, palette))
    batch = batcher(images, 0)
    found = {"augmentation, tokens": _part(batcher, images, 0)}
    if model.contrastive:
        views = batch.replace(likelihood=None)
        embed = lambda used: train_step.forward(model, used, views, palette)[1]
        used = {name: params[name] for name in ("encoder", "projection")}
        found["view_encoder"] = _gradient(embed, used)
        found["losses"] = _gradient(lambda z: train_step.contrastive_loss(objective, z)[0], jax.jit(embed)(used))
    if model.generative:
        found |= _generative(model, params, batch.likelihood, palette)
    optimizer = optim.make_optimizer(config)

    def update(gradients, opt_state, params, ema):
        updates, opt_state = optimizer.update(gradients, opt_state, params)
        params = jax.tree.map(jnp.add, params, updates)
        return opt_state, params, train_step.moving_average(config.train.ema_decay, ema, params, jnp.int32(0))

    return found | {"optimizer": _part(update, params, state.opt_state, params, state.ema_params)}


def _generative(model, params, likelihood: jax.Array, palette) -> dict[str, Part]:
    def applied(name: str, method: Callable) -> Callable:
        return lambda part, *rest: model.apply({"params": {name: part}}, *rest, method=method)

    encode = applied("encoder", lambda module: module.encoder([Stream(likelihood, causal=True)], palette)[0])
    decode = applied("decoder", lambda module, encoded, embedding: module.decoder(encoded, embedding)[0])
    values = tokens.dequantise(likelihood, model.spec, palette)
    head = applied("head", lambda module, states: module.head(states, likelihood, values))
    encoded = jax.jit(encode)(params["encoder"])
    inputs = params["decoder"], encoded.output, encoded.embedding
    return {
        "likelihood_encoder": _gradient(lambda p: encode(p).output, params["encoder"]),
        "decoder": _gradient(decode, *inputs),
        "pixel_head": _gradient(head, params["head"], jax.jit(decode)(*inputs)),
    }


def images_of(config, mesh) -> jax.Array:
    """Returns a global batch of random images."""
    batch = config.train.batch_size
    shape = (batch, *config.data.image_size, config.data.channels)
    return sharding.global_batch(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8), mesh, batch)


def palette_of(config) -> tokens.Palette | None:
    """Returns a palette of random colours where the config's tokens are colours."""
    sizes = config.model.palette_size, config.data.channels
    return _random_palette(*sizes) if config.model.token_kind == "palette" else None


@functools.lru_cache
def _random_palette(*sizes: int) -> tokens.Palette:
    return tokens.Palette.from_colours(np.random.default_rng(0).uniform(-1, 1, sizes).astype(np.float32))


if __name__ == "__main__":
    cli.run_cli(main, __doc__)
