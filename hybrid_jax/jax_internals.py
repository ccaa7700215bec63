"""All private names of JAX that this package uses.

| name | why it is needed |
|---|---|
| `jax._src.distributed.global_state` | client of the coordination service; `jax.process_index` initialises devices |
| `jax._src.clusters.ClusterEnv` | detects a cluster before `jax.distributed.initialize` |
"""

import functools
import importlib
from typing import Any

import jax

from hybrid_jax.errors import IncompatibleError


def private(module: str, name: str, attributes: tuple[str, ...]) -> Any:
    """Returns a private object of JAX.

    Args:
      module: name of its module.
      name: name of the object.
      attributes: its attributes in use.

    Raises:
      IncompatibleError: this version of JAX lacks the object or an attribute.
    """
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise _incompatible(f"{module}.{name}") from error
    for attribute in attributes:
        if not hasattr(found, attribute):
            raise _incompatible(f"{module}.{name}.{attribute}")
    return found


def _incompatible(name: str) -> IncompatibleError:
    return IncompatibleError(
        f"jax {jax.__version__} has no {name}, which runs with several processes need: "
        "install a tested version, see constraints*.txt"
    )


@functools.cache
def distributed_state() -> Any:
    """Returns JAX's state of the distributed run: process index, process count, coordination service."""
    names = ("process_id", "num_processes", "coordinator_address", "client")
    return private("jax._src.distributed", "global_state", names)


def cluster() -> Any:
    """Returns the cluster environment that `jax.distributed.initialize` would detect, or None."""
    kind = private("jax._src.clusters", "ClusterEnv", ("_cluster_types", "opt_in_only_method", "is_env_present"))
    return next((c for c in kind._cluster_types if not c.opt_in_only_method and c.is_env_present()), None)
