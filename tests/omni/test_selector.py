"""Our selectors against vLLM-Omni's own parser: a part of its language, with the same meaning."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fa_tuner.domain.errors import SelectorError
from fa_tuner.domain.selector import SkipSelector

Parse = Callable[[str], set[int] | None]
CASES = 4000
# torch deprecates what vllm uses while it is imported
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

_spaces = st.sampled_from(("", "", " ", "  "))
_number = st.integers(0, 300).map(str) | st.sampled_from(("007", "0000", "0300"))
_index = st.tuples(_spaces, _number, _spaces).map("".join)
_range = st.tuples(st.integers(0, 300), st.integers(0, 40), _spaces, _spaces, _spaces, _spaces).map(
    lambda x: f"{x[2]}{x[0]}{x[3]}-{x[4]}{x[0] + x[1]}{x[5]}"
)
_valid = st.lists(_index | _range, max_size=12).map(",".join)
# four digits at most, so that upstream, which has no bound, cannot be asked for more memory than there is
_arbitrary = st.text("0123456789,- \t\n+_.xa\u0663\uff11\u00a0", max_size=24).filter(
    lambda text: re.search(r"[\d_]{5}", text) is None
)


@pytest.fixture(scope="module")
def upstream() -> Parse:
    from vllm_omni.diffusion.data import parse_kv_cache_skip_selector

    return parse_kv_cache_skip_selector


@settings(max_examples=CASES, deadline=None)
@given(_valid)
@example("")
@example("   ")
@example("0-0")
@example("0,1,38,39")
@example("3,1-5,2")
def test_what_we_write_down_means_the_same(upstream: Parse, text: str) -> None:
    ours = SkipSelector.parse(text)
    assert (upstream(text) or set()) == set(ours)
    assert (upstream(str(ours)) or set()) == set(ours)


@settings(max_examples=CASES, deadline=None)
@given(_arbitrary)
@example("1,,2")
@example("1,")
@example(",")
@example("+3")
@example("1_0")
@example("1--2")
@example("-1")
@example("5-2")
@example("\u0663")
@example("1\u00a0")
@example("\t1")
def test_what_we_accept_upstream_accepts_and_means_the_same(upstream: Parse, text: str) -> None:
    try:
        ours = SkipSelector.parse(text)
    except SelectorError:
        return
    assert (upstream(text) or set()) == set(ours)


@settings(max_examples=CASES, deadline=None)
@given(_arbitrary)
@example("5-2")
@example("-1")
@example("a")
@example("1-")
def test_what_upstream_refuses_we_refuse(upstream: Parse, text: str) -> None:
    try:
        upstream(text)
    except ValueError:
        with pytest.raises(SelectorError):
            SkipSelector.parse(text)


@settings(max_examples=CASES, deadline=None)
@given(st.sets(st.integers(0, 9999), max_size=200))
def test_any_set_survives_the_way_through_upstream(upstream: Parse, indices: set[int]) -> None:
    assert (upstream(str(SkipSelector.of(indices))) or set()) == indices
