"""The optimizer and its learning-rate schedule."""

from collections.abc import Callable

import jax
import optax


def learning_rate_schedule(config) -> optax.Schedule:
    """Returns linear warm-up from 0, then cosine decay to 0 at `total_steps` (SGDR, arXiv 1608.03983).

    Warm-up takes at most half of the run.
    """
    total = config.train.total_steps
    warmup = min(config.optimizer.warmup_steps, total // 2)
    return optax.warmup_cosine_decay_schedule(
        0.0 if warmup else config.optimizer.learning_rate, config.optimizer.learning_rate, warmup, total
    )


def is_decayed(params) -> object:
    """Returns a tree of booleans: weight decay for matrices, none for norms, biases, positions and embeddings."""

    def decays(path, leaf):
        name = path[-1].key
        return name == "kernel" or name.endswith("_kernel")

    return jax.tree_util.tree_map_with_path(decays, params)


def _adamw(config, schedule: optax.Schedule) -> optax.GradientTransformation:
    """AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101)."""
    return optax.adamw(schedule, b2=config.optimizer.b2, weight_decay=config.optimizer.weight_decay, mask=is_decayed)


def _muon(config, schedule: optax.Schedule) -> optax.GradientTransformation:
    """Muon (Jordan et al. 2024, github.com/KellerJordan/Muon) for the blocks' matrices, NAdam for all other parameters.

    Updates are scaled to the size of AdamW's (Liu et al. 2025, arXiv 2502.16982), so that one learning rate suits
    both; weight decay applies to the blocks' matrices only.
    """
    c = config.optimizer
    return optax.contrib.muon(
        schedule,
        weight_decay=c.weight_decay,
        adam_b2=c.b2,
        consistent_rms=0.2,
        muon_weight_dimension_numbers=_block_matrices,
    )


def _block_matrices(params) -> object:
    """Returns the input and output axes of each block's matrices; None for other parameters."""

    def axes(path, leaf):
        names = [key.key for key in path]
        matrix = "transformer" in names and names[-1] == "kernel"
        # Negative axes: with model.scan_layers there is a leading layer axis.
        return optax.contrib.MuonDimensionNumbers(-2, -1) if matrix else None

    return jax.tree_util.tree_map_with_path(axes, params)


OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {"adamw": _adamw, "muon": _muon}


def make_optimizer(config) -> optax.GradientTransformation:
    """Returns the named optimizer with clipping by global norm and, if configured, skipping of non-finite updates."""
    optimizer = OPTIMIZERS[config.optimizer.name](config, learning_rate_schedule(config))
    if config.optimizer.clip_norm > 0:
        optimizer = optax.chain(optax.clip_by_global_norm(config.optimizer.clip_norm), optimizer)
    if config.train.skip_nonfinite > 0:
        optimizer = optax.apply_if_finite(optimizer, config.train.skip_nonfinite)
    return optimizer
