"""Code as the README and the documentation print it."""

import pathlib
import re

ROOT = pathlib.Path(__file__).parent.parent


def pages() -> list[pathlib.Path]:
    """The README and every page of the documentation."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def python_block(word: str) -> str:
    """Returns the one block of Python in which a word occurs, however often it is printed."""
    blocks = {b for page in pages() for b in re.findall(r"```python\n(.*?)```", page.read_text(), re.S) if word in b}
    (block,) = blocks
    return block
