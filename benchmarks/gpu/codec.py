"""Images compressed in one process and restored in another that compiles anew: are the probabilities' bits the same?

python -m benchmarks.gpu.codec [--tiny]

As a user would, and with XLA's deterministic operations and no autotuning.
"""

import functools
import os

import numpy as np

from benchmarks.gpu import commands
from benchmarks.gpu.record import ROOT, Entry, Record, stage_flags, work_folder

_IMAGES, _TINY_IMAGES = 20, 2
_NOTHING_KEPT = {"JAX_ENABLE_COMPILATION_CACHE": "false"}
_WAYS = {
    "as it is": {},
    "deterministic": {"XLA_FLAGS": "--xla_gpu_deterministic_ops=true --xla_gpu_autotune_level=0"},
}


def main() -> None:
    """Tries both ways."""
    tiny = stage_flags(__doc__ or "").tiny
    record = Record("codec", tiny)
    for name, environment in _WAYS.items():
        record.add(name, functools.partial(there_and_back, environment, tiny))


def there_and_back(environment: dict[str, str], tiny: bool) -> Entry:
    """Returns seconds of both processes, bytes, and whether the pixels came back."""
    work, workdir = work_folder(), commands.trained(tiny)
    images, packed, back = work / "images.npy", work / "images.hjx", work / "back.npy"
    with np.load(ROOT / "hybrid_jax/data/embedded/fashion_mnist_12k.npz", allow_pickle=False) as arrays:
        np.save(images, arrays["test_images"][: _TINY_IMAGES if tiny else _IMAGES, ..., None])
    back.unlink(missing_ok=True)
    # A file of examples/ finds the checkout's package only by the path.
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    call = functools.partial(
        commands.run,
        program=("examples/compress_images.py",),
        environment=_NOTHING_KEPT | environment | {"PYTHONPATH": path},
    )
    there = call("compress", f"--workdir={workdir}", f"--input={images}", f"--output={packed}")
    there.checked()
    home = call("decompress", f"--workdir={workdir}", f"--input={packed}", f"--output={back}")
    same = back.exists() and np.array_equal(np.load(back), np.load(images))
    return {
        "compress_s": there.seconds,
        "decompress_s": home.seconds,
        "bytes": packed.stat().st_size,
        "same_pixels": bool(same),
        "said": home.lines[-1][1] if home.lines else "",
        "ok": bool(same),
    }


if __name__ == "__main__":
    main()
