"""Kept prefixes: found by what they share, given back as they were, let go of by their use."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch

from fa_tuner.domain.policy import Grid, SkipPolicy
from fa_tuner.engines.prefixes import Prefixes, step_rows

NATIVE, FP8, LATE = ("native",) * 4, ("fp8/",) * 4, ("native", "fp8/", "fp8/", "fp8/")
LARGE = 2**30


def values(number: float, size: int = 100) -> tuple[torch.Tensor, dict[str, Any]]:
    return torch.full((size,), number), {"history": [torch.full((2,), number)]}


def kept(prefixes: Prefixes, rows: tuple[str, ...], *dones: int, case: str = "a", size: int = 100) -> None:
    for done in dones:
        prefixes.keep(case, rows[:done], values(done, size), Counter({(0, 0, rows[0]): done}))


def longest(prefixes: Prefixes, rows: tuple[str, ...], case: str = "a") -> int:
    found = prefixes.longest(case, rows)
    return 0 if found is None else found[0]


def size_of_one(size: int = 100) -> int:
    prefixes = Prefixes(LARGE)
    kept(prefixes, NATIVE, 1, size=size)
    return prefixes.held_bytes


def test_rows_say_what_each_step_runs_in() -> None:
    grid = Grid(4, (0, 1, 2))
    assert step_rows(SkipPolicy(), 4) == NATIVE
    assert step_rows(SkipPolicy.parse("0,2/1", ("mxfp4",), grid), 4) == ("native", "mxfp4/1", "native", "mxfp4/1")
    different = [SkipPolicy("fp8"), SkipPolicy("mxfp8"), SkipPolicy.parse("/0", ("fp8",), grid)]
    assert len({step_rows(policy, 4)[0] for policy in different}) == 3


def test_the_longest_shared_prefix_is_found() -> None:
    prefixes = Prefixes(LARGE)
    assert longest(prefixes, NATIVE) == 0
    kept(prefixes, NATIVE, 1, 2, 3)
    assert longest(prefixes, NATIVE) == 3
    assert longest(prefixes, ("native", "native", "fp8/", "native")) == 2
    assert longest(prefixes, LATE) == 1
    assert longest(prefixes, FP8) == 0 and longest(prefixes, NATIVE, "b") == 0


def test_a_whole_run_is_no_prefix() -> None:
    """The last step must run: there would be no latents to go on with."""
    prefixes = Prefixes(LARGE)
    kept(prefixes, NATIVE, 2, 4)
    assert longest(prefixes, NATIVE) == 2
    assert longest(prefixes, (*NATIVE, "fp8/")) == 4


def test_gaps_do_not_matter() -> None:
    prefixes = Prefixes(LARGE)
    kept(prefixes, NATIVE, 3)
    assert longest(prefixes, NATIVE) == 3 and longest(prefixes, NATIVE[:3]) == 0


def test_what_is_given_back_is_what_was_kept() -> None:
    prefixes = Prefixes(LARGE)
    latents, scheduler = values(1.0)
    prefixes.keep("a", NATIVE[:1], (latents, scheduler), Counter({(0, 0, "native"): 2}))
    latents += 5
    scheduler["history"][0] += 5
    found = prefixes.longest("a", NATIVE)
    assert found is not None
    for _ in range(2):  # each run has one of its own
        back, its_scheduler = found[1].restored()
        assert torch.equal(back, values(1.0)[0])
        assert torch.equal(its_scheduler["history"][0], torch.full((2,), 1.0))
        back += 1
        its_scheduler["history"].clear()
    assert found[1].calls == {(0, 0, "native"): 2}


def test_the_same_prefix_is_kept_once() -> None:
    prefixes = Prefixes(LARGE)
    kept(prefixes, NATIVE, 1)
    before = prefixes.held_bytes
    prefixes.keep("a", NATIVE[:1], values(9.0), Counter())
    found = prefixes.longest("a", NATIVE)
    assert found is not None and prefixes.held_bytes == before > 0
    assert torch.equal(found[1].restored()[0], values(1.0)[0]), "the first, which is as good"


def test_the_limit_is_kept() -> None:
    prefixes, one = Prefixes(3 * size_of_one()), size_of_one()
    for case in "abcdef":
        kept(prefixes, FP8, 1, 2, case=case)
        assert 0 < prefixes.held_bytes <= 3 * one


def test_what_was_not_used_for_longest_goes_first() -> None:
    prefixes = Prefixes(3 * size_of_one())
    for case in "abc":
        kept(prefixes, FP8, 1, case=case)
    longest(prefixes, FP8, "a")
    kept(prefixes, FP8, 1, case="d")
    assert [case for case in "abcd" if longest(prefixes, FP8, case)] == ["a", "c", "d"]


def test_a_large_one_takes_the_place_of_several() -> None:
    prefixes = Prefixes(3 * size_of_one())
    for case in "abc":
        kept(prefixes, FP8, 1, case=case)
    kept(prefixes, FP8, 1, case="d", size=600)
    assert 2 * size_of_one() < size_of_one(600) <= 3 * size_of_one(), "otherwise this test could not fail"
    assert [case for case in "abcd" if longest(prefixes, FP8, case)] == ["d"]
    assert prefixes.held_bytes <= 3 * size_of_one()


def test_native_states_go_last() -> None:
    """They serve every policy that begins with skipped steps."""
    prefixes = Prefixes(3 * size_of_one())
    kept(prefixes, NATIVE, 1, 2)
    for case in "bcd":
        kept(prefixes, FP8, 1, case=case)
        assert longest(prefixes, NATIVE) == 2
    assert [case for case in "bcd" if longest(prefixes, FP8, case)] == ["d"]
    kept(prefixes, NATIVE, 3)
    assert longest(prefixes, FP8, "d") == 0 and longest(prefixes, NATIVE) == 3
    kept(prefixes, FP8, 1)
    assert longest(prefixes, FP8) == 0, "there is room for native ones only"
    kept(prefixes, NATIVE, 1, case="b")
    assert longest(prefixes, NATIVE, "b") == 1


def test_native_steps_of_a_policy_are_native_states() -> None:
    prefixes = Prefixes(2 * size_of_one())
    kept(prefixes, LATE, 1, 2)
    kept(prefixes, FP8, 1)
    assert longest(prefixes, NATIVE) == 1 and longest(prefixes, LATE) == 1 and longest(prefixes, FP8) == 1


def test_one_that_is_too_large_leaves_nothing() -> None:
    prefixes = Prefixes(size_of_one() - 1)
    kept(prefixes, NATIVE, 1)
    assert longest(prefixes, NATIVE) == 0 and prefixes.held_bytes == 0
    none = Prefixes(0)
    kept(none, FP8, 1, 2)
    assert none.held_bytes == 0
