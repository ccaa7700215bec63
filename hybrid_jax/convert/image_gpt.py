"""Image GPT (Chen et al. 2020) in Hugging Face's format; it is a special case of our model.

One token per pixel, the nearest of K palette colours; no encoder blocks; quick_gelu; no biases. Their table of K + 1
embeddings is our table of K, with the decoder's start vector as the last row. Matrices have the same layout, except the
head's, which is transposed.
"""

import contextlib
import json
import math
import pathlib
import re
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

from hybrid_jax import config as config_lib
from hybrid_jax.convert.safetensors import Tensors, read_json, replace, write_tensors
from hybrid_jax.errors import UserError, reject
from hybrid_jax.inference.model import Model

# {their name in a block `h.<i>`: our name in `block_<i + 1>`}.
_BLOCK = {
    "ln_1.weight": "attention_norm/scale",
    "attn.c_attn.weight": "qkv/kernel",
    "attn.c_proj.weight": "attention_out/kernel",
    "ln_2.weight": "mlp_norm/scale",
    "mlp.c_fc.weight": "mlp_in/kernel",
    "mlp.c_proj.weight": "mlp_out/kernel",
}
_BLOCKS = "decoder/transformer/"
_TABLE, _START, _HEAD = "encoder/patch_embedding/table/embedding", "decoder/start", "head/logits/kernel"
_PLAIN = {"transformer.wpe.weight": "decoder/positions", "transformer.ln_f.weight": "decoder/norm/scale"}
# Masks that old files contain besides the weights.
_BUFFERS = re.compile(r"transformer\.h\.\d+\.attn\.(bias|masked_bias)")
_SIZES = {"vocab_size": 513, "n_positions": 1024, "n_embd": 512, "n_layer": 24, "n_head": 8}  # their defaults
_SETTINGS = {
    "model_type": "imagegpt",
    "activation_function": "quick_gelu",
    "layer_norm_epsilon": 1e-5,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "tie_word_embeddings": False,
    "add_cross_attention": False,
}
_COLOURS = "preprocessor_config.json"
_SCORES = 2**28  # maximum bytes of attention scores of an evaluation batch


def read_folder(
    folder: pathlib.Path, palette: pathlib.Path | None = None, scan_layers: bool = False
) -> tuple[dict[str, Any], dict[str, np.ndarray], np.ndarray]:
    """Reads a folder written by `ImageGPTForCausalImageModeling.save_pretrained`.

    Args:
      folder: folder with `config.json`, `model.safetensors` (or shards) and, for the colours,
        `preprocessor_config.json`.
      palette: an .npy file of (K, 3) colours in [-1, 1]; None = the folder's `clusters`.
      scan_layers: stack the blocks' parameters, for `model.scan_layers`.

    Returns:
      Fields of our config by dotted name, float32 parameters by path, (K, 3) float32 colours.

    Raises:
      UserError: a file is missing, damaged or a pickle, or the model is not supported.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    sizes = _sizes(folder / "config.json")
    colours = _colours(folder, palette, sizes["vocab_size"] - 1)
    tensors = Tensors(folder)
    _check_names(folder, tensors, _shapes(sizes))
    for name in sorted(tensors.shapes):
        if name.endswith(".bias") and not _BUFFERS.fullmatch(name) and (worst := np.abs(tensors.read(name)).max()) > 0:
            raise UserError(
                f"{folder}: {name} has values up to {worst:g}; must be all zero, since our blocks have no biases"
            )
    return _fields(sizes, scan_layers), _params(tensors, sizes["n_layer"], scan_layers), colours


def _sizes(path: pathlib.Path) -> dict[str, int]:
    """Returns the sizes in a `config.json`; raises UserError if our model does not support a setting."""
    theirs = _SIZES | read_json(path)
    for name, needed in _SETTINGS.items():
        if (found := theirs.get(name, needed)) != needed:
            raise UserError(f"{path}: {name}={found!r}; must be {needed!r}")
    for name in _SIZES:
        if type(theirs[name]) is not int or not 1 <= theirs[name] < 2**31:
            raise UserError(f"{path}: {name}={theirs[name]!r}; must be a whole number above 0")
    width, positions = theirs["n_embd"], theirs["n_positions"]
    if (inner := theirs.get("n_inner")) not in (None, 4 * width):
        raise UserError(f"{path}: n_inner={inner!r}; must be null or 4 * n_embd = {4 * width}")
    if math.isqrt(positions) ** 2 != positions:
        raise UserError(f"{path}: n_positions={positions}; must be a square, one for each pixel of a square image")
    return {name: theirs[name] for name in _SIZES}


def _fields(sizes: dict[str, int], scan_layers: bool) -> dict[str, Any]:
    side, scores = math.isqrt(sizes["n_positions"]), 4 * sizes["n_head"] * sizes["n_positions"] ** 2
    return {
        "data.image_size": (side, side),
        "data.channels": 3,
        "model.patch_size": 1,
        "model.token_kind": "palette",
        "model.palette_size": sizes["vocab_size"] - 1,
        "model.width": sizes["n_embd"],
        "model.num_heads": sizes["n_head"],
        "model.encoder_layers": 0,
        "model.decoder_layers": sizes["n_layer"],
        "model.activation": "quick_gelu",
        "model.scan_layers": scan_layers,
        "objective.contrastive_weight": 0.0,
        "eval.batch_size": max(1, min(500, _SCORES // scores)),
    }


def _shapes(sizes: dict[str, int]) -> dict[str, tuple[int, ...]]:
    d, vocab = sizes["n_embd"], sizes["vocab_size"]
    block: dict[str, tuple[int, ...]] = {"ln_1.weight": (d,), "ln_2.weight": (d,)}
    for name, shape in {"attn.c_attn": (d, 3 * d), "attn.c_proj": (d, d), "mlp.c_fc": (d, 4 * d),
                        "mlp.c_proj": (4 * d, d)}.items():  # fmt: skip
        block |= {f"{name}.weight": shape, f"{name}.bias": shape[1:]}
    shapes: dict[str, tuple[int, ...]] = {
        "transformer.wte.weight": (vocab, d),
        "transformer.wpe.weight": (sizes["n_positions"], d),
    }
    shapes |= {"transformer.ln_f.weight": (d,), "lm_head.weight": (vocab - 1, d)}
    # Bounded, since a damaged config could ask for any number of blocks.
    blocks = range(min(sizes["n_layer"], 1001))
    return shapes | {f"transformer.h.{i}.{name}": shape for i in blocks for name, shape in block.items()}


def _check_names(folder: pathlib.Path, tensors: Tensors, wanted: dict[str, tuple[int, ...]]) -> None:
    found = {name: shape for name, shape in tensors.shapes.items() if not _BUFFERS.fullmatch(name)}
    # Biases are optional, since they must be zero.
    missing = [name for name in wanted if name not in found and not name.endswith(".bias")]
    wrong = [f"{n} {found[n]} instead of {wanted[n]}" for n in found if n in wanted and found[n] != wanted[n]]
    for what, names in {"lacks": missing, "has unknown": sorted(set(found) - set(wanted)), "has": wrong}.items():
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise UserError(f"{folder}: {what} {', '.join(names[:3])}{more}; must match ImageGPTForCausalImageModeling")


def _params(tensors: Tensors, depth: int, scan_layers: bool) -> dict[str, np.ndarray]:
    table = tensors.read("transformer.wte.weight")
    params = {_TABLE: table[:-1], _START: table[-1], _HEAD: tensors.read("lm_head.weight").T}
    params |= {ours: tensors.read(theirs) for theirs, ours in _PLAIN.items()}
    for theirs, ours in _BLOCK.items():
        # One at a time, since the model may be as large as the memory.
        blocks = (tensors.read(f"transformer.h.{i}.{theirs}") for i in range(depth))
        if scan_layers:
            params[f"{_BLOCKS}blocks/{ours}"] = np.stack(list(blocks))
        else:
            params |= {f"{_BLOCKS}block_{i + 1}/{ours}": block for i, block in enumerate(blocks)}
    return params


def _colours(folder: pathlib.Path, palette: pathlib.Path | None, count: int) -> np.ndarray:
    """Returns (count, 3) float32 in [-1, 1], from an .npy file or the folder's image processor."""
    if palette is None:
        path, found = folder / _COLOURS, None
        if path.is_file():
            found = read_json(path).get("clusters")
        if found is None:
            raise UserError(f"{path}: has no clusters (the colours of the palette); give them with --palette=FILE.npy")
    else:
        path = palette
        try:
            found = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise UserError(f"--palette={path}: must be an .npy file of numbers, not pickled ({error})") from error
    colours = None
    with contextlib.suppress(TypeError, ValueError, OverflowError):
        colours = np.asarray(found, np.float32)
    if colours is None or colours.shape != (count, 3) or not (np.abs(colours) <= 1).all():
        raise UserError(f"{path}: the palette must be {count} colours (vocab_size - 1) of 3 numbers in [-1, 1]")
    return colours


def write_folder(folder: pathlib.Path, model: Model) -> None:
    """Writes a folder for `ImageGPTForCausalImageModeling.from_pretrained` (and `read_folder`).

    Raises:
      UserError: the model is not an Image GPT, or the folder is not empty or cannot be written.
    """
    check_is_image_gpt(model.config)
    assert model.palette is not None
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"--output={folder}: must be a new or an empty folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output={folder}: cannot be written ({error.strerror})") from error
    c, side = model.config.model, model.config.data.image_size[0]
    sizes = (c.palette_size + 1, side * side, c.width, c.decoder_layers, c.num_heads)
    config = dict(zip(_SIZES, sizes, strict=True)) | _SETTINGS | {"n_inner": None}
    config["architectures"] = ["ImageGPTForCausalImageModeling"]
    write_tensors(folder / "model.safetensors", _theirs(model), {"format": "pt"})
    processor = {
        "image_processor_type": "ImageGPTImageProcessor",
        "clusters": np.asarray(model.palette.colours).astype(float).tolist(),
        "size": {"height": side, "width": side},
        **{f"do_{step}": True for step in ("resize", "rescale", "normalize", "color_quantize")},
    }
    _write_json(folder / _COLOURS, processor)
    _write_json(folder / "config.json", config)


def _write_json(path: pathlib.Path, content: dict[str, Any]) -> None:
    text = json.dumps(content, indent=2) + "\n"
    replace(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def check_is_image_gpt(config) -> None:
    """Raises UserError for the first field that does not match Image GPT."""
    flat = config_lib.flatten(config)
    needed = {"model.encoder_layers": 0, "model.token_kind": "palette", "model.patch_size": 1}
    for name, value in (needed | {"model.activation": "quick_gelu", "data.channels": 3}).items():
        if flat[name] != value:
            raise reject(name, flat[name], f"must be {value!r} for Image GPT")
    if len(set(config.data.image_size)) > 1:
        raise reject("data.image_size", flat["data.image_size"], "must be a square for Image GPT")


def _theirs(model: Model) -> dict[str, np.ndarray]:
    ours = {name: np.asarray(value) for name, value in flatten_dict(model.params, sep="/").items()}
    tensors = {theirs: ours[name] for theirs, name in _PLAIN.items()}
    tensors["transformer.wte.weight"] = np.concatenate([ours[_TABLE], ours[_START][None]])
    tensors["lm_head.weight"] = ours[_HEAD].T
    for i in range(model.config.model.decoder_layers):
        for theirs, name in _BLOCK.items():
            stacked = ours.get(f"{_BLOCKS}blocks/{name}")
            block = ours[f"{_BLOCKS}block_{i + 1}/{name}"] if stacked is None else stacked[i]
            tensors[f"transformer.h.{i}.{theirs}"] = block
            if "ln_" not in theirs:
                tensors[f"transformer.h.{i}.{theirs.replace('weight', 'bias')}"] = np.zeros(block.shape[1], np.float32)
    return tensors
