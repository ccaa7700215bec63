"""A trained model for use: features, likelihoods, bits per dimension; needs only a workdir."""

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
    """Parameters and what can be asked of them.

    Every method takes images as a (B, h, w) or (B, h, w, c) uint8 array, as a list of (h, w) or (h, w, c) ones of
    different sizes, or as the path of a folder, of an image or of an .npy file. What has another size or other
    channels than the model's (H, W, C) is resized and converted as in training.

    Attributes:
      config: the resolved config it was trained with.
      params: the pytree used (the moving average where ema_decay > 0).
      palette: of palette tokens, else None.
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
        palette: tokens.Palette | None,
        step: int,
        mesh: Mesh | None = None,
        fingerprint: str | None = None,
        workdir: str | os.PathLike | None = None,
    ):
        """Wraps parameters; with a mesh, batches are cut over it. `workdir` is where fitted statistics lie."""
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
        """Features: the mean over positions of a layer.

        Args:
          images: as said above; of a folder, all its images in the order of their sorted paths.
          layer: one of `layers` or `normed_layers`; None = `default_layer`.

        Returns:
          (B, D) float32.

        Raises:
          UserError: no such layer, nothing at the path, an unreadable file, or arrays of another shape or dtype.
        """
        return self._run(self.checked_layer(layer), images)

    def embed_files(self, path: Images, layer: str | None = None, on_error: str = "stop") -> dict[str, np.ndarray]:
        """Features and log-likelihoods of files, by name.

        Args:
          path: a folder, an image or an .npy file.
          layer: as in `embed`.
          on_error: at an unreadable file, `stop`, or `skip` it.

        Returns:
          `names` (n,) str, sorted relative POSIX paths, of an .npy the row numbers; `features` (n, D) float32;
          where there is a likelihood `log_prob` (n,) float32, nats per image; and where statistics were fitted
          `anomaly_score` (n,) float32, as that method gives.

        Raises:
          UserError: as `embed`; with `skip`, no file could be read.
        """
        parts = list(self.embed_batches(open_inputs(path), layer, on_error))
        return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}

    def embed_batches(
        self, inputs: Inputs, layer: str | None = None, on_error: str = "stop"
    ) -> Iterator[dict[str, np.ndarray]]:
        """Yields what `embed_files` returns a batch at a time: only one is in memory."""
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
        """Every layer's features: {name: (B, D) float32}, from the first to the last; `normed_layers` too if asked."""
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
        """Names that `embed` accepts too: the outputs of blocks (0 = their input) after the norm that follows."""
        depths = {"encoder": self.config.model.encoder_layers}
        depths |= {"decoder": self.config.model.decoder_layers} if self.has_likelihood else {}
        return tuple(f"{name}/{i}{hybrid.NORMED}" for name, depth in depths.items() if depth for i in range(depth + 1))

    def token_log_prob(self, images: Images) -> np.ndarray:
        """Exact log-likelihood of each token in generation order: (B, N, S) float32, nats.

        Raises:
          UserError: the checkpoint has no likelihood (generative_weight = 0).
        """
        if not self.has_likelihood:
            raise UserError(NO_LIKELIHOOD)
        return self._run("token_log_prob", images)

    def log_prob(self, images: Images) -> np.ndarray:
        """Log-likelihood of each image: (B,) float32, nats; of the tokens, where those are coarser."""
        return _whole(self.token_log_prob(images))

    def bits_per_dim(self, images: Images) -> np.ndarray:
        """-log2 p / (H W C) per image, (B,) float32; comparable with the literature at 256 levels only.

        Raises:
          UserError: palette tokens (lossy, so not in bits per dimension), or no likelihood.
        """
        if self.spec.kind == "palette":
            raise UserError("bits_per_dim: palette tokens are lossy; use log_prob, in nats")
        return -self.log_prob(images) / (math.prod(self.spec.image_shape) * math.log(2))

    def anomaly_score(self, images: Images) -> np.ndarray:
        """How unlike the data an image is, by the joint score fitted on validation images when the run was evaluated.

        Args:
          images: as said above.

        Returns:
          (B,) float32, higher = more anomalous. Without a likelihood the features decide alone.

        Raises:
          UserError: the checkpoint has no fitted statistics; the line names the command that makes them.
        """
        return self.fitted_anomaly().score(self.measures(images))

    def fitted_anomaly(self):
        """Returns what `anomaly_score` was fitted to, a `joint_score.JointScore`; raises UserError as that does."""
        if self._anomaly is None:
            self._anomaly = anomaly_fit.load(self)
        return self._anomaly

    def measures(self, images: Images):
        """What the joint score is made of, as `joint_score.Measures`."""
        batches = self._batches(["measures"], open_inputs(images))
        return anomaly_fit.joined([anomaly_fit.measured(found["measures"]) for _, found in batches])

    def untrained(self, seed: int) -> "Model":
        """Returns a model of the same architecture with fresh parameters; what is compiled is shared."""
        other = copy.copy(self)
        # Jitted once more: what `init_params` does outside of its own function is no program by itself then.
        init = self._compiled.setdefault("init", jax.jit(functools.partial(hybrid.init_params, self._module)))
        fresh = init(jax.random.key(seed), jax.device_get(self.palette))
        other.params = sharding.place(jax.device_get(fresh), jax.tree.map(lambda x: x.sharding, self.params))
        other.workdir, other._anomaly = None, None
        return other

    def under_causal_mask(self) -> "Model":
        """Returns the same model whose features are read under the likelihood's mask, instead of the views'."""
        other = copy.copy(self)
        other._module, other._compiled = self._module.clone(contrastive=False), {}
        return other

    @functools.cached_property
    def measured_layers(self) -> tuple[str, str]:
        """The default layer, and the last of the encoder or, without one, of the decoder."""
        return self.default_layer, "encoder" if self.config.model.encoder_layers else "decoder"

    def sample(
        self,
        rng: int | jax.Array,
        num: int,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
    ) -> np.ndarray:
        """Draws images from the model; at temperature 1 and without truncation exactly from its distribution.

        Args:
          rng: a key or a seed; image n depends on it and on n, not on `num`.
          num: how many.
          temperature: divides the tokens' log-probabilities; 0 = always the likeliest token.
          top_k: only the k likeliest tokens; None = all.
          top_p: only the fewest tokens whose probabilities, after the above, sum to at least this; None = all.

        Returns:
          (num, H, W, C) uint8; of tokens coarser than pixels the middle of each bin, or the palette's colours.

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
        """Keeps the beginning of each image and draws the rest given it.

        Args:
          images: as said above.
          num_rows: how many of the first pixel rows are kept, a multiple of the patch size; None where
            `num_patches` says it.
          rng, temperature, top_k, top_p: as in `sample`.
          num_patches: how many of the first patches, in raster order, are kept instead.

        Returns:
          (B, H, W, C) uint8; the kept part is the image's own.

        Raises:
          UserError: as `sample`, or a part that no image has.
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
        """Yields what `complete` returns a batch at a time."""
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
        """Returns the same model with a train state's parameters; what is compiled is shared."""
        other = copy.copy(self)
        # The moving average where there is one.
        other.params = state.params if state.ema_params is None else state.ema_params
        other.palette, other.step, other._anomaly = state.palette, int(state.step), None
        return other

    def checked_layer(self, layer: str | None) -> str:
        """Returns the layer's name, by default `default_layer`; raises UserError where there is no such layer."""
        layer = layer or self.default_layer
        if layer not in self.layers + self.normed_layers:
            known = ", ".join(self.layers)
            raise UserError(f"layer {layer!r}: must be one of {known}; after a norm {', '.join(self.normed_layers)}")
        return layer

    def _function(self, name: str) -> Any:
        """Returns a jitted (params, palette, images) -> outputs, whole on every device.

        `token_log_prob` gives that, the name of a layer its features, `*` those of all, `*:normed` normed ones too,
        `measures` what the joint anomaly score reads.
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
        """Returns what compiles a program for whole batches, so that calls find it ready.

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
        """Returns what compiles the program that draws `num` images after so many known patches, at temperature > 0."""
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
        """Applies functions batch by batch, in batches of one shape so that each is compiled once."""
        functions = {name: self._function(name) for name in names}
        size = self._batch_size(len(inputs))
        for chunk in inputs.chunks(self.spec.image_shape[:2], self.spec.channels, size, on_error):
            batch, count = self._padded(chunk.images, size), len(chunk.images)
            found = {name: function(self.params, self.palette, batch) for name, function in functions.items()}
            yield chunk, jax.tree.map(lambda x, n=count: np.asarray(x)[:n], found)

    def _padded(self, images: np.ndarray, size: int) -> jax.Array:
        """(b, H, W, C) of at most `size` images -> (size, H, W, C), on the devices."""
        padded = np.pad(images, [(0, size - len(images)), (0, 0), (0, 0), (0, 0)])
        if self._mesh is None:
            return jax.device_put(padded)
        return sharding.global_batch(padded[sharding.local_rows(self._mesh, size)], self._mesh, size)


def _whole(token_log_prob: np.ndarray) -> np.ndarray:
    """(B, N, S) nats of tokens -> (B,) float32 of images."""
    return token_log_prob.sum(axis=(1, 2), dtype=np.float64).astype(np.float32)
