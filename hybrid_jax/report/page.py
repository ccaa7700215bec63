"""The frame of a report: one self-contained HTML page of sections, tables and figures.

Everything is inline (style, PNG images), and every plain text that a function here takes is escaped.
"""

import html
import re
from collections.abc import Iterable, Sequence

from hybrid_jax.utils.cli import printable

Section = tuple[str, str]  # a plain title and HTML


def page(title: str, head: str, sections: Sequence[Section]) -> str:
    """Returns the whole page.

    Args:
      title: plain text.
      head: HTML below the title.
      sections: in the order of the page.
    """
    links = "".join(f'<a href="#{_anchor(name)}">{html.escape(name)}</a>' for name, _ in sections)
    body = "\n".join(
        f'<section id="{_anchor(name)}"><h2>{html.escape(name)}</h2>{inside}</section>' for name, inside in sections
    )
    whole = _PAGE.format(title=html.escape(title), style=_STYLE, head=head, links=links, body=body)
    return printable(whole, keep="\n")


def _anchor(title: str) -> str:
    return re.sub("[^a-z0-9]+", "-", title.lower()).strip("-")


def paragraph(text: str, kind: str = "") -> str:
    """Returns plain text as a paragraph; `kind` is a class of the style. No text gives nothing."""
    return f'<p class="{kind}">{html.escape(text)}</p>' if text else ""


def figure(uri: str, caption: str, beside: bool = False) -> str:
    """Returns an image, given as a data URI, above its plain caption, or beside it where the page is wide."""
    text = html.escape(caption)
    kind = ' class="beside"' if beside else ""
    return f'<figure{kind}><img src="{uri}" alt="{text}"><figcaption>{text}</figcaption></figure>'


def grid(figures: Iterable[str]) -> str:
    """Returns figures in two columns, or in one where the page is narrow."""
    return f'<div class="grid">{"".join(figures)}</div>'


def strips(uris: Iterable[str], caption: str) -> str:
    """Returns small images in rows that break where the page ends, above their plain caption."""
    images = "".join(f'<img src="{uri}" alt="">' for uri in uris)
    return f'<figure><div class="strips">{images}</div><figcaption>{html.escape(caption)}</figcaption></figure>'


def folded(summary: str, body: str) -> str:
    """Returns HTML that is shown after a click on its plain summary."""
    return f"<details><summary>{html.escape(summary)}</summary>{body}</details>"


def cell(text: str, small: str = "", tone: str = "") -> str:
    """Returns a table's cell as HTML: plain text, and plain small text below; `tone` is a class of the style."""
    shown = f'<span class="{tone}">{html.escape(text)}</span>' if tone else html.escape(text)
    return shown + (f"<small>{html.escape(small)}</small>" if small else "")


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], stacked: bool = True) -> str:
    """Returns a table.

    Args:
      heads: plain titles of the columns.
      rows: of HTML, as `cell` returns it.
      stacked: whether each row becomes a block on a narrow page; otherwise the table scrolls.
    """
    names = [html.escape(text) for text in heads]
    head = "".join(f"<th>{name}</th>" for name in names)
    body = "".join(
        "<tr>" + "".join(f'<td data-head="{name}">{text}</td>' for name, text in zip(names, row, strict=True)) + "</tr>"
        for row in rows
    )
    kind = ' class="stacked"' if stacked else ""
    return f'<div class="wide"><table{kind}><tr>{head}</tr>{body}</table></div>'


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>{style}</style></head>
<body><main>
<h1>{title}</h1>
{head}
<nav>{links}</nav>
{body}
</main></body></html>
"""

_STYLE = """
p, ul, figure { margin: 0; }
body { margin: 0; background: #f6f7f9; color: #1c2530; font: 16px/1.55 system-ui, "Segoe UI", sans-serif; }
main { max-width: 1000px; margin: 0 auto; padding: 32px 20px 64px; }
h1 { font-size: 28px; line-height: 1.25; margin: 0 0 12px; overflow-wrap: anywhere; }
h2 { font-size: 20px; margin: 0; }
h3 { font-size: 16px; margin: 0; }
.pair h3 { margin-bottom: 8px; }
section { background: #fff; border: 1px solid #e1e5ea; border-radius: 8px; margin-top: 20px; padding: 20px 22px; }
section > * + *, details > * + * { margin-top: 18px; }
section > h2 + *, section > h3 + * { margin-top: 12px; }
section > h3 { margin-top: 28px; }
section > * + .caption, section > * + .note { margin-top: 12px; }
nav { display: flex; flex-wrap: wrap; gap: 4px 16px; margin-top: 16px; font-size: 14px; }
a { color: #2a6395; }
.lead { font-size: 18px; margin-bottom: 8px; overflow-wrap: anywhere; }
.facts, .caption, .note, figcaption, small, th { color: #566270; }
.facts, .caption, .note, figcaption { font-size: 14px; line-height: 1.45; }
.caption, .note, figcaption { max-width: 80ch; }
figcaption { margin-top: 10px; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 14px; font-variant-numeric: tabular-nums; }
th { text-align: left; font-weight: 600; border-bottom: 2px solid #e1e5ea; padding: 6px 14px 6px 0; }
td { vertical-align: top; border-bottom: 1px solid #eceff2; padding: 8px 14px 8px 0; }
td small { display: block; font-size: 12.5px; line-height: 1.4; overflow-wrap: anywhere; }
.tight, table:not(.stacked) small { white-space: nowrap; }
.best { font-weight: 700; }
.good { color: #17703d; }
.bad { color: #b3261e; font-weight: 600; }
.grid { display: grid; gap: 24px 28px; grid-template-columns: repeat(auto-fit, minmax(min(400px, 100%), 1fr)); }
.beside { display: grid; gap: 12px 28px; grid-template-columns: 3fr 2fr; align-items: center; }
.pair { display: grid; gap: 28px; grid-template-columns: 1fr 1fr; }
.strips { display: flex; flex-wrap: wrap; gap: 10px 26px; }
.thumbs { display: grid; gap: 12px; grid-template-columns: repeat(auto-fill, minmax(100px, 1fr)); }
img { max-width: 100%; height: auto; display: block; }
.pair img, .thumb img { width: 100%; }
.neighbours { display: grid; gap: 12px; margin-top: 12px; grid-template-columns: 1fr 12px repeat(6, 1fr); }
.neighbours .thumb:nth-child(2) { grid-column: 3; }
.neighbours img { box-sizing: border-box; border: 4px solid #d5dae0; border-radius: 4px; }
.neighbours .same img { border-color: #2e9e5b; }
.neighbours .other img { border-color: #d0483e; }
.thumb figcaption { font-size: 12px; line-height: 1.3; margin-top: 3px; text-align: center; overflow-wrap: anywhere; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 18px; font-size: 14px; }
.legend i { display: inline-block; width: 11px; height: 11px; border-radius: 50%; margin-right: 6px; }
summary { cursor: pointer; font-weight: 600; }
pre { font-size: 13px; line-height: 1.4; overflow-x: auto; }
@media (max-width: 640px) {
  main { padding: 20px 10px 40px; }
  section { padding: 16px 14px; }
  .beside { grid-template-columns: 1fr; }
  .pair { gap: 14px; }
  .neighbours { gap: 5px; grid-template-columns: 1fr 4px repeat(6, 1fr); }
  .neighbours img { border-width: 2px; }
  .neighbours figcaption { font-size: 10px; }
  .stacked, .stacked tbody, .stacked tr, .stacked td { display: block; }
  .stacked tr:first-child { display: none; }
  .stacked tr { border-bottom: 1px solid #d5dae0; padding: 8px 0; }
  .stacked td { border: 0; padding: 1px 0; }
  .stacked td:empty { display: none; }
  .stacked td:first-child { font-weight: 600; }
  .stacked td:first-child small { font-weight: 400; }
  .stacked td:not(:first-child)::before { content: attr(data-head) ": "; color: #566270; }
}
"""
