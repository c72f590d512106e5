"""Small pieces of the HTML report: tables that scroll in their own box, verdict badges, legends."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

MARKS = {"pass": "✓", "fail": "✗"}


def badge(verdict: str) -> str:
    """A verdict in words and with a mark, so that colour is not all there is."""
    style = verdict if verdict in MARKS else "soft"
    return f'<span class="badge {style}">{MARKS.get(verdict, "")} {escape(verdict)}</span>'


def table(
    caption: str, head: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[int] = (), failed: Sequence[int] = ()
) -> str:
    """A table in a box that scrolls sideways by itself.

    Args:
        rows: cells of text, escaped here.
        numbers: columns of figures, set to the right.
        failed: rows to mark.
    """

    def cell(tag: str, column: int, text: str) -> str:
        style = ' class="number"' if column in numbers else ' class="long"' if len(text) > 60 else ""
        scope = ' scope="col"' if tag == "th" else ""
        return f"<{tag}{scope}{style}>{escape(text)}</{tag}>"

    top = "".join(cell("th", column, text) for column, text in enumerate(head))
    body = "".join(
        f"<tr{' class=fail' if index in failed else ''}>"
        + "".join(cell("td", i, text) for i, text in enumerate(row))
        + "</tr>"
        for index, row in enumerate(rows)
    )
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}"><table>'
        f"<caption>{escape(caption)}</caption><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def folded(summary: str, content: str, opened: bool = False, card: bool = False) -> str:
    """Content behind a line that opens it."""
    return (
        f"<details{' class=card' if card else ''}{' open' if opened else ''}><summary>{summary}</summary>{content}</details>"
    )


def figure(title: str, drawing: str, below: str = "") -> str:
    """A plot with its heading, in a card."""
    return f'<figure class="card"><h3>{escape(title)}</h3>{drawing}{below}</figure>'


def legend(entries: Sequence[tuple[str, str]]) -> str:
    """(CSS class, words) pairs."""
    items = "".join(f'<li><i class="{style}" aria-hidden="true"></i>{escape(words)}</li>' for style, words in entries)
    return f'<ul class="legend">{items}</ul>'
