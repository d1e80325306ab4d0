"""Cursors: ours lead on, whatever else is sent is refused and nothing else."""

from __future__ import annotations

from contextlib import suppress
from urllib.parse import parse_qs, urlsplit

from fa_tuner_api.paging import next_page, position
from hypothesis import given
from hypothesis import strategies as st

from fa_tuner.domain.errors import UsageError


@given(st.integers(0, 10**18 - 1), st.text(max_size=20))
def test_a_cursor_of_ours_leads_on(last: int, model: str) -> None:
    page = next_page(last, "/x", 5, {"model": model or None})
    assert position(page["next_cursor"]) == last
    query = parse_qs(urlsplit(page["next"]).query)
    assert query == {"limit": ["5"], "cursor": [page["next_cursor"]], **({"model": [model]} if model else {})}


@given(st.text(max_size=64) | st.text("MTIzNDU2Nzg5MA-_=", max_size=64))
def test_any_text_is_a_place_or_refused(cursor: str) -> None:
    with suppress(UsageError):
        place = position(cursor)
        assert place is not None and 0 <= place < 10**18
