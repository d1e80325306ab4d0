"""Strict YAML in, whole files out."""

from __future__ import annotations

import os
import stat
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from fa_tuner.documents import MAX_BYTES, one_line, parse_tree, parse_yaml, read_yaml, write_atomically
from fa_tuner.domain.errors import DocumentError, NotFoundError

LAUGHS = "a: &a [x, x]\n" + "".join(
    f"{b}: &{b} [*{a}, *{a}]\n" for a, b in zip("abcdefghijklmnopqrst", "bcdefghijklmnopqrstu", strict=True)
)


def parse(text: str) -> dict[str, Any]:
    return parse_yaml(text, "study file", "demo.yaml")


def test_reads_plain_values() -> None:
    text = """---
    # a comment
    model: "a/b"
    steps: 40
    negative: -3
    shift: 5.0
    small: 1e-3
    nothing:
    also nothing: ~
    yes_or_no: [true, False, yes, no, on]
    prompts:
      - a cat
      - 'one: two'
      - 1:30
      - |
        two
        lines
    nested: {width: 1280, 7: seven}
    """
    assert parse(text) == {
        "model": "a/b", "steps": 40, "negative": -3, "shift": 5.0, "small": 0.001, "nothing": None,
        "also nothing": None, "yes_or_no": [True, False, "yes", "no", "on"],
        "prompts": ["a cat", "one: two", "1:30", "two\nlines\n"], "nested": {"width": 1280, 7: "seven"},
    }  # fmt: skip
    assert type(parse("a: 40")["a"]) is int


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3", 'line 3: the key "a" is given twice'),
        ("a:\n  b: {c: 1, c: 2}", 'line 2: the key "c" is given twice'),
        ("a: !!python/object/apply:os.system ['true']", "line 1: the tag tag:yaml.org,2002:python/object/apply:"),
        ("a: !x 1", "line 1: the tag !x is not allowed"),
        ("a: 1\nb: &anchor 2", "line 2: anchors and aliases"),
        ("a: *nowhere", "alias"),
        (LAUGHS, "line 1: anchors and aliases"),
        ("a: " + "[" * 5000 + "]" * 5000, "nested more than 32 levels"),
        ("a: " + "[" * 5000, "nested more than 32 levels"),
        ("a: " + '{"a": ' * 5000, "nested more than 32 levels"),
        ("\n".join(" " * n + "a:" for n in range(1000)), "nested more than 32 levels"),
        ("- " * 5000, "top level must be a mapping"),
        ("a: 1\n--- \nb: 2", "line 2: a second document"),
        ("- a\n- b", "top level must be a mapping"),
        ("text", "top level must be a mapping"),
        ("", "the file is empty"),
        ("# nothing\n", "the file is empty"),
        ("a: 1\nb: \0", "line 2: a NUL"),
        ("a: 1\nb: .inf", "line 2: .inf is not a finite number"),
        ("a: [-.INF]", "not a finite number"),
        ("a: .NaN", "not a finite number"),
        ("a: 1e999", "too large for a number"),
        ("a: " + "9" * 5000, "has 5000 characters"),
        ("a: 012", "read differently by YAML 1.1 and 1.2"),
        ("a: 0x1F", "read differently"),
        ("true: 1", "is not text"),
        ("1.5: 1", "is not text"),
        ("7: 1\n+7: 2", "is not text"),
        ("? [a]\n: 1", "cannot be a key"),
        ("a:\n\t- b", "line 2: not YAML"),
        ("a: 'open", "not YAML"),
        ("a: \x07", "not YAML"),
        ("a: \udc80", "not YAML"),
        ("x" * (MAX_BYTES + 1), "at most 1048576"),
    ],
    ids=range(34),
)  # fmt: skip
def test_refuses_quickly(text: str, message: str) -> None:
    begun = time.perf_counter()
    with pytest.raises(DocumentError) as caught:
        parse(text)
    assert time.perf_counter() - begun < 0.5  # 50 ms on an idle machine
    assert str(caught.value).startswith("study file demo.yaml")
    assert message in str(caught.value)
    assert len(str(caught.value)) < 300


def test_both_parsers_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    text = '# é\nä: 1 # c\nb:\nc: [a, {x: }]\nd: |+\n  t\n\n# com\ne:\n- q\n- 🎬: "r"\n'
    fast = parse_tree(text, "file", "x")
    monkeypatch.delattr(yaml, "CSafeLoader")
    slow = parse_tree(text, "file", "x")
    assert parse(text) == {"ä": 1, "b": None, "c": ["a", {"x": None}], "d": "t\n\n", "e": ["q", {"🎬": "r"}]}
    assert [key.start for key, _ in fast.pairs()] == [key.start for key, _ in slow.pairs()]
    with pytest.raises(DocumentError, match="nested more"):
        parse("a: " + "[" * 5000)


def test_aliases_are_measured_where_they_are_allowed() -> None:
    tree = parse_tree("a: &a {x: 1}\nb: *a\n", "deploy file", "d.yaml", aliases=True)
    assert [value.kind for _, value in tree.pairs()] == ["mapping", "alias"]
    chain = "a0: &a0 [x]\n" + "".join(f"a{n + 1}: &a{n + 1} [*a{n}]\n" for n in range(2000))
    for bomb in (LAUGHS, chain, "a: &a [*a]", "a: *b"):
        with pytest.raises(DocumentError):
            parse_tree(bomb, "deploy file", "d.yaml", aliases=True)


@given(st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        assert isinstance(parse(text), dict)
    except DocumentError as error:
        assert str(error).startswith("study file demo.yaml")


_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["C", "Z"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", min_size=1), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@given(st.dictionaries(st.text("abcdef", min_size=1), _values))
def test_reads_back_json(document: dict[str, Any]) -> None:
    import json

    assert parse(json.dumps(document, ensure_ascii=False)) == document


def test_read_yaml_names_the_file(tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    file.write_bytes(b"\xef\xbb\xbfa: 1\r\nb: 2\r\n")
    assert read_yaml(file, "study file") == {"a": 1, "b": 2}
    file.write_bytes(b"a: 1\nb: \xff\n")
    with pytest.raises(DocumentError, match=r"study\.yaml, line 2: not UTF-8"):
        read_yaml(file, "study file")
    file.write_bytes("a: 1".encode("utf-16"))
    with pytest.raises(DocumentError, match="not UTF-8"):
        read_yaml(file, "study file")


@pytest.mark.parametrize("name", ["missing.yaml", "no/such/folder.yaml", "nul\0.yaml", "file/below"])
def test_a_missing_file_is_not_found(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotFoundError, match="does not exist"):
        read_yaml(tmp_path / name, "study file")


def test_refuses_what_is_no_small_file(tmp_path: Path) -> None:
    huge = tmp_path / "huge.yaml"
    with huge.open("wb") as file:
        file.truncate(100_000_000)
    os.mkfifo(tmp_path / "pipe")
    begun = time.perf_counter()
    for path, message in ((huge, "100000000 bytes"), (tmp_path, "not a file"), (tmp_path / "pipe", "not a file")):
        with pytest.raises(DocumentError, match=message):
            read_yaml(path, "study file")
    assert time.perf_counter() - begun < 0.5
    with pytest.raises(DocumentError, match="cannot be read"):
        read_yaml(tmp_path / ("x" * 300), "study file")


def test_write_replaces_the_whole_file_and_keeps_its_mode(tmp_path: Path) -> None:
    target = tmp_path / "out.yaml"
    write_atomically(target, "one\r\ntwo\n")
    assert target.read_bytes() == b"one\r\ntwo\n"
    target.chmod(0o640)
    write_atomically(target, "é")
    assert target.read_text() == "é"
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
    (tmp_path / "link.yaml").symlink_to(target)
    write_atomically(tmp_path / "link.yaml", "through the link")
    assert target.read_text() == "through the link"
    assert (tmp_path / "link.yaml").is_symlink()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link.yaml", "out.yaml"]


@pytest.mark.parametrize("failing", ["fsync", "fchmod", "write"])
def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    target = tmp_path / "out.yaml"
    target.write_text("old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    if failing == "write":
        monkeypatch.setattr(Path, "replace", full)
    else:
        monkeypatch.setattr(os, failing, full)
    with pytest.raises(DocumentError, match="No space left on device; nothing was changed"):
        write_atomically(target, "new")
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_an_interrupt_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "out.yaml", "new")
    assert list(tmp_path.iterdir()) == []


def test_write_says_why_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NotFoundError, match="folder does not exist"):
        write_atomically(tmp_path / "no" / "out.yaml", "x")
    with pytest.raises(DocumentError, match="a folder or a device"):
        write_atomically(tmp_path, "x")
    with pytest.raises(DocumentError, match="a folder or a device"):
        write_atomically(Path("/dev/null"), "x")
    with pytest.raises(DocumentError, match="surrogate"):
        write_atomically(tmp_path / "out.yaml", "\udc80")
    with pytest.raises(DocumentError, match="NUL"):
        write_atomically(tmp_path / "nul\0", "x")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "kept.yaml").touch()
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write everywhere
    with pytest.raises(DocumentError, match="read-only"):
        write_atomically(tmp_path / "kept.yaml", "x")


@given(st.text(), st.none() | st.integers(8, 80))
def test_one_line_is_one_line(text: str, limit: int | None) -> None:
    shown = one_line(text, limit)
    assert len(f"x{shown}x".splitlines()) == 1
    assert limit is None or len(shown) <= limit
    assert not any(c in shown for c in "\0\u202e\u2066\u200b\ufeff\x1b")
