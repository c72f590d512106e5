"""Edits of a module's text: a thing's other name, and imports as ruff wants them."""

from __future__ import annotations

import ast
import io
import re
import tokenize


def renamed(text: str, old: str, name: str) -> str:
    """The text with another name for one thing; prose, where it may be the other family's, is left as it is."""
    lines = text.splitlines(keepends=True)
    tokens = [token for token in tokenize.generate_tokens(io.StringIO(text).readline) if token.type == tokenize.NAME]
    for token in reversed([token for token in tokens if token.string == old]):
        (row, start), (_, end) = token.start, token.end
        lines[row - 1] = lines[row - 1][:start] + name + lines[row - 1][end:]
    return "".join(lines)


def used_imports(text: str) -> str:
    """The text without names that it imports and no longer mentions."""
    tree = ast.parse(text)
    lines = text.splitlines()
    for node in reversed([node for node in tree.body if isinstance(node, ast.ImportFrom) and node.module != "__future__"]):
        rest = "\n".join(lines[: node.lineno - 1] + lines[node.end_lineno or 0 :])
        kept = [name for name in node.names if re.search(rf"\b{name.asname or name.name}\b", rest)]
        if len(kept) < len(node.names):
            named = ", ".join(f"{name.name} as {name.asname}" if name.asname else name.name for name in kept)
            lines[node.lineno - 1 : node.end_lineno] = [f"from {node.module} import {named}"] if kept else []
    return "\n".join(lines) + "\n"


def sorted_imports(text: str) -> str:
    """The text with neighbouring imports in the order of their modules, which a new name changes."""
    lines = text.splitlines()
    block: list[ast.ImportFrom] = []
    for node in [*ast.parse(text).body, None]:
        imported = isinstance(node, ast.ImportFrom) and node.module != "__future__"
        if block and not (imported and node is not None and node.lineno == (block[-1].end_lineno or 0) + 1):
            first, last = block[0].lineno - 1, block[-1].end_lineno or 0
            ordered = sorted(block, key=lambda one: str(one.module))
            texts = ["\n".join(lines[one.lineno - 1 : one.end_lineno]) for one in ordered]
            lines[first:last] = "\n".join(texts).split("\n")
            block = []
        if isinstance(node, ast.ImportFrom) and imported:
            block.append(node)
    return "\n".join(lines) + "\n"
