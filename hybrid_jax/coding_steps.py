"""What an arithmetic coder and its decoder must compute alike to the last bit: each token's distribution in turn.

Dimensions: B images of a batch, N patches, S tokens per patch, V vocabulary, H W C image.
"""

import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hybrid_jax.inference import model as model_lib
from hybrid_jax.inference.generation import Generator
from hybrid_jax.models import hybrid
from hybrid_jax.models import tokens as tokens_lib
from hybrid_jax.models.hybrid import HybridModel
from hybrid_jax.models.sampler import IncrementalModel, incremental_model
from hybrid_jax.utils.runtime import processor


@dataclasses.dataclass(frozen=True)
class Program:
    """The compiled functions of one model's shape and one batch size; coder and decoder call the same.

    Attributes:
      begin: (params, palette) -> cache, progress, probabilities (B, V) float32 of token 0 of patch 0.
      token: (params, palette, progress, token (B,), j) -> progress, probabilities of token j + 1 of the patch;
        None where a patch has one token.
      patch: (params, palette, cache, patch (B, 1, S), i) -> cache, progress, probabilities of token 0 of patch i + 1.
      environment: what their results depend on, beside their arguments.
    """

    begin: Callable
    token: Callable | None
    patch: Callable
    environment: dict[str, Any]


class Steps:
    """A model as its coder and decoder use it: on one device, whatever mesh it was loaded with.

    Attributes:
      spec: how images become tokens.
      digest: 16 bytes that tell parameters, colours and shape from any others.
    """

    def __init__(self, model: model_lib.Model):
        """Takes a model with a likelihood."""
        self._module = hybrid.build_model(model.config)
        self._params, self._palette = jax.device_put((model.params, model.palette), jax.local_devices()[0])
        self.spec, self.digest = model.spec, _digest(model)

    def batch_size(self, count: int, at_once: int) -> int:
        """Returns how many of `count` images to code together, in batches as full as can be."""
        most = Generator(self._module, None).batch_size(count, at_once)
        return -(-count // -(-count // most))

    def program(self, batch: int) -> Program:
        """Compiles for a batch size, once in a process."""
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), (self._params, self._palette))
        leaves, structure = jax.tree.flatten(abstract)
        return _compiled(self._module, batch, structure, tuple(leaves))

    def encode(self, images: np.ndarray) -> np.ndarray:
        """(b, H, W, C) uint8 -> (b, N, S) int32."""
        return np.asarray(_encode(images, self.spec, self._palette))

    def decode(self, coded: np.ndarray) -> np.ndarray:
        """(b, N, S) int32 -> (b, H, W, C) uint8."""
        return np.ascontiguousarray(_decode(coded, self.spec, self._palette))

    def walk(self, program: Program, batch: int, count: int, code: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """Goes through a batch in generation order.

        Args:
          program: of the batch's size.
          batch: B.
          count: how many images the batch has; the rest of it is padding, whose tokens are all 0.
          code: (count, V) float32 probabilities of the next token -> (count,) int32, that token.

        Returns:
          (count, N, S) int32.
        """
        spec, args = self.spec, (self._params, self._palette)
        tokens = np.zeros((batch, spec.num_patches, spec.tokens_per_patch), np.int32)
        cache, progress, probabilities = program.begin(*args)
        for i in range(spec.num_patches):
            if i:
                # Copies, as a device of the host may read the array itself, later.
                before = tokens[:, i - 1 : i].copy()
                cache, progress, probabilities = program.patch(*args, cache, before, np.int32(i - 1))
            for j in range(spec.tokens_per_patch):
                if j:
                    assert program.token is not None
                    last = tokens[:, i, j - 1].copy()
                    progress, probabilities = program.token(*args, progress, last, np.int32(j - 1))
                tokens[:count, i, j] = code(np.asarray(probabilities)[:count])
        return tokens[:count]


_encode = jax.jit(tokens_lib.encode, static_argnums=1)
_decode = jax.jit(tokens_lib.decode, static_argnums=1)


@functools.lru_cache
def _compiled(module: HybridModel, batch: int, structure: Any, leaves: tuple) -> Program:
    spec, (params, palette) = module.spec, jax.tree.unflatten(structure, leaves)
    index = jax.ShapeDtypeStruct((), jnp.int32)
    patches = jax.ShapeDtypeStruct((batch, 1, spec.tokens_per_patch), jnp.int32)

    def opened(steps: IncrementalModel, cache, inputs, i):
        progress, cache = steps.open(cache, inputs, i)
        log_probs, progress = steps.log_probs(progress, jnp.int32(0))
        return cache, progress, jnp.exp(log_probs)

    def begin(params, palette):
        steps = incremental_model(module, params, palette)
        inputs, cache = steps.start(steps.empty_cache(batch), jnp.zeros((batch, 0, spec.tokens_per_patch), jnp.int32))
        return opened(steps, cache, inputs, jnp.int32(0))

    def token(params, palette, progress, last, j):
        steps = incremental_model(module, params, palette)
        log_probs, progress = steps.log_probs(steps.update(progress, j, last), j + 1)
        return progress, jnp.exp(log_probs)

    def patch(params, palette, cache, before, i):
        steps = incremental_model(module, params, palette)
        inputs, cache = steps.close(cache, before, i)
        return opened(steps, cache, inputs, i + 1)

    cache, progress, _ = jax.eval_shape(begin, params, palette)
    lowered = {
        "begin": jax.jit(begin).lower(params, palette),
        "patch": jax.jit(patch, donate_argnums=2).lower(params, palette, cache, patches, index),
    }
    if spec.tokens_per_patch > 1:
        last = jax.ShapeDtypeStruct((batch,), jnp.int32)
        lowered["token"] = jax.jit(token).lower(params, palette, progress, last, index)
    made = {name: each.compile() for name, each in lowered.items()}
    return Program(made["begin"], made.get("token"), made["patch"], _environment(lowered))


def _environment(lowered: dict[str, Any]) -> dict[str, Any]:
    """Returns what decides, beside the arguments, which bits the functions give."""
    # Sums are split over the cores, so their rounding may depend on how many there are.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    text = "\n".join([os.environ.get("XLA_FLAGS", ""), *(lowered[name].as_text() for name in sorted(lowered))])
    return {
        **{name: version(name) for name in ("jax", "jaxlib", "constriction")},
        "device": jax.local_devices()[0].device_kind,
        "processor": processor(),
        "cores": cores,
        "program": hashlib.blake2b(text.encode(), digest_size=8).hexdigest(),
    }


def _digest(model: model_lib.Model) -> bytes:
    digest = hashlib.blake2b(
        repr((model.spec, json.dumps(model.config.model.to_dict(), sort_keys=True))).encode(), digest_size=16
    )
    colours = None if model.palette is None else model.palette.colours
    for path, leaf in jax.tree_util.tree_leaves_with_path((model.params, colours)):
        array = np.asarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.digest()
