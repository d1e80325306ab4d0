"""Edits of a YAML text that leave every other byte as it is: values are spliced in at the parser's offsets."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fa_tuner.documents import Node, one_line
from fa_tuner.domain.errors import DocumentError

Path = tuple[str | int, ...]  # keys and list positions, from the root


@dataclass(frozen=True)
class Put:
    """Give `key` of the mapping at `path` a value, new or in the place of the old one."""

    path: Path
    key: str
    value: Any


@dataclass(frozen=True)
class Append:
    """Add a value at the end of the list at `path`."""

    path: Path
    value: Any


Edit = Put | Append


def apply(data: Any, edits: Sequence[Edit]) -> Any:
    """`data` (parsed YAML; changed in place) after the edits."""
    for edit in edits:
        target = data
        for step in edit.path:
            target = target[step]
        if isinstance(edit, Put):
            target[edit.key] = edit.value
        else:
            target.append(edit.value)
    return data


def splice(text: str, root: Node, edits: Sequence[Edit], source: str) -> str:
    """`text` after the edits; `root` is its tree.

    Raises:
        DocumentError: a place is written in a way that cannot be edited by itself, such as an alias.
    """
    newline = newline_of(text)
    changes = [(*_change(text, root, edit, newline, source), len(edit.path)) for edit in edits]
    pieces, reached = [], 0
    # Where two insertions meet, the one into the deeper collection comes first: its collection ends there.
    for start, end, new, _ in sorted(changes, key=lambda change: (change[0], change[1], -change[3])):
        pieces += [text[reached:start], new]
        reached = end
    return "".join([*pieces, text[reached:]])


def newline_of(text: str) -> str:
    return "\r\n" if "\r\n" in text else "\n"


def _change(text: str, root: Node, edit: Edit, newline: str, source: str) -> tuple[int, int, str]:
    """(start, end, what to put there)."""
    target = _find(root, edit.path, source)
    if isinstance(edit, Put):
        for key, value in target.pairs():
            if key.value == edit.key:
                return _replacement(text, target, key, value, edit.value, newline, source)
        added: Any = {edit.key: edit.value}
    else:
        added = [edit.value]
    if target.flow:
        inner = _flow(added)[1:-1]
        return (target.items[-1].end,) * 2 + (f", {inner}",) if target.items else (target.end - 1,) * 2 + (inner,)
    column = _column(text, target)
    position = _end_of_block(text, target, column)
    return position, position, _as_lines(text, position, _block(added, column), newline)


def _replacement(
    text: str, parent: Node, key: Node, old: Node, new: Any, newline: str, source: str
) -> tuple[int, int, str]:
    empty = old.start >= old.end or (old.plain and not old.value)
    if empty and isinstance(new, dict | list) and not parent.flow:
        position = _next_line(text, key.end)
        return position, position, _as_lines(text, position, _block(new, _column(text, parent) + 2), newline)
    if old.items and not old.flow:
        raise DocumentError(
            f'{source}, line {key.line + 1}: the value of "{one_line(key.value, 60)}" spans several lines; '
            "remove it first"
        )
    if empty:
        return old.start, old.start, (" " if text[old.start - 1] == ":" else "") + _flow(new)
    return old.start, old.end, _flow(new)


def _find(root: Node, path: Path, source: str) -> Node:
    node = root
    for step in path:
        if node.kind == "mapping":
            found = next((value for key, value in node.pairs() if key.value == step), None)
        else:
            found = node.items[step] if isinstance(step, int) and node.items else None
        if found is None or found.kind in ("alias", "scalar"):
            raise DocumentError(
                f'{source}, line {node.line + 1}: "{one_line(str(step), 60)}" comes from an alias or a merge key, '
                "so it cannot be changed for this stage alone; write it out first"
            )
        node = found
    return node


def _column(text: str, node: Node) -> int:
    """Where the keys, or the dashes, of a block collection stand."""
    first = node.items[0].start
    if node.kind == "sequence":
        first = text.rindex("-", 0, first)
    return first - (text.rfind("\n", 0, first) + 1)


def _end_of_block(text: str, node: Node, column: int) -> int:
    """The start of the line after a block collection and the comments that belong to it."""
    last = node
    while last.items and not last.flow:
        last = last.items[-1]
    block_scalar = last.end > last.start and text[last.end - 1] == "\n"
    position = last.end if block_scalar else _next_line(text, last.end)
    comment = re.compile(rf"(?:[ \t]*\r?\n)*[ ]{{{column},}}#[^\n]*(?:\n|\Z)")
    while found := comment.match(text, position):
        position = found.end()
    return position


def _next_line(text: str, position: int) -> int:
    return (text.find("\n", position) + 1) or len(text)


def _as_lines(text: str, position: int, lines: list[str], newline: str) -> str:
    if position and text[position - 1] != "\n":  # the file ends without a newline: ours will, too
        return "".join(newline + line for line in lines)
    return "".join(line + newline for line in lines)


def _block(value: Any, column: int) -> list[str]:
    indent = " " * column
    if isinstance(value, list):
        items = [(_block(item, column + 2)) for item in value]
        return [line for first, *rest in items for line in (f"{indent}- {first.lstrip()}", *rest)]
    lines: list[str] = []
    for key, inner in value.items():
        nested = isinstance(inner, dict | list)
        lines += [f"{indent}{key}:", *_block(inner, column + 2)] if nested else [f"{indent}{key}: {_flow(inner)}"]
    return lines


def _flow(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_flow(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_flow, value)) + "]"
    return json.dumps(value)  # text in double quotes: never a number, whoever reads it
