"""The training state: its initial value, its shardings, and the parts a checkpoint saves."""

import functools
import json
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax.sharding import Mesh

from hybrid_jax import config as config_lib
from hybrid_jax import optim, sharding
from hybrid_jax.models import hybrid, tokens

# The sections of the config that a step depends on.
_OF_A_STEP = ("data", "model", "objective", "augment", "train", "optimizer")


def cached_by_config(function):
    """Caches a function of (config, mesh), so that equal configs are not traced and compiled again.

    The function gets only the sections of the config that form the cache key; reading another section raises. The
    seed is not in the key: it is part of the state, so that runs with different seeds share one compiled step.
    """

    @functools.lru_cache(maxsize=16)
    def cached(text: str, mesh: Mesh | None):
        full = config_lib.from_dict(json.loads(text))
        return function(ml_collections.ConfigDict({name: full[name] for name in _OF_A_STEP}).lock(), mesh)

    @functools.wraps(function)
    def keyed(config, mesh: Mesh | None = None):
        values = config.to_dict()
        return cached(json.dumps({name: values[name] for name in _OF_A_STEP}), mesh)

    return keyed


class TrainState(flax.struct.PyTreeNode):
    """Arrays that a step updates, with the palette and the seed, which stay constant.

    Attributes:
      step: () int32, number of updates done.
      params: float32 parameters.
      ema_params: moving average of the parameters; None if ema_decay = 0.
      opt_state: state of the optimizer.
      palette: the palette; None for intensity tokens.
      seed: () uint32, seed of the run; None if nothing is trained.
    """

    step: jax.Array
    params: Any
    ema_params: Any
    opt_state: Any
    palette: tokens.Palette | None
    seed: Any = None

    def saved(self) -> dict[str, Any]:
        """Returns the parts of a checkpoint besides the step, {part: tree}; of the palette only its colours."""
        colours = None if self.palette is None else self.palette.colours
        parts = {"params": self.params, "ema_params": self.ema_params, "opt_state": self.opt_state, "palette": colours}
        return {name: part for name, part in parts.items() if part is not None}

    def restored(self, step: jax.Array, parts: dict[str, Any], seed: int) -> "TrainState":
        """Returns the state of a checkpoint of a run with this seed; `self` gives the shardings."""
        palette = None
        if self.palette is not None:
            made = tokens.Palette.from_colours(np.asarray(parts["palette"]))
            palette = sharding.place(made, jax.tree.map(lambda x: x.sharding, self.palette))
        placed = None if self.seed is None else sharding.place(np.uint32(seed), self.seed.sharding)
        return self.replace(step=step, seed=placed, **(parts | {"palette": palette}))


def _fresh_state(config, seed: jax.Array, palette: tokens.Palette | None) -> TrainState:
    params = hybrid.init_params(hybrid.build_model(config), jax.random.key(seed), palette)
    ema = jax.tree.map(jnp.copy, params) if config.train.ema_decay > 0 else None
    opt_state = optim.make_optimizer(config).init(params)
    return TrainState(jnp.zeros((), jnp.int32), params, ema, opt_state, palette, seed)


@cached_by_config
def abstract_state(config, mesh: Mesh | None = None) -> TrainState:
    """Returns shapes, dtypes and, given a mesh, shardings of the state; computes nothing."""
    palette = tokens.abstract_palette(tokens.TokenSpec.from_config(config))
    state = jax.eval_shape(lambda palette: _fresh_state(config, jnp.uint32(0), palette), palette)
    if mesh is None:
        return state
    where = state_sharding(config, mesh)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, where)


def state_sharding(config, mesh: Mesh) -> TrainState:
    """Returns the shardings of the state's arrays, as a `TrainState`."""
    state = abstract_state(config)
    # Every device looks up its own pixels in the palette's table.
    palette = jax.tree.map(lambda _: sharding.replicated(mesh), state.palette)
    return sharding.state_sharding(state, mesh).replace(palette=palette)


def init_state(config, mesh: Mesh, palette: tokens.Palette | None) -> TrainState:
    """Returns the state before the first step, created in place on the mesh."""
    return _make_init(config, mesh)(np.uint32(config.seed), palette)


@cached_by_config
def _make_init(config, mesh: Mesh):
    shardings = state_sharding(config, mesh)
    return jax.jit(lambda seed, palette: _fresh_state(config, seed, palette), out_shardings=shardings)
