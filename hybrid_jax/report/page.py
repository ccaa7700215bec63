"""The frame of a report: one self-contained HTML page of sections and figures."""

import html

from hybrid_jax.utils.cli import printable


def page(title: str, body: list[str]) -> str:
    """Returns the whole page.

    Args:
      title: plain text.
      body: HTML, whose texts of unknown origin are escaped already.
    """
    whole = _PAGE.format(title=html.escape(title), style=_STYLE, body="\n".join(body))
    return printable(whole, keep="\n")


def section(title: str, body: str) -> str:
    """Returns a section: a plain title above HTML."""
    return f"<section><h2>{html.escape(title)}</h2>{body}</section>"


def captioned(uri: str, caption: str) -> str:
    """Returns an image, given as a data URI, above its plain caption."""
    text = html.escape(caption)
    return f'<figure><img src="{uri}" alt="{text}"><figcaption>{text}</figcaption></figure>'


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>{style}</style></head>
<body><main>
{body}
</main></body></html>
"""

_STYLE = """
body { margin: 0; background: #f6f7f9; color: #1c2530; font: 16px/1.55 system-ui, "Segoe UI", sans-serif; }
main { max-width: 1000px; margin: 0 auto; padding: 32px 20px 64px; }
h1 { font-size: 28px; line-height: 1.25; margin: 0 0 12px; overflow-wrap: anywhere; }
h2 { font-size: 20px; margin: 0 0 14px; }
section, details { background: #fff; border: 1px solid #e1e5ea; border-radius: 8px; }
section, details { margin-top: 20px; padding: 20px 22px; }
.lead { font-size: 18px; margin: 0 0 8px; overflow-wrap: anywhere; }
.facts, .caption, figcaption, small, th { color: #566270; }
.facts { margin: 0; font-size: 14px; }
.caption, figcaption { font-size: 14px; line-height: 1.45; margin: 10px 0 0; max-width: 80ch; }
.note { margin: 0 0 18px; }
section > p { margin: 0 0 12px; }
.wide + figure { margin-top: 18px; }
section > figure + figure { margin-top: 28px; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 14px; font-variant-numeric: tabular-nums; }
th { text-align: left; font-weight: 600; border-bottom: 2px solid #e1e5ea; padding: 6px 14px 6px 0; }
td { vertical-align: top; border-bottom: 1px solid #eceff2; padding: 8px 14px 8px 0; }
td small { display: block; font-size: 12.5px; line-height: 1.4; overflow-wrap: anywhere; }
.tight { white-space: nowrap; }
.good { color: #17703d; }
.bad { color: #b3261e; font-weight: 600; }
.grid { display: grid; gap: 24px 28px; }
.grid { grid-template-columns: repeat(auto-fit, minmax(min(400px, 100%), 1fr)); }
figure { margin: 0; }
img { max-width: 100%; height: auto; display: block; }
.neighbours { display: grid; gap: 12px; margin-bottom: 12px; min-width: 520px; }
.neighbours { grid-template-columns: 1fr 12px repeat(6, 1fr); }
.thumb:first-child { grid-column: 1 / span 1; margin-right: 0; }
.thumb:nth-child(2) { grid-column: 3; }
.thumb img { box-sizing: border-box; width: 100%; border: 4px solid #d5dae0; border-radius: 4px; }
.thumb.same img { border-color: #2e9e5b; }
.thumb.other img { border-color: #d0483e; }
.thumb figcaption { font-size: 12px; margin: 3px 0 0; text-align: center; overflow-wrap: anywhere; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 18px; font-size: 14px; margin-bottom: 10px; }
.legend i { display: inline-block; width: 11px; height: 11px; border-radius: 50%; margin-right: 6px; }
summary { cursor: pointer; font-weight: 600; }
pre { font-size: 13px; line-height: 1.4; overflow-x: auto; }
"""
