"""Pages of the report: plain HTML that shows in any browser without a network. What is not ours is escaped."""

import base64
import html
import re
from pathlib import Path

import pandas as pd

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 1.2em auto; padding: 0 1.2em; max-width: 1240px; color: #222; }
.wide { overflow-x: auto; margin: 0 0 1.2em; }
table { border-collapse: collapse; }
th, td { padding: .3em .7em; border-bottom: 1px solid #ddd; text-align: left; vertical-align: top; }
td { max-width: 22em; overflow-wrap: break-word; }
th { border-bottom: 2px solid #888; vertical-align: bottom; }
.number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
pre { background: #f6f6f6; padding: 1em; overflow-x: auto; font-size: 13px; }
h1 { font-size: 1.4em; margin: 0 0 .3em; } h2 { font-size: 1.15em; margin: 1.2em 0 .4em; }
figure { margin: 0 0 1.2em; } img { max-width: 100%; height: auto; } figcaption { color: #444; }
details { margin: 0 0 .8em; } summary { cursor: pointer; color: #1a5a9a; }
@media (max-width: 700px) { figure { overflow-x: auto; } .curves { max-width: none; width: 1000px; } }
.small { font-size: 13px; color: #444; } .small li { overflow-wrap: anywhere; }
"""
NUMBER = re.compile(r"[-+]?[\d.,]+( ± [\d.]+)?( / [\d.]+( ± [\d.]+)?)?( \[[a-z]+\])?")
KINDS = {".svg": "image/svg+xml", ".png": "image/png"}


def page(*parts: str, title: str = "") -> str:
    """Return a whole page of HTML parts."""
    titled = f"<title>{html.escape(title)}</title>" if title else ""
    width = '<meta name="viewport" content="width=device-width, initial-scale=1">'  # a phone's own
    head = f'<head><meta charset="utf-8">{width}{titled}<style>{STYLE}</style></head>'
    return f'<!DOCTYPE html>\n<html lang="en">{head}<body>{"".join(parts)}</body></html>\n'


def table(frame: pd.DataFrame) -> str:
    """Return a frame of text as a table: cells are escaped, numbers stand on the right, columns' names may be broken.

    A column of which no cell says anything is left out.
    """
    frame = frame[[name for name in frame if frame[name].str.strip().any()]]
    numbers = [all(NUMBER.fullmatch(cell) for cell in frame[name] if cell.strip()) for name in frame]
    heads = [_cell("th", name.replace("_", " "), number) for name, number in zip(frame, numbers, strict=True)]
    rows = ("".join(map(_cell, ["td"] * len(row), row, numbers)) for row in frame.itertuples(index=False))
    body = "\n".join(f"<tr>{row}</tr>" for row in ["".join(heads), *rows])
    return f'<div class="wide"><table>\n{body}\n</table></div>'


def _cell(kind: str, text: str, number: bool) -> str:
    on_the_right = ' class="number"' if number else ""
    return f"<{kind}{on_the_right}>{html.escape(text)}</{kind}>"


def preformatted(text: str) -> str:
    return f"<pre>{html.escape(text)}</pre>"


def figure(path: Path, says: str, caption: str) -> str:
    """Return a picture, SVG or PNG, as a part of the page itself. says: for who does not see it."""
    content = base64.b64encode(path.read_bytes()).decode()
    kind = ' class="curves"' if path.suffix == ".svg" else ""  # on a phone they keep their size, and are moved
    image = f'<img{kind} src="data:{KINDS[path.suffix]};base64,{content}" alt="{html.escape(says)}">'
    return f"<figure>{image}<figcaption>{html.escape(caption)}</figcaption></figure>"


def folded(summary: str, *parts: str) -> str:
    """Return parts that show when their summary is clicked."""
    return f"<details><summary>{html.escape(summary)}</summary>{''.join(parts)}</details>"


def markdown_page(text: str) -> str:
    """Return a page of the Markdown that `selfsup.tables.layouts` writes: tables, and lists of remarks."""
    return page(*markdown_blocks(text))


def markdown_blocks(text: str) -> list[str]:
    """Return its blocks as parts of a page."""
    return [_block(block) for block in text.strip().split("\n\n")]


def _block(block: str) -> str:
    lines = block.splitlines()
    if lines[0].startswith("|"):
        head, _, *rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
        return table(pd.DataFrame(rows, columns=head))
    items = "".join(f"<li>{html.escape(line.removeprefix('- '))}</li>" for line in lines)
    return f'<ul class="small">{items}</ul>'
