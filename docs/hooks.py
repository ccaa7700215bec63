"""What the documentation site makes of files outside `docs/`: the pages, the configuration tables, the notebooks.

mkdocs calls the `on_...` functions; mkdocs.yml names this file.
"""

import base64
import json
import os
import pathlib
import re
from collections.abc import Iterator

from hybrid_jax import config as config_lib

ROOT = pathlib.Path(__file__).parent.parent
# Pages that lie elsewhere in the repository, by their place in the site.
OUTSIDE = {
    "index.md": "README.md",
    "launch.md": "launch/README.md",
    "measurements.md": "benchmarks/README.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
}
_PLACES = {source: place for place, source in OUTSIDE.items()}
_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)#\s]+)(#[^)\s]*)?\)")
_TABLES = "<!-- configuration tables -->"
_SECTIONS = {
    "": "General",
    "data": "Data",
    "model": "Model",
    "objective": "Objective",
    "augment": "Augmentation",
    "train": "Training",
    "optimizer": "Optimizer",
    "mesh": "Devices",
    "checkpoint": "Checkpoints",
    "log": "Logging",
    "eval": "Evaluation",
    "compare": "Comparison",
}


def on_config(config):
    """Puts the notebooks that exist in the place that `nav` keeps for them."""
    pages = [str(path.relative_to(ROOT / "docs").with_suffix(".md")) for path in _notebooks()]
    for section in config.nav:
        for name, entries in section.items() if isinstance(section, dict) else ():
            if isinstance(entries, list) and "notebooks" in entries:
                at = entries.index("notebooks")
                section[name] = entries[:at] + pages + entries[at + 1 :]
    return config


def on_files(files, config):
    """Adds the pages from outside, the images that they show, and a page for each notebook."""
    from mkdocs.structure.files import File

    for place, source in OUTSIDE.items():
        files.append(File.generated(config, place, abs_src_path=str(ROOT / source)))
        for image in _images(ROOT / source):
            if not image.startswith("docs/"):
                files.append(File.generated(config, image, abs_src_path=str(ROOT / image)))
    for path in _notebooks():
        files.remove(files.get_file_from_path(str(path.relative_to(ROOT / "docs"))))
        place = str(path.relative_to(ROOT / "docs").with_suffix(".md"))
        files.append(File.generated(config, place, content=notebook_page(path)))
    return files


def on_page_markdown(markdown, page, config, files):
    """Fills in the configuration tables, and makes links between files of the repository links of the site."""
    place = page.file.src_uri
    source = OUTSIDE.get(place, f"docs/{place}")
    # A value and its error stay on one line.
    return site_links(markdown.replace(_TABLES, configuration_tables()).replace(" ± ", "\u00a0±\u00a0"), source, place)


def configuration_tables() -> str:
    """Returns every field of the schema in Markdown, a table a section."""
    lines = ['<div class="configuration" markdown>']
    for section, fields in sections().items():
        head, _, rest = section.partition(".")
        title = f"`{section}`" if rest else f"{_SECTIONS[head]}{': ' if head else ''}{f'`{head}`' if head else ''}"
        lines += ["", f"{'###' if rest else '##'} {title}", ""]
        lines += ["| field | default | unit | meaning | allowed |", "|---|---|---|---|---|"]
        for name in fields:
            field = config_lib.FIELDS[name]
            cells = (f"`{name}`", _default(field.default), field.unit, field.meaning, _allowed(field))
            lines.append("| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |")
    return "\n".join([*lines, "", "</div>"])


def sections() -> dict[str, list[str]]:
    """Returns {section: its fields' full names}, in the order of the schema."""
    found: dict[str, list[str]] = {}
    for name in config_lib.FIELDS:
        found.setdefault(name.rpartition(".")[0], []).append(name)
    return found


def _default(value) -> str:
    if isinstance(value, tuple) and len(value) > 3:
        return ", ".join(f"`{one!r}`" for one in value)
    return "" if value in (None, "") else f"`{value!r}`"


def _allowed(field) -> str:
    return "" if field.allowed.startswith("any value") else re.sub("^must (be |lie )?", "", field.allowed)


def site_links(markdown: str, source: str, place: str) -> str:
    """Returns a page whose relative links point to pages of the site; what the site does not hold is no link.

    Args:
      markdown: the text.
      source: its file, relative to the repository.
      place: the page's file, relative to the site's sources.
    """

    def one(found: re.Match) -> str:
        image, text, target, anchor = found.groups()
        if "://" in target or target.startswith("mailto:"):
            return found[0]
        path = os.path.normpath(os.path.join(os.path.dirname(source), target))
        if path in _PLACES:
            there = _PLACES[path]
        elif path.startswith("docs/"):
            there = re.sub(r"\.ipynb$", ".md", path.removeprefix("docs/"))
        elif image:
            there = path
        else:
            return text
        return f"{image}[{text}]({os.path.relpath(there, os.path.dirname(place) or '.')}{anchor or ''})"

    return _LINK.sub(one, markdown)


def _images(page: pathlib.Path) -> Iterator[str]:
    for image, _, target, _ in _LINK.findall(page.read_text(encoding="utf-8")):
        if image and "://" not in target:
            yield os.path.relpath(page.parent / target, ROOT)


def _notebooks() -> list[pathlib.Path]:
    return sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))


def notebook_page(path: pathlib.Path) -> str:
    """Returns a notebook as Markdown: its text, its code, and the texts and pictures that are stored with it."""
    parts = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        text = "".join(cell["source"])
        parts.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
        parts += [shown for output in cell.get("outputs", []) if (shown := _shown(output))]
    return "\n\n".join(parts) + "\n"


def _shown(output: dict) -> str:
    data = output.get("data", {})
    if "image/png" in data:
        png = base64.b64encode(base64.b64decode("".join(data["image/png"]))).decode()
        return f'<img alt="output" src="data:image/png;base64,{png}">'
    text = "".join(output.get("text", data.get("text/plain", "")))
    return f"```text\n{text.rstrip()}\n```" if text else ""
