"""The names of JAX that are not public and have no public counterpart, each taken here and nowhere else.

| name | why no public one serves |
|---|---|
| `jax._src.distributed.global_state` | the coordination service's client; `jax.process_index` waits for the devices |
| `jax._src.clusters.ClusterEnv` | whether a cluster of several processes is found, before it is joined |
"""

import functools
import importlib
from typing import Any

import jax

from hybrid_jax.errors import IncompatibleError


def private(module: str, name: str, attributes: tuple[str, ...]) -> Any:
    """Returns a private object of JAX.

    Args:
      module: that holds it.
      name: of the object.
      attributes: of the object, which are used.

    Raises:
      IncompatibleError: this version of JAX has no such object, or one without these attributes.
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
        f"jax {jax.__version__} has no {name}, which runs of several processes need: "
        "install a version that hybrid_jax was tested with, see constraints*.txt"
    )


@functools.cache
def distributed_state() -> Any:
    """Returns what JAX knows of this process's part in a run: its number, their count, the coordination service."""
    names = ("process_id", "num_processes", "coordinator_address", "client")
    return private("jax._src.distributed", "global_state", names)


def cluster() -> Any:
    """Returns the cluster that this process finds itself in, as JAX's `initialize` would; None without one."""
    kind = private("jax._src.clusters", "ClusterEnv", ("_cluster_types", "opt_in_only_method", "is_env_present"))
    return next((c for c in kind._cluster_types if not c.opt_in_only_method and c.is_env_present()), None)
