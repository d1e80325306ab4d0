"""The selector's language, its bounds, and that it means what vLLM-Omni's parser makes of it."""

from __future__ import annotations

import time
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fa_tuner.domain.errors import SelectorError
from fa_tuner.domain.selector import MAX_CHARACTERS, MAX_TOKENS, SkipSelector

sets_of_indices = st.sets(st.integers(0, 9999), max_size=MAX_TOKENS)


def upstream(selector: str) -> set[int]:
    """What vLLM-Omni's `parse_kv_cache_skip_selector` makes of a string (None there is the empty set here)."""
    found: set[int] = set()
    for item in (chunk.strip() for chunk in selector.strip().split(",")):
        if not item:
            continue
        first, dash, last = item.partition("-")
        low, high = int(first.strip()), int((last if dash else first).strip())
        if low < 0 or high < 0 or low > high:
            raise ValueError(item)
        found.update(range(low, high + 1))
    return found


@given(sets_of_indices)
def test_what_is_rendered_is_read_back(indices: set[int]) -> None:
    selector = SkipSelector.of(indices)
    assert SkipSelector.parse(str(selector)) == selector
    assert set(selector) == indices
    assert list(selector) == sorted(indices)
    assert len(selector) == len(indices)


@given(sets_of_indices)
def test_upstream_reads_what_is_rendered(indices: set[int]) -> None:
    assert upstream(str(SkipSelector.of(indices))) == indices


@given(st.text(alphabet="0123456789,- ", max_size=24))
def test_whatever_is_accepted_means_the_same_upstream(text: str) -> None:
    try:
        selector = SkipSelector.parse(text)
    except SelectorError as error:
        assert error.position is not None and 0 <= error.position <= len(text)
        return
    assert set(selector) == upstream(text)


@given(st.text(max_size=40))
def test_any_text_is_read_or_refused_as_a_selector(text: str) -> None:
    try:
        selector = SkipSelector.parse(text, 50, "step")
    except SelectorError as error:
        assert str(error).isascii() or "at position" in str(error)
    else:
        assert all(0 <= index < 50 for index in selector)


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 9)), min_size=1, max_size=20))
def test_items_in_any_order_and_overlapping_are_a_union(ranges: list[tuple[int, int]]) -> None:
    text = ",".join(f"{first}-{first + more}" for first, more in ranges)
    assert set(SkipSelector.parse(text)) == upstream(text)


@pytest.mark.parametrize(
    ("text", "indices"),
    [
        ("", ()),
        ("   ", ()),
        ("0", (0,)),
        ("0,1,4-6", (0, 1, 4, 5, 6)),
        (" 1 , 3 - 4 ", (1, 3, 4)),
        ("7,7,7", (7,)),
        ("5-5", (5,)),
        ("003", (3,)),
        ("3-6,2,4-5", (2, 3, 4, 5, 6)),
    ],
)
def test_accepted(text: str, indices: tuple[int, ...]) -> None:
    assert SkipSelector.parse(text).indices == indices


@pytest.mark.parametrize(
    ("indices", "text"),
    [
        ((), ""),
        ((3,), "3"),
        ((0, 1), "0,1"),
        ((0, 1, 2), "0-2"),
        ((9, 4, 5, 6, 0), "0,4-6,9"),
        ((0, 1, 3, 4), "0,1,3,4"),
    ],
)
def test_rendered_canonically(indices: tuple[int, ...], text: str) -> None:
    assert str(SkipSelector.of(indices)) == text


def test_a_large_set_is_rendered_within_the_limits() -> None:
    selector = SkipSelector.of(index for index in range(1000) if index % 3)
    assert SkipSelector.parse(str(selector), 1000) == selector


@pytest.mark.parametrize(
    ("text", "position"),
    [
        (",", 0),
        ("1,", 2),
        ("1,,2", 2),
        ("3-1", 0),
        ("0,9-8", 2),
        ("-1", 0),
        ("1--3", 1),
        ("1-2-3", 3),
        ("5-", 1),
        ("1_0", 1),
        ("+5", 0),
        ("\u0661\u0662", 0),
        ("0,\u0663", 2),
        ("\uff11", 0),
        ("1e3", 1),
        ("\0", 0),
        ("1\0", 1),
        ("1\n", 1),
        ("\t1", 0),
        ("1 2", 2),
        ("0x1", 1),
        ("1.0", 1),
        ("00001", 4),
        ("all", 0),
        ("1;2", 1),
    ],
)
def test_refused_with_the_position(text: str, position: int) -> None:
    with pytest.raises(SelectorError) as caught:
        SkipSelector.parse(text)
    assert caught.value.position == position
    assert f"at position {position}" in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(("text", "position"), [("4", 0), ("0,4", 2), ("1,2-4", 2), ("9999", 0), ("0-9999", 0)])
def test_bounds_are_named(text: str, position: int) -> None:
    with pytest.raises(SelectorError, match="there are 4, numbered 0 to 3") as caught:
        SkipSelector.parse(text, 4, "step")
    assert caught.value.position == position


def test_a_negative_index_is_refused() -> None:
    with pytest.raises(SelectorError, match="negative"):
        SkipSelector.of([3, -1])


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("0-999999999999", id="a range of a million million"),
        pytest.param("0-9999," * 600, id="many full ranges"),
        pytest.param(",".join(["0"] * 1_000_000), id="a million tokens"),
        pytest.param("9" * 5000, id="a number of 5,000 digits"),
        pytest.param("9" * 4000, id="a number of 4,000 digits"),
        pytest.param("," * MAX_CHARACTERS, id="nothing but commas"),
        pytest.param("1," * MAX_TOKENS + "1", id="one token too many"),
        pytest.param(" " * 3000 + "x", id="mostly spaces"),
        pytest.param("1" + " " * 3000 + "x", id="spaces after a number"),
        pytest.param("x" * 10_000_000, id="ten million letters"),
    ],
)
def test_hostile_input_is_refused_quickly_and_cheaply(text: str) -> None:
    seconds = []
    for _ in range(3):  # the best of three: the machine may be busy
        started = time.perf_counter()
        with pytest.raises(SelectorError):
            SkipSelector.parse(text)
        seconds.append(time.perf_counter() - started)
    assert min(seconds) < 0.05

    tracemalloc.start()
    with pytest.raises(SelectorError) as caught:
        SkipSelector.parse(text)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 5e6
    assert len(str(caught.value)) < 300


def test_many_full_ranges_that_overlap_cost_one() -> None:
    started = time.perf_counter()
    assert len(SkipSelector.parse(",".join(["0-9999"] * 500))) == 10_000
    assert time.perf_counter() - started < 0.2
