"""Packs what a call leaves beside its results, in few files of at most 16 MiB.

python -m benchmarks.gpu.pack [--unpack=FOLDER]

programs.tar (texts of the profiled programs) and compiled.tar.0 .. 3, the compiler's cache with what autotuning chose;
of more than fits the first ones, which are those of the most important steps. `--unpack` puts an earlier call's back.
"""

import io
import pathlib
import shutil
import sys
import tarfile

from benchmarks.gpu.record import out_folder, stage_flags, work_folder

_PART_BYTES, _PARTS = 15 * 2**20, 4
_BLOCK = 1536  # what a file's head and padding take in an archive, at most
CACHE = "compiled"


def main() -> None:
    """Packs, or unpacks."""
    given = stage_flags(__doc__ or "", "unpack")
    if given.unpack:
        unpack(pathlib.Path(given.unpack))
        return
    programs = sorted((work_folder() / "programs").glob("*.hlo.gz"))
    if programs:
        _write(out_folder() / "programs.tar", _archive(programs, _PART_BYTES))
    cache = work_folder() / CACHE
    files = sorted((path for path in cache.rglob("*") if path.is_file()), key=_importance)
    packed = _archive(files, _PARTS * _PART_BYTES - 20 * 2**10) if files else b""
    for part in range(-(-len(packed) // _PART_BYTES)):
        _write(out_folder() / f"compiled.tar.{part}", packed[part * _PART_BYTES : (part + 1) * _PART_BYTES])


def _importance(path: pathlib.Path) -> tuple[bool, float]:
    """Autotuning's choices first, as they are small; then the oldest."""
    return "autotune" not in str(path), path.stat().st_mtime


def _archive(files: list[pathlib.Path], room: int) -> bytes:
    """Returns a tar archive of the files that fit, relative to the work folder; they are compressed already."""
    buffer, left = io.BytesIO(), 0
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for path in files:
            size = path.stat().st_size + _BLOCK
            if buffer.tell() + size > room:
                left += 1
                continue
            archive.add(path, str(path.relative_to(work_folder())))
    if left:
        print(f"{left} of {len(files)} files did not fit", file=sys.stderr)
    return buffer.getvalue()


def _write(path: pathlib.Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def unpack(earlier: pathlib.Path) -> None:
    """Puts an earlier call's results and compiled programs where this call looks for them."""
    results, target = earlier / "results.json", out_folder() / "results.json"
    if results.exists() and not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(results, target)
    parts = sorted(earlier.glob("compiled.tar.*"))
    if parts:
        joined = io.BytesIO(b"".join(part.read_bytes() for part in parts))
        with tarfile.open(fileobj=joined) as archive:
            archive.extractall(work_folder(), filter="data")


if __name__ == "__main__":
    main()
