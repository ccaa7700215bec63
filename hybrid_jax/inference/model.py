"""A trained model for inference: features, likelihoods, samples, completions and anomaly scores."""

import copy
import functools
import math
import os
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from hybrid_jax import sharding
from hybrid_jax.anomaly import fit as anomaly_fit
from hybrid_jax.data.inputs import Images, Inputs, open_inputs
from hybrid_jax.data.store import Chunk
from hybrid_jax.errors import UserError
from hybrid_jax.inference.generation import Generator, as_key, kept_patches, make_draw
from hybrid_jax.models import attention, hybrid, tokens
from hybrid_jax.models.transformer import exact_products

NO_LIKELIHOOD = "this checkpoint has no likelihood: it was trained with objective.generative_weight=0"


class Model:
    """A trained model: parameters and the functions that use them.

    Every method takes images as a (B, h, w) or (B, h, w, c) uint8 array, as a list of (h, w) or (h, w, c) ones of
    different sizes, or as the path of a folder, of an image or of an .npy file. Images of another size or with other
    channels than the model's (H, W, C) are resized and converted as in training.

    Attributes:
      config: the resolved config it was trained with.
      params: the parameters in use, a pytree (the moving average if ema_decay > 0).
      palette: the palette of palette tokens, else None.
      step: number of updates.
      spec: how images become tokens.
      has_likelihood: whether the model has the generative branch.
      has_contrastive: whether the model has the contrastive branch.
      default_layer: the layer `embed` reads.
      fingerprint: of the data it was trained on, if known.
      workdir: directory of fitted statistics, if any.
    """

    def __init__(
        self,
        config,
        params: Any,
        palette: tokens.Palette | None,
        step: int,
        mesh: Mesh | None = None,
        fingerprint: str | None = None,
        workdir: str | os.PathLike | None = None,
    ):
        """Wraps parameters; with a mesh, batches are sharded over its devices."""
        self.config, self.params, self.palette, self.step = config, params, palette, step
        self._mesh = mesh
        self._compiled: dict[str, Any] = {}
        attend = attention.choose(config.model.attention, mesh or attention.default_device())
        constrain = {} if mesh is None else {"constrain": sharding.constrain_batch(mesh)}
        self._module = hybrid.build_model(config, attend=attend, **constrain)
        self._generator = Generator(self._module, mesh)
        self.spec = self._module.spec
        self.has_likelihood, self.has_contrastive = self._module.generative, self._module.contrastive
        self.default_layer = hybrid.default_layer(config)
        self.fingerprint, self.workdir = fingerprint, workdir
        self._anomaly: Any = None

    def embed(self, images: Images, layer: str | None = None) -> np.ndarray:
        """Returns features: the mean over positions of a layer.

        Args:
          images: in any form that the class accepts; those of a folder are read in the order of their sorted paths.
          layer: one of `layers` or `normed_layers`; None = `default_layer`.

        Returns:
          (B, D) float32.

        Raises:
          UserError: an unknown layer, no images at the path, an unreadable file, or an array of another shape or dtype.
        """
        return self._run(self.checked_layer(layer), images)

    def embed_files(self, path: Images, layer: str | None = None, on_error: str = "stop") -> dict[str, np.ndarray]:
        """Returns features and log-likelihoods of files, by name.

        Args:
          path: a folder, an image or an .npy file.
          layer: as in `embed`.
          on_error: `stop` at an unreadable file, or `skip` it.

        Returns:
          `names` (n,) str, sorted relative POSIX paths, or the row numbers of an .npy file; `features` (n, D) float32;
          `log_prob` (n,) float32, nats per image, if the model has a likelihood; and `anomaly_score` (n,) float32, as
          returned by that method, if its statistics were fitted.

        Raises:
          UserError: as in `embed`; with `skip`, if no file could be read.
        """
        parts = list(self.embed_batches(open_inputs(path), layer, on_error))
        return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}

    def embed_batches(
        self, inputs: Inputs, layer: str | None = None, on_error: str = "stop"
    ) -> Iterator[dict[str, np.ndarray]]:
        """Yields the result of `embed_files` batch by batch, with one batch in memory."""
        layer = self.checked_layer(layer)
        wanted = [layer, "token_log_prob"] if self.has_likelihood else [layer]
        joint = anomaly_fit.find(self)
        for chunk, found in self._batches(wanted + ["measures"] * (joint is not None), inputs, on_error):
            part = {"names": np.array(chunk.names, np.str_), "features": found[layer]}
            if self.has_likelihood:
                part["log_prob"] = _whole(found["token_log_prob"])
            if joint is not None:
                part["anomaly_score"] = joint.score(anomaly_fit.measured(found["measures"]))
            yield part

    def features(self, images: Images, normed: bool = False) -> dict[str, np.ndarray]:
        """Returns features of all `layers` in order, {name: (B, D) float32}; with `normed`, of `normed_layers` too."""
        found = self._run(f"*{hybrid.NORMED}" if normed else "*", images)
        # Compiled functions return dicts in alphabetical order.
        return {name: found[name] for name in self.layers + (self.normed_layers if normed else ())}

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

    @functools.cached_property
    def normed_layers(self) -> tuple[str, ...]:
        """Further names that `embed` accepts: the outputs of blocks (0 = their input) after the norm that follows."""
        depths = {"encoder": self.config.model.encoder_layers}
        depths |= {"decoder": self.config.model.decoder_layers} if self.has_likelihood else {}
        return tuple(f"{name}/{i}{hybrid.NORMED}" for name, depth in depths.items() if depth for i in range(depth + 1))

    def token_log_prob(self, images: Images) -> np.ndarray:
        """Returns the exact log-likelihood of each token in generation order: (B, N, S) float32, nats.

        Raises:
          UserError: the checkpoint has no likelihood (generative_weight = 0).
        """
        if not self.has_likelihood:
            raise UserError(NO_LIKELIHOOD)
        return self._run("token_log_prob", images)

    def log_prob(self, images: Images) -> np.ndarray:
        """Returns the log-likelihood of each image (of its tokens, if those are coarser): (B,) float32, nats."""
        return _whole(self.token_log_prob(images))

    def bits_per_dim(self, images: Images) -> np.ndarray:
        """Returns -log2 p / (H W C) per image, (B,) float32; comparable with the literature at 256 levels only.

        Raises:
          UserError: palette tokens (lossy, so not in bits per dimension), or no likelihood.
        """
        if self.spec.kind == "palette":
            raise UserError("bits_per_dim: palette tokens are lossy; use log_prob, in nats")
        return -self.log_prob(images) / (math.prod(self.spec.image_shape) * math.log(2))

    def anomaly_score(self, images: Images) -> np.ndarray:
        """Returns the joint anomaly score, fitted on validation images when the run was evaluated.

        Args:
          images: in any form that the class accepts.

        Returns:
          (B,) float32, higher = more anomalous. Without a likelihood it depends on the features alone.

        Raises:
          UserError: the checkpoint has no fitted statistics; the message names the command that fits them.
        """
        return self.fitted_anomaly().score(self.measures(images))

    def fitted_anomaly(self):
        """Returns the fitted score, a `joint_score.JointScore`; raises UserError as `anomaly_score` does."""
        if self._anomaly is None:
            self._anomaly = anomaly_fit.load(self)
        return self._anomaly

    def measures(self, images: Images):
        """Returns the inputs of the joint score, as `joint_score.Measures`."""
        batches = self._batches(["measures"], open_inputs(images))
        return anomaly_fit.joined([anomaly_fit.measured(found["measures"]) for _, found in batches])

    def untrained(self, seed: int) -> "Model":
        """Returns a model of the same architecture with new random parameters; compiled functions are shared."""
        other = copy.copy(self)
        # Jitted as a whole: the operations of `init_params` are then not compiled one by one.
        init = self._compiled.setdefault("init", jax.jit(functools.partial(hybrid.init_params, self._module)))
        fresh = init(jax.random.key(seed), jax.device_get(self.palette))
        other.params = sharding.place(jax.device_get(fresh), jax.tree.map(lambda x: x.sharding, self.params))
        other.workdir, other._anomaly = None, None
        return other

    def under_causal_mask(self) -> "Model":
        """Returns the same model with features under the causal mask of the likelihood, not that of the views."""
        other = copy.copy(self)
        other._module, other._compiled = self._module.clone(contrastive=False), {}
        return other

    @functools.cached_property
    def measured_layers(self) -> tuple[str, str]:
        """The default layer, and the last layer of the encoder or, without one, of the decoder."""
        return self.default_layer, "encoder" if self.config.model.encoder_layers else "decoder"

    def sample(
        self,
        rng: int | jax.Array,
        num: int,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
    ) -> np.ndarray:
        """Draws samples, exactly from the model's distribution at temperature 1 without truncation.

        Args:
          rng: a key or a seed; image n depends on it and on n, not on `num`.
          num: number of samples.
          temperature: divides the tokens' log-probabilities; 0 = always the likeliest token.
          top_k: samples among the k likeliest tokens; None = all.
          top_p: then samples among the fewest tokens whose probabilities sum to at least this; None = all.

        Returns:
          (num, H, W, C) uint8; for tokens coarser than pixels the middle of each bin, or the palette's colours.

        Raises:
          UserError: no likelihood, or a setting that is not allowed.
        """
        if num < 1:
            raise UserError(f"num={num}: must be at least 1")
        blank = np.zeros((num, *self.spec.image_shape), np.uint8)
        return np.concatenate(list(self.completions(blank, 0, rng, temperature, top_k, top_p)))

    def complete(
        self,
        images: Images,
        num_rows: int | None,
        rng: int | jax.Array,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        num_patches: int | None = None,
    ) -> np.ndarray:
        """Completes images: keeps the beginning of each and samples the rest given it.

        Args:
          images: in any form that the class accepts.
          num_rows: number of first pixel rows that are kept, a multiple of the patch size; None with `num_patches`.
          rng: as in `sample`.
          temperature: as in `sample`.
          top_k: as in `sample`.
          top_p: as in `sample`.
          num_patches: number of first patches, in raster order, that are kept instead.

        Returns:
          (B, H, W, C) uint8; the kept part is unchanged.

        Raises:
          UserError: as in `sample`, or an invalid number of rows or patches.
        """
        kept = kept_patches(self.spec, num_rows, num_patches)
        return np.concatenate(list(self.completions(images, kept, rng, temperature, top_k, top_p)))

    def completions(
        self,
        images: Images | Inputs,
        num_patches: int,
        rng: int | jax.Array,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
    ) -> Iterator[np.ndarray]:
        """Yields the result of `complete` batch by batch."""
        if not self.has_likelihood:
            raise UserError(f"samples: {NO_LIKELIHOOD}")
        draw, key, inputs = make_draw(temperature, top_k, top_p), as_key(rng), open_inputs(images)
        size, first = self._generator.batch_size(len(inputs), self.config.eval.batch_size), 0
        for chunk in inputs.chunks(self.spec.image_shape[:2], self.spec.channels, size, "stop"):
            count = len(chunk.images)
            whole = np.pad(chunk.images, [(0, size - count), (0, 0), (0, 0), (0, 0)])
            done = self._generator.complete(self.params, self.palette, key, whole, first, num_patches, draw)
            yield done[:count]
            first += count

    def with_state(self, state) -> "Model":
        """Returns the same model with a train state's parameters; compiled functions are shared."""
        other = copy.copy(self)
        # The moving average if there is one.
        other.params = state.params if state.ema_params is None else state.ema_params
        other.palette, other.step, other._anomaly = state.palette, int(state.step), None
        return other

    def checked_layer(self, layer: str | None) -> str:
        """Returns the layer's name, by default `default_layer`; raises UserError for an unknown layer."""
        layer = layer or self.default_layer
        if layer not in self.layers + self.normed_layers:
            known = ", ".join(self.layers)
            raise UserError(f"layer {layer!r}: must be one of {known}; or, normed, {', '.join(self.normed_layers)}")
        return layer

    def _function(self, name: str) -> Any:
        """Returns a jitted (params, palette, images) -> outputs, replicated on every device.

        Names: `token_log_prob`; a layer for its features; `*` for features of all layers, `*:normed` with normed ones;
        `measures` for the inputs of the joint anomaly score.
        """
        if name in self._compiled:
            return self._compiled[name]

        def function(params, palette, images):
            with exact_products(self.config.model.dtype):
                return compute(params, palette, images)

        def compute(params, palette, images):
            if name == "token_log_prob":
                coded = tokens.encode(images, self.spec, palette)
                return self._module.apply({"params": params}, coded, palette, method=name)
            if name == "measures":
                return hybrid.measures(self._module, params, images, palette, self.measured_layers)
            found = hybrid.image_features(self._module, params, images, palette, name.endswith(hybrid.NORMED))
            return found if name.startswith("*") else found[name]

        whole = None if self._mesh is None else sharding.replicated(self._mesh)
        self._compiled[name] = jax.jit(function, out_shardings=whole)
        return self._compiled[name]

    def compilation(self, name: str, normed: bool = False) -> Callable[[], Any]:
        """Returns a function that compiles a program for whole batches ahead of its first call.

        Args:
          name: `features`, with `normed` as that method's; `embed` of the default layer; `token_log_prob`; `measures`.
          normed: see `features`.
        """
        name = {"features": f"*{hybrid.NORMED}" if normed else "*", "embed": self.default_layer}.get(name, name)
        shape = (self._batch_size(self.config.eval.batch_size), *self.spec.image_shape)
        where = None if self._mesh is None else sharding.batch_sharding(self._mesh)
        images, function = jax.ShapeDtypeStruct(shape, np.uint8, sharding=where), self._function(name)
        return lambda: function.lower(self.params, self.palette, images).compile()

    def drawing(self, num: int, num_patches: int) -> Callable[[], Any]:
        """Returns a function that compiles sampling `num` images after `num_patches` known ones, at temperature > 0."""
        size = self._generator.batch_size(num, self.config.eval.batch_size)
        return lambda: self._generator.compiled(self.params, self.palette, size, num_patches)

    def _batch_size(self, count: int) -> int:
        devices = 1 if self._mesh is None else self._mesh.size
        size = min(self.config.eval.batch_size, 2 ** math.ceil(math.log2(count)))
        return -(-size // devices) * devices

    def _run(self, name: str, images: Images):
        parts = [found[name] for _, found in self._batches([name], open_inputs(images))]
        return jax.tree.map(lambda *x: np.concatenate(x), *parts)

    def _batches(
        self, names: list[str], inputs: Inputs, on_error: str = "stop"
    ) -> Iterator[tuple[Chunk, dict[str, Any]]]:
        """Applies functions batch by batch, in one shape so that each is compiled once."""
        functions = {name: self._function(name) for name in names}
        size = self._batch_size(len(inputs))
        for chunk in inputs.chunks(self.spec.image_shape[:2], self.spec.channels, size, on_error):
            batch, count = self._padded(chunk.images, size), len(chunk.images)
            found = {name: function(self.params, self.palette, batch) for name, function in functions.items()}
            yield chunk, jax.tree.map(lambda x, n=count: np.asarray(x)[:n], found)

    def _padded(self, images: np.ndarray, size: int) -> jax.Array:
        """(b, H, W, C), b at most `size` -> (size, H, W, C), on the devices."""
        padded = np.pad(images, [(0, size - len(images)), (0, 0), (0, 0), (0, 0)])
        if self._mesh is None:
            return jax.device_put(padded)
        return sharding.global_batch(padded[sharding.local_rows(self._mesh, size)], self._mesh, size)


def _whole(token_log_prob: np.ndarray) -> np.ndarray:
    """(B, N, S) nats of tokens -> (B,) float32 nats of images."""
    return token_log_prob.sum(axis=(1, 2), dtype=np.float64).astype(np.float32)
