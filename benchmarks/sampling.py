"""Tokens drawn per second: with cached keys and values, without, and by Hugging Face's ImageGPT with its cache.

python -m benchmarks.sampling [--side=32] [--width=128] [--layers=8] [--heads=4] [--batch=16] [--rounds=3]

The three have equal sizes: Image GPT with one token a pixel, side * side of them, 512 colours, random parameters,
float32, all cores: of ours each core is a device with its share of the batch, as in mode `sample`. They take turns.
Without a cache every token costs a pass over the whole image; a few of those are timed and counted as the whole,
because all are alike. transformers and torch come with the `[oracle]` extra.
"""

import statistics
import sys
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from hybrid_jax import sharding
from hybrid_jax.config import default_config
from hybrid_jax.models import hybrid, sampler, tokens
from hybrid_jax.utils.runtime import use_all_cores

SIDE = flags.DEFINE_integer("side", 32, "Pixels along an image.", lower_bound=2)
WIDTH = flags.DEFINE_integer("width", 128, "Width of the transformer.", lower_bound=1)
LAYERS = flags.DEFINE_integer("layers", 8, "Blocks.", lower_bound=1)
HEADS = flags.DEFINE_integer("heads", 4, "Attention heads.", lower_bound=1)
BATCH = flags.DEFINE_integer("batch", 16, "Images at a time.", lower_bound=1)
ROUNDS = flags.DEFINE_integer("rounds", 3, "Times each is measured; the median is told.", lower_bound=1)
COLOURS = 512
UNCACHED_TOKENS = 8


def main(argv: list[str]) -> None:
    """Prints the table."""
    flags.FLAGS(argv)
    use_all_cores()
    calls = {"with a cache": cached(), "without": uncached(), "Hugging Face, with a cache": hugging_face()}
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(ROUNDS.value):
        for name, call in calls.items():
            start = time.perf_counter()
            share = call()
            seconds[name].append((time.perf_counter() - start) / share)
    drawn = BATCH.value * SIDE.value**2
    print(
        f"{SIDE.value**2} tokens, {COLOURS} colours, width {WIDTH.value}, {LAYERS.value} layers, {HEADS.value} heads, "
        f"batch {BATCH.value}; {versions()}"
    )
    print("| sampler | tokens/s | range | cached / this |\n|---|---|---|---|")
    best = statistics.median(seconds["with a cache"])
    for name, spent in seconds.items():
        middle = statistics.median(spent)
        print(
            f"| {name} | {drawn / middle:,.0f} | {drawn / max(spent):,.0f} to {drawn / min(spent):,.0f} "
            f"| {middle / best:.1f} |"
        )


def versions() -> str:
    """Returns what was measured."""
    import torch
    import transformers

    return f"jax {jax.__version__}, torch {torch.__version__}, transformers {transformers.__version__}"


def image_gpt() -> tuple[hybrid.HybridModel, object, tokens.Palette]:
    """Returns Image GPT of the flags' sizes with random parameters."""
    config = default_config()
    config.data.image_size, config.data.channels = (SIDE.value, SIDE.value), 3
    config.model.update({
        "patch_size": 1, "token_kind": "palette", "palette_size": COLOURS, "encoder_layers": 0,
        "decoder_layers": LAYERS.value, "width": WIDTH.value, "num_heads": HEADS.value, "activation": "quick_gelu",
    })  # fmt: skip
    config.objective.contrastive_weight = 0.0
    model = hybrid.build_model(config)
    rng = np.random.default_rng(0)
    # Nothing here looks a pixel up, so the table may be empty.
    palette = tokens.Palette(rng.uniform(-1, 1, (COLOURS, 3)).astype(np.float32), np.zeros(1, np.uint16))
    shapes = jax.eval_shape(lambda: hybrid.init_params(model, jax.random.key(0), palette))
    return model, jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.02, x.shape), jnp.float32), shapes), palette


def cached() -> Callable[[], float]:
    """Returns a call that samples the images; it returns 1, the share of the work that it did."""
    model, params, palette = image_gpt()
    mesh = sharding.all_devices()
    model = model.clone(constrain=sharding.constrain_batch(mesh))
    prompt = jnp.zeros((BATCH.value, 0, 1), jnp.int32)
    cut = jax.device_put((jax.random.split(jax.random.key(0), BATCH.value), prompt), sharding.batch_sharding(mesh))
    whole = jax.device_put((params, palette), sharding.replicated(mesh))

    @jax.jit
    def function(params, palette, keys, prompt, draw):
        return sampler.sample_tokens(sampler.incremental_model(model, params, palette), keys, prompt, draw)

    def call() -> float:
        jax.block_until_ready(function(*whole, *cut, sampler.Draw(1.0)))
        return 1.0

    return call


def uncached() -> Callable[[], float]:
    """Returns a call that draws a few tokens with a pass over the whole image for each, and tells their share."""
    model, params, palette = image_gpt()
    keys = jax.random.split(jax.random.key(0), BATCH.value)
    draw = sampler.Draw(1.0)

    def states(module, drawn, palette):
        encoded, found = module.encoder(drawn, palette, causal=True)
        return module.decoder(encoded, found["embedding"])[0]

    @jax.jit
    def function(params, palette, keys, drawn):
        def token(i, drawn):
            every = model.apply({"params": params}, drawn, palette, method=states)
            progress = model.apply({"params": params}, every[:, i], method="init_state")
            found, _ = model.apply({"params": params}, progress, 0, method="log_probs")
            chosen = draw(jax.vmap(lambda key: jax.random.fold_in(key, i))(keys), found)
            return jax.lax.dynamic_update_slice_in_dim(drawn, chosen[:, None, None], i, axis=1)

        return jax.lax.fori_loop(0, UNCACHED_TOKENS, token, drawn)

    blank = jnp.zeros((BATCH.value, SIDE.value**2, 1), jnp.int32)

    def call() -> float:
        jax.block_until_ready(function(params, palette, keys, blank))
        return UNCACHED_TOKENS / SIDE.value**2

    return call


def hugging_face() -> Callable[[], float]:
    """Returns a call that samples as many images with `generate`."""
    import torch
    from transformers import ImageGPTConfig, ImageGPTForCausalImageModeling

    length = SIDE.value**2
    sizes = {"n_embd": WIDTH.value, "n_layer": LAYERS.value, "n_head": HEADS.value, "n_positions": length}
    model = ImageGPTForCausalImageModeling(ImageGPTConfig(vocab_size=COLOURS + 1, **sizes)).eval()
    start = torch.full((BATCH.value, 1), COLOURS)
    settings = {"do_sample": True, "top_k": 0, "use_cache": True, "pad_token_id": 0, "eos_token_id": None}

    def call() -> float:
        with torch.no_grad():
            done = model.generate(input_ids=start, max_length=length + 1, min_length=length + 1, **settings)
        assert done.shape == (BATCH.value, length + 1)
        return 1.0

    return call


if __name__ == "__main__":
    main(sys.argv)
