"""Documents that people give us or keep: strict YAML in, whole files out.

YAML is read from the parser's event stream, one event at a time: every limit is checked before anything is
built, and only text, numbers, truth values, null, lists and mappings can be built at all.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import secrets
import stat
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NoReturn

from fa_tuner.domain.errors import DocumentError, NotFoundError

MAX_BYTES = 1 << 20
MAX_DEPTH = 32
TOO_DEEP = f"nested more than {MAX_DEPTH} levels deep; flatten it"
MAX_EXPANDED_NODES = 100_000  # of a document whose aliases are written out

_INT = re.compile(r"[-+]?(?:0|[1-9][0-9]*)", re.ASCII)
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?", re.ASCII)
_NOT_FINITE = re.compile(r"[-+]?\.inf|\.nan", re.ASCII | re.IGNORECASE)
_AMBIGUOUS = re.compile(r"[-+]?0[0-9xo_][0-9a-f_]*", re.ASCII | re.IGNORECASE)  # octal in YAML 1.1, decimal in 1.2
_CONSTANTS: dict[str, bool | None] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}


@dataclass
class Node:
    """One node as it is written. `start` and `end` are offsets into the text (`end` of a block collection is not
    exact); in a mapping, keys and values alternate in `items`. `size` and `height` count aliases written out."""

    kind: Literal["mapping", "sequence", "scalar", "alias"]
    start: int
    end: int
    line: int
    value: str = ""  # of a scalar, or the name of an alias
    plain: bool = False
    flow: bool = False
    anchor: str | None = None
    items: list[Node] = field(default_factory=list)
    size: int = 1
    height: int = 0

    def pairs(self) -> Iterator[tuple[Node, Node]]:
        return zip(self.items[::2], self.items[1::2], strict=True)


def one_line(text: str, limit: int | None = None) -> str:
    """`text` on one line, whatever it holds: control, format (bidi) and separator characters are escaped."""
    source = text if limit is None else text[: limit + 1]
    shown = "".join(c.encode("unicode_escape").decode() if _invisible(c) else c for c in source)
    return shown if limit is None or len(shown) <= limit else shown[: limit - 3] + "..."


def _invisible(character: str) -> bool:
    category = unicodedata.category(character)
    return category[0] == "C" or category in ("Zl", "Zp")


def read_yaml(path: Path, what: str) -> dict[str, Any]:
    """The document in `path`; `what` names its kind in messages, such as "study file".

    Raises:
        NotFoundError: there is no such file.
        DocumentError: it is not a plain, small, unambiguous YAML mapping; with what, where and what to do.
    """
    return parse_yaml(read_text(path, what), what, str(path))


def parse_yaml(text: str, what: str, where: str) -> dict[str, Any]:
    """The mapping that `text` holds, in YAML 1.2 terms (`yes` and `1:30` are text).

    Raises:
        DocumentError: as `read_yaml`.
    """
    source = f"{what} {one_line(where)}"
    value = _value(parse_tree(text, what, where), source)
    assert isinstance(value, dict)
    return value


def read_text(path: Path, what: str) -> str:
    """The text of a regular file of at most `MAX_BYTES`, its line ends as they are.

    Raises:
        NotFoundError, DocumentError: as `read_yaml`.
    """
    source = f"{what} {one_line(str(path))}"
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise DocumentError(f"{source} is not a file; give the path of a YAML file")
        if found.st_size > MAX_BYTES:
            _refuse_size(source, found.st_size)
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a NUL in the path
        raise NotFoundError(f"{source} does not exist; check the path") from None
    except OSError as error:
        raise DocumentError(f"{source} cannot be read: {error.strerror}; check the path and its permissions") from None
    if len(content) > MAX_BYTES:
        _refuse_size(source, len(content))
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DocumentError(f"{source}, line {line}: not UTF-8; save the file as UTF-8") from None


def write_atomically(path: Path, text: str) -> None:
    """Replace `path` by a whole new file with `text`, or leave it as it was; its mode and line ends are kept.

    Raises:
        NotFoundError: its folder does not exist.
        DocumentError: it cannot be written, and why.
    """
    source = f"file {one_line(str(path))}"
    try:
        target = path.resolve()  # a link is followed, not replaced
        mode = _mode_of(target, source)
        scratch = target.with_name(f".fa-tune-{secrets.token_hex(8)}.tmp")
        content = text.encode()
        try:
            with os.fdopen(os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666), "wb") as file:
                if mode is not None:
                    os.fchmod(file.fileno(), mode)
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            scratch.replace(target)
        except BaseException:
            with contextlib.suppress(OSError):
                scratch.unlink(missing_ok=True)
            raise
    except (FileNotFoundError, NotADirectoryError):
        raise NotFoundError(f"{source}: its folder does not exist; create it, or choose another path") from None
    except UnicodeEncodeError:
        raise DocumentError(f"{source}: the text holds half a surrogate pair, which no file can hold") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "the path holds a NUL"
        raise DocumentError(f"{source} cannot be written: {reason}; nothing was changed") from None


def _mode_of(target: Path, source: str) -> int | None:
    """The permissions of the file that stands there, None where none does."""
    try:
        found = target.stat()
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(found.st_mode):
        raise DocumentError(f"{source} is a folder or a device; give the path of a file")
    if not os.access(target, os.W_OK):
        raise DocumentError(f"{source} is read-only; change its permissions, or choose another path")
    return stat.S_IMODE(found.st_mode)


def parse_tree(text: str, what: str, where: str, aliases: bool = False) -> Node:
    """The root mapping of `text` as it is written. Anchors and aliases only where `aliases` allows them.

    Raises:
        DocumentError: as `read_yaml`.
    """
    source = f"{what} {one_line(where)}"
    if len(text) > MAX_BYTES:
        _refuse_size(source, len(text))
    if (nul := text.find("\0")) >= 0:
        _refuse(source, text.count("\n", 0, nul), "a NUL character; remove it")
    import yaml

    try:
        return _Builder(source, aliases).build(yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = one_line(error.problem or error.context or "it cannot be parsed", 100)
        if "nesting depth" in problem:  # PyYAML has a bound of its own since 6.0.4, far above ours
            _refuse(source, mark.line if mark else None, TOO_DEEP)
        _refuse(source, mark.line if mark else None, f"not YAML: {problem}; correct the line")
    except (yaml.YAMLError, UnicodeEncodeError) as error:
        reason = one_line(str(getattr(error, "reason", error)), 100)
        raise DocumentError(f"{source} is not YAML: {reason}; save the file as plain UTF-8 text") from None


class _Builder:
    """Events to nodes, without recursion; stops at the first event that breaks a limit."""

    def __init__(self, source: str, aliases: bool) -> None:
        self.source = source
        self.aliases = aliases
        self.root: Node | None = None
        self.open: list[Node] = []
        self.keys: list[set[str]] = []
        self.anchors: dict[str, Node | None] = {}  # None while the node is still open

    def build(self, events: Iterator[Any]) -> Node:
        import yaml

        for event in events:
            line, end = event.start_mark.line, event.end_mark.index
            if isinstance(event, yaml.NodeEvent):
                self._check(event, line)
            if isinstance(event, yaml.AliasEvent):
                self._add(self._alias(event, line))
            elif isinstance(event, yaml.ScalarEvent):
                self._add(self._node("scalar", event, value=event.value, plain=event.implicit[0]))
            elif isinstance(event, yaml.MappingStartEvent):
                self._enter(self._node("mapping", event, flow=bool(event.flow_style)))
            elif isinstance(event, yaml.SequenceStartEvent):
                self._enter(self._node("sequence", event, flow=bool(event.flow_style)))
            elif isinstance(event, yaml.CollectionEndEvent):
                self._leave(end)
            elif isinstance(event, yaml.DocumentStartEvent) and self.root is not None:
                _refuse(self.source, line, "a second document starts here; keep one")
        if self.root is None:
            _refuse(self.source, None, "the file is empty; it must be a mapping of names to values")
        return self.root

    def _node(self, kind: Literal["mapping", "sequence", "scalar"], event: Any, **more: Any) -> Node:
        mark = event.start_mark
        return Node(kind, mark.index, event.end_mark.index, mark.line, anchor=event.anchor, **more)

    def _check(self, event: Any, line: int) -> None:
        if event.anchor is not None and not self.aliases:
            _refuse(self.source, line, f"anchors and aliases (&{event.anchor}) are not allowed; write the value out")
        if getattr(event, "tag", None) is not None:
            _refuse(self.source, line, f"the tag {one_line(str(event.tag), 60)} is not allowed; remove it")

    def _alias(self, event: Any, line: int) -> Node:
        target = self.anchors.get(event.anchor)
        if target is None:
            _refuse(
                self.source, line, f"the alias *{event.anchor} stands for nothing that is complete; write the value out"
            )
        node = Node("alias", event.start_mark.index, event.end_mark.index, line, value=event.anchor)
        node.size, node.height = target.size, target.height
        return node

    def _enter(self, node: Node) -> None:
        if len(self.open) >= MAX_DEPTH:
            _refuse(self.source, node.line, TOO_DEEP)
        if self.root is None:
            if node.kind != "mapping":
                _refuse(self.source, node.line, "the top level must be a mapping of names to values")
            self.root = node
        elif self._expects_key():
            _refuse(self.source, node.line, "a list or mapping cannot be a key; use text")
        self.open.append(node)
        self.keys.append(set())
        if node.anchor is not None:
            self.anchors[node.anchor] = None

    def _leave(self, end: int) -> None:
        node = self.open.pop()
        self.keys.pop()
        node.end = end
        if node.anchor is not None:
            self.anchors[node.anchor] = node
        if self.open:
            self._attach(node)

    def _add(self, node: Node) -> None:
        if self.root is None:
            _refuse(self.source, node.line, "the top level must be a mapping of names to values")
        if self._expects_key():
            if node.kind == "alias":
                _refuse(self.source, node.line, "an alias cannot be a key; write it out")
            if node.value in self.keys[-1]:
                _refuse(self.source, node.line, f'the key "{one_line(node.value, 60)}" is given twice; keep one')
            self.keys[-1].add(node.value)
        if node.anchor is not None:
            self.anchors[node.anchor] = node
        self._attach(node)

    def _expects_key(self) -> bool:
        return self.open[-1].kind == "mapping" and len(self.open[-1].items) % 2 == 0

    def _attach(self, node: Node) -> None:
        parent = self.open[-1]
        parent.items.append(node)
        parent.size += node.size
        parent.height = max(parent.height, node.height + 1)
        if (self.aliases and parent.size > MAX_EXPANDED_NODES) or len(self.open) + node.height > MAX_DEPTH:
            _refuse(self.source, node.line, "aliases make it grow beyond measure; write the values out")


def _value(node: Node, source: str) -> Any:
    if node.kind == "sequence":
        return [_value(item, source) for item in node.items]
    if node.kind == "mapping":
        return {_key(key, source): _value(value, source) for key, value in node.pairs()}
    return _scalar(node, source) if node.plain else node.value


def _key(node: Node, source: str) -> str | int:
    key = _scalar(node, source) if node.plain else node.value
    if str(key) != node.value or not isinstance(key, str | int):  # True is no "true", +7 would be 7 again
        _refuse(source, node.line, f'the key {one_line(node.value, 40) or "(empty)"} is not text; write it in "quotes"')
    return key


def _scalar(node: Node, source: str) -> str | int | float | bool | None:
    """A plain scalar in YAML 1.2's core schema, less what other readers take for something else."""
    text = node.value
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if _NOT_FINITE.fullmatch(text):
        _refuse(source, node.line, f"{text} is not a finite number; give one")
    if _AMBIGUOUS.fullmatch(text):
        shown = one_line(text, 40)
        _refuse(
            source, node.line, f'{shown} is read differently by YAML 1.1 and 1.2; write "{shown}" or a decimal number'
        )
    if not _FLOAT.fullmatch(text):
        return text
    if len(text) > 40:
        _refuse(source, node.line, f"the number {text[:20]}... has {len(text)} characters; at most 40 are allowed")
    number = int(text) if _INT.fullmatch(text) else float(text)
    if not math.isfinite(number):
        _refuse(source, node.line, f"{text} is too large for a number")
    return number


def _refuse(source: str, line: int | None, problem: str) -> NoReturn:
    raise DocumentError(f"{source}{'' if line is None else f', line {line + 1}'}: {problem}") from None


def _refuse_size(source: str, size: int) -> NoReturn:
    raise DocumentError(f"{source} has {size} bytes; at most {MAX_BYTES} (1 MiB) are allowed")
