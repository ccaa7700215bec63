"""The rooms of the package and the direction of imports between them (docs/architecture.md)."""

import ast
import pathlib

import pytest

import hybrid_jax

PACKAGE = pathlib.Path(hybrid_jax.__file__).parent
# From the bottom up; modules of one line may import each other, but never in a circle.
LAYERS = [
    ["errors", "utils.runtime", "utils.image_grid", "corruptions"],
    ["jax_internals", "config", "utils.cli"],
    ["multihost.coordination", "sharding", "metrics"],
    ["multihost", "storage"],
    ["models", "losses", "data", "anomaly"],
    ["optim", "train_state", "train_step"],
    ["inference"],
    ["evaluators"],
    ["report"],
    ["evaluate", "metric_writers"],
    ["initialize"],
    ["train", "aot", "convert"],
    ["comparison"],
    ["flags", "main", "__main__", "__init__"],
]
ROOMS = {
    "models": {"tokens", "transformer", "attention", "heads", "hybrid", "sampler", "flops"},
    "data": {
        "sources", "dataset", "folder", "decode", "store", "inputs", "pipeline", "feed", "augment", "prepare",
        "tfds.reader", "tfds.records", "tfds.downloads", "embedded.builder",
    },
    "inference": {"model", "load", "generation", "embed", "sample"},
    "evaluators": {
        "features", "anomaly", "linear_probe", "knn", "few_label", "finetune", "transfer", "likelihood", "corruptions",
        "calibration", "adversarial", "ood", "ood_pairs", "ood_scores", "sample_quality", "sample_metrics",
        "frozen_encoder", "logistic", "logistic_device", "ahead",
    },
    "anomaly": {"joint_score", "fit", "detection"},
    "corruptions": {"ops", "weather"},
    "report": {
        "run_report", "page", "plots", "curves", "images", "views", "samples", "ood", "robustness", "results",
        "verdicts", "reference", "dataset", "dataset_stats", "dataset_sheet",
    },
    "comparison": {"run", "arms", "measures", "statistics", "claims", "table", "figures", "report"},
    "storage": {"checkpoint", "best", "integrity", "files", "lock"},
    "multihost": {"coordination", "processes", "preemption"},
    "aot": {"compile", "worker", "hardware", "hlo", "kernels"},
    "convert": {"image_gpt", "safetensors", "export", "__main__"},
    "utils": {"cli", "runtime", "image_grid"},
}  # fmt: skip


def modules() -> dict[str, pathlib.Path]:
    """Returns the package's modules by name without `hybrid_jax.`; a room's own code has the room's name."""
    paths = {p.relative_to(PACKAGE).with_suffix(""): p for p in PACKAGE.rglob("*.py")}
    return {".".join(n.parts).removesuffix(".__init__") or "__init__": p for n, p in paths.items()}


MODULES = modules()


def imports(path: pathlib.Path) -> set[str]:
    """Returns the modules of the package that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        assert not (isinstance(node, ast.Import) and any(a.name.startswith("hybrid_jax.") for a in node.names)), path
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "hybrid_jax":
            base = node.module.removeprefix("hybrid_jax").removeprefix(".")
            for alias in node.names:
                full = f"{base}.{alias.name}".removeprefix(".")
                found.add(full if full in MODULES else base)
    return found


IMPORTS = {name: imports(path) for name, path in MODULES.items()}


def layer(name: str) -> int:
    """Returns where a module stands: its own line, else that of its room."""
    lines = {entry: number for number, line in enumerate(LAYERS) for entry in line}
    return lines[name] if name in lines else lines[name.split(".")[0]]


def test_every_module_is_in_its_room():
    here = {room: set() for room in ROOMS}
    for name in MODULES:
        room, dot, rest = name.partition(".")
        if dot and rest not in ("tfds", "embedded"):
            here[room].add(rest)
    assert here == ROOMS


@pytest.mark.parametrize("name", sorted(set(MODULES) - {"__init__"}))
def test_imports_point_down(name):
    upward = {other for other in IMPORTS[name] if layer(other) > layer(name)}
    assert not upward, f"{name} imports {upward}, which stand above it"


def test_no_module_imports_itself_by_way_of_others():
    done, path = set(), []

    def visit(name):
        assert name not in path, " -> ".join([*path[path.index(name) :], name])
        if name in done:
            return
        path.append(name)
        for other in sorted(IMPORTS[name]):
            visit(other)
        done.add(path.pop())

    for name in sorted(MODULES):
        visit(name)


def test_imports_inside_functions_serve_the_start_of_a_command():
    late = set()
    for name, path in MODULES.items():
        for function in ast.walk(ast.parse(path.read_text())):
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                inside = [n for n in ast.walk(function) if isinstance(n, ast.ImportFrom)]
                late |= {name for n in inside if (n.module or "").startswith("hybrid_jax")}
    assert late <= {"main", "convert", "convert.__main__", "data.sources"}, late
