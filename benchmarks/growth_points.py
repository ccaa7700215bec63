"""What `benchmarks.growth` measures: along each axis the sizes, and the config that each size means."""

import dataclasses
import math
from typing import Any

# Near configs/fashion_mnist.py, with half of its batch and of its encoder, so that the largest sizes stay affordable.
BASE: dict[str, Any] = {
    "data.image_size": (28, 28),
    "model.patch_size": 7,
    "model.width": 96,
    "model.num_heads": 3,
    "model.encoder_layers": 2,
    "model.decoder_layers": 1,
    "objective.contrastive_weight": 0.3,
    "augment.crop_min_area": 0.8,
    "augment.view_keep": 0.5,
    "train.batch_size": 64,
    "train.likelihood_fraction": 0.5,
    "train.ema_decay": 0.998,
    "optimizer.name": "muon",
    "optimizer.learning_rate": 8e-3,
}
STEP, NT_XENT = "step", "nt_xent"


@dataclasses.dataclass(frozen=True)
class Axis:
    """One thing that grows.

    Attributes:
      name: of the axis, its key in growth.json.
      label: what the sizes are, with their unit.
      sizes: where it is measured.
      quick: which of them `--quick` measures.
      kind: `STEP` or `NT_XENT`.
      compiles: whether its compile time is told.
      panel: of the plot; several axes may share one.
      curve: what that panel calls it.
    """

    name: str
    label: str
    sizes: tuple[int, ...]
    quick: tuple[int, ...]
    kind: str = STEP
    compiles: bool = False
    panel: str = ""
    curve: str = "measured"

    def __post_init__(self) -> None:
        """An axis without a panel to share has its own."""
        object.__setattr__(self, "panel", self.panel or self.name)

    def settings(self, size: int) -> dict[str, Any]:
        """Returns what a size sets: config fields of a step, arguments of NT-Xent."""
        if self.kind == NT_XENT:
            return {"batch": size, "block_size": 256 if self.name == "nt_xent_256" else None}
        return BASE | _STEP_SETTINGS[self.name](size)

    def devices(self, size: int) -> int:
        """Returns how many fake devices share the work."""
        return size if self.name == "devices" else 1


_STEP_SETTINGS = {
    "batch": lambda size: {"train.batch_size": size},
    "image": lambda size: {"data.image_size": (size, size)},
    "tokens": lambda size: {"model.patch_size": 28 // math.isqrt(size)},
    "width": lambda size: {"model.width": size, "model.num_heads": size // 32},
    "depth": lambda size: {"model.encoder_layers": size},
    "depth_scan": lambda size: {"model.encoder_layers": size, "model.scan_layers": True},
    "devices": lambda size: {},
}

_BATCHES = (1024, 2048, 4096, 8192)

# Each axis of the step holds the base's own size, which is measured once for all of them.
AXES = (
    Axis("batch", "batch, images", (32, 64, 128, 256), (64, 256)),
    Axis("image", "image side, pixels (patches of 7)", (14, 28, 56, 112), (28, 56)),
    Axis("tokens", "patches of an image of 28x28", (4, 16, 49, 196), (16, 49)),
    Axis("width", "width, features (heads of 32)", (32, 96, 192, 384), (96, 192)),
    Axis("depth", "encoder_layers, blocks", (2, 4, 8, 16), (2, 4), compiles=True, curve="blocks written out"),
    Axis(
        "depth_scan", "encoder_layers, blocks, scan_layers", (2, 4, 8, 16), (), compiles=True, panel="depth",
        curve="scan_layers",
    ),
    Axis("devices", "fake devices, global batch fixed", (1, 2, 4, 8), (1, 8)),
    Axis("nt_xent", "NT-Xent alone, batch, images", _BATCHES, (1024, 4096), NT_XENT, curve="block of its choice"),
    Axis(
        "nt_xent_256", "NT-Xent alone, batch, images, block_size 256", _BATCHES, (1024, 4096), NT_XENT,
        panel="nt_xent", curve="block_size 256",
    ),
)  # fmt: skip
