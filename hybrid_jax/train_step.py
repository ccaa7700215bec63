"""The train step: both losses, their gradients and the update in one jitted, sharded, donated function.

Dimensions: B global batch, M microbatches, N patches, S tokens per patch, Q kept patches of a view.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from hybrid_jax import config as config_lib
from hybrid_jax import losses, optim, sharding
from hybrid_jax.data import augment
from hybrid_jax.models import attention, hybrid, tokens
from hybrid_jax.models.transformer import cast_block_kernels
from hybrid_jax.train_state import TrainState, abstract_state, cached_by_config, state_sharding

Metrics = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Objective:
    """Views and losses of a step, read from the config once.

    Attributes:
      model: the model, with the branches whose weight is above 0.
      likelihood_images: number of images of a batch whose likelihood is computed.
      recipes: augmentations of the two views.
      view_keep: share of a view's patches that the encoder gets.
      contrastive: one of `losses.CONTRASTIVE`.
      temperature: temperature of the contrastive loss.
      weights: {name of a loss: weight}.
      microbatches: number of passes that a batch is split into.
      devices: number of devices that a batch is sharded over.
    """

    model: hybrid.HybridModel
    likelihood_images: int
    recipes: Sequence[augment.Recipe]
    view_keep: float
    contrastive: losses.ContrastiveObjective
    temperature: float
    weights: Mapping[str, float]
    microbatches: int
    devices: int

    @classmethod
    def from_config(cls, config, model: hybrid.HybridModel | None = None, devices: int = 1) -> "Objective":
        """Returns the objective of a resolved config; without `model`, of a model on one device."""
        objective = config.objective
        return cls(
            model=model or hybrid.build_model(config),
            likelihood_images=config_lib.likelihood_batch(config),
            recipes=augment.recipes_from_config(config.augment),
            view_keep=config.augment.view_keep,
            contrastive=losses.CONTRASTIVE[objective.contrastive],
            temperature=objective.temperature,
            weights={
                "generative_loss": objective.generative_weight,
                "contrastive_loss": objective.contrastive_weight,
            },
            microbatches=config.train.microbatches,
            devices=devices,
        )


class Batch(flax.struct.PyTreeNode):
    """Tokens of one global batch; None for a branch of weight 0.

    Attributes:
      likelihood: (L, N, S) int32, images whose likelihood is computed.
      views: (B, 2, Q, S) int32, the kept patches of the two views.
      keep: (B, 2, Q) int32, indices of these patches; None means all.
    """

    likelihood: jax.Array | None
    views: jax.Array | None
    keep: jax.Array | None


def step_key(seed: int | jax.Array, step: jax.Array) -> jax.Array:
    """Returns the PRNG key of a step, a function of seed and step only."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), 1), step)


def make_batch(objective: Objective, key: jax.Array, images: jax.Array, palette) -> Batch:
    """Images (B, H, W, C) uint8 -> tokens for both losses. The likelihood sees images without augmentation."""
    model = objective.model
    likelihood = views = keep = None
    if model.generative:
        chosen = evenly_spaced(images, objective.likelihood_images)
        likelihood = model.constrain(tokens.encode(chosen, model.spec, palette))
    if model.contrastive:
        pairs = [
            _make_view(objective, jax.random.fold_in(key, view), images, recipe, palette)
            for view, recipe in enumerate(objective.recipes)
        ]
        # Axis 1 is the view; a batch axis in front keeps both views of an image on its device.
        views, keep = jax.tree.map(lambda *pair: model.constrain(jnp.stack(pair, axis=1)), *pairs)
    return Batch(likelihood, views, keep)


def evenly_spaced(images: jax.Array, count: int) -> jax.Array:
    """(B, ...) -> (count, ...): images 0, B/count, 2 B/count .., rounded down."""
    size = len(images)
    if count == size:
        return images
    # Chosen within each repetition of the pattern, so that images stay on their device.
    repeats = math.gcd(count, size)
    places = np.arange(count // repeats) * size // count
    chosen = images.reshape(repeats, size // repeats, *images.shape[1:])[:, places]
    return chosen.reshape(count, *images.shape[1:])


def _make_view(objective: Objective, key: jax.Array, images: jax.Array, recipe: augment.Recipe, palette):
    """One augmented view: (B, Q, S) tokens of the kept patches, and their (B, Q) indices or None."""
    spec = objective.model.spec
    view_key, keep_key = jax.random.split(key)
    patches = tokens.encode(augment.augment(view_key, images, recipe), spec, palette)
    kept = augment.keep_patches(keep_key, len(images), spec.num_patches, objective.view_keep)
    return (patches if kept is None else jnp.take_along_axis(patches, kept[..., None], 1)), kept


def forward(model: hybrid.HybridModel, params, batch: Batch, palette) -> tuple[jax.Array | None, jax.Array | None]:
    """Returns (L, N, S) log-likelihoods of tokens and (B, 2, E) embeddings of views; None for an absent branch."""
    params = cast_block_kernels(params, jnp.dtype(model.config.dtype))
    views, keep = _flat_views(batch)
    found: Any = model.apply({"params": params}, batch.likelihood, views, palette, keep)
    log_prob, embedded = found
    return log_prob, None if embedded is None else embedded.reshape(-1, 2, embedded.shape[-1])


def _flat_views(batch: Batch) -> tuple[jax.Array | None, jax.Array | None]:
    """(B, 2, Q, S) tokens and (B, 2, Q) indices -> (2B, Q, S) and (2B, Q)."""
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), (batch.views, batch.keep))


def generative_loss(log_prob: jax.Array) -> jax.Array:
    """(L, N, S) log-likelihoods -> () mean nats per token."""
    # Per image first: a single float32 sum over all tokens of a batch loses precision.
    return -jnp.mean(jnp.mean(log_prob, axis=(1, 2)))


def contrastive_loss(objective: Objective, embeddings: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(B, 2, E) -> () mean loss over the 2B anchors and () share of anchors whose nearest view is the positive."""
    views = embeddings[:, 0], embeddings[:, 1]
    values, hits = objective.contrastive(*views, objective.temperature, devices=objective.devices)
    return jnp.mean(values), jnp.mean(hits)


def weighted_loss(objective: Objective, parts: Metrics) -> jax.Array:
    """generative_weight * generative_loss + contrastive_weight * contrastive_loss, for the losses in `parts`."""
    weighted = (weight * parts[name] for name, weight in objective.weights.items() if name in parts)
    return sum(weighted, jnp.zeros(()))


def loss_fn(params, objective: Objective, batch: Batch, palette) -> tuple[jax.Array, Metrics]:
    """Returns the weighted loss of a batch and the metrics of the branches that exist, by name."""
    parts: Metrics = {}
    log_prob, embeddings = forward(objective.model, params, batch, palette)
    if log_prob is not None:
        parts["generative_loss"] = generative_loss(log_prob)
    if embeddings is not None:
        parts["contrastive_loss"], parts["contrastive_accuracy"] = contrastive_loss(objective, embeddings)
    loss = weighted_loss(objective, parts)
    return loss, parts | {"loss": loss}


def accumulated_gradients(params, objective: Objective, batch: Batch, palette) -> tuple[Any, Metrics]:
    """Gradient of `loss_fn` in M passes over B/M images; the contrastive loss sees the whole batch.

    First all embeddings without gradients, then the gradient of the loss by embedding, then each pass again to
    backpropagate its part of that gradient (GradCache: Gao et al. 2021, arXiv 2101.06983).

    Returns:
      (gradients, metrics), equal to those of one pass up to rounding.
    """
    model, pieces = objective.model, objective.microbatches
    # Strided, so that each piece has rows of every device.
    cut = jax.tree.map(lambda x: x.reshape(-1, pieces, *x.shape[1:]).swapaxes(0, 1), batch)
    metrics: Metrics = {}
    pull = None
    if model.contrastive:
        views = cut.replace(likelihood=None)
        embedded = jax.lax.map(lambda piece: forward(model, params, piece, palette)[1], views)
        whole = embedded.swapaxes(0, 1).reshape(-1, *embedded.shape[2:])
        loss = lambda z: contrastive_loss(objective, z)
        (value, accuracy), pull = jax.value_and_grad(loss, has_aux=True)(whole)
        metrics |= {"contrastive_loss": value, "contrastive_accuracy": accuracy}
        pull = pull.reshape(-1, pieces, *pull.shape[1:]).swapaxes(0, 1)

    def share(params, piece, pull) -> tuple[jax.Array, jax.Array]:
        """Returns a loss whose gradient is this piece's part of the gradient, and its part of the generative loss."""
        parts: Metrics = {}
        log_prob, embedded = forward(model, params, piece, palette)
        if log_prob is not None:
            parts["generative_loss"] = generative_loss(log_prob) / pieces
        if embedded is not None:
            parts["contrastive_loss"] = jnp.sum(embedded * pull)
        return weighted_loss(objective, parts), parts.get("generative_loss", jnp.zeros(()))

    def add(carry, piece_and_pull):
        gradients, nll = jax.grad(share, has_aux=True)(params, *piece_and_pull)
        return jax.tree.map(jnp.add, carry, (gradients, nll)), None

    zero = (jax.tree.map(jnp.zeros_like, params), jnp.zeros(()))
    (gradients, nll), _ = jax.lax.scan(add, zero, (cut, pull))
    if model.generative:
        metrics["generative_loss"] = nll
    return gradients, metrics | {"loss": weighted_loss(objective, metrics)}


def moving_average(decay: float, ema, params, step: jax.Array):
    """Polyak average with the warm-up of TensorFlow's ExponentialMovingAverage: min(decay, (1+t)/(10+t))."""
    if ema is None:
        return None
    rate = jnp.minimum(decay, (1 + step) / (10 + step))
    return jax.tree.map(lambda e, p: rate * e + (1 - rate) * p, ema, params)


def _objective_on(config, mesh: Mesh) -> Objective:
    attend = attention.choose(config.model.attention, mesh)
    model = hybrid.build_model(config, sharding.constrain_batch(mesh), attend)
    return Objective.from_config(config, model, mesh.size)


@cached_by_config
def make_train_step(config, mesh: Mesh) -> Callable[[TrainState, jax.Array], tuple[TrainState, Metrics]]:
    """Returns step(state, images) -> (state, metrics), compiled once; the input state is donated.

    `images` is a global (B, H, W, C) uint8 array sharded over the batch axes. Metrics are () float32: `loss`,
    `generative_loss`, `contrastive_loss`, `contrastive_accuracy` (for branches that exist),
    `learning_rate`, `grad_norm` (before clipping), `param_norm`, `update_norm`.
    """
    objective, train = _objective_on(config, mesh), config.train
    optimizer, schedule = optim.make_optimizer(config), optim.learning_rate_schedule(config)
    compute = jax.grad(loss_fn, has_aux=True) if objective.microbatches == 1 else accumulated_gradients

    def train_step(state: TrainState, images: jax.Array) -> tuple[TrainState, Metrics]:
        batch = make_batch(objective, step_key(state.seed, state.step), images, state.palette)
        gradients, metrics = compute(state.params, objective, batch, state.palette)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics |= {
            "learning_rate": schedule(state.step),
            "grad_norm": optax.tree.norm(gradients),
            "param_norm": optax.tree.norm(params),
            "update_norm": optax.tree.norm(updates),
        }
        if train.skip_nonfinite > 0:
            metrics["skipped_updates"] = opt_state.total_notfinite.astype(jnp.float32)
            metrics["skipped_in_a_row"] = opt_state.notfinite_count.astype(jnp.float32)
        ema = moving_average(train.ema_decay, state.ema_params, params, state.step)
        return TrainState(state.step + 1, params, ema, opt_state, state.palette, state.seed), metrics

    return _jit(train_step, config, mesh, donate=True)


def abstract_arguments(config, mesh: Mesh) -> tuple[TrainState, jax.ShapeDtypeStruct]:
    """Returns shapes, dtypes and shardings of a step's arguments: the state and a batch of images."""
    shape = (config.train.batch_size, *config.data.image_size, config.data.channels)
    return abstract_state(config, mesh), jax.ShapeDtypeStruct(shape, np.uint8, sharding=sharding.batch_sharding(mesh))


@cached_by_config
def make_gradient_comparison(config, mesh: Mesh) -> Callable[[TrainState, jax.Array], Metrics]:
    """Returns compare(state, images) -> metrics: do the gradients of the two losses agree?

    `encoder_gradient_norm_generative` and `.._contrastive` are the norms of the weighted losses' gradients with
    respect to the encoder's parameters, `encoder_gradient_cosine` their cosine; on the batch of the next step.
    """
    objective = _objective_on(config, mesh)

    def compare(state: TrainState, images: jax.Array) -> Metrics:
        batch = make_batch(objective, step_key(state.seed, state.step), images, state.palette)

        def loss(encoder, part: Batch) -> jax.Array:
            return loss_fn(state.params | {"encoder": encoder}, objective, part, state.palette)[0]

        parts = batch.replace(views=None, keep=None), batch.replace(likelihood=None)
        one, two = (jax.grad(loss)(state.params["encoder"], part) for part in parts)
        norms = optax.tree.norm(one), optax.tree.norm(two)
        return {
            "encoder_gradient_norm_generative": norms[0],
            "encoder_gradient_norm_contrastive": norms[1],
            "encoder_gradient_cosine": optax.tree.vdot(one, two) / jnp.maximum(norms[0] * norms[1], 1e-30),
        }

    return _jit(compare, config, mesh)


def _jit(function, config, mesh: Mesh, donate: bool = False):
    """Jits function(state, images) with the shardings of state and batch; metrics are replicated."""
    state = state_sharding(config, mesh)
    metrics = sharding.replicated(mesh)
    return jax.jit(
        function,
        in_shardings=(state, sharding.batch_sharding(mesh)),
        out_shardings=(state, metrics) if donate else metrics,
        donate_argnums=(0,) if donate else (),
        compiler_options=sharding.compiler_options(mesh),
    )
