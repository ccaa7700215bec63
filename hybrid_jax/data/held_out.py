"""Classes that a run never sees, so that it can be judged on whether it notices them."""

from collections.abc import Mapping

import numpy as np

from hybrid_jax.errors import reject

FIELD = "data.exclude_classes"
ROLE = "held_out"

Roles = dict[str, tuple[str, np.ndarray]]


def leave_out(classes: tuple[int, ...], roles: Roles, labels: Mapping[str, np.ndarray | None]) -> Roles:
    """Takes the images of some classes out of every part; those of `test` become the part `held_out`.

    Args:
      classes: labels, in the numbering of the data; empty = nothing changes.
      roles: {part: (split, rows of it)}.
      labels: {split: (n,) labels, or None}.

    Returns:
      {part: (split, rows)}, rows in their order.

    Raises:
      UserError: the data has no labels, a class has no image, or nothing is left to train on.
    """
    if not classes:
        return roles
    if any(labels[name] is None for name, _ in roles.values()):
        raise reject(FIELD, classes, "must be empty, the data has no labels")
    found = {role: np.asarray(labels[name])[rows] for role, (name, rows) in roles.items()}
    known = sorted(set(found["train"].tolist()))
    if unknown := sorted(set(classes) - set(known)):
        raise reject(FIELD, classes, f"has {unknown[0]}; must be labels of training images: {_listed(known)}")
    if set(classes) >= set(known):
        raise reject(FIELD, classes, "must leave a class to train on")
    kept: Roles = {}
    for role, (name, rows) in roles.items():
        out = np.isin(found[role], classes)
        kept[role] = name, rows[~out]
        if role == "test":
            kept[ROLE] = name, rows[out]
    return kept


def _listed(labels: list[int]) -> str:
    return f"{labels[0]} to {labels[-1]}" if len(labels) > 10 else ", ".join(map(str, labels))
