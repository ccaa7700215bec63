"""hybrid_jax: hybrid generative-contrastive pre-training of images in one jitted step.

Public names: `load`, `train_and_evaluate`, `losses`. They are imported on first use, so that
`import hybrid_jax` stays quick.
"""

import importlib

__version__ = "0.1.0"
__all__ = ["load", "losses", "train_and_evaluate"]

_HOMES = {"load": "inference.load", "train_and_evaluate": "train", "losses": None}


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = importlib.import_module(f"{__name__}.{_HOMES[name] or name}")
    return getattr(home, name) if _HOMES[name] else home
