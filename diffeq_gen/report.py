"""The demo's report: one HTML page that needs nothing beside it."""

import base64
import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

__all__ = ["page", "picture", "table", "write"]

CSS = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 1080px; margin: 2rem auto; padding: 0 1rem }
h1, h2 { font-weight: 600; line-height: 1.2 }  h2 { margin-top: 2.2rem; border-bottom: 1px solid #ddd }
table { border-collapse: collapse; width: 100%; font-size: 13px }
th, td { text-align: left; padding: 3px 8px; border-bottom: 1px solid #eee; vertical-align: top }
td.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
td.name { font-family: ui-monospace, monospace; white-space: nowrap }
.holds { color: #17742c } .refuted { color: #b00020; font-weight: 600 }
img { max-width: 100% }  figcaption { color: #555 }  figure { margin: 1rem 0 }
"""


def picture(figure: Figure, caption: str) -> str:
    """A figure as an inline PNG with a caption."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    data = base64.b64encode(buffer.getvalue()).decode()
    caption = html.escape(caption)
    return (
        f'<figure><img alt="{caption}" src="data:image/png;base64,{data}"><figcaption>{caption}</figcaption></figure>'
    )


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table: numbers to the right, verdicts in colour, the first column in the face of code."""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in header)
    body = "".join(f"<tr>{''.join(_cell(i, value) for i, value in enumerate(row))}</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _cell(column: int, value: Any) -> str:
    if isinstance(value, float | int):
        text = f"{value:.3g}" if isinstance(value, float) else str(value)
        return f'<td class="number">{text}</td>'
    kind = "name" if column == 0 else str(value) if value in ("holds", "refuted") else ""
    return f'<td class="{kind}">{html.escape(str(value))}</td>'


def page(title: str, sections: Mapping[str, str]) -> str:
    """The whole page: a heading and body for each section."""
    parts = "".join(f"<h2>{html.escape(name)}</h2>\n{body}\n" for name, body in sections.items())
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"<style>{CSS}</style></head>\n<body><h1>{html.escape(title)}</h1>\n{parts}</body></html>\n"
    )


def write(path: Path, content: str) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(path.name + ".part")
    draft.write_text(content, encoding="utf-8")
    draft.replace(path)
