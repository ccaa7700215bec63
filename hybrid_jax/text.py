"""Text of unknown origin, such as file names, made fit to be printed and written."""

import re

# Control characters (a terminal obeys them), halves of characters (from names that are not UTF-8, which cannot be
# written), line separators, and marks that turn the direction of what follows.
_UNFIT = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str, keep: str = "") -> str:
    """Returns the text with every unfit character, but those of `keep`, as its escape, a newline as \\n."""
    return _UNFIT.sub(lambda found: found[0] if found[0] in keep else ascii(found[0])[1:-1], text)
