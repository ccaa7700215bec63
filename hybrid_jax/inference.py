"""A trained model for use: features, likelihoods, bits per dimension; needs only a workdir."""

import copy
import functools
import math
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from hybrid_jax import config as config_lib
from hybrid_jax import sharding
from hybrid_jax.checkpoint import Checkpoints, DamagedError
from hybrid_jax.errors import UserError
from hybrid_jax.models import hybrid, tokens


class Model:
    """Parameters and what can be asked of them; images are (B, H, W, C) uint8 numpy arrays of any B.

    Attributes:
      config: the resolved config it was trained with.
      params: the pytree used (the moving average where ema_decay > 0).
      palette: (K, C) float32 in [-1, 1], or None.
      step: updates done.
      spec: how images become tokens.
      has_likelihood, has_contrastive: which branches exist.
      default_layer: the layer `embed` reads.
      fingerprint: of the data it was trained on, where known.
    """

    def __init__(
        self,
        config,
        params: Any,
        palette: jax.Array | None,
        step: int,
        mesh: Mesh | None = None,
        fingerprint: str | None = None,
    ):
        """Wraps parameters; with a mesh, batches are cut over it."""
        self.config, self.params, self.palette, self.step = config, params, palette, step
        self._mesh = mesh
        self._compiled: dict[str, Callable] = {}
        constrain = {} if mesh is None else {"constrain": sharding.constrain_batch(mesh)}
        self._module = hybrid.build_model(config, **constrain)
        self.spec = self._module.spec
        self.has_likelihood, self.has_contrastive = self._module.generative, self._module.contrastive
        self.default_layer = hybrid.default_layer(config)
        self.fingerprint = fingerprint

    def embed(self, images: np.ndarray, layer: str | None = None) -> np.ndarray:
        """Features: the mean over positions of a layer.

        Args:
          images: (B, H, W, C) uint8.
          layer: a key of `features`; None = `default_layer`.

        Returns:
          (B, D) float32.

        Raises:
          UserError: images of another shape or dtype, or no such layer.
        """
        layer = layer or self.default_layer
        if layer not in self.layers:
            raise UserError(f"layer {layer!r}: must be one of {', '.join(self.layers)}")
        return self._run(layer, lambda t, palette, m: m.features(t, palette)[layer], images)

    def features(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Every layer's features: {name: (B, D) float32}, from the first to the last layer."""
        found = self._run("*", lambda t, palette, m: m.features(t, palette), images)
        # Compiled functions return dicts in alphabetical order.
        return {name: found[name] for name in self.layers}

    @functools.cached_property
    def layers(self) -> tuple[str, ...]:
        """Names that `embed` accepts, from the first to the last layer."""
        encoder, decoder = self.config.model.encoder_layers, self.config.model.decoder_layers
        names = ["embedding"]
        if encoder:
            names += [f"encoder/{i + 1}" for i in range(encoder)] + ["encoder"]
        if self.has_likelihood:
            names += [f"decoder/{i + 1}" for i in range(decoder)] + ["decoder"]
        return tuple(names)

    def token_log_prob(self, images: np.ndarray) -> np.ndarray:
        """Exact log-likelihood of each token in generation order: (B, N, S) float32, nats.

        Raises:
          UserError: the checkpoint has no likelihood (generative_weight = 0).
        """
        if not self.has_likelihood:
            raise UserError("this checkpoint has no likelihood: it was trained with objective.generative_weight=0")
        return self._run("token_log_prob", lambda t, palette, m: m.token_log_prob(t, palette), images)

    def log_prob(self, images: np.ndarray) -> np.ndarray:
        """(B, H, W, C) uint8 -> (B,) float32, nats per image; of the tokens, where those are coarser."""
        return self.token_log_prob(images).sum(axis=(1, 2), dtype=np.float64).astype(np.float32)

    def bits_per_dim(self, images: np.ndarray) -> np.ndarray:
        """-log2 p / (H W C) per image, (B,) float32; comparable with the literature at 256 levels only.

        Raises:
          UserError: palette tokens (lossy, so not in bits per dimension), or no likelihood.
        """
        if self.spec.kind == "palette":
            raise UserError("bits_per_dim: palette tokens are lossy; use log_prob, in nats")
        return -self.log_prob(images) / (math.prod(self.spec.image_shape) * math.log(2))

    def with_state(self, state) -> "Model":
        """Returns the same model with a train state's parameters; what is compiled is shared."""
        other = copy.copy(self)
        # The moving average where there is one.
        other.params = state.params if state.ema_params is None else state.ema_params
        other.palette, other.step = state.palette, int(state.step)
        return other

    def _compile(self, method: Callable) -> Callable:
        """Returns a jitted (params, palette, images) -> outputs, whole on every device."""

        def function(params, palette, images):
            coded = tokens.encode(images, self.spec, palette)
            return self._module.apply({"params": params}, method=lambda m: method(coded, palette, m))

        if self._mesh is None:
            return jax.jit(function)
        return jax.jit(function, out_shardings=sharding.replicated(self._mesh))

    def _run(self, name: str, method: Callable, images: np.ndarray):
        """Applies a method batch by batch; the last batch is padded, so that compiled shapes are few."""
        if name not in self._compiled:
            self._compiled[name] = self._compile(method)
        function = self._compiled[name]
        images = np.asarray(images)
        if images.ndim != 4 or images.shape[1:] != self.spec.image_shape or images.dtype != np.uint8:
            want = f"(B, {', '.join(map(str, self.spec.image_shape))}) uint8"
            raise UserError(f"images of shape {images.shape} {images.dtype}: must be {want}")
        if not len(images):
            raise UserError("images: there are none")
        devices = 1 if self._mesh is None else self._mesh.size
        size = min(self.config.eval.batch_size, 2 ** math.ceil(math.log2(len(images))))
        size = -(-size // devices) * devices
        outputs = []
        for start in range(0, len(images), size):
            rows = np.minimum(np.arange(start, start + size), len(images) - 1)
            chunk = images[rows] if self._mesh is None else sharding.global_batch(images, rows, self._mesh)
            outputs.append(jax.device_get(function(self.params, self.palette, chunk)))
        return jax.tree.map(lambda *x: np.concatenate(x)[: len(images)], *outputs)


def load(workdir: str | os.PathLike, step: int | str | None = None, log: Callable[[str], None] = print) -> Model:
    """Loads a trained model; needs no dataset, optimizer or config file.

    Args:
      workdir: what `--workdir` was in training.
      step: which checkpoint; None or "latest" = the newest that is not damaged.
      log: takes the line about a damaged checkpoint.

    Returns:
      The model, on the default device.

    Raises:
      UserError: no checkpoint, no such step, or all are damaged.
    """
    checkpoints = Checkpoints(workdir)
    steps = checkpoints.steps()
    if not steps:
        raise UserError(f"--workdir={workdir}: holds no checkpoint; train first, with --mode=train")
    newest_first = steps[::-1]
    if step not in (None, "latest"):
        if not str(step).isdigit() or int(step) not in steps:
            raise UserError(f"--step={step}: must be latest or one of {', '.join(map(str, steps))}")
        newest_first = [int(step)]
    try:
        for candidate in newest_first:
            try:
                return _load_step(checkpoints, candidate)
            except DamagedError as error:
                log(str(error))
    finally:
        checkpoints.close()
    raise UserError(f"--workdir={workdir}: no undamaged checkpoint among {', '.join(map(str, newest_first))}")


def _load_step(checkpoints: Checkpoints, step: int) -> Model:
    config = config_lib.from_dict(checkpoints.meta(step)["config"])
    spec = tokens.TokenSpec.from_config(config)
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    palette = None
    targets = {}
    if spec.kind == "palette":
        palette = jax.ShapeDtypeStruct((spec.vocab_size, spec.channels), jnp.float32, sharding=here)
        targets["palette"] = palette
    module = hybrid.build_model(config)
    shapes = jax.eval_shape(lambda p: hybrid.init_params(module, jax.random.key(0), p), palette)
    part = "ema_params" if config.train.ema_decay > 0 else "params"
    targets[part] = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), shapes)
    parts, meta = checkpoints.restore(step, targets)
    return Model(config, parts[part], parts.get("palette"), meta["step"], fingerprint=meta["fingerprint"])
