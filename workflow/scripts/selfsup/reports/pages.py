"""Pages of the report: plain HTML that shows in any browser without a network. What is not ours is escaped."""

import html

import pandas as pd

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 1.5em; color: #222; }
table { border-collapse: collapse; margin: 0 0 1.5em; }
th, td { padding: .3em .8em; border-bottom: 1px solid #ddd; text-align: left; vertical-align: top; }
td { max-width: 24em; }
th { border-bottom: 2px solid #888; }
pre { background: #f6f6f6; padding: 1em; overflow-x: auto; font-size: 13px; }
h2 { font-size: 1.1em; }
"""


def page(*parts: str) -> str:
    """Return a whole page of HTML parts."""
    head = f'<head><meta charset="utf-8"><style>{STYLE}</style></head>'
    return f"<!DOCTYPE html>\n<html>{head}<body>{''.join(parts)}</body></html>\n"


def table(frame: pd.DataFrame) -> str:
    """Return a frame of text as a table; cells are escaped, and columns' names may be broken between words."""
    frame = frame.rename(columns=lambda name: name.replace("_", " "))
    return frame.to_html(index=False, border=0, escape=True, justify="left")


def preformatted(text: str) -> str:
    return f"<pre>{html.escape(text)}</pre>"


def markdown_page(text: str) -> str:
    """Return a page of the Markdown that `selfsup.tables.layouts` writes: tables, and lists of remarks."""
    return page(*map(_block, text.strip().split("\n\n")))


def _block(block: str) -> str:
    lines = block.splitlines()
    if lines[0].startswith("|"):
        head, _, *rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
        return table(pd.DataFrame(rows, columns=head))
    return "<ul>" + "".join(f"<li>{html.escape(line.removeprefix('- '))}</li>" for line in lines) + "</ul>"
