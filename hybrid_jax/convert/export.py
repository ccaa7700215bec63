"""Export of a trained model for use without hybrid_jax: weights by name, and features as compiled code."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from jax import export

from hybrid_jax.convert.safetensors import replace, write_tensors
from hybrid_jax.errors import UserError
from hybrid_jax.inference.model import Model
from hybrid_jax.models import hybrid

FORMAT_VERSION = "1"
PLATFORMS = ("cpu", "tpu", "cuda")
# Bytes; the artifact's container (FlatBuffers) is limited to 2^31, and JAX warns about larger constants.
LARGEST_ARTIFACT = 2 * 10**9


def write_safetensors(path: pathlib.Path, model: Model) -> None:
    """Writes all parameters as float32, named by their path joined with `/`, and `palette` if there is one.

    The metadata are strings: `format` (hybrid_jax), `format_version`, `step`, `parameters` (`params` or
    `ema_params` of the checkpoint), and `config` as JSON.

    Raises:
      UserError: the file cannot be written.
    """
    arrays = {name: np.asarray(value) for name, value in flatten_dict(model.params, sep="/").items()}
    if model.palette is not None:
        arrays["palette"] = np.asarray(model.palette.colours)
    metadata = {
        "format": "hybrid_jax",
        "format_version": FORMAT_VERSION,
        "step": str(model.step),
        "parameters": "ema_params" if model.config.train.ema_decay > 0 else "params",
        "config": json.dumps(model.config.to_dict(), sort_keys=True),
    }
    write_tensors(path, arrays, metadata)


def write_stablehlo(path: pathlib.Path, model: Model, layer: str | None = None) -> None:
    """Writes `model.embed`, (b, H, W, C) uint8 -> (b, D) float32 for any b, as a `jax.export` artifact.

    Lowered for `PLATFORMS`, with plain attention; contains the weights that the layer needs.

    Raises:
      UserError: there is no such layer, weights exceed 2 GB, or the file cannot be written.
    """
    name = model.checked_layer(layer)
    module = hybrid.build_model(model.config)
    images = lambda count: jax.ShapeDtypeStruct((count, *model.spec.image_shape), np.uint8)
    # On the host, since device constants would be copied again.
    weights, tree = jax.tree.flatten(jax.device_get((model.params, model.palette)))

    def features(weights: list[jax.Array], images: jax.Array) -> jax.Array:
        params, palette = jax.tree.unflatten(tree, weights)
        return hybrid.image_features(module, params, images, palette, name.endswith(hybrid.NORMED))[name]

    # With a symbolic number of images all weights would count as used.
    used = set(export.export(jax.jit(features))(weights, images(1)).module_kept_var_idx)
    needed = sum(x.nbytes for i, x in enumerate(weights) if i in used)
    if needed > LARGEST_ARTIFACT:
        raise UserError(
            f"--output={path}: layer {name} needs {needed / 1e9:.1f} GB of weights, a StableHLO artifact holds at most "
            "2 GB; give a lower --layer, or use to_safetensors"
        )

    def alone(images: jax.Array) -> jax.Array:
        # Weights that the layer does not need are left out of the file.
        kept = [x if i in used else jnp.zeros(x.shape, x.dtype) for i, x in enumerate(weights)]
        return features(kept, images)

    (any_number,) = export.symbolic_shape("b")
    artifact = export.export(jax.jit(alone), platforms=PLATFORMS)(images(any_number)).serialize()
    replace(path, lambda temporary: temporary.write_bytes(artifact))
