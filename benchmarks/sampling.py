"""Tokens drawn per second: with cached keys and values, without, and by Hugging Face's ImageGPT with its cache.

python -m benchmarks.sampling [--side=32] [--width=128] [--layers=8] [--heads=4] [--batch=16] [--rounds=3]

The three have equal sizes: Image GPT with one token a pixel, side * side of them, 512 colours, random parameters,
float32, all cores: of ours each core is a device with its share of the batch, as in mode `sample`. They take turns.
Without a cache every token costs a pass over the whole image; a few of those are timed and counted as the whole,
because all are alike. transformers and torch come with the `[oracle]` extra.
"""

import statistics
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import common
from hybrid_jax import sharding
from hybrid_jax.config import default_config
from hybrid_jax.errors import UserError
from hybrid_jax.models import hybrid, sampler, tokens
from hybrid_jax.models.transformer import Stream
from hybrid_jax.utils.cli import exit_code
from hybrid_jax.utils.runtime import use_all_cores

COLOURS, UNCACHED_TOKENS = 512, 8
CACHED, UNCACHED = "with a cache", "without"

Call = Callable[[], object]


class Sizes(NamedTuple):
    """Of an Image GPT and of its batch."""

    side: int = 32
    width: int = 128
    layers: int = 8
    heads: int = 4
    batch: int = 16

    def config(self):
        """Returns the config of Image GPT."""
        config = default_config()
        config.data.image_size, config.data.channels = (self.side, self.side), 3
        config.model.update({
            "patch_size": 1, "token_kind": "palette", "palette_size": COLOURS, "encoder_layers": 0,
            "decoder_layers": self.layers, "width": self.width, "num_heads": self.heads, "activation": "quick_gelu",
        })  # fmt: skip
        config.objective.contrastive_weight = 0.0
        return config


def main() -> None:
    """Prints the table."""
    parser = common.parser(__doc__)
    for name, default in (Sizes()._asdict() | {"rounds": 3}).items():
        parser.add_argument(f"--{name}", type=int, default=default)
    given = vars(parser.parse_args())
    for name, value in given.items():
        if value < 1:
            raise UserError(f"--{name}={value}: must be at least 1")
    rounds, sizes = given.pop("rounds"), Sizes(**given)
    use_all_cores()
    calls = {CACHED: cached(sizes), UNCACHED: uncached(sizes), "Hugging Face, with a cache": hugging_face(sizes)}
    seconds = common.in_turns(calls, rounds)
    seconds[UNCACHED] = [spent * sizes.side**2 / UNCACHED_TOKENS for spent in seconds[UNCACHED]]
    told = ", ".join(f"{name} {version}" for name, version in common.versions(("jax", "torch", "transformers")).items())
    print(
        f"{sizes.side**2} tokens, {COLOURS} colours, width {sizes.width}, {sizes.layers} layers, {sizes.heads} heads, "
        f"batch {sizes.batch}; {told}"
    )
    best, drawn, rows = statistics.median(seconds[CACHED]), sizes.batch * sizes.side**2, []
    for name, spent in seconds.items():
        middle, least, most = (drawn / s for s in (statistics.median(spent), max(spent), min(spent)))
        rows.append((name, f"{middle:,.0f}", f"{least:,.0f} to {most:,.0f}", f"{drawn / middle / best:.1f}"))
    print(common.table("sampler|tokens/s|range|cached / this", rows))


def _image_gpt(sizes: Sizes) -> tuple[hybrid.HybridModel, Any, tokens.Palette]:
    """Returns Image GPT with random parameters."""
    model, rng = hybrid.build_model(sizes.config()), np.random.default_rng(0)
    # Nothing here looks a pixel up, so the table may be empty.
    palette = tokens.Palette(rng.uniform(-1, 1, (COLOURS, 3)).astype(np.float32), np.zeros(1, np.uint16))
    shapes = jax.eval_shape(lambda: hybrid.init_params(model, jax.random.key(0), palette))
    return model, jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.02, x.shape), jnp.float32), shapes), palette


def cached(sizes: Sizes) -> Call:
    """Returns a call that samples the images."""
    model, params, palette = _image_gpt(sizes)
    mesh = sharding.all_devices()
    model = model.clone(constrain=sharding.constrain_batch(mesh))
    keys, prompt = jax.random.split(jax.random.key(0), sizes.batch), jnp.zeros((sizes.batch, 0, 1), jnp.int32)
    cut = jax.device_put((keys, prompt), sharding.batch_sharding(mesh))
    whole = jax.device_put((params, palette), sharding.replicated(mesh))

    @jax.jit
    def function(params, palette, keys, prompt, draw):
        return sampler.sample_tokens(sampler.incremental_model(model, params, palette), keys, prompt, draw)

    return lambda: jax.block_until_ready(function(*whole, *cut, sampler.Draw(1.0)))


def uncached(sizes: Sizes) -> Call:
    """Returns a call that draws UNCACHED_TOKENS tokens with a pass over the whole image for each."""
    model, params, palette = _image_gpt(sizes)
    keys, draw = jax.random.split(jax.random.key(0), sizes.batch), sampler.Draw(1.0)

    def states(module, drawn, palette):
        (encoded,) = module.encoder([Stream(drawn, causal=True)], palette)
        return module.decoder(encoded.output, encoded.embedding)[0]

    @jax.jit
    def function(params, palette, keys, drawn):
        def token(i, drawn):
            every = model.apply({"params": params}, drawn, palette, method=states)
            progress = model.apply({"params": params}, every[:, i], method="init_state")
            found, _ = model.apply({"params": params}, progress, 0, method="log_probs")
            chosen = draw(jax.vmap(lambda key: jax.random.fold_in(key, i))(keys), found)
            return jax.lax.dynamic_update_slice_in_dim(drawn, chosen[:, None, None], i, axis=1)

        return jax.lax.fori_loop(0, UNCACHED_TOKENS, token, drawn)

    blank = jnp.zeros((sizes.batch, sizes.side**2, 1), jnp.int32)
    return lambda: function(params, palette, keys, blank)


def hugging_face(sizes: Sizes) -> Call:
    """Returns a call that samples as many images with `generate`."""
    import torch

    from benchmarks.peers.hugging_face import image_gpt

    length = sizes.side**2
    model = image_gpt(sizes.config(), "imagegpt").eval()
    start = torch.full((sizes.batch, 1), COLOURS)
    settings = {"do_sample": True, "top_k": 0, "use_cache": True, "pad_token_id": 0, "eos_token_id": None}

    def call() -> None:
        with torch.no_grad():
            done = model.generate(input_ids=start, max_length=length + 1, min_length=length + 1, **settings)
        assert done.shape == (sizes.batch, length + 1)

    return call


if __name__ == "__main__":
    sys.exit(exit_code(main))
