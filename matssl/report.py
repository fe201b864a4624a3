"""One self-contained HTML file that one would send to a colleague."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from matssl.core.run_folder import atomic_write_text
from matssl.core.tables import Row

_STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, "Segoe UI", Helvetica, Arial, sans-serif; color: #1f2933;
  max-width: 1080px; margin: 2.5em auto; padding: 0 1.5em; background: #fff; }
h1 { font-size: 1.7em; margin: 0 0 .1em; } .subtitle { color: #616e7c; margin: 0 0 1.5em; }
h2 { font-size: 1.15em; margin: 2.2em 0 .6em; padding-bottom: .25em;
  border-bottom: 1px solid #e4e7eb; }
table { border-collapse: collapse; margin: .4em 0 1em; font-variant-numeric: tabular-nums; }
th, td { padding: .3em .9em .3em 0; text-align: right; border-bottom: 1px solid #eef0f2; }
th { font-weight: 600; color: #52606d; border-bottom: 1.5px solid #cbd2d9; vertical-align: bottom; }
td { white-space: nowrap; } td.words { white-space: normal; min-width: 6em; }
th:first-child, td:first-child, th.words, td.words { text-align: left; }
tr.strong td { font-weight: 600; }
figure { margin: .6em 0 1.4em; } img { max-width: 100%; height: auto; }
figcaption { color: #616e7c; font-size: .9em; }
pre { background: #f5f7fa; padding: .9em 1.1em; font-size: .85em; line-height: 1.4;
  border-radius: 4px; white-space: pre-wrap; overflow-wrap: anywhere; }
.beside { display: flex; gap: 2.5em; flex-wrap: wrap; align-items: flex-start; }
.beside > div { flex: 0 1 auto; max-width: 40em; } .beside figure { margin: 0; }
.big { display: flex; gap: 2.6em; flex-wrap: wrap; margin: 1em 0; }
.big div { min-width: 7em; } .big b { display: block; font-size: 1.9em; line-height: 1.2; }
.big span { color: #616e7c; font-size: .9em; }
.note { color: #616e7c; font-size: .92em; max-width: 48em; }
.swatch { display: inline-block; width: .85em; height: .85em; border-radius: 2px;
  margin-right: .5em; vertical-align: -0.08em; }
.first { white-space: nowrap; }
@media print { body { margin: 0; max-width: none; } figure { break-inside: avoid; } }
"""

# Absolute paths: quoted, the rest of a line that holds nothing else or of a setting, and words.
_PLACES = (
    re.compile(r"(?<=')/(?:[^'\n/]*/)+(?=[^'\n/]+')"),
    re.compile(r"(?:^|(?<=: ))/(?:[^\n/]*/)+(?=[^\n/]+$)", re.MULTILINE),
    re.compile(r"(?<![\w.~/…<-])/(?:[^\s/'\",;()<>]+/)+(?=[^\s/'\",;()<>])"),
)


def placeless(content: str) -> str:
    """Return text whose absolute paths keep their last part alone.

    A page is for others: where its files lie here tells them nothing and is nobody's business.
    The run folder keeps the whole command.
    """
    for place in _PLACES:
        content = place.sub("…/", content)
    return content


def write(path: Path, title: str, subtitle: str, sections: Sequence[tuple[str, str]]) -> None:
    """Write a report.

    Args:
        path: HTML file.
        title: headline, plain text.
        subtitle: one line below it, plain text.
        sections: (heading, HTML) pairs; an empty heading adds no line.
    """
    parts = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>",
        "<meta name='viewport' content='width=device-width, initial-scale=1'>",
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head><body>",
        f"<h1>{html.escape(title)}</h1><p class='subtitle'>{html.escape(placeless(subtitle))}</p>",
    ]
    for heading, body in sections:
        parts.append((f"<h2>{html.escape(heading)}</h2>" if heading else "") + body)
    parts.append("</body></html>")
    atomic_write_text(path, "\n".join(parts))


def table(
    rows: Sequence[Row],
    strong: Sequence[int] = (),
    swatches: Mapping[str, str] | None = None,
) -> str:
    """Return an HTML table; words stand left, numbers right, floats get three decimals.

    Args:
        rows: equal keys, which head the columns.
        strong: numbers of the rows to set off.
        swatches: colour ("#rrggbb") shown before labels that are class names.
    """
    if not rows:
        return ""
    words = {name for name in rows[0] if any(_is_word(row[name]) for row in rows)}
    kinds = {name: " class='words'" if name in words else "" for name in rows[0]}
    head = "".join(f"<th{kinds[name]}>{html.escape(str(name))}</th>" for name in rows[0])
    body = []
    for number, row in enumerate(rows):
        cells = []
        for place, (name, value) in enumerate(row.items()):
            mark = ""
            if place == 0 and swatches and str(value) in swatches:
                mark = f"<span class='swatch' style='background:{swatches[str(value)]}'></span>"
            text = html.escape(shown(value))
            if mark:
                # The colour stays beside the first word.
                first, blank, rest = text.partition(" ")
                text = f"<span class='first'>{mark}{first}</span>{blank}{rest}"
            cells.append(f"<td{kinds[name]}>{text}</td>")
        kind = " class='strong'" if number in strong else ""
        body.append(f"<tr{kind}>{''.join(cells)}</tr>")
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"


def beside(*parts: str) -> str:
    """Return parts of a page side by side, one below the other where the page is narrow."""
    return f"<div class='beside'>{''.join(f'<div>{part}</div>' for part in parts)}</div>"


def headline(figures: Sequence[tuple[str, str]]) -> str:
    """Return large figures, each (value, what it is)."""
    parts = [
        f"<div><b>{html.escape(value)}</b><span>{html.escape(label)}</span></div>"
        for value, label in figures
    ]
    return f"<div class='big'>{''.join(parts)}</div>"


def picture(path: Path, caption: str = "", width: int | None = None) -> str:
    """Return a picture as part of the page itself; nothing where the file is absent.

    Args:
        path: PNG file.
        caption: below it.
        width: in CSS pixels; as wide as the page when None.
    """
    if not path.is_file():
        return ""
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    label = html.escape(caption, quote=True)
    text = f"<figcaption>{html.escape(caption)}</figcaption>" if caption else ""
    size = f" width='{width}'" if width else ""
    return f"<figure><img{size} alt='{label}' src='data:image/png;base64,{data}'>{text}</figure>"


def text(content: str) -> str:
    """Return text as it is, but for local paths, in a fixed-width block."""
    return f"<pre>{html.escape(placeless(content))}</pre>"


def note(content: str) -> str:
    """Return a remark in small print, without local paths."""
    return f"<p class='note'>{html.escape(placeless(content))}</p>"


def shown(value: object) -> str:
    """Return a cell: floats with three decimals, NaN and None as a dash."""
    if value is None or (isinstance(value, float) and value != value):
        return "–"
    if isinstance(value, float):
        return f"{value:.3f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _is_word(value: object) -> bool:
    return isinstance(value, str) and any(character.isalpha() for character in value)
