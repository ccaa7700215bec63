"""What the stages found: one JSON file, written after every entry and read again by a later call. No jax here.

`$OUT/results.json` holds {stage: {`of`, `seconds`, `entries`}}. `of` says what the figures are true of: the card, the
versions, the sources; where one of them differs, the stage's entries are measured again.
"""

import argparse
import hashlib
import json
import os
import pathlib
import time
import traceback
from collections.abc import Callable
from typing import Any

from benchmarks.common import ROOT, versions

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "torch")
_SHOWN = 200  # characters of an entry, in the line that is printed
_STARTED = time.perf_counter()

Entry = dict[str, Any]


def out_folder() -> pathlib.Path:
    """Returns the folder of what is kept of a call."""
    return pathlib.Path(os.environ.get("OUT") or "/tmp/hybrid_jax_gpu/out")


def work_folder() -> pathlib.Path:
    """Returns the folder of what stages leave to one another; it need not outlive the machine."""
    folder = pathlib.Path(os.environ.get("WORK") or "/tmp/hybrid_jax_gpu/work")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def stage_flags(about: str, *names: str) -> argparse.Namespace:
    """Reads a stage's flags: `--tiny`, and texts by name."""
    parser = argparse.ArgumentParser(description=about.partition("\n")[0])
    parser.add_argument("--tiny", action="store_true", help="sizes for a CPU, to try the stage itself")
    for name in names:
        parser.add_argument(f"--{name}", default="")
    return parser.parse_args()


def read() -> dict[str, Any]:
    """Returns all stages' results so far; nothing where there are none that can be read."""
    try:
        return json.loads((out_folder() / "results.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def entries(results: dict[str, Any], stage: str) -> dict[str, Entry]:
    """Returns {name: entry} of a stage."""
    return results.get(stage, {}).get("entries", {})


def good(results: dict[str, Any], stage: str) -> dict[str, Entry]:
    """Returns those of a stage's entries that are no errors."""
    return {name: entry for name, entry in entries(results, stage).items() if "failed" not in entry}


class Record:
    """One stage's entries. Stages run one after another, so that one file serves them all."""

    def __init__(self, stage: str, tiny: bool, reads_sources: bool = True):
        """Finds what an earlier call left.

        Args:
          stage: its name.
          tiny: whether sizes are those for a CPU.
          reads_sources: whether the figures depend on `hybrid_jax/` and `configs/`.
        """
        self._stage, results = stage, read()
        card = entries(results, "versions").get("device", {}).get("kind", "")
        self._of = {"card": card, "tiny": tiny, **versions(_PACKAGES)} | (
            {"sources": sources()} if reads_sources else {}
        )
        same = results.get(stage, {}).get("of") == self._of
        self.entries: dict[str, Entry] = entries(results, stage) if same else {}

    def has(self, name: str) -> bool:
        """Returns whether there is such an entry; an error is none."""
        return name in self.entries and "failed" not in self.entries[name]

    def add(self, name: str, measure: Callable[[], Entry]) -> None:
        """Measures what is not there yet; an error is told in its place, so that the next entry still comes."""
        if self.has(name):
            print(f"{self._stage} {name}: kept from an earlier call", flush=True)
            return
        try:
            entry = measure()
        except Exception as error:
            traceback.print_exc()
            entry = {"failed": one_line(error)}
        self.put(name, entry)

    def put(self, name: str, entry: Entry) -> None:
        """Writes an entry down at once."""
        self.entries[name] = entry
        seconds = round(time.perf_counter() - _STARTED, 1)
        write(self._stage, {"of": self._of, "seconds": seconds, "entries": self.entries})
        print(f"[{seconds:6.1f} s] {self._stage} {name}: {short(entry)}"[:_SHOWN], flush=True)


def write(stage: str, found: dict[str, Any]) -> None:
    """Replaces one stage's results in the file, which is whole at every moment."""
    folder = out_folder()
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / ".results.json"
    temporary.write_text(json.dumps(read() | {stage: found}, indent=1, default=float) + "\n", encoding="utf-8")
    temporary.replace(folder / "results.json")


def short(entry: Entry) -> str:
    """Returns an entry in one line, numbers with four digits."""
    return ", ".join(f"{name} {_number(value)}" for name, value in entry.items())


def _number(value: Any) -> str:
    if isinstance(value, dict):
        return f"({short(value)})"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def one_line(error: BaseException) -> str:
    """Returns an error's type and the beginning of its message."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]


def sources() -> str:
    """Returns a digest of all that the steps are made of."""
    digest = hashlib.blake2b(digest_size=8)
    for folder in ("hybrid_jax", "configs"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            digest.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
    return digest.hexdigest()
