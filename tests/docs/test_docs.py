"""The documentation: its commands run or say why not, and the flags, files and fields that it names exist.

A block of commands or of Python has a comment on the line before it:

- `<!-- test: run -->`: run here as printed; `<!-- test: run small -->`: with the overrides of `SMALL`;
- `<!-- tested by PATH -->`: run by another test;
- `<!-- not run here: REASON -->`.
"""

import contextlib
import dataclasses
import functools
import importlib.util
import io
import json
import os
import pathlib
import re
import shlex
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest

from hybrid_jax import config as config_lib
from hybrid_jax.inference.model import Model

ROOT = pathlib.Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "launch" / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
MARK = re.compile(r"test: run( small)?|tested by (\S+)|not run here: .+")
# A model of the quickstart's image and patch size that trains in seconds.
SMALL = [
    "--config.model.width=16", "--config.model.num_heads=2", "--config.model.projection_dims=(16,8)",
    "--config.train.total_steps=10", "--config.train.batch_size=16", "--config.log.gradients=False",
    "--config.eval.every_steps=-1", "--config.eval.anomaly.num_images=50", "--config.eval.max_images=300",
    "--config.eval.report_samples=0",
]  # fmt: skip
# Modules whose own parsers judge their flags.
PARSED = {"hybrid_jax.main", "hybrid_jax.convert"}
# How names of files end that look like fields.
FILES = (".json", ".lock", ".png", ".py", ".safetensors")
# What else a command of the documentation may begin with; none of it is run here.
PROGRAMS = {"gcloud", "pip", "export", "source", "sbatch", "python3"}


@dataclasses.dataclass(frozen=True)
class Block:
    """A fenced block: where it stands, its language, what its comment says, its text."""

    place: str
    language: str
    mark: str
    text: str

    @property
    def commands(self) -> list[list[str]]:
        """The words of each command."""
        if self.language != "bash":
            return []
        lines = self.text.replace("\\\n", " ").splitlines()
        split = [shlex.split(part, comments=True) for line in lines for part in line.split(" && ")]
        return [_without_variables(words) for words in split if words]


def _without_variables(words: list[str]) -> list[str]:
    words = [word for word in words if word != "&"]
    while words and re.match(r"[A-Z_]+=", words[0]):
        words = words[1:]
    return words


def _text(page: pathlib.Path) -> str:
    return page.read_text(encoding="utf-8")


@functools.cache
def blocks() -> list[Block]:
    found = []
    for page in PAGES:
        text = _text(page)
        for match in re.finditer(r"^(?:<!-- ([^\n]*) -->\n)?```(\w*)\n(.*?)^```$", text, re.S | re.M):
            place = f"{page.relative_to(ROOT)}:{text.count(chr(10), 0, match.start()) + 1}"
            found.append(Block(place, match[2], match[1] or "", match[3]))
    return found


def inline_commands() -> dict[str, list[str]]:
    """Commands within sentences, and those of the configs' docstrings, by their place."""
    found = {}
    for page in PAGES:
        for text in re.findall(
            r"`(python -m hybrid_jax[^`]*)`", re.sub(r"^```.*?^```", "", _text(page), flags=re.S | re.M)
        ):
            if "..." not in text and "COMMAND" not in text:
                found[f"{page.relative_to(ROOT)}: {text}"] = shlex.split(text.replace("\n", " "))
    for path in sorted((ROOT / "configs").glob("*.py")):
        text = _text(path).split('"""')[1].replace("\\\n", " ")
        found |= {f"{path.name}: {line}": shlex.split(line) for line in re.findall(r"^python -m .*", text, re.M)}
    return found


def commands() -> dict[str, list[str]]:
    """Every command of the documentation, by its place."""
    found = {f"{block.place} {i}": words for block in blocks() for i, words in enumerate(block.commands)}
    return found | inline_commands()


def file_of(words: list[str]) -> pathlib.Path | None:
    """Returns the file of the repository that a command runs; None of a program of the system."""
    if words[:2] == ["python", "-m"]:
        spec = importlib.util.find_spec(words[2])
        return pathlib.Path(spec.origin) if spec else ROOT / words[2]
    if words[0] == "python":
        return ROOT / words[1]
    return ROOT / words[0] if words[0].startswith("launch/") else None


def test_every_block_is_run_or_says_why_not():
    unmarked = [
        block.place for block in blocks() if block.language in ("bash", "python") and not MARK.fullmatch(block.mark)
    ]
    assert not unmarked
    assert not [block.place for block in blocks() if not block.language]
    assert not [block.place for block in blocks() if block.language not in ("bash", "python") and block.mark]
    for block in blocks():
        for path in re.findall(r"tests/\S+\.py|\.ci/run", block.mark):
            assert (ROOT / path).exists(), f"{block.place}: {path}"


def test_every_program_exists():
    for place, words in commands().items():
        path = file_of(words)
        if path is None:
            assert words[0] in PROGRAMS or words[0].startswith(".venv/bin/"), place
        else:
            assert path.exists(), place


def test_scripts_know_what_they_are_asked():
    for place, words in commands().items():
        path = file_of(words)
        if path is None or set(words[2:3]) & PARSED:
            continue
        if path.suffix == ".sh":  # passes flags on
            assert not words[1:] or re.search(rf"\b{words[1]}\b", _text(path)), place
        else:
            for flag in re.findall(r"--(\w+)", " ".join(words)):
                assert re.search(rf"""--{flag}|["']{flag}["']""", _text(path)), f"{place}: --{flag}"


# Each command in a child of its own: a process's flags are read once.
PARSE = """
import json, os, sys
from hybrid_jax import config, main
from hybrid_jax.convert import __main__ as convert
from hybrid_jax.utils import cli

def read(module, argv):
    if module == "hybrid_jax.convert":
        return convert._parse(argv)
    sys.argv = ["hybrid-jax", *argv]  # where ml_collections looks for the config's fields
    cli.parse(sys.argv, "")
    assert main.given.MODE.value in main.given.MODES, main.given.MODE.value
    if main.given.CONFIG.value is not None:
        config.validate(main.given.CONFIG.value)

for place, module, argv in json.load(sys.stdin):
    child = os.fork()
    if not child:
        os._exit(cli.exit_code(lambda: read(module, argv)))
    if os.waitpid(child, 0)[1]:
        sys.exit(place)
"""


def test_every_flag_and_field_of_a_command_exists():
    asked = [(place, words[2], words[3:]) for place, words in commands().items() if set(words[2:3]) & PARSED]
    assert len(asked) > 30
    told = subprocess.run(
        [sys.executable, "-c", PARSE], input=json.dumps(asked), cwd=ROOT, capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert told.returncode == 0, told.stderr


def test_every_field_that_is_named_exists():
    sections = "|".join({name.partition(".")[0] for name in config_lib.FIELDS if "." in name})
    for page in PAGES:
        for name in re.findall(rf"`((?:{sections})\.[a-z0-9_.]+)(?:=[^`]*)?`", _text(page)):
            section, _, rest = name.partition(".")
            known = name in config_lib.FIELDS or any(field.startswith(f"{name}.") for field in config_lib.FIELDS)
            known |= (section == "model" and hasattr(Model, rest)) or name.endswith(FILES)
            assert known, f"{page.relative_to(ROOT)}: {name}"


def test_every_link_within_the_repository_leads_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)\s]*)?\)", _text(page)):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.relative_to(ROOT)}: {target}"


def test_the_readme_is_short_and_begins_with_its_two_commands():
    readme = ROOT / "README.md"
    assert len(_text(readme).splitlines()) <= 200
    first, second = [
        block.text for block in blocks() if block.place.startswith("README.md") and block.language == "bash"
    ][:2]
    assert "configs/quickstart.py" in first and second.endswith("-m pytest\n")


@pytest.fixture
def hooks():
    """The site's own code."""
    spec = importlib.util.spec_from_file_location("hooks", ROOT / "docs" / "hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_configuration_page_lists_every_field(hooks):
    listed = re.findall(r"^\| `([a-z0-9_.]+)` \|", hooks.configuration_tables(), re.M)
    assert listed == list(config_lib.FIELDS)
    assert hooks._TABLES in _text(ROOT / "docs" / "configuration.md")


def test_links_of_the_repository_become_links_of_the_site(hooks):
    text = (
        "[a](../launch/README.md#slurm) ![b](../benchmarks/growth.png) [c](../Dockerfile) [d](https://x.org/README.md)"
    )
    assert hooks.site_links(text, "docs/operations.md", "operations.md") == (
        "[a](launch.md#slurm) ![b](benchmarks/growth.png) c [d](https://x.org/README.md)"
    )
    assert hooks.site_links("[a](docs/howto/weights.md)", "README.md", "index.md") == "[a](howto/weights.md)"


def test_a_notebook_becomes_a_page_with_what_is_stored_in_it(hooks, tmp_path):
    output = [{"text": ["1\n"]}, {"data": {"image/png": "AAAA\n", "text/plain": "<Figure>"}}]
    cells = [
        {"cell_type": "markdown", "source": ["# Look"]},
        {"cell_type": "code", "source": ["print(1)"], "outputs": output},
    ]
    (tmp_path / "look.ipynb").write_text(json.dumps({"cells": cells}))
    assert hooks.notebook_page(tmp_path / "look.ipynb") == (
        '# Look\n\n```python\nprint(1)\n```\n\n```text\n1\n```\n\n<img alt="output" src="data:image/png;base64,AAAA">\n'
    )


def test_what_may_change_in_a_started_run_is_told():
    page = _text(ROOT / "docs" / "howto" / "resume_and_forks.md")
    allowed, _, refused = page[page.index("## What may change") :].partition("may change: ")
    assert {f"`{name.removesuffix('.')}`" for name in config_lib.MAY_CHANGE} == set(re.findall(r"`[a-z_.]+`", allowed))
    for section in ("seed", "model", "objective", "augment", "optimizer", "train", "data"):
        assert f"`{section}`" in refused


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A folder with `configs/` and `photos/`, in which commands run as they are printed."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "photos").mkdir()
    rng = np.random.default_rng(0)
    for i in range(60):
        blocks_of_8 = rng.integers(0, 256, (4, 4, 3), np.uint8).repeat(8, 0).repeat(8, 1)
        PIL.Image.fromarray(blocks_of_8).save(tmp_path / "photos" / f"{i:02}.png")
    (tmp_path / "runs" / "quickstart").mkdir(parents=True)
    # The pages on a folder's own model do not ask for more of it.
    (tmp_path / "runs" / "mine").symlink_to(tmp_path / "runs" / "quickstart")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(block: Block) -> None:
    """Runs a block in the current folder."""
    if block.language == "python":
        with contextlib.redirect_stdout(io.StringIO()):
            exec(compile(block.text, block.place, "exec"), {})
        return
    for words in block.commands:
        command = [sys.executable, *words[1:]]
        if block.mark.endswith("small"):  # before the fields that the command itself sets, of which the last counts
            at = 1 + next(i for i, word in enumerate(command) if word.startswith("--config="))
            command[at:at] = SMALL
        environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_NUM_CPU_DEVICES": "1"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
        assert done.returncode == 0, f"{block.place}: {done.stderr}"


def test_what_is_marked_runs_as_printed(home):
    marked = [block for block in blocks() if block.mark.startswith("test: run")]
    # First what trains the model that all others use, then what fits its anomaly score.
    marked.sort(key=lambda block: ("getting_started" not in block.place, "--mode=eval" not in block.text))
    for block in marked:
        run(block)
    assert (home / "features.npz").exists() and (home / "completed.png").exists()
    assert json.loads((home / "runs" / "contrastive" / "fork.json").read_text())["taken"]
