"""Whether the other stages can run here, told in one line where they cannot; and what this machine is.

python -m benchmarks.gpu.versions [--tiny] [--stages=a,b] [--site=FOLDER]

`--site` is where wheels were installed, each of which must import. Exit code 2: something is missing.
"""

import importlib
import importlib.metadata
import os
import pathlib
import subprocess
import sys

from benchmarks.gpu.record import Record, one_line, stage_flags
from benchmarks.gpu.record import versions as versions_of
from hybrid_jax.errors import UserError

_ALWAYS = ("numpy", "scipy", "jax", "flax", "optax", "orbax.checkpoint", "ml_collections", "absl", "tqdm")
_DATA = ("tensorflow_datasets", "array_record.python.array_record_module", "grain", "PIL", "importlib_resources")
_REPORT = (*_DATA, "sklearn", "matplotlib")
# Beside what every stage imports.
_STAGES = {
    "torch_peer": ("torch",),
    "loop": _DATA,
    "evaluation": _REPORT,
    "codec": (*_DATA, "constriction"),
    "recipe": _REPORT,
}
_TOLD = (
    "jax", "jaxlib", "jax-cuda13-plugin", "jax-cuda12-plugin", "flax", "optax", "orbax-checkpoint", "chex", "numpy",
    "scipy", "tensorstore", "torch", "triton", "nvidia-cudnn-cu13", "nvidia-cudnn-cu12", "nvidia-cublas",
    "ml_collections", "tensorflow-datasets", "array_record", "scikit-learn",
)  # fmt: skip
_SMI = "name,driver_version,memory.total,clocks.sm,clocks.max.sm,power.limit"
# B, N, H, E of the configs' passes; cuDNN must take the first.
_SHAPES = ((4, 64, 8, 64), (4, 32, 8, 64), (4, 1024, 8, 64), (4, 128, 16, 64), (4, 16, 3, 32), (4, 8, 3, 32))
# The largest program, imagenet32_igpt_s unrolled, plans 38 GiB; the states of others are held beside it.
_NEEDED_GIB = 48.0


def main() -> None:
    """Checks, then records; a mistake that the user can mend is one line and exit code 2."""
    given = stage_flags(__doc__ or "", "stages", "site")
    try:
        check_imports(given.stages.split(","), given.site)
        check_device(given.tiny)
    except UserError as error:
        sys.exit(_told(error))
    record = Record("versions", given.tiny)
    cores = len(os.sched_getaffinity(0))
    record.put("packages", {"python": sys.version.split()[0], "cores": cores, **versions_of(_TOLD)})
    record.put("device", device())
    record.put("driver", driver())
    record.put("cuDNN takes (B, N, H, E)", {str(shape): _cudnn_takes(shape) for shape in _SHAPES})


def _told(error: UserError) -> int:
    print(f"error: {error}", file=sys.stderr)
    return 2


def check_imports(stages: list[str], site: str) -> None:
    """Imports what the stages need, and every wheel that was installed.

    Raises:
      UserError: one that cannot be imported, and why.
    """
    needed = {name: name for stage in stages for name in (*_ALWAYS, *_STAGES.get(stage, ()))}
    wheels = wheel_modules(site) if site else {}
    # Wheels last: what depends on them names them in its own error.
    for module, told in {**wheels, **needed}.items():
        try:
            importlib.import_module(module)
        except Exception as error:
            what = f"{told}: its module {module}" if module in wheels else module
            stages_told = "" if module in _ALWAYS else f" (stages: {', '.join(stages)})"
            raise UserError(f"{what} cannot be imported{stages_told}: {one_line(error)}") from error


def wheel_modules(site: str) -> dict[str, str]:
    """Returns {module at the top: `name version`} of the packages in a folder."""
    found = {}
    for package in importlib.metadata.distributions(path=[site]):
        tops = {pathlib.PurePosixPath(file).parts[0] for file in package.files or () if file.name == "__init__.py"}
        tops |= {file.stem for file in package.files or () if file.suffix == ".py" and len(file.parts) == 1}
        found |= {top: f"{package.name} {package.version}" for top in tops if top.isidentifier()}
    return found


def check_device(tiny: bool) -> None:
    """Raises UserError where the stages' sizes cannot run on JAX's first device."""
    import jax

    if tiny:
        return
    try:
        kind = jax.default_backend()
    except RuntimeError as error:
        raise UserError(f"JAX finds no device: {one_line(error)}") from error
    if kind not in ("gpu", "cuda"):
        raise UserError(f"JAX sees no GPU, its backend is {kind}: nothing is timed there; --tiny tries the stages")
    found = device()
    if not _cudnn_takes(_SHAPES[0]):
        raise UserError(f"{found['kind']}: JAX cannot use cuDNN's attention here (compute capability 8 and cuDNN 9)")
    if found["limit_gib"] < _NEEDED_GIB:
        raise UserError(f"{found['kind']}: {found['limit_gib']:.1f} GiB, the sizes here need {_NEEDED_GIB:g}")


def device() -> dict[str, object]:
    """Returns what JAX says of its first device."""
    import jax

    first = jax.devices()[0]
    return {
        "kind": first.device_kind,
        "count": jax.device_count(),
        "platform": first.platform,
        "limit_gib": (first.memory_stats() or {}).get("bytes_limit", 0) / 2**30,
        "compute_capability": getattr(first, "compute_capability", ""),
        "runtime": " ".join(str(getattr(first.client, "platform_version", "")).split()),
    }


def driver() -> dict[str, object]:
    """Returns what nvidia-smi says."""
    try:
        command = ["nvidia-smi", f"--query-gpu={_SMI}", "--format=csv,noheader"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return {"nvidia-smi": "not here"}
    return dict(zip(_SMI.split(","), map(str.strip, done.stdout.strip().split(",")), strict=False))


def _cudnn_takes(shape: tuple[int, ...]) -> bool:
    import jax

    from hybrid_jax.models import attention

    return jax.default_backend() != "cpu" and attention.cudnn_accepts(jax.ShapeDtypeStruct(shape, "bfloat16"))


if __name__ == "__main__":
    main()
